"""Batches of groups and of single images: layout, exact state, parts, workers, and the original's
own loader.
"""
import json
import os
import sys
import time
import warnings

import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.iterators import ClassificationIter, DeviceFeed, PairIter, split_batch
from cian.data.records import RecordSet
from cian.errors import InputError

CROP = 61
SMALL = {"batch_size": 4, "crop_px": CROP}


def pair_iter(records, **options):
    return PairIter(records.images, records.seeds, **{**SMALL, **options})


def contents(batch):
    return [array.asnumpy() for array in (*batch.data, *batch.label)] + [np.asarray(batch.index)]


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, b) for one, other in zip(first, second) for a, b in zip(one, other))


def epochs(iterator, count):
    """Contents of all batches of some epochs, epoch by epoch."""
    result = []
    for _ in range(count):
        iterator.reset()
        result.append([contents(batch) for batch in iterator])
    return result


def test_a_batch_is_what_its_index_says(records, tree):
    with pair_iter(records, scales=(), mirror=False, num_devices=2, batch_size=8) as iterator:
        batch = next(iterator)
        (images, seeds, labels, index), names = contents(batch), records.images.names
        assert (images.shape, seeds.shape, labels.shape) == ((8, 3, CROP, CROP), (8, 8, 8), (8, 21))
        assert {array.dtype for array in (*batch.data, *batch.label)} == {np.float32}
        assert batch.pad == 0
        assert [desc.shape for desc in iterator.provide_data
                + iterator.provide_label] == [images.shape, seeds.shape, labels.shape]
        groups = iterator.sampler.groups[:4]
    assert index.tolist() == [*groups[:2, 0], *groups[:2, 1], *groups[2:, 0], *groups[2:, 1]]
    assert np.array_equal(labels, tree.labels[index])
    for row, position in enumerate(index):
        rgb = cv2.imread(str(tree.root / "JPEGImages" / f"{names[position]}.jpg"))[:, :, ::-1].transpose(
            2, 0, 1).astype(np.float32)
        cut = images[row][:, :min(CROP, rgb.shape[1]), :min(CROP, rgb.shape[2])]
        windows = np.lib.stride_tricks.sliding_window_view(rgb, cut.shape)[0]
        assert (windows == cut).all(axis=(2, 3, 4)).any(), f"row {row} is no part of image {names[position]}"
        seed = cv2.imread(str(tree.root / "seeds" / f"{names[position]}.png"), 0)
        assert set(np.unique(seeds[row])) & set(np.unique(seed)), "the seed belongs to the image by name"


@pytest.mark.parametrize("order", ["original", "counter"])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_workers(records, order, workers):
    with pair_iter(records, order=order) as alone, pair_iter(records, order=order, workers=workers) as helped:
        for first, second in zip(epochs(alone, 2), epochs(helped, 2)):
            assert first
            assert same(first, second)


@pytest.mark.parametrize("order", ["original", "counter"])
@pytest.mark.parametrize("pairing", ["common", "even", "random"])
def test_a_restored_iterator_hands_out_the_batches_that_would_have_followed(records, pairing, order):
    options = {"pairing": pairing, "order": order, "batch_size": 3, "group_size": 3}
    with pair_iter(records, workers=2, **options) as iterator:
        expected, states, lengths = [], [iterator.state_dict()], []
        for _ in range(2):
            iterator.reset()
            lengths.append(len(iterator))
            for batch in iterator:
                expected.append(contents(batch))
                states.append(json.loads(json.dumps(iterator.state_dict())))
    assert len(expected) == sum(lengths)
    for position in (0, 1, lengths[0] - 1, lengths[0], lengths[0] + 2):
        workers = position % 3
        with pair_iter(records, workers=workers, **options) as restored:
            next(restored)
            restored.load_state_dict(states[position])
            assert restored.state_dict() == states[position]
            following = [contents(batch) for batch in restored]
            restored.reset()
            following += [contents(batch) for batch in restored]
        assert same(following[:len(expected) - position], expected[position:]), f"from position {position}"


def test_a_new_process_seed_does_not_matter_after_restoring(records):
    with pair_iter(records, seed=1) as iterator, pair_iter(records, seed=2) as other:
        next(iterator)
        other.load_state_dict(iterator.state_dict())
        assert same([contents(next(iterator))], [contents(next(other))])


@pytest.mark.parametrize("workers", [0, 2])
def test_reset_in_the_middle_takes_back_what_was_drawn_ahead(records, workers):
    with pair_iter(records, workers=workers) as iterator, pair_iter(records) as plain:
        for either in (iterator, plain):
            next(either)
            next(either)
            either.reset()
        assert (iterator.epoch, iterator.position) == (1, 0)
        assert same([contents(next(iterator))], [contents(next(plain))])


def test_reset_of_a_fresh_epoch_changes_nothing(records):
    with pair_iter(records) as iterator, pair_iter(records) as plain:
        iterator.reset()
        iterator.reset()
        assert (iterator.epoch, iterator.position) == (0, 0)
        assert same([contents(next(iterator))], [contents(next(plain))])
        assert iterator.position == 1


def test_a_counted_sample_depends_on_seed_epoch_and_image_only(records):
    """The same image in the same epoch: the same crop, in batches of another size, pairing and order too."""
    seen = {}
    for options in ({"pairing": "common"}, {"pairing": "random", "batch_size": 8},
                    {"pairing": "random", "group_size": 4}):
        with pair_iter(records, order="counter", **options) as iterator:
            for batch in iterator:
                for row, position in enumerate(batch.index.tolist()):
                    seen.setdefault(position, []).append(contents(batch)[0][row])
    assert sum(len(crops) > 1 for crops in seen.values()) > 20
    assert all(np.array_equal(crops[0], crop) for crops in seen.values() for crop in crops)


def test_an_image_that_comes_twice_in_an_epoch_is_cut_differently(records):
    crops = {}
    with pair_iter(records, order="counter", pairing="even", batch_size=24) as iterator:
        for batch in iterator:
            for row, position in enumerate(batch.index.tolist()):
                crops.setdefault(position, []).append(contents(batch)[0][row])
    assert set(crops) == set(range(31))
    twice = [pair for pair in crops.values() if len(pair) == 2]
    different = sum(not np.array_equal(*pair) for pair in twice)
    assert len(twice) > 10
    assert different > 0.7 * len(twice), "of small images some crops agree by chance"


@pytest.mark.parametrize("order", ["original", "counter"])
def test_parts_together_are_one_iterator_with_all_devices(records, order):
    with pair_iter(records, order=order, batch_size=12, num_devices=3) as whole:
        expected = epochs(whole, 2)
    parts = []
    for part in range(3):
        with pair_iter(records, order=order, part_index=part, num_parts=3, workers=part) as iterator:
            parts.append(epochs(iterator, 2))
    for epoch, batches in enumerate(expected):
        joined = [[np.concatenate(arrays) for arrays in zip(*of_parts)]
                  for of_parts in zip(*(part[epoch] for part in parts))]
        assert same(joined, batches)
        assert len(batches) == 2
        served = np.concatenate([batch[-1] for batch in batches])
        assert len(set(served)) == len(served)


def test_a_state_of_other_settings_is_refused_by_name(records):
    with pair_iter(records) as iterator, pair_iter(records, scales=(1.0,)) as scaled, pair_iter(
            records, pairing="even") as even:
        state = iterator.state_dict()
        with pytest.raises(InputError, match="^scales: the saved state has"):
            scaled.load_state_dict(state)
        with pytest.raises(InputError, match="^pairing: the saved state has 'common', this run 'even'"):
            even.load_state_dict(state)


@pytest.mark.parametrize(
    "options, message",
    [({"batch_size": 6, "group_size": 4}, "batch_size: 6 images do not divide into groups of 4 on 1 device"),
     ({"batch_size": 4, "num_devices": 4}, "use a multiple of 8"),
     ({"part_index": 2, "num_parts": 2}, "part_index: 2 is not a part of 2"),
     ({"workers": -1}, "workers: must be at least 0"), ({"label_resize": "cubic"}, "label_resize: "),
     ({"pairing": "all"}, "pairing: ")])
def test_wrong_options_are_refused_by_name(records, options, message):
    with pytest.raises(InputError, match=message):
        pair_iter(records, **options)


@pytest.fixture
def damaged(records, tmp_path):
    """The record sets with one byte of image 7 flipped after they were opened."""
    for name in os.listdir(records.folder):
        (tmp_path / name).write_bytes((records.folder / name).read_bytes())
    images, seeds = RecordSet.open(tmp_path, "images"), RecordSet.open(tmp_path, "seeds")
    path, rows = images.files()[0][0], images.rows()
    with open(path, "r+b") as stream:
        stream.seek(int(rows["offset"][7] + rows["span"][7] // 2))
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    return images, seeds


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_the_epoch_by_its_name_and_closes_the_workers(damaged, workers):
    iterator = PairIter(*damaged, **SMALL, workers=workers, pairing="even")
    with pytest.raises(InputError, match=r"record 7 \(im_07\).*checksum"):
        for _ in iterator:
            pass
    with pytest.raises(RuntimeError, match="the iterator is closed"):
        next(iterator)


def test_a_batch_stays_as_it_is_when_later_ones_are_made(records):
    with pair_iter(records, workers=1) as iterator:
        first = next(iterator)
        kept = contents(first)
        for _ in range(5):
            next(iterator)
        assert same([contents(first)], [kept])


def test_single_images_come_with_their_labels_and_go_on_after_restoring(records, tree):
    options = {"batch_size": 4, "crop_px": CROP, "seed": 5}
    with ClassificationIter(records.images, workers=2, **options) as iterator:
        batches, states = [], []
        for batch in iterator:
            batches.append((contents(batch), batch.pad))
            states.append(json.loads(json.dumps(iterator.state_dict())))
        assert iterator.num_batches == len(batches) == 8
    assert [pad for _, pad in batches] == [0] * 7 + [1]
    served = np.concatenate([content[-1] for content, _ in batches])
    assert sorted(served[:31]) == list(range(31))
    assert all(np.array_equal(labels, tree.labels[index, 1:]) for (_, labels, index), _ in batches)
    with ClassificationIter(records.images, **options) as restored:
        restored.load_state_dict(states[4])
        assert same([contents(batch) for batch in restored], [content for content, _ in batches[5:]])
        restored.reset()
        assert not np.array_equal(next(restored).index, batches[0][0][-1])


def test_parts_of_single_images_are_disjoint(records):
    served = []
    for part in range(2):
        with ClassificationIter(records.images, batch_size=3, crop_px=CROP, part_index=part,
                                num_parts=2) as iterator:
            served.append(np.concatenate([batch.index for batch in iterator]))
    together = np.concatenate([one.reshape(-1, 3) for one in served], axis=1)
    assert set(together.ravel()) == set(range(31))
    assert len(set(together[:-1].ravel())) == together[:-1].size


def test_split_gives_each_device_its_block(records):
    with pair_iter(records, num_devices=2) as iterator:
        batch = next(iterator)
    parts = split_batch(batch, [mx.cpu(0), mx.cpu(1)])
    assert [part.data[0].context for part in parts] == [mx.cpu(0), mx.cpu(1)]
    joined = [np.concatenate(arrays) for arrays in zip(*(contents(part) for part in parts))]
    assert same([joined], [contents(batch)])
    with pytest.raises(InputError, match="a batch of 4 does not divide over 3 devices"):
        split_batch(batch, [mx.cpu()] * 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_feed_is_one_batch_ahead_and_its_state_is_not(records, workers):
    with pair_iter(records) as plain, pair_iter(records, workers=workers) as iterator:
        feed = DeviceFeed(iterator, [mx.cpu(0)])
        expected = epochs(plain, 3)
        handed, states = [], []
        for part, in feed:
            handed.append(contents(part))
            states.append(feed.state_dict())
        assert same(handed, expected[0])
        feed.load_state_dict(states[2])
        assert same([contents(part) for part, in feed], expected[0][3:])
        feed.reset()
        assert same([contents(next(feed)[0]) for _ in range(2)], expected[1][:2])
        assert feed.state_dict()["position"] == 2
        feed.reset()
        assert len([next(feed), next(feed)]) == 2
        feed.reset()
        assert feed.state_dict()["position"] == 0
    with pair_iter(records) as plain:
        list(plain)
        for _ in range(2):
            plain.reset()
            next(plain)
            next(plain)
        plain.reset()
        assert iterator.state_dict()["sampler"] == plain.state_dict()["sampler"]


def test_a_feed_fetches_the_next_batch_before_it_hands_one_out(records):
    with pair_iter(records, workers=1) as iterator:
        feed = DeviceFeed(iterator, [mx.cpu(0)])
        next(feed)
        limit = time.monotonic() + 30
        while not iterator.ready() and time.monotonic() < limit:
            time.sleep(0.01)
        next(feed)
        assert (feed.state_dict()["position"], iterator.position) == (2, 3)


@pytest.mark.original
@pytest.mark.skipif(not os.environ.get("CIAN_ORIGINAL"),
                    reason="CIAN_ORIGINAL does not name a checkout of the original code")
@pytest.mark.parametrize("batch_size, group_size, devices, crop_px, workers",
                         [(4, 2, 1, 61, 0), (12, 3, 2, 33, 2), (8, 2, 2, 97, 1)])
def test_batches_are_those_of_the_original_bit_for_bit(tree, records, monkeypatch, batch_size, group_size,
                                                       devices, crop_px, workers):
    monkeypatch.setattr(sys, "path", [os.environ["CIAN_ORIGINAL"], *sys.path])
    from lib.loader.voc_seg_group_loader import VOCSegGroupLoader

    np.random.seed(batch_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = VOCSegGroupLoader(str(tree.root / "JPEGImages"), str(tree.root / "seeds"),
                                     str(tree.root / "Annotations"), str(tree.root / "train.txt"), batch_size,
                                     group_size, devices, crop_px, shuffle=True, rand_scale=True,
                                     rand_mirror=True, rand_crop=True, downsample=8)
    with pair_iter(records, batch_size=batch_size, group_size=group_size, num_devices=devices,
                   crop_px=crop_px, workers=workers, seed=batch_size) as iterator:
        for _ in range(3):
            original.reset()
            iterator.reset()
            theirs = [[array.asnumpy() for array in (*batch.data, *batch.label)] for batch in original]
            ours = [contents(batch) for batch in iterator]
            assert len(ours) == len(theirs) > 0
            assert all(np.array_equal(a, b) for one, other in zip(ours, theirs)
                       for a, b in zip(one[:2], other))
            states = np.random.get_state(), iterator.sampler.rng.get_state()
            assert np.array_equal(states[0][1], states[1][1])
            assert states[0][2:] == states[1][2:]
