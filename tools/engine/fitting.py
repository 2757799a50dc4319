"""How an image is brought to the size that the network sees, and its logits back to the size of the image.

All resizing is bilinear with corners aligned, as MXNet's BilinearResize2D does it. Being linear and
separable it is a pair of matrices here: averaging maps before enlarging them, cropping, and
resizing twice all become products of small matrices. Imports neither MXNet nor, before it warps an
image, OpenCV: processes that enlarge logits beside the network need none of them.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import numpy as np

from cian.errors import InputError

FITS = ("pad", "warp", "tight", "native")
TIGHT_PX = 32


@dataclass(frozen=True)
class Fit:
    """Sizes are (height, width) in pixels.

    Attributes
    ----------
    how : 'pad', 'warp', 'tight' or 'native'.
    image_size : of the image.
    network_size : of what the network sees.
    """

    how: str
    image_size: Tuple[int, int]
    network_size: Tuple[int, int]

    @classmethod
    def of(cls, image_size: Tuple[int, int], how: str = "pad", size_px: int = 513) -> Fit:
        """The fit of an image of ``image_size``.

        * pad: each side shorter than ``size_px`` is padded to it, longer ones stay (the original's
          test, which cuts longer ones off).
        * warp: both sides become ``size_px`` (the original's labels for the second round).
        * tight: each side is padded to the next 32 n + 1, of which the scales 0.75 and 1.25 are
          8 n + 1 too: there, and only there, the network sees the mirrored image at the same places.
        * native: the image as it is; a side of one pixel is padded to two, which resizing needs.
        """
        if how not in FITS:
            raise InputError(f"{how!r} is not allowed", field="predict.fit",
                             remedy=f"use one of: {', '.join(FITS)}")
        height, width = image_size
        sides = {"pad": lambda side: max(side, size_px), "warp": lambda side: size_px,
                 "tight": lambda side: TIGHT_PX * max(1, -(-(side - 1) // TIGHT_PX)) + 1,
                 "native": lambda side: max(side, 2)}
        return cls(how, (height, width), (sides[how](height), sides[how](width)))

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The (H, W, 3) uint8 image at ``network_size``: zeros below and on the right, or resized
        by OpenCV's bilinear.
        """
        if self.network_size == self.image_size:
            return image
        height, width = self.network_size
        if self.how == "warp":
            import cv2

            return cv2.resize(image, (width, height))
        padded = np.zeros((height, width, 3), image.dtype)
        padded[:self.image_size[0], :self.image_size[1]] = image
        return padded

    def enlarge(self, coarse: np.ndarray) -> np.ndarray:
        """(C, h, w) logits of what the network saw, at any stride, to (C, H, W) float32 of the image."""
        rows = self._matrix(coarse.shape[1], 0)
        columns = self._matrix(coarse.shape[2], 1)
        return np.matmul(np.matmul(rows, coarse.astype(np.float32, copy=False)), columns.T)

    def _matrix(self, coarse: int, axis: int) -> np.ndarray:
        """(image side, coarse) along one axis: to the network's side, then cut off the padding or
        undo the warping.
        """
        enlarge = resize_matrix(coarse, self.network_size[axis])
        side = self.image_size[axis]
        if self.how == "warp":
            return resize_matrix(self.network_size[axis], side) @ enlarge
        return enlarge[:side]


def scaled_side(side: int, scale: float) -> int:
    """Pixels of a side resized with aligned corners, as :class:`~cian.symbols.MultiScale` does it."""
    return int((side - 1) * scale) + 1


def resize_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float32 matrix of bilinear interpolation with aligned corners; each row sums to 1."""
    position = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    left = np.minimum(position.astype(np.int64), source - 1)
    right = np.minimum(left + 1, source - 1)
    weight = (position - left).astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    index = np.arange(target)
    matrix[index, left] += 1 - weight
    matrix[index, right] += weight
    return matrix


def resized(maps: np.ndarray, size: Tuple[int, ...]) -> np.ndarray:
    """(N, C, H, W) at another height and width, bilinear with aligned corners."""
    if maps.shape[2:] == size:
        return maps
    rows, columns = (resize_matrix(have, want) for have, want in zip(maps.shape[2:], size))
    return np.matmul(np.matmul(rows, maps), columns.T)
