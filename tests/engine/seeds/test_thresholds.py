"""Thresholds where two cues agree: on cues whose best division is known, and what is refused."""
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cian.data.classes import ClassTable
from cian.data.packing import pack_images
from cian.errors import InputError
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.seeds import thresholds as module
from cian.tools.engine.seeds.thresholds import STEPS, choose_thresholds, thresholds


def cues(random, pixels=200_000, objects=0.3, cam=0.37, saliency=0.21, noise=0.05):
    """Counts of two noisy cues, above their thresholds for objects and below for background."""
    truth = random.random(pixels) < objects
    values = [np.clip(np.where(truth, random.uniform(at, 2 * at, pixels), random.uniform(0, at, pixels))
                      + random.normal(0, noise * at, pixels), 0, 1 - 1e-6) for at in (cam, saliency)]
    return np.histogram2d(*values, bins=STEPS, range=((0, 1), (0, 1)))[0].astype(np.int64)


def test_thresholds_are_those_that_divide_both_cues_alike(monkeypatch):
    monkeypatch.setattr(module, "GENEROUS", 1.0)
    assert thresholds(cues(np.random.default_rng(0))) == pytest.approx((0.37, 0.21), abs=0.011)


def test_phi_is_the_correlation_of_the_two_divisions_and_generosity_lowers_the_other(monkeypatch):
    counts = cues(np.random.default_rng(1), noise=0.4)
    monkeypatch.setattr(module, "GENEROUS", 1.0)
    row, column = (round(STEPS * value) for value in thresholds(counts))
    rows, columns = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
    def correlation(at, to):
        return np.corrcoef(rows >= at, columns >= to)[0, 1]
    best = correlation(row, column)
    assert all(correlation(row + a, column + b) <= best for a in (-3, 0, 3) for b in (-3, 0, 3))
    monkeypatch.setattr(module, "GENEROUS", 2.0)
    lower = round(STEPS * thresholds(counts)[1])
    def odds(to):
        return ((rows >= row) & (columns >= to)).sum() / ((rows < row) & (columns < to)).sum()
    assert thresholds(counts)[0] == row / STEPS and lower < column
    assert odds(lower) >= 2 * odds(column) > odds(lower + 1)


def test_cues_that_do_not_agree_choose_nothing():
    with pytest.raises(InputError, match=r"thresholds: CAM and saliency do not agree \(correlation 0.0"):
        thresholds(np.full((STEPS, STEPS), 7))


@pytest.fixture
def images(tmp_path):
    """Images with a bright square of the only class, and one without a class."""
    paths = [str(tmp_path / f"photo_{k}.jpg") for k in range(5)]
    for k, path in enumerate(paths):
        picture = np.random.RandomState(k).randint(0, 9, (33, 41, 3)).astype(np.uint8)
        picture[11:23, 13 + k:29 + k] += 200
        cv2.imwrite(path, picture)
    labels = np.array([[1, k < 4] for k in range(5)], np.uint8)
    with pack_images(tmp_path / "records", "train", [f"photo_{k}" for k in range(5)], paths, labels,
                     ClassTable(("background", "cat")), workers=1) as records:
        yield records


def test_images_with_a_class_choose_and_nothing_else_changes(images):
    seen = []
    def maps(image, classes):
        seen.append(classes)
        return np.where(image[..., 1] > 100, 0.6, 0.1).astype(np.float32)[None]
    config = SeedConfig(thresholds="auto", conflicts="largest")
    found = choose_thresholds(config, images, maps)
    assert seen == [[1]] * 4
    assert 0.1 < found.foreground_threshold <= 0.6 and found.background_threshold != 0.06
    assert replace(found, foreground_threshold=0.3, background_threshold=0.06) == config


def test_low_cam_is_no_second_cue(images):
    with pytest.raises(InputError, match="seeds.thresholds: needs a second cue"):
        choose_thresholds(SeedConfig(thresholds="auto", saliency="low_cam"), images, lambda *_: None)
