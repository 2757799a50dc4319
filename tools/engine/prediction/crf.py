"""Dense CRF (Krähenbühl and Koltun, 2011) on the network's logits, with the parameters that are
known by name.

Imports no MXNet, for the processes beside the network.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Dict, Optional

import numpy as np
import pydensecrf.densecrf as densecrf

from cian.errors import InputError


@dataclass(frozen=True)
class CRFPreset:
    """Mean-field iterations; for both Potts terms the standard deviations (pixels, RGB levels) and
    the weight; and the margin, to which an image's logits are scaled: its mean lead of the best
    class over the next. Without, they are energies as they are. With ``agreed``, pixels whose
    label the CRF changes get none.
    """

    iterations: int
    gaussian_px: float
    gaussian_weight: float
    bilateral_px: float
    bilateral_rgb: float
    bilateral_weight: float
    margin: Optional[float] = None
    agreed: bool = False

    def described(self) -> Dict[str, float]:
        """Its values, for a manifest; those that are not set are left out."""
        return {key: value for key, value in asdict(self).items() if value}


CRF_PRESETS = {
    # The original's inference: the example values of pydensecrf, five iterations.
    "test": CRFPreset(5, 3, 3, 80, 13, 10),
    # The original's pseudo-labels for the second round: the same with ten.
    "retrain": CRFPreset(10, 3, 3, 80, 13, 10),
    # DeepLab-v2 ResNet-101 as its authors released it (crf settings of the Caffe model; Chen et
    # al., TPAMI 2018, section 4.1 gives the ranges that they searched).
    "deeplab": CRFPreset(10, 1, 3, 67, 3, 4),
    # The same weights at one margin, for networks that are surer than they are right, such as those
    # trained for few steps on a frozen backbone, and for a comparison of losses: the surer network
    # is moved less by a CRF, and completion makes networks surer.
    "soft": CRFPreset(10, 3, 3, 80, 13, 10, margin=2.0),
}


def crf_preset(name: str) -> CRFPreset:
    """The preset of this name; :class:`InputError` listing the names for another."""
    if name not in CRF_PRESETS:
        raise InputError(f"unknown CRF preset {name!r}", field="predict.crf",
                         remedy=f"use one of: {', '.join(CRF_PRESETS)}")
    return CRF_PRESETS[name]


def dense_crf(logits: np.ndarray, image: np.ndarray, preset: CRFPreset) -> np.ndarray:
    """Class probabilities after mean-field inference in a :class:`DenseCRF`: (C, H, W) float32;
    ``argmax(axis=0)`` is the label map.
    """
    return DenseCRF(logits, image, preset).infer()


class DenseCRF:
    """A field over an image, with the negated logits as unary energies (as the original does). It
    copies what it is made of.

    Parameters
    ----------
    logits : (C, H, W) float32, finite.
    image : (H, W, 3) uint8, RGB.

    Raises
    ------
    ValueError
        For shapes and types that do not fit.
    InputError
        For logits that are not finite.
    """

    def __init__(self, logits: np.ndarray, image: np.ndarray, preset: CRFPreset) -> None:
        classes, height, width = self._shape = logits.shape
        self._iterations = preset.iterations
        if image.shape != (height, width, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"the image is {image.dtype} {image.shape}, but the logits need uint8 {(height, width, 3)}")
        if not np.isfinite(logits).all():
            raise InputError("the network's logits are not finite",
                             remedy="check the checkpoint: its training may have diverged")
        self._field = None
        if classes == 1:
            return
        self._field = densecrf.DenseCRF2D(width, height, classes)
        scale = 1.0
        if preset.margin is not None:
            second, best = np.partition(logits.reshape(classes, -1), -2, axis=0)[-2:]
            scale = preset.margin / max(float((best - second).mean()), 1e-6)
        energies = logits.reshape(classes, -1) * np.float32(-scale)
        self._field.setUnaryEnergy(np.ascontiguousarray(energies, dtype=np.float32))
        self._field.addPairwiseGaussian(sxy=preset.gaussian_px, compat=preset.gaussian_weight)
        self._field.addPairwiseBilateral(sxy=preset.bilateral_px, srgb=preset.bilateral_rgb,
                                         rgbim=np.ascontiguousarray(image), compat=preset.bilateral_weight)

    def infer(self) -> np.ndarray:
        """(C, H, W) float32 class probabilities."""
        if self._field is None:
            return np.ones(self._shape, np.float32)
        return np.asarray(self._field.inference(self._iterations), dtype=np.float32).reshape(self._shape)
