"""Choices of thresholds beside those of masks, on cues whose figures are counted by hand."""
import numpy as np
import pytest
from thresholds import compare, figures

from cian.data.classes import ClassTable

CLASSES = ClassTable(("background", "cat"))
MAPS = np.array([[[0.9, 0.5, 0.2, 0.4, 0.1, 0.0]]], np.float32)
SALIENCY = np.array([[0.9, 0.5, 0.5, 0.2, 0.05, 0.01]], np.float32)
CUES = [(MAPS, [1], SALIENCY, np.array([[1, 1, 1, 0, 0, 255]], np.uint8))]


def test_figures_are_those_counted_by_hand():
    found = figures(CUES, (0.3, 0.1), "ignore", CLASSES)  # seeds: cat cat - cat background (background)
    assert found == pytest.approx({
        "foreground": 0.3, "background": 0.1, "objects": 3 / 4, "coverage": 4 / 5, "object precision": 2 / 3,
        "object recall": 2 / 3, "background precision": 1, "background recall": 1 / 2,
        "mIoU": (1 / 2 + 2 / 4) / 2})


def test_the_best_of_the_grid_stands_beside_the_choice():
    found = compare(CUES * 5, lambda: (0.3, 0.1), "ignore", CLASSES)
    assert (found["images"], found["truth"]) == (5, 3 / 5)
    best, auto = found["choices"]["best"], found["choices"]["auto"]
    assert best["mIoU"] >= auto["mIoU"] == found["choices"]["agreement"]["mIoU"] == 0.5
