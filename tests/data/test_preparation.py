"""From files to record sets: everything is checked first, and only what changed is packed."""
import os
import time

import numpy as np
import pytest

from cian.data.classes import write_label_png
from cian.data.lists import write_list
from cian.data.preparation import prepare, prepare_seeds, survey
from cian.data.records import RecordSet
from cian.data.tree import DatasetTree
from cian.data.verification import verify
from cian.errors import InputError
from cian.files import Problems


@pytest.fixture
def root(make_voc_tree, tmp_path):
    return make_voc_tree(tmp_path / "tree", images=12)


def open_tree(root, **options):
    return DatasetTree(root, classes=os.path.join(root, "classes.txt"), **options)


def in_root(root, *parts):
    return os.path.join(root, *parts)


def damage_everything(root):
    os.unlink(in_root(root, "JPEGImages", "image_01.jpg"))
    os.truncate(in_root(root, "JPEGImages", "image_02.jpg"), 200)
    os.unlink(in_root(root, "Annotations", "image_03.xml"))
    with open(in_root(root, "Annotations", "image_04.xml"), "w", encoding="utf-8") as stream:
        stream.write("<annotation><object><name>cow</name></object></annotation>")
    with open(in_root(root, "Annotations", "image_05.xml"), "w", encoding="utf-8") as stream:
        stream.write("<annotation></annotation>")
    os.unlink(in_root(root, "seeds", "image_06.png"))
    write_label_png(in_root(root, "seeds", "image_07.png"), np.zeros((37, 40), np.uint8))
    write_label_png(in_root(root, "seeds", "image_08.png"), np.full((37, 41), 9, np.uint8))
    with open(in_root(root, "ImageSets", "Segmentation", "train.txt"), "a", encoding="utf-8") as stream:
        stream.write("image_00\nimage_99\n")


EXPECTED = [("train.txt", "'image_00' is already in line 1"), ("image_03.xml", "does not exist"),
            ("image_04.xml", "unknown class 'cow'"), ("image_05.xml", "names no object"),
            ("image_99.xml", "does not exist"), ("image_01.jpg", "does not exist"),
            ("image_02.jpg", "is a damaged JPEG"), ("image_99.jpg", "does not exist"),
            ("image_06.png", "does not exist"), ("image_07.png", "is 40x37 pixels, but its image is 41x37"),
            ("image_08.png", "holds the value 9"), ("image_99.png", "does not exist")]


def test_every_problem_is_found_at_once_and_nothing_is_written(root, tmp_path):
    damage_everything(root)
    result = survey(open_tree(root, label_root=in_root(root, "seeds")), "train", tmp_path / "records",
                    workers=1)
    assert [os.path.basename(problem.file) for problem in result.problems] == [file for file, _ in EXPECTED]
    for problem, (_, text) in zip(result.problems, EXPECTED):
        assert text in str(problem)
    with pytest.raises(Problems, match="12 problems: .* and 9 more; tools/prepare.py lists them all"):
        prepare(open_tree(root, label_root=in_root(root, "seeds")), "train", tmp_path / "records", workers=1)
    assert not (tmp_path / "records").exists()


def modification_times(folder):
    return {entry: os.stat(os.path.join(folder, entry)).st_mtime_ns for entry in os.listdir(folder)}


def test_what_did_not_change_is_not_packed_again(root, tmp_path):
    out, tree = tmp_path / "records", open_tree(root, label_root=in_root(root, "seeds"))
    prepare(tree, "train", out, workers=1)
    before = modification_times(out)
    assert len(prepare(tree, "train", out, workers=1).images) == 12
    assert modification_times(out) == before


def test_new_seeds_leave_the_images_alone(root, tmp_path):
    out, tree = tmp_path / "records", open_tree(root, label_root=in_root(root, "seeds"))
    prepare(tree, "train", out, workers=1)
    before = modification_times(out)
    write_label_png(in_root(root, "seeds", "image_03.png"), np.full((37, 41), 2))
    seeds = prepare(tree, "train", out, workers=1).seeds
    assert (seeds.label(3) == 2).all()
    after = modification_times(out)
    assert {entry: time_ns for entry, time_ns in after.items() if not entry.startswith("train_seeds")} == {
        entry: time_ns for entry, time_ns in before.items() if not entry.startswith("train_seeds")}
    assert after != before


@pytest.mark.parametrize("change", ["image", "label", "list", "classes", "parts"])
def test_a_changed_input_is_packed_again(root, tmp_path, change):
    out = tmp_path / "records"
    old = prepare(open_tree(root), "train", out, workers=1).images
    if change == "image":
        os.utime(in_root(root, "JPEGImages", "image_03.jpg"), ns=(0, time.time_ns()))
    elif change == "label":
        os.replace(in_root(root, "Annotations", "image_00.xml"), in_root(root, "Annotations", "image_01.xml"))
        os.link(in_root(root, "Annotations", "image_01.xml"), in_root(root, "Annotations", "image_00.xml"))
    elif change == "list":
        write_list(in_root(root, "ImageSets", "Segmentation", "train.txt"),
                   [f"image_{number:02d}" for number in range(11)])
    elif change == "classes":
        write_list(in_root(root, "classes.txt"), ["background", "cat", "dog", "bird", "cow"])
    result = survey(open_tree(root), "train", out, num_parts=2 if change == "parts" else 1, workers=1)
    assert result.images is not None
    new = prepare(open_tree(root), "train", out, num_parts=2 if change == "parts" else 1, workers=1).images
    # the same bytes under a new time are the same content
    assert (new.identity == old.identity) == (change == "image")


def test_a_damaged_record_file_is_packed_again(root, tmp_path):
    out = tmp_path / "records"
    images = prepare(open_tree(root), "train", out, workers=1).images
    path = images.files()[0][0]
    with open(path, "r+b") as stream:
        stream.seek(700)
        stream.write(b"\0\0\0")
    assert verify(images)
    assert not verify(prepare(open_tree(root), "train", out, workers=1).images)


def test_packed_images_get_new_seeds_without_their_files(root, tmp_path):
    prepare(open_tree(root), "train", tmp_path / "records", workers=1)
    os.rename(in_root(root, "JPEGImages"), in_root(root, "elsewhere"))
    images = RecordSet.open(tmp_path / "records", "train")
    seeds = prepare_seeds(images, in_root(root, "seeds"), tmp_path / "own", workers=1)
    assert seeds.names == images.names
    before = modification_times(tmp_path / "own")
    prepare_seeds(images, in_root(root, "seeds"), tmp_path / "own", workers=1)
    assert modification_times(tmp_path / "own") == before
    os.unlink(in_root(root, "seeds", "image_02.png"))
    with pytest.raises(Problems, match=r"image_02\.png: does not exist"):
        prepare_seeds(images, in_root(root, "seeds"), tmp_path / "own", workers=1)
    with pytest.raises(InputError, match="is not a folder"):
        prepare_seeds(images, in_root(root, "absent"), tmp_path / "own", workers=1)
