"""The training crop: mirror, scale, pad and cut an image and its label map, with the same numbers
as the original's loader.

What is random about a sample is a :class:`Draw`, made ahead of the work, so that any process may do
the work. Random numbers come from one stream in the original's order, or from a counter of (seed,
epoch, image) that no timing can change.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Sequence, Tuple

import cv2
import numpy as np

from cian.choices import IGNORE, LABEL_PADDINGS, LABEL_RESIZES, SCALES
from cian.errors import InputError

PADDED = {"background": 0, "ignore": IGNORE}  # value of padded pixels of a label map


class Draw(NamedTuple):
    """The random choices for one sample: scale, mirror, and the crop's corner in the scaled and
    padded image, pixels.
    """

    scale: float
    mirror: bool
    top: int
    left: int


@dataclass(frozen=True)
class CropTransform:
    """Random crop of ``crop_px`` pixels.

    Attributes
    ----------
    crop_px : side of the crop
    scales : scales to draw from; empty keeps the size
    mirror : mirror half of the samples
    stride : label maps are reduced to (crop_px - 1) // stride + 1
    label_resize : 'bilinear' interpolates class indices as the original's loader does (between 0
        and 15 lies 7); 'nearest' takes the label of the pixel below each logit, every ``stride``-th
    label_padding : label of padded pixels, 'background' as the original's loader or 'ignore'
    """

    crop_px: int = 321
    scales: Tuple[float, ...] = SCALES
    mirror: bool = True
    stride: int = 8
    label_resize: str = "bilinear"
    label_padding: str = "background"

    def __post_init__(self) -> None:
        for field, choices in (("label_resize", LABEL_RESIZES), ("label_padding", LABEL_PADDINGS)):
            if getattr(self, field) not in choices:
                raise InputError(f"{getattr(self, field)!r} is not allowed", field=field,
                                 remedy=f"use one of: {', '.join(choices)}")
        for field in ("crop_px", "stride"):
            if getattr(self, field) < 1:
                raise InputError(f"must be at least 1, not {getattr(self, field)}", field=field)
        if not all(scale > 0 for scale in self.scales):
            raise InputError(f"must be above 0, not {self.scales}", field="scales")

    @property
    def label_px(self) -> int:
        """Side of the reduced label map."""
        return (self.crop_px - 1) // self.stride + 1

    def draw_in_order(self, rng: np.random.RandomState, size: Sequence[int]) -> Draw:
        """Draw for an image of ``size`` (height, width) from a stream, in the order of the
        original's loader.
        """
        scale = float(rng.choice(self.scales)) if self.scales else 1.0
        mirror = bool(self.mirror and rng.random_sample() > 0.5)
        rows, columns = self._corners(size, scale)
        top = int(rng.randint(0, rows))
        return Draw(scale, mirror, top, int(rng.randint(0, columns)))

    def draw_by_counter(self, seed: int, epoch: int, index: int, serving: int, size: Sequence[int]) -> Draw:
        """Draw for image ``index`` that depends on nothing but the arguments.

        ``serving`` counts from 0 how often the image came before in the epoch. One block of four
        64-bit words of Philox-4x64 with the key (seed, epoch) gives the four choices.
        """
        words = np.random.Philox(key=[seed, epoch], counter=[0, index, serving, 1]).random_raw(4).tolist()
        scale = float(self.scales[words[0] * len(self.scales) >> 64]) if self.scales else 1.0
        rows, columns = self._corners(size, scale)
        return Draw(scale, bool(self.mirror and words[1] >> 63), words[2] * rows >> 64,
                    words[3] * columns >> 64)

    def image(self, image: np.ndarray, draw: Draw, out: np.ndarray) -> None:
        """Cut ``image`` (H, W, 3) uint8 BGR into ``out`` (3, crop_px, crop_px) uint8 RGB; padding is 0."""
        window = self._window(image, draw, cv2.INTER_LINEAR)
        height, width = window.shape[:2]
        if height < self.crop_px or width < self.crop_px:
            out[:] = 0
        for channel in range(3):
            cv2.extractChannel(window, 2 - channel, out[channel, :height, :width])

    def label(self, label: np.ndarray, draw: Draw, out: np.ndarray) -> None:
        """Cut and reduce ``label`` (H, W) uint8 class indices into ``out`` (label_px, label_px) uint8."""
        window = self._window(label, draw, cv2.INTER_NEAREST)
        below, right = self.crop_px - window.shape[0], self.crop_px - window.shape[1]
        if below or right:
            window = cv2.copyMakeBorder(window, 0, below, 0, right, cv2.BORDER_CONSTANT,
                                        value=[PADDED[self.label_padding]])
        if self.label_resize == "nearest":
            out[:] = window[::self.stride, ::self.stride]
        else:
            out[:] = cv2.resize(window, (self.label_px, self.label_px))

    def _corners(self, size: Sequence[int], scale: float) -> Tuple[int, int]:
        """Numbers of rows and of columns that the crop's corner may stand on."""
        height, width = scaled_size(int(size[0]), int(size[1]), scale)
        return max(height - self.crop_px, 0) + 1, max(width - self.crop_px, 0) + 1

    def _window(self, picture: np.ndarray, draw: Draw, interpolation: int) -> np.ndarray:
        """The part of the mirrored, scaled picture inside the crop.

        A scaled picture is scaled whole: OpenCV's weights come from float32 positions, so scaling a
        part can differ in the last bit.
        """
        height, width = picture.shape[:2]
        rows = slice(draw.top, draw.top + self.crop_px)
        if draw.scale == 1:
            if not draw.mirror:
                return picture[rows, draw.left:draw.left + self.crop_px]
            right = width - draw.left
            return cv2.flip(picture[rows, max(right - self.crop_px, 0):right], 1)
        height, width = scaled_size(height, width, draw.scale)
        scaled = cv2.resize(cv2.flip(picture, 1) if draw.mirror else picture, (width, height),
                            interpolation=interpolation)
        return scaled[rows, draw.left:draw.left + self.crop_px]


def scaled_size(height: int, width: int, scale: float) -> Tuple[int, int]:
    """Height and width after scaling, rounded as the original's loader does."""
    return int(height * scale + 0.5), int(width * scale + 0.5)
