"""The test-time procedure around a network that is a function of arrays: scales, their maximum and the
mirrored image, averaged as logits.

What MXNet does to images and logits there is done in NumPy, and the network sees an image at a
time. Passes of one thread each share the cores: none waits for another one at every operator.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import List, Sequence

import numpy as np

from cian.choices import check_scales
from cian.tools.engine.fitting import resized, scaled_side
from cian.tools.engine.models.agreement import Network
from cian.tools.engine.models.onnx_model import thread_count
from cian.tools.engine.prediction.processes import Later


def passes_at_a_time(scales: Sequence[float], mirror: bool) -> int:
    """So many of an image's passes through the network as there are threads for, at most all."""
    return min(thread_count(), len(scales) * (1 + mirror))


class Scales:
    """A network over scales and mirror, in threads of its own.

    Parameters
    ----------
    network : (1, 3, H, W) float32 raw RGB to logits (1, C, (H-1)//8+1, (W-1)//8+1).
    scales, add_max, mirror : see :class:`~cian.symbols.MultiScale`.
    """

    def __init__(self, network: Network, scales: Sequence[float], add_max: bool, mirror: bool) -> None:
        check_scales(scales)
        self._network, self._scales, self._add_max, self._mirror = network, tuple(scales), add_max, mirror
        self._thread = ThreadPoolExecutor(1)
        self._passes = ThreadPoolExecutor(passes_at_a_time(scales, mirror))

    def start(self, images: np.ndarray) -> Later:
        """Begin with (N, 3, H, W) float32 images; images are taken in the order of the calls."""
        return Later(self._thread.submit(self._images, images))

    def _images(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self._image(image[None]) for image in images])

    def _image(self, image: np.ndarray) -> np.ndarray:
        inputs = [resized(image, tuple(scaled_side(side, scale) for side in image.shape[2:]))
                  for scale in self._scales]
        if self._mirror:
            inputs += [shown[..., ::-1] for shown in inputs]
        # the longest first
        order = sorted(range(len(inputs)), key=lambda at: -inputs[at].size)
        begun = {at: self._passes.submit(self._network, inputs[at]) for at in order}
        maps = [begun[at].result() for at in range(len(inputs))]
        straight, mirrored = maps[:len(self._scales)], maps[len(self._scales):]
        mean = self._mean(straight)
        return (mean + self._mean(mirrored)[..., ::-1]) / 2 if mirrored else mean

    def _mean(self, logits: List[np.ndarray]) -> np.ndarray:
        """The mean of the logits of all scales and of their maximum, at the size of those at scale 1."""
        maps = [resized(found, logits[0].shape[2:]) for found in logits]
        if self._add_max:
            maps.append(reduce(np.maximum, maps))
        return np.add.reduce(maps) / len(maps)
