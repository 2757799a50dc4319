"""Both thresholds of the seeds, chosen without masks: where two cues agree.

The CAM tells objects from labels, saliency tells them from the image alone, so that what both call
an object, or both background, is seldom wrong by chance. The thresholds at which the two divide the
pixels most alike therefore lie close to those that masks would choose, and the pixels on which they
agree then hold about as many objects as the images do (docs/seeds.md has the figures).
"""
from __future__ import annotations

from dataclasses import replace
from typing import Tuple

import cv2
import numpy as np

from cian.data.records import RecordSet
from cian.errors import InputError
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.seeds.make import SALIENCY, Maps, check_saliency

SAMPLE = 200  # images, spread over the list
STEPS = 100  # of both cues, from 0 to 1
LEAST = 0.1  # correlation of the cues below which nothing is chosen
GENEROUS = 2.0  # the odds of objects among the seeds, over those where the cues agree; see docs/seeds.md


def choose_thresholds(config: SeedConfig, images: RecordSet, maps: Maps) -> SeedConfig:
    """``config`` with both thresholds chosen from up to ``SAMPLE`` images with a class.

    Raises
    ------
    InputError
        Saliency is made of the CAM itself, the two do not agree, or no image has a class.
    """
    if config.saliency == "low_cam":
        raise InputError("needs a second cue, and low_cam is the first one", field="seeds.thresholds",
                         remedy="take seeds.saliency=builtin or images, or give the thresholds")
    check_saliency(config, images)
    labelled = np.flatnonzero(images.labels[:, 1:].any(axis=1))
    if not len(labelled):
        raise InputError("no image has a class to choose them by", field="seeds.thresholds")
    counts = np.zeros((STEPS, STEPS), np.int64)
    for index in labelled[::-(-len(labelled) // SAMPLE)]:
        image = cv2.cvtColor(images.image(int(index)), cv2.COLOR_BGR2RGB)
        cams = maps(image, [int(value) for value in np.flatnonzero(images.labels[index]) if value])
        saliency = SALIENCY[config.saliency](config, images.names[index], image, cams)
        rows, columns = (np.minimum(cue * STEPS, STEPS - 1).astype(int).ravel()
                         for cue in (cams.max(axis=0), saliency))
        counts += np.bincount(rows * STEPS + columns, minlength=STEPS ** 2).reshape(STEPS, STEPS)
    foreground, background = thresholds(counts)
    return replace(config, foreground_threshold=foreground, background_threshold=background)


def thresholds(counts: np.ndarray) -> Tuple[float, float]:
    """CAM and saliency thresholds from (STEPS, STEPS) pixel counts by both cues.

    Of all pairs the one of the largest correlation between 'CAM above' and 'saliency above' (phi
    coefficient, Matthews 1975); then the background's is lowered until the odds of objects among
    the pixels on which both agree are ``GENEROUS`` times as large.
    """
    # by (row, column): pixels below both thresholds
    neither = np.pad(counts.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(np.float64)
    cam_only, saliency_only = neither[-1:] - neither, neither[:, -1:] - neither
    both = neither[-1, -1] - neither - cam_only - saliency_only
    product = (both + cam_only) * (both + saliency_only) * (neither + cam_only) * (neither + saliency_only)
    phi = (both * neither - cam_only * saliency_only) / np.sqrt(np.maximum(product, 1))
    row, column = np.unravel_index(phi.argmax(), phi.shape)
    if phi[row, column] < LEAST:
        raise InputError(f"CAM and saliency do not agree (correlation {phi[row, column]:.2f})",
                         field="seeds.thresholds", remedy="give the thresholds")
    wanted = GENEROUS * both[row, column] / max(neither[row, column], 1)
    odds = both[row] / np.maximum(neither[row], 1)
    lowered = np.flatnonzero(odds[:column + 1] >= wanted)[-1]
    return float(row) / STEPS, float(lowered) / STEPS
