"""Quality of seeds: every figure against hand counts."""
import json

import numpy as np
import pytest

from cian.data.classes import ClassTable, write_label_png
from cian.errors import InputError
from cian.tools.engine.seeds.quality import CamScore, measure_seeds, quality_table

CLASSES = ClassTable(("background", "cat", "dog"))
TRUTH = np.array([[0, 0, 0, 0, 1, 1, 1, 255],
                  [0, 0, 0, 0, 1, 1, 1, 255]], np.uint8)
SEEDS = np.array([[0, 0, 1, 255, 1, 0, 255, 1],
                  [0, 255, 1, 255, 1, 1, 255, 0]], np.uint8)


@pytest.fixture
def folders(tmp_path):
    for half, columns in (("a", slice(0, 3)), ("b", slice(3, 8))):
        write_label_png(tmp_path / "masks" / f"{half}.png", TRUTH[:, columns])
        write_label_png(tmp_path / "seeds" / f"{half}.png", SEEDS[:, columns])
    return tmp_path / "seeds", tmp_path / "masks"


def test_figures_are_those_counted_by_hand(folders):
    report = measure_seeds(*folders, ["a", "b"], CLASSES, workers=2)
    # 14 pixels count (two are ignored in the truth), 9 have a seed, 6 of them are right (3
    # background, 3 cat).
    assert report["images"] == 2
    assert report["coverage"] == pytest.approx(9 / 14)
    assert report["precision"] == pytest.approx(6 / 9)
    background, cat, dog = (report["classes"][name] for name in CLASSES.names)
    assert background == pytest.approx({"coverage": 3 / 8, "precision": 3 / 4, "iou_labelled": 3 / 6,
                                        "iou": 3 / 9})
    assert cat == pytest.approx({"coverage": 3 / 6, "precision": 3 / 5, "iou_labelled": 3 / 6, "iou": 3 / 8})
    assert dog == {"coverage": None, "precision": None, "iou_labelled": None, "iou": None}
    assert report["mean_iou"] == pytest.approx((3 / 9 + 3 / 8 + 0) / 3)
    assert report["mean_iou_labelled"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)


def test_report_is_json_and_prints_as_a_table(folders):
    report = json.loads(json.dumps(measure_seeds(*folders, ["a", "b"], CLASSES)))
    lines = quality_table(report).splitlines()
    assert lines[0].split() == ["class", "coverage", "precision", "iou", "labelled", "iou", "CAM", "iou"]
    assert lines[2].split() == ["cat", "50.0", "60.0", "50.0", "37.5", "-"]
    assert lines[-1].split() == ["all", "pixels", "/", "mean", "64.3", "66.7", "33.3", "23.6", "-"]


def test_seed_of_another_size_is_named(folders):
    write_label_png(folders[0] / "b.png", np.zeros((2, 7), np.uint8))
    with pytest.raises(InputError, match="seeds/b.png.*is 7x2 pixels, its mask 5x2"):
        measure_seeds(*folders, ["a", "b"], CLASSES)


def test_missing_seed_is_named(folders):
    with pytest.raises(InputError, match="seeds/c.png.*does not exist"):
        measure_seeds(*folders, ["a", "c"], CLASSES)


def test_cam_score_takes_the_largest_map_above_the_threshold(folders):
    score = CamScore(folders[1], CLASSES, 0.3)
    cams = np.zeros((2, 2, 3), np.float32)
    cams[0, 0] = (0.3, 0.31, 0.5)  # cat
    cams[1, 0] = (0.1, 0.20, 0.6)  # dog
    score("a", cams, [1, 2])  # truth is background alone
    score("b", np.zeros((0, 2, 5), np.float32), [])
    evaluation = score.evaluation()
    np.testing.assert_array_equal(evaluation.confusion, [[6, 1, 1], [6, 0, 0], [0, 0, 0]])
    assert evaluation.images == 2
    report = {**measure_seeds(*folders, ["a", "b"], CLASSES), "cam": evaluation.to_dict()}
    assert quality_table(report).splitlines()[1].split()[-1] == f"{100 * 6 / 14:.1f}"
