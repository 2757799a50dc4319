"""Record sets: what is packed comes back, here, in MXNet, in other processes and threads."""
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from cian.data.classes import read_label_png
from cian.data.manifest import NameTable
from cian.data.packing import pack_images, pack_labels
from cian.data.preparation import prepare
from cian.data.records import RecordSet, match_seeds
from cian.data.tree import DatasetTree
from cian.errors import InputError

IMAGES = 11


@pytest.fixture
def tree(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree", images=IMAGES)
    return DatasetTree(root, classes=os.path.join(root, "classes.txt"),
                       label_root=os.path.join(root, "seeds"))


@pytest.fixture(params=[1, 3], ids=["one part", "three parts"])
def packed(tree, tmp_path, request):
    return prepare(tree, "train", tmp_path / "records", num_parts=request.param, workers=1)


def test_everything_comes_back_as_it_was_packed(tree, packed):
    images, seeds = packed.images, packed.seeds
    names = tree.names("train")
    assert len(images) == len(seeds) == IMAGES and list(images.names) == names and images.names == seeds.names
    assert images.kind == "images" and seeds.kind == "labels" and images.classes == tree.classes
    assert np.array_equal(images.labels, tree.labels(names)) and images.labels.dtype == np.uint8
    assert images.sizes.tolist() == seeds.sizes.tolist() == [[37, 41]] * IMAGES
    for index, name in enumerate(names):
        with open(tree.image_path(name), "rb") as stream:
            assert images.read(index) == stream.read()
        assert np.array_equal(images.image(index), cv2.imread(tree.image_path(name)))
        assert np.array_equal(seeds.label(index), read_label_png(tree.label_path(name)))
    assert np.array_equal(images.image(-1), images.image(IMAGES - 1))
    with pytest.raises(IndexError):
        images.image(IMAGES)


@pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}),
                                               ("RGB", {"subsampling": 0}), ("RGB", {"turned": True})])
def test_every_kind_of_jpeg_reads_as_opencv_sees_it(tree, tmp_path, mode, options):
    path, exif = str(tmp_path / "a.jpg"), Image.Exif()
    exif[0x0112] = 6 if options.pop("turned", False) else 1  # orientation: 6 is turned by a quarter
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)).resize((29, 23))
    noise.convert(mode).save(path, "jpeg", exif=exif, **options)
    images = pack_images(tmp_path / "records", "kinds", ["a"], [path], np.array([[1, 0, 1, 0]], np.uint8),
                         tree.classes)
    assert np.array_equal(images.image(0), cv2.imread(path))
    assert tuple(images.sizes[0]) == cv2.imread(path).shape[:2] == ((29, 23) if exif[0x0112] == 6
                                                                    else (23, 29))


def test_mxnet_reads_the_same_records(packed):
    keys = []
    for records in (packed.images, packed.seeds):
        for rec, idx in records.files():
            reader = mx.recordio.MXIndexedRecordIO(idx, rec, "r")
            for key in reader.keys:
                header, picture = mx.recordio.unpack_img(reader.read_idx(key), -1)
                assert header.id == key
                keys.append(key)
                if records.kind == "images":
                    assert np.array_equal(picture, records.image(key)) and np.array_equal(header.label,
                                                                                          records.labels[key])
                else:
                    assert np.array_equal(picture, records.label(key))
            reader.close()
    assert keys == 2 * list(range(IMAGES))


def _read_all(records, result):
    result.put([records.image(index).sum() for index in range(len(records))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same(packed, method):
    context = multiprocessing.get_context(method)
    expected = [packed.images.image(index).sum() for index in range(IMAGES)]
    if method == "spawn":  # what spawn does to an argument
        copy = pickle.loads(pickle.dumps(packed.images))
        assert [copy.image(index).sum() for index in range(IMAGES)] == expected
        return
    result = context.Queue()
    child = context.Process(target=_read_all, args=(packed.images, result))
    child.start()
    assert result.get(timeout=20) == expected
    child.join()


def test_threads_share_an_open_set(packed):
    expected = [packed.images.image(index).sum() for index in range(IMAGES)]
    order = list(np.random.RandomState(0).randint(0, IMAGES, 200))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: packed.images.image(index).sum(), order)) == [expected[index]
                                                                                         for index in order]


def test_a_pickled_set_that_was_replaced_is_refused(tree, tmp_path):
    images = prepare(tree, "train", tmp_path / "records", workers=1).images
    pickled = pickle.dumps(images)
    names = tree.names("train")[:5]
    pack_images(tmp_path / "records", "train", names, [tree.image_path(name) for name in names],
                tree.labels(names), tree.classes)
    with pytest.raises(InputError, match="packed anew while it was in use"):
        pickle.loads(pickled)
    assert images.image(10).shape == (37, 41, 3)  # the open one still has its files


def test_a_replaced_set_leaves_no_files_behind(tree, tmp_path):
    out = tmp_path / "records"
    prepare(tree, "train", out, num_parts=3, workers=1)
    before = os.listdir(out)
    names = tree.names("train")[:5]
    pack_images(out, "train", names, [tree.image_path(name) for name in names], tree.labels(names),
                tree.classes)
    kept = [entry for entry in os.listdir(out) if entry in before]
    # train.json was replaced in place
    assert sorted(entry.split(".")[0] for entry in kept) == ["train"] + ["train_seeds"] * 8
    assert len(RecordSet.open(out, "train")) == 5 and len(RecordSet.open(out, "train_seeds")) == IMAGES


def test_the_same_content_gives_the_same_bytes(tree, tmp_path):
    for folder in ("one", "two"):
        prepare(tree, "train", tmp_path / folder, workers=1)
    listing = sorted(os.listdir(tmp_path / "one"))
    assert listing == sorted(os.listdir(tmp_path / "two"))
    for entry in listing:
        assert (tmp_path / "one" / entry).read_bytes() == (tmp_path / "two" / entry).read_bytes(), entry


def test_kinds_are_not_mixed_up(packed):
    with pytest.raises(ValueError, match="holds images, not labels"):
        packed.images.label(0)
    with pytest.raises(ValueError, match="holds labels, not images"):
        packed.seeds.image(0)
    with pytest.raises(ValueError, match="holds label maps"):
        packed.seeds.labels  # noqa: B018 - the property raises


def test_seeds_are_matched_by_name_in_any_order(tree, packed, tmp_path):
    assert match_seeds(packed.images, packed.seeds).tolist() == list(range(IMAGES))
    names = tree.names("train")[::-1]
    shuffled = pack_labels(tmp_path / "other", "s", names, [tree.label_path(name) for name in names],
                           tree.classes)
    positions = match_seeds(packed.images, shuffled)
    assert [shuffled.names[int(position)] for position in positions] == list(packed.images.names)


def test_missing_and_mis_sized_seeds_are_named(tree, packed, tmp_path):
    names = tree.names("train")
    some = pack_labels(tmp_path / "other", "some", names[2:], [tree.label_path(name) for name in names[2:]],
                       tree.classes)
    with pytest.raises(InputError, match="lacks 2 of 11 label maps: image_00, image_01"):
        match_seeds(packed.images, some)
    os.makedirs(tmp_path / "small")
    for name in names:
        cv2.imwrite(str(tmp_path / "small" / f"{name}.png"), np.zeros((37, 40), np.uint8))
    small = pack_labels(tmp_path / "other", "small", names,
                        [str(tmp_path / "small" / f"{name}.png") for name in names], tree.classes)
    with pytest.raises(InputError, match="11 label maps of another size than their images: image_00"):
        match_seeds(packed.images, small)


def test_a_name_table_is_a_sequence():
    names = ["a", "bb", "größe", "b", "aa/b"]
    table = NameTable.of(names)
    assert list(table) == names and len(
        table) == 5 and table[1:4] == names[1:4] and table[-1] == "aa/b" and table[0] == "a"
    assert [table.find(name) for name in names] == [0, 1, 2, 3, 4]
    assert table.find("aa") == table.find("größ") == table.find("") == table.find("röße") == -1
    assert "bb" in table and table == NameTable.of(names) and table != NameTable.of(names[:4])
    assert list(NameTable.of([])) == [] and len(NameTable.of([])) == 0


def test_a_missing_set_is_named(tmp_path):
    with pytest.raises(InputError,
                       match=r"train\.json: there is no such record set; make it with tools/prepare\.py"):
        RecordSet.open(tmp_path, "train")
