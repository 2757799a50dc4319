"""Class activation maps of single images, in [0, 1], and how well their classifier knows the
image-level labels.

CAM (Zhou et al., CVPR 2016): a classifier whose last two layers are a global average pooling and a
linear layer; without the pooling, the linear layer scores every position of the feature map.
"""
from __future__ import annotations

from typing import Optional, Sequence, Tuple

import mxnet as mx
import numpy as np

from cian.choices import STRIDE
from cian.data.classes import ClassTable, require_same
from cian.errors import InputError, PathLike
from cian.symbols.cam import CAMClassifier
from cian.symbols.metadata import read_metadata
from cian.symbols.params import load_params
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.fitting import resize_matrix, resized, scaled_side
from cian.tools.engine.models.agreement import Network
from cian.tools.engine.models.engine import start_engine
from cian.tools.engine.models.snapshot import described_by
from cian.tools.engine.seeds.features import network_input


class CamMaps:
    """Class activation maps of one image, for chosen classes.

    The maps of all scales and of the mirrored image are enlarged to the image and added; then
    negative scores become 0 and each map is divided by its largest value, so that its strongest
    pixel is 1 (Ahn and Kwak, CVPR 2018, section 3.1; the CIAN paper says "into range [0,1]" and no
    more). A class that scores nowhere above 0 has an empty map.

    Enlarging is bilinear with corners aligned. The image is padded with copies of its last row and
    column to 8n+1 pixels first, so that position i of the map lies exactly on pixel 8i.

    Parameters
    ----------
    cam : raw maps (1, L, (H-1)//8+1, (W-1)//8+1) of an image (1, 3, H, W), raw RGB float32.
    scales : scales of the image; sizes are int((side - 1) * scale) + 1.
    mirror : add the maps of the mirrored image.
    """

    def __init__(self, cam: Network, scales: Sequence[float] = (1.0,), mirror: bool = False) -> None:
        if not scales or min(scales) <= 0:
            raise InputError(f"needs at least one scale above 0, not {list(scales)}", field="seeds.scales")
        self._cam, self._scales, self._mirror = cam, tuple(scales), mirror

    @classmethod
    def of(cls, net: CAMClassifier, config: SeedConfig, device: Optional[mx.Context] = None,
           engine: str = "auto") -> CamMaps:
        """The maps that a configuration asks for, of a classifier with its parameters on ``device``
        (default the CPU); ``engine`` and errors as :func:`~cian.tools.engine.models.engine.start_engine`.
        """
        return cls(start_engine(net.maps(), engine, device or mx.cpu())[1], config.scales, config.mirror)

    def __call__(self, image: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        """Maps of the classes in an image.

        Parameters
        ----------
        image : (H, W, 3) uint8 RGB.
        classes : K pixel values, 1 for the first class after the background.

        Returns
        -------
        (K, H, W) float32 in [0, 1].
        """
        scores = self.scores(image, classes)
        np.maximum(scores, 0, out=scores)
        highest = scores.max(axis=(1, 2), keepdims=True, initial=0)
        return np.divide(scores, highest, out=scores, where=highest > 0)

    def scores(self, image: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        """(K, H, W) float32: the sum of the enlarged class scores of all scales, of either sign."""
        height, width = image.shape[:2]
        total = np.zeros((len(classes), height, width), np.float32)
        if not len(classes):
            return total
        pixels = network_input(image)
        for scale in self._scales:
            size = (scaled_side(height, scale), scaled_side(width, scale))
            coarse = self._coarse(resized(pixels, size), classes)
            rows, columns = (resize_matrix(shown, side) @ _enlarging(steps, shown)
                             for shown, side, steps in zip(size, (height, width), coarse.shape[1:]))
            total += rows @ coarse @ columns.T
        return total

    def _coarse(self, pixels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        """(K, h, w) scores at stride 8 of (1, 3, H, W) pixels, with those of the mirrored image added."""
        below, right = (-(side - 1) % STRIDE for side in pixels.shape[2:])
        padded = np.pad(pixels, ((0, 0), (0, 0), (0, below), (0, right)), mode="edge")
        chosen = [value - 1 for value in classes]
        maps = self._cam(padded)[0, chosen]  # (K, h, w)
        return maps + self._cam(padded[..., ::-1])[0, chosen, :, ::-1] if self._mirror else maps


def _enlarging(steps: int, side: int) -> np.ndarray:
    """(side, steps) matrix from positions 0, 8, 16, ... to the first ``side`` pixels."""
    return resize_matrix(steps, (steps - 1) * STRIDE + 1)[:side]


def load_classifier(path: PathLike, classes: ClassTable,
                    device: Optional[mx.Context] = None) -> Tuple[CAMClassifier, str]:
    """The classifier of a file that training wrote, and the SHA-256 of that file.

    Raises
    ------
    InputError
        The file or its metadata is missing, damaged, of another kind of network, or of other classes.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") != "cam":
        raise InputError("is not a CAM classifier", file=path,
                         remedy="name the file that tools/train_cam.py wrote")
    require_same([classes.names[0], *metadata["classes"]], path, classes.names, classes.file or "the data")
    with described_by(path, "CAM classifier", "file that tools/train_cam.py"):
        net = CAMClassifier(**metadata["network"])
        load_params(net, path, ctx=device)
    return net, metadata["sha256"]


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class: the mean, over its positive images, of the precision at that
    image's rank.

    Images of equal score share the rank of the last of them, so an order among them gives no advantage.

    Parameters
    ----------
    scores : (n, L) float.
    labels : (n, L), 1 where the image has the class.

    Returns
    -------
    (L,) float64; NaN for a class that no image has.
    """
    result = np.full(scores.shape[1], np.nan)
    for index, (score, positive) in enumerate(zip(scores.T, np.asarray(labels, bool).T)):
        if positive.any():
            ordered = np.sort(score)
            # images of at least that score
            above = len(score) - np.searchsorted(ordered, score[positive], side="left")
            hits = positive.sum() - np.searchsorted(np.sort(score[positive]), score[positive], side="left")
            result[index] = (hits / above).mean()
    return result


def mean_of_present(precisions: np.ndarray) -> Optional[float]:
    """Mean of :func:`average_precisions` over the classes that occur; None where none does."""
    found = precisions[~np.isnan(precisions)]
    return float(found.mean()) if len(found) else None
