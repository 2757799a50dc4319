"""Windows of stored features in place of crops of pixels: the same draws, on the grid of the features.

A window of (crop_px - 1) / 8 + 1 cells covers the pixels of a crop whose corner lies at multiples of
8 of the mirrored, scaled image, and the labels are cut there.
"""
from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Deque, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from cian.data.feature_file import FeatureFile
from cian.data.records import RecordSet
from cian.data.transforms import CropTransform, Draw
from cian.data.workers import BatchMaker, Sample
from cian.errors import InputError

Maps = Mapping[Tuple[float, bool], FeatureFile]  # by scale and mirror: (h, w, C) of each image


@dataclass(frozen=True)
class WindowTransform(CropTransform):
    """As :class:`CropTransform`, but a draw's corner counts cells of ``stride`` pixels, and an image
    is a map of features (h, w, C), padded before they were computed.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.crop_px - 1) % self.stride:
            below = self.crop_px - (self.crop_px - 1) % self.stride
            raise InputError(f"windows of features have {self.stride} n + 1 pixels, not {self.crop_px}",
                             field="train.crop_px", remedy=f"use {below} or {below + self.stride}")

    def image(self, image: np.ndarray, draw: Draw, out: np.ndarray) -> None:
        """Copy the window of a map (h, w, C) into ``out`` (C, label_px, label_px)."""
        out[:] = image[draw.top:draw.top + self.label_px,
                       draw.left:draw.left + self.label_px].transpose(2, 0, 1)

    def label(self, label: np.ndarray, draw: Draw, out: np.ndarray) -> None:
        """As :meth:`CropTransform.label`, at the pixels of the window."""
        super().label(label, draw._replace(top=draw.top * self.stride, left=draw.left * self.stride), out)

    def _corners(self, size: Sequence[int], scale: float) -> Tuple[int, int]:
        rows, columns = super()._corners(size, scale)
        return (rows - 1) // self.stride + 1, (columns - 1) // self.stride + 1


class WindowMaker(BatchMaker):
    """Cuts windows out of stored features; the other parameters as :class:`BatchMaker`.

    Parameters
    ----------
    maps : features of ``images`` at every scale of the transform, and of the mirrored images.
    """

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, maps: Maps, images: RecordSet, transform: WindowTransform,
                 seeds: Optional[RecordSet] = None, seed_positions: Optional[np.ndarray] = None) -> None:
        super().__init__(images, transform, seeds, seed_positions)
        self._maps = maps

    @property
    def image_shape(self) -> Tuple[int, int, int]:
        """(C, s, s) of a window."""
        channels = int(next(iter(self._maps.values())).shapes[0, 2])
        return (channels, self.transform.label_px, self.transform.label_px)

    def pool(self, workers: int, image_shape: Tuple[int, ...], label_shape: Tuple[int, ...]) -> WindowThread:
        """A thread that makes batches ahead; there is no work for processes."""
        return WindowThread(self, image_shape, label_shape)

    def _picture(self, index: int, draw: Draw) -> np.ndarray:
        return self._maps[draw.scale, draw.mirror][index]


class WindowThread:
    """A thread that makes batches ahead of use, as a :class:`~cian.data.workers.WorkerPool` does."""

    capacity = 2
    pids: Tuple[int, ...] = ()

    def __init__(self, maker: WindowMaker, image_shape: Tuple[int, ...],
                 label_shape: Tuple[int, ...]) -> None:
        self._maker, self._shapes = maker, (image_shape, label_shape)
        self._thread = ThreadPoolExecutor(1)
        self._tasks: Deque[Future[Tuple[np.ndarray, np.ndarray]]] = deque()

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queue a batch."""
        self._tasks.append(self._thread.submit(self._make, list(samples)))

    def ready(self) -> bool:
        """Whether :meth:`result` would return without waiting."""
        return bool(self._tasks) and self._tasks[0].done()

    def result(self) -> Tuple[np.ndarray, np.ndarray]:
        """Features (B, C, s, s) and labels (B, s, s) of the oldest pending task; errors as the maker."""
        return self._tasks.popleft().result()

    def drain(self) -> None:
        """Wait for the pending tasks, and forget their results and errors."""
        while self._tasks:
            self._tasks.popleft().exception()

    def close(self) -> None:
        """End the thread; harmless to call again."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._tasks.clear()

    def _make(self, samples: List[Sample]) -> Tuple[np.ndarray, np.ndarray]:
        images, labels = np.empty(self._shapes[0], self._maker.dtype), np.empty(self._shapes[1], np.uint8)
        self._maker(samples, images, labels)
        return images, labels
