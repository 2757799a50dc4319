"""The generated data set keeps its promises: VOC layout, determinism, truthful annotations, classes
that differ by heads and coats.
"""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cian.data.annotations import read_xml_labels
from cian.data.classes import read_label_png
from cian.data.preparation import prepare
from cian.data.toy import draw_scene, make_toy
from cian.data.toy_drawing import CREATURES, Canvas, Pose, draw_creature
from cian.data.tree import DatasetTree
from cian.errors import InputError


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = make_toy(tmp_path_factory.mktemp("toy"), 12, 3, seed=5, width_px=96, height_px=80)
    return DatasetTree(root, classes=os.path.join(root, "classes.txt"))


def files_below(root):
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in Path(root).rglob("*") if path.is_file()}


def test_it_passes_the_checks_of_prepare(toy, tmp_path):
    toy_with_masks = DatasetTree(toy.root, classes=os.path.join(toy.root, "classes.txt"),
                                 label_root=toy.mask_root)
    prepared = prepare(toy_with_masks, "train", tmp_path / "records", workers=1)
    assert len(prepared.images) == 12 and len(prepare(toy, "val", tmp_path / "records",
                                                      workers=1).images) == 3
    assert toy.names("train_aug") == toy.names("train")


def test_annotations_name_the_creatures_that_can_be_seen(toy):
    for name in toy.names("train") + toy.names("val"):
        labels = read_xml_labels(toy.annotation_path(name), toy.classes)
        mask = read_label_png(toy.mask_path(name), toy.classes.num_classes)
        assert mask.shape == cv2.imread(toy.image_path(name)).shape[:2]
        assert set(labels) == set(np.unique(mask)) - {0}, name
        assert 0.03 < (mask > 0).mean() < 0.7, name


def test_every_class_occurs_and_some_images_show_several(toy):
    table = toy.labels(toy.names("train"))[:, 1:]
    assert table.any(axis=0).all() and (table.sum(axis=1) > 1).any()


def test_some_images_stand_upright(toy):
    assert {cv2.imread(toy.image_path(name)).shape for name in toy.names("train")} == {(80, 96, 3),
                                                                                       (96, 80, 3)}


def test_the_same_seed_gives_the_same_bytes_and_a_longer_list_begins_with_the_shorter(toy, tmp_path):
    shorter = files_below(make_toy(tmp_path / "a", 5, 2, seed=5, width_px=96, height_px=80))
    longer = files_below(toy.root)
    pictures = [name for name in shorter if not name.startswith("ImageSets")]
    assert len(pictures) == 1 + 3 * 7 and all(shorter[name] == longer[name] for name in pictures)
    other = files_below(make_toy(tmp_path / "b", 2, 0, seed=6, width_px=96, height_px=80))
    name = os.path.join("JPEGImages", "train_00000.jpg")
    assert other[name] != longer[name] and longer[name] != longer[os.path.join("JPEGImages",
                                                                               "train_00005.jpg")]


def mean_colours(name, seeds=8):
    """Mean colour of the head and of the rest of a creature, over several drawings."""
    parts = {"head": [], "body": []}
    for seed in range(seeds):
        canvas = Canvas(240, 300)
        pose = Pose(120.0, 120.0, 60.0, 1, 0.0)
        draw_creature(canvas, np.random.default_rng(seed), name, 1, pose)
        columns, rows = np.meshgrid(np.arange(300), np.arange(240))
        head = (canvas.labels > 0) & (columns > pose.x + 1.05 * pose.unit) & (rows
                                                                              < pose.y - 0.45 * pose.unit)
        body = (canvas.labels > 0) & (columns < pose.x + 0.5 * pose.unit)
        parts["head"].append(canvas.colours[head].mean(axis=0))
        parts["body"].append(canvas.colours[body].mean(axis=0))
    return {part: np.mean(colours, axis=0) for part, colours in parts.items()}


def test_heads_and_tinted_coats_tell_the_class():
    means = {name: mean_colours(name) for name in CREATURES}
    names = list(CREATURES)
    pairs = [(a, b) for position, a in enumerate(names) for b in names[position + 1:]]
    heads = [np.abs(means[a]["head"] - means[b]["head"]).max() for a, b in pairs]
    bodies = [np.abs(means[a]["body"] - means[b]["body"]).max() for a, b in pairs]
    assert min(heads) > 25 and min(bodies) > 15


def test_occluders_leave_most_of_every_creature():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        picture, labels, boxes = draw_scene(rng, 60, 80, ["lion", "bull"], first=seed % 2)
        assert picture.shape == (60, 80, 3) and labels.shape == (60, 80)
        for label, (left, top, right, bottom) in boxes:
            assert 1 <= left < right <= 80 and 1 <= top < bottom <= 60
            assert (labels[top - 1:bottom, left - 1:right] == label).sum() > 20


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"classes": ["lion", "dragon"]}, r"unknown creatures \['dragon'\]; choose among: lion"),
     ({"classes": []}, "no class was named"), ({"width_px": 16}, "at least 32 pixels"),
     ({"num_train": -1}, "cannot draw -1")])
def test_wrong_wishes_are_refused(tmp_path, options, problem):
    with pytest.raises(InputError, match=problem):
        make_toy(tmp_path, **options)
