"""The test-time procedure around a network that is a function of arrays: scales, their maximum and the
mirrored image, averaged as logits.

What MXNet does to images and logits there is done in NumPy, and the network sees an image at a time.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import List, Sequence

import numpy as np

from cian.choices import check_scales
from cian.tools.engine.fitting import resized, scaled_side
from cian.tools.engine.models.agreement import Network
from cian.tools.engine.prediction.processes import Later


class Scales:
    """A network over scales and mirror, in a thread of its own.

    Parameters
    ----------
    network : (1, 3, H, W) float32 raw RGB to logits (1, C, (H-1)//8+1, (W-1)//8+1).
    scales, add_max, mirror : see :class:`~cian.symbols.MultiScale`.
    """

    def __init__(self, network: Network, scales: Sequence[float], add_max: bool, mirror: bool) -> None:
        check_scales(scales)
        self._network, self._scales, self._add_max, self._mirror = network, tuple(scales), add_max, mirror
        self._thread = ThreadPoolExecutor(1)

    def start(self, images: np.ndarray) -> Later:
        """Begin with (N, 3, H, W) float32 images; images are taken in the order of the calls."""
        return Later(self._thread.submit(self._mean, images))

    def _mean(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self._image(image[None]) for image in images])

    def _image(self, image: np.ndarray) -> np.ndarray:
        straight = self._maps(image)
        return (straight + self._maps(image[..., ::-1])[..., ::-1]) / 2 if self._mirror else straight

    def _maps(self, image: np.ndarray) -> np.ndarray:
        """The mean of the logits of all scales and of their maximum, at the size of those at scale 1."""
        maps: List[np.ndarray] = []
        for scale in self._scales:
            size = tuple(scaled_side(side, scale) for side in image.shape[2:])
            logits = self._network(resized(image, size))
            maps.append(resized(logits, maps[0].shape[2:] if maps else logits.shape[2:]))
        if self._add_max:
            maps.append(reduce(np.maximum, maps))
        return np.add.reduce(maps) / len(maps)
