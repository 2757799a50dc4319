"""Sampling one epoch after another: the original's order, states, and data that is out of the ordinary."""
import json
import warnings
import zlib

import numpy as np
import pytest

from cian.data.groups import batch_rows
from cian.data.pairs import GroupSampler, ImageSampler, pack_array, unpack_array
from cian.errors import InputError

PAIRINGS = ("common", "even", "random")
ORDERS = ("original", "counter")


def random_labels(seed, count, num_classes):
    rng = np.random.RandomState(seed)
    labels = (rng.random_sample((count, num_classes)) < rng.random_sample(num_classes) * 0.5).astype(np.uint8)
    labels[np.arange(count), rng.randint(1, num_classes, count)] = 1
    labels[:, 0] = 1
    return labels


def two_classes(*rows):
    labels = np.zeros((len(rows), 4), np.uint8)
    for index, classes in enumerate(rows):
        labels[index, [0, *classes]] = 1
    return labels


def crc32(array, kind):
    return zlib.crc32(np.asarray(array, kind).tobytes())


# Measured once on the original's VOCSegGroupLoader (git 680c625) with np.random.seed: batches and
# CRC-32 of the image positions of the first two epochs, then the generator's keys (CRC-32) and
# position.
ORIGINAL = [
    ((11, 997, 21), (16, 2, 1, 5), [(62, 3910404377), (62, 640280320)], (467564557, 418)),
    ((12, 1009, 16), (12, 3, 2, 6), [(84, 1062494594), (84, 763416235)], (2686887973, 519)),
    ((13, 499, 81), (8, 4, 1, 7), [(62, 183144796), (62, 4183027245)], (1597013655, 180)),
]


@pytest.mark.parametrize("data, batch, epochs, state", ORIGINAL)
def test_groups_are_those_of_the_original_from_the_same_seed(data, batch, epochs, state):
    batch_size, group_size, devices, seed = batch
    sampler = GroupSampler(random_labels(*data), group_size=group_size,
                           groups_per_batch=batch_size // group_size, seed=seed)
    for count, crc in epochs:
        rows = batch_rows(sampler.next_epoch(), sampler.groups_per_batch, devices)
        assert (len(rows), crc32(rows, "<i4")) == (count, crc)
    keys, position = sampler.rng.get_state()[1:3]
    assert (crc32(keys, "<u4"), position) == state


def test_a_random_state_of_the_caller_is_used_in_place():
    rng = np.random.RandomState(5)
    rng.random_sample(3)
    twin = np.random.RandomState()
    twin.set_state(rng.get_state())
    sampler = GroupSampler(random_labels(0, 53, 7), pairing="random", seed=rng)
    order = np.arange(53)
    twin.shuffle(order)
    twin.shuffle(order)
    assert sampler.next_epoch().ravel().tolist() == order[:52].tolist()
    assert rng.randint(1 << 30) == twin.randint(1 << 30)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_restored_sampler_goes_on_like_the_one_that_was_saved(pairing, order):
    options = {"group_size": 3, "groups_per_batch": 2, "pairing": pairing, "order": order}
    labels = random_labels(1, 101, 9)
    sampler = GroupSampler(labels, seed=3, **options)
    for _ in range(3):
        sampler.next_epoch()
    state = json.loads(json.dumps(sampler.state_dict()))
    restored = GroupSampler(labels, seed=3 if order == "counter" else 99, **options)
    restored.load_state_dict(state)
    assert restored.epoch == 2
    for _ in range(3):
        assert np.array_equal(restored.groups, sampler.groups)
        assert restored.next_epoch().tolist() == sampler.next_epoch().tolist()


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_counted_epoch_does_not_depend_on_those_before(pairing):
    labels = random_labels(2, 89, 6)
    through = GroupSampler(labels, pairing=pairing, order="counter", seed=8)
    epochs = [through.next_epoch() for _ in range(3)]
    direct = GroupSampler(labels, pairing=pairing, order="counter", seed=8)
    direct.epoch = 1
    assert np.array_equal(direct.next_epoch(), epochs[2])
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(GroupSampler(labels, pairing=pairing, order="counter", seed=9).next_epoch(),
                              epochs[0])


@pytest.mark.parametrize("change, field", [
    ({"pairing": "even"}, "pairing"), ({"order": "counter"}, "order"), ({"group_size": 3}, "group_size"),
    ({"groups_per_batch": 5}, "groups_per_batch"), ({"lonely": "skip"}, "lonely")])
def test_a_state_of_other_settings_is_refused_by_name(change, field):
    labels = random_labels(1, 71, 5)
    state = GroupSampler(labels).state_dict()
    with pytest.raises(InputError, match=f"^{field}: the saved state has .*resume with"):
        GroupSampler(labels, **change).load_state_dict(state)


def test_a_state_of_other_labels_is_refused():
    labels = random_labels(1, 71, 5)
    state = GroupSampler(labels).state_dict()
    labels[7, 1:] = 1 - labels[7, 1:]
    with pytest.raises(InputError, match="^labels: "):
        GroupSampler(labels).load_state_dict(state)


def test_even_epochs_serve_everybody_in_whole_batches():
    labels = random_labels(4, 103, 8)
    sampler = GroupSampler(labels, groups_per_batch=8, pairing="even", seed=1)
    for _ in range(5):
        sampler.next_epoch()
        result = sampler.account()
        assert (result.dropped, result.groups % 8, result.pairs_without_class) == (0, 0, 0)
        assert result.served.sum() - 103 <= 2 * 7 + 1


def test_common_and_random_epochs_keep_whole_batches_and_count_the_rest_as_dropped():
    labels = random_labels(4, 103, 8)
    for pairing in ("common", "random"):
        sampler = GroupSampler(labels, groups_per_batch=8, pairing=pairing)
        sampler.next_epoch()
        result = sampler.account()
        assert len(sampler.groups) == result.groups == 48
        assert (result.used, result.dropped, result.served.max()) == (96, 7, 1)
    assert result.pairs_without_class > 0


# Three images of class 1, two of class 2, one of a class of its own, one without label.
UNUSUAL = two_classes({1}, {1}, {2}, {3}, set(), {2}, {1})


def test_common_ends_the_epoch_at_a_lonely_image_as_the_original_does_and_says_so():
    with pytest.warns(UserWarning,
                      match=r"2 image\(s\) share no class with any other \(d, e\): they end the epoch"):
        sampler = GroupSampler(UNUSUAL, names="abcdefg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = [sampler.next_epoch().ravel().tolist() for _ in range(40)]
    assert not any({3, 4} & set(images) for images in served)
    assert min(map(len, served)) == 0
    assert max(map(len, served)) == 4


def test_common_can_leave_lonely_images_out():
    with pytest.warns(UserWarning, match="they are left out"):
        sampler = GroupSampler(UNUSUAL, lonely="skip")
    served = [set(sampler.next_epoch().ravel()) for _ in range(40)]
    assert set().union(*served) == {0, 1, 2, 5, 6}
    # the odd image of class 1 ends the epoch when its turn comes early
    assert {len(images) for images in served} == {2, 4}


def test_an_epoch_without_a_batch_is_announced():
    with pytest.warns(UserWarning, match="share no class"):
        sampler = GroupSampler(two_classes({1}, {2}))
    with pytest.warns(UserWarning, match="epoch 0 has no batch"):
        sampler.next_epoch()


def test_even_serves_lonely_images_with_themselves():
    sampler = GroupSampler(UNUSUAL, pairing="even")
    for _ in range(20):
        groups = {tuple(sorted(group)) for group in sampler.next_epoch().tolist()}
        assert {(2, 5), (3, 3), (4, 4)} <= groups
        assert set(np.concatenate([*map(list, groups)])) == set(range(7))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_classes_that_no_image_has_change_nothing(pairing):
    labels = random_labels(6, 59, 5)
    strangers = np.concatenate([labels, np.zeros((59, 70), np.uint8)], axis=1)
    with_them, without = (GroupSampler(array, pairing=pairing, seed=2) for array in (strangers, labels))
    assert np.array_equal(with_them.next_epoch(), without.next_epoch())
    assert with_them.account().pairs_by_class[5:].tolist() == [0] * 70


@pytest.mark.parametrize("options, message", [
    ({"pairing": "odd"}, "pairing: 'odd' is not allowed; use one of: common, even, random"),
    ({"order": "x"}, "order: 'x' is not allowed"), ({"lonely": ""}, "lonely: '' is not allowed"),
    ({"group_size": 1}, "group_size: a group needs at least 2 images, not 1"),
    ({"groups_per_batch": 30}, "batch_size: 59 images do not fill one batch of 60"),
    ({"order": "counter", "seed": np.random.RandomState(0)}, "seed: order 'counter' needs an integer"),
    ({"seed": -1}, "seed: must be from 0 to")])
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        GroupSampler(random_labels(6, 59, 5), **options)


@pytest.mark.parametrize("labels", [np.zeros(5), np.full((5, 3), 2), np.zeros((5, 1))])
def test_labels_that_are_no_multi_hot_matrix_are_refused(labels):
    with pytest.raises(InputError, match="^labels: must be 0 or 1"):
        GroupSampler(labels)


def test_single_images_come_once_and_fill_the_last_batch_from_the_beginning():
    sampler = ImageSampler(11, 4, seed=1)
    rows = sampler.next_epoch()
    assert rows.shape == (3, 4)
    assert sampler.pad == 1
    assert sorted(rows.ravel()[:11]) == list(range(11))
    assert rows[-1, -1] == rows[0, 0]
    assert (rows.ravel()[:11] != np.arange(11)).any()
    again = ImageSampler(11, 4, seed=1)
    again.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert np.array_equal(again.rows, rows)
    assert np.array_equal(again.next_epoch(), sampler.next_epoch())


def test_more_images_than_a_batch_holds_are_not_needed_for_single_images():
    rows = ImageSampler(3, 8).next_epoch()
    assert rows.shape == (1, 8) and sorted(rows[0, :3]) == [0, 1, 2]
    assert rows[0, 3:].tolist() == [*rows[0, :3], *rows[0, :2]]


def test_batches_are_ordered_by_device_and_then_by_member():
    groups = np.arange(24).reshape(8, 3)
    assert batch_rows(groups, 4, 2).tolist() == [[0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11],
                                                 [12, 15, 13, 16, 14, 17, 18, 21, 19, 22, 20, 23]]


def test_packed_arrays_keep_every_bit():
    values = np.array([0, 1, 2**32 - 1, 2**31])
    assert unpack_array(pack_array(values)).tolist() == values.tolist()
