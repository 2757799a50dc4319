"""From files to record sets: everything is checked first, and only what changed is packed."""
import json
import os
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from cian.data.classes import write_label_png
from cian.data.lists import write_list
from cian.data.pictures import decode_jpeg
from cian.data.preparation import prepare, prepare_seeds, survey
from cian.data.records import RecordSet
from cian.data.tree import DatasetTree
from cian.data.verification import verify
from cian.errors import InputError, Problems


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


def turn(root, name, orientation):
    path = in_root(root, "JPEGImages", f"{name}.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6])
def test_label_maps_of_another_origin_are_refused_beside_turned_images(root, tmp_path, orientation):
    turn(root, "image_03", orientation)
    images = prepare(open_tree(root), "train", tmp_path / "out").images
    assert images.turned() == ["image_03"]
    assert images.sizes[3].tolist() == ([41, 37] if orientation == 6 else [37, 41])
    problem = "holds seeds of 1 images that EXIF says are to be turned: image_03"
    for again in (tmp_path / "out", tmp_path / "new"):  # images packed before or not
        found = survey(open_tree(root, label_root=in_root(root, "seeds")), "train", again).problems
        assert any(problem in str(error) for error in found)
    with pytest.raises(InputError, match=problem):
        prepare_seeds(images, in_root(root, "seeds"), tmp_path / "out")


def test_label_maps_that_were_made_from_the_turned_images_are_taken(root, tmp_path):
    turn(root, "image_03", 3)
    images = prepare(open_tree(root), "train", tmp_path / "out").images
    with open(in_root(root, "seeds", "seeds.json"), "w", encoding="utf-8") as stream:
        json.dump({"hash": "0", "classes": list(images.classes.names)}, stream)
    assert len(prepare_seeds(images, in_root(root, "seeds"), tmp_path / "out")) == 12


@pytest.mark.parametrize("manifest", ["seeds.json", "predictions.json"])
def test_label_maps_that_were_made_for_other_classes_are_refused(root, tmp_path, manifest):
    images = prepare(open_tree(root), "train", tmp_path / "out").images
    names = [images.classes.names[index] for index in (0, 2, 1, 3)]
    with open(in_root(root, "seeds", manifest), "w", encoding="utf-8") as stream:
        json.dump({"hash": "0", "classes": names}, stream)
    with pytest.raises(InputError,
                       match=f"{manifest}: classes: has other classes than .*train.json: class 1 is"):
        prepare_seeds(images, in_root(root, "seeds"), tmp_path / "out")
    with pytest.raises(InputError, match=f"{manifest}: classes: has other classes than .*classes.txt"):
        prepare(open_tree(root, label_root=in_root(root, "seeds")), "train", tmp_path / "out")


@pytest.mark.parametrize(("value", "problem"), [(255, "all are ignored"), (0, "all are background"), (1,
                                                                                                      None)])
def test_label_maps_without_any_class_are_refused(root, tmp_path, capsys, value, problem):
    for number in range(12):
        write_label_png(in_root(root, "seeds", f"image_{number:02d}.png"), np.full((37, 41), value))
    tree = open_tree(root, label_root=in_root(root, "seeds"))
    if problem:
        with pytest.raises(InputError, match=f"seeds: not one pixel of the seeds has a class, {problem}"):
            prepare(tree, "train", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        prepare(tree, "train", tmp_path / "out")
        assert "not one pixel of the seeds is background" in capsys.readouterr().err


def test_masks_of_0_and_255_are_told_what_255_means(root, tmp_path):
    for number in range(12):
        write_label_png(in_root(root, "seeds", f"image_{number:02d}.png"), 255 * np.eye(37,
                                                                                        41).astype(np.uint8))
    with pytest.raises(InputError, match="in masks of 0 and 255 write the number of the class for 255"):
        prepare(open_tree(root, label_root=in_root(root, "seeds")), "train", tmp_path / "out")


def test_what_a_decoder_warns_of_is_kept_in_the_manifest_and_not_in_the_record(root, tmp_path):
    path = in_root(root, "JPEGImages", "image_02.jpg")
    with open(path, "rb") as stream:
        content = stream.read()
    with open(path, "wb") as stream:
        stream.write(content[:-2] + bytes(300) + content[-2:])
    images = prepare(open_tree(root), "train", tmp_path / "out").images
    assert list(images.manifest["warnings"]) == ["image_02"]
    assert "extraneous bytes" in images.manifest["warnings"]["image_02"]
    assert np.array_equal(images.image(2), cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
    assert decode_jpeg(images.read(2), "x", "refuse").warning == ""
    with pytest.raises(InputError, match="is a damaged JPEG"):
        prepare(open_tree(root, jpeg_warnings="refuse"), "train", tmp_path / "out")
