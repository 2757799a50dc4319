"""Pooled features of whole images, computed once and kept on the disk: what a classification layer
on a frozen backbone trains on.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, Mapping, Tuple

import cv2
import mxnet as mx
import numpy as np
from tqdm import tqdm

from cian.data.feature_file import FeatureFile
from cian.data.records import RecordSet
from cian.errors import PathLike
from cian.tools.engine.models.agreement import Network
from cian.tools.engine.seeds.overlap import overlapped

STRAIGHT, MIRRORED = 0, 1


def images_rgb(images: RecordSet, indices: Any, workers: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB images of a record set, decoded ahead by threads."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        yield from overlapped(pool, lambda index: cv2.cvtColor(images.image(int(index)), cv2.COLOR_BGR2RGB),
                              indices)


def network_input(image: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) float32 of an (H, W, 3) uint8 RGB image."""
    return image.transpose(2, 0, 1)[None].astype(np.float32)


def pooled_features(network: Network, channels: int, images: RecordSet, path: PathLike, *, workers: int = 1,
                    progress: bool = False) -> np.ndarray:
    """Mean features of every image and of its mirror image, in their own size, of so many channels.

    They are kept in ``path``, which must say what they depend on; a run that was stopped goes on
    where it was.

    Returns
    -------
    (n, 2, C) float32: [:, 0] straight and [:, 1] mirrored.

    Raises
    ------
    InputError
        The file cannot be written, is not of these images and this backbone, or does not match its
        checksums.
    """
    file = FeatureFile(path, np.tile((2, channels), (len(images), 1)), np.float32, images.names)
    file.lay_out()
    missing = file.missing()

    def compute() -> Iterator[Tuple[int, np.ndarray]]:
        for index, image in tqdm(zip(missing.tolist(), images_rgb(images, missing, workers)), unit="image",
                                 total=len(images), desc="features", initial=len(images) - len(missing),
                                 disable=None if progress else True):
            pixels = network_input(image)
            views = (pixels, pixels[..., ::-1])
            yield index, np.concatenate([network(view).mean(axis=(2, 3)) for view in views])
    file.write(compute())
    return np.stack([file[index] for index in range(len(images))])


class FeatureIter:
    """Batches of features, straight or mirrored at random, for the training loop of a CAM classifier.

    A batch holds ``data`` [(B, C, 1, 1)], ``label`` [(B, L)], ``index`` (B,); the last one of an
    epoch is smaller. Order and choice are those of the counter (seed, epoch).

    Parameters
    ----------
    features : (n, 2, C).
    labels : (n, L), multi-hot.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, batch_size: int, seed: int) -> None:
        self._features, self._labels, self._batch_size, self._seed = features, np.asarray(
            labels, np.float32), batch_size, seed
        self._epoch = self._position = 0

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._features) // self._batch_size)

    def __iter__(self) -> Iterator[mx.io.DataBatch]:
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._features))
        views = random.integers(STRAIGHT, MIRRORED + 1, len(self._features))
        while self._position < self.num_batches:
            rows = order[self._position * self._batch_size:(self._position + 1) * self._batch_size]
            self._position += 1
            yield mx.io.DataBatch(data=[mx.nd.array(self._features[rows, views[rows]][:, :, None, None])],
                                  label=[mx.nd.array(self._labels[rows])], index=rows, pad=0)

    def reset(self) -> None:
        """Begin the next epoch; changes nothing when no batch of the current one was handed out."""
        if self._position:
            self._epoch, self._position = self._epoch + 1, 0

    def state_dict(self) -> Dict[str, Any]:
        """State after the last batch handed out."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
