"""Iterators over record sets: batches of groups for CIAN, batches of single images for the CAM
classifier, and their way to devices.
"""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import mxnet as mx
import numpy as np

from cian.choices import SCALES
from cian.data.crop_iterator import CropIter
from cian.data.groups import batch_rows
from cian.data.pairs import EpochAccount, GroupSampler, ImageSampler
from cian.data.records import RecordSet, match_seeds
from cian.data.transforms import CropTransform
from cian.data.windows import Maps, WindowMaker, WindowTransform
from cian.data.workers import BatchMaker
from cian.errors import InputError


class PairIter(CropIter):
    """Batches of groups of images with their seeds, for CIAN.

    A batch holds ``data`` [images (B, 3, S, S) float32 RGB 0..255], ``label`` [seeds (B, s, s)
    float32, image_labels (B, num_classes) float32, background 1] and ``index`` (B,) positions in
    ``images``. Device d of D has the rows d*B/D to (d+1)*B/D: the first members of its groups, then
    the second members, and so on.

    Parameters
    ----------
    images, seeds : record sets; ``seeds`` needs a label map for each image, found by name
    batch_size : images a batch over all devices of this part
    group_size, pairing, order, seed, lonely : see :class:`~cian.data.pairs.GroupSampler`
    num_devices : devices that share a batch
    crop_px, scales, mirror, label_resize, label_padding : see
        :class:`~cian.data.transforms.CropTransform`
    workers, part_index, num_parts : see :class:`CropIter`. The parts together hand out what one
        iterator with ``num_parts`` times the batch and the devices would: no image twice, in step.
    features : stored features of the images at every scale, and of the mirrored ones: ``data`` are
        windows of them, (B, C, s, s), which a thread cuts (see :mod:`cian.data.windows`)

    Raises
    ------
    InputError
        A batch that does not divide into groups for each device, a bad option, images without seeds.
    """

    sampler: GroupSampler

    def __init__(self, images: RecordSet, seeds: RecordSet, *, batch_size: int, group_size: int = 2,
                 num_devices: int = 1, crop_px: int = 321, scales: Sequence[float] = SCALES,
                 mirror: bool = True, label_resize: str = "bilinear",
                 label_padding: str = "background", pairing: str = "common", order: str = "original",
                 seed: Union[int, np.random.RandomState] = 0, lonely: str = "end", workers: int = 0,
                 part_index: int = 0, num_parts: int = 1, features: Optional[Maps] = None) -> None:
        if batch_size < 1 or group_size < 2 or num_devices < 1 or batch_size % (group_size * num_devices):
            raise InputError(
                f"{batch_size} images do not divide into groups of {group_size} on {num_devices} device(s)",
                field="batch_size", remedy=f"use a multiple of {group_size * num_devices}")
        self.group_size, self.num_devices = group_size, num_devices
        cut: Dict[str, Any] = {"crop_px": crop_px, "scales": tuple(scales), "mirror": mirror,
                               "label_resize": label_resize, "label_padding": label_padding}
        positions = match_seeds(images, seeds)
        maker = (BatchMaker(images, CropTransform(**cut), seeds, positions) if features is None
                 else WindowMaker(features, images, WindowTransform(**cut), seeds, positions))
        sampler = GroupSampler(images.labels, group_size=group_size,
                               groups_per_batch=batch_size * num_parts // group_size, pairing=pairing,
                               order=order, seed=seed, lonely=lonely, names=images.names)
        super().__init__(sampler, maker, batch_size, workers, part_index, num_parts)

    @property
    def provide_label(self) -> List[mx.io.DataDesc]:
        """Names, shapes and types of the labels."""
        return [mx.io.DataDesc("label", self._label_shape),
                mx.io.DataDesc("image_labels", (self.batch_size, self.maker.images.labels.shape[1]))]

    def account(self) -> EpochAccount:
        """What the current epoch does with the images, over all parts."""
        return self.sampler.account()

    def _epoch_rows(self) -> np.ndarray:
        return batch_rows(self.sampler.groups, self.sampler.groups_per_batch,
                          self.num_devices * self.num_parts)

    def _labels(self, index: np.ndarray, seeds: np.ndarray) -> List[mx.nd.NDArray]:
        image_labels = self.maker.images.labels[index]
        image_labels[:, 0] = 1  # Eq. 7 lets the background through in every image
        return [mx.nd.array(seeds), mx.nd.array(image_labels)]

    def _settings(self) -> Dict[str, Any]:
        return {**super()._settings(), "num_devices": self.num_devices * self.num_parts}


class ClassificationIter(CropIter):
    """Batches of single images with their image-level labels, for the CAM classifier.

    A batch holds ``data`` [images (B, 3, S, S) float32 RGB 0..255], ``label`` [(B, num_classes - 1)
    float32, multi-hot without background] and ``index``. Each image comes once an epoch; the last
    batch is filled up from the epoch's beginning, and its ``pad`` says how many of its images (the
    last ones, over all parts) came so.

    Parameters
    ----------
    images : record set
    batch_size, crop_px, workers, part_index, num_parts : see :class:`PairIter`
    seed : random numbers are those of the counter (seed, epoch, image)
    """

    sampler: ImageSampler

    def __init__(self, images: RecordSet, *, batch_size: int, crop_px: int = 321, seed: int = 0,
                 workers: int = 0, part_index: int = 0, num_parts: int = 1) -> None:
        if batch_size < 1:
            raise InputError(f"must be at least 1, not {batch_size}", field="batch_size")
        super().__init__(ImageSampler(len(images), batch_size * num_parts, seed),
                         BatchMaker(images, CropTransform(crop_px)), batch_size, workers, part_index,
                         num_parts)

    @property
    def provide_label(self) -> List[mx.io.DataDesc]:
        """Name, shape and type of the label."""
        return [mx.io.DataDesc("label", (self.batch_size, self.maker.images.labels.shape[1] - 1))]

    def _epoch_rows(self) -> np.ndarray:
        return self.sampler.rows

    def _labels(self, index: np.ndarray, seeds: np.ndarray) -> List[mx.nd.NDArray]:
        return [mx.nd.array(self.maker.images.labels[index, 1:])]

    def _pad(self) -> int:
        return self.sampler.pad if self._position + 1 == self.num_batches else 0


def split_batch(batch: mx.io.DataBatch, contexts: Sequence[mx.Context],
                pinned: bool = False) -> List[mx.io.DataBatch]:
    """The rows of each device as a batch on that device; the copies run on while the caller goes on.

    ``pad`` of the parts is 0: ask the whole batch. ``pinned`` copies by way of page-locked memory,
    which a GPU reads beside its work.
    """
    rows, rest = divmod(batch.data[0].shape[0], len(contexts))
    if rest:
        raise InputError(f"a batch of {batch.data[0].shape[0]} does not divide over {len(contexts)} devices",
                         field="batch_size")
    parts = []
    for number, context in enumerate(contexts):
        own = slice(number * rows, (number + 1) * rows)
        data, label = ([(array[own].as_in_context(mx.cpu_pinned()) if pinned else array[own]).as_in_context(
            context) for array in arrays] for arrays in (batch.data, batch.label))
        parts.append(mx.io.DataBatch(data=data, label=label, pad=0, index=batch.index[own]))
    return parts


class DeviceFeed:
    """Batches of ``iterator`` split over ``contexts`` and copied there one batch ahead of use.

    The next batch's copies start before the current one is handed out, when it is ready by then.
    State, as that of the iterator, is that of the last batch handed out. ``pinned`` as in
    :func:`split_batch`.
    """

    def __init__(self, iterator: CropIter, contexts: Sequence[mx.Context], pinned: bool = False) -> None:
        self.iterator, self.contexts, self._pinned = iterator, list(contexts), pinned
        self._next: Optional[Tuple[List[mx.io.DataBatch], Dict[str, Any]]] = None
        self._state = iterator.state_dict()

    @property
    def num_batches(self) -> int:
        """Of the current epoch."""
        return self.iterator.num_batches

    def __iter__(self) -> DeviceFeed:
        return self

    def __next__(self) -> List[mx.io.DataBatch]:
        parts, state = self._next if self._next is not None else self._fetch()
        self._next = self._fetch() if self.iterator.ready() else None
        self._state = state
        return parts

    def state_dict(self) -> Dict[str, Any]:
        """State after the last batch handed out."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`CropIter.load_state_dict`."""
        self.iterator.load_state_dict(state)
        self._next, self._state = None, self.iterator.state_dict()

    def reset(self) -> None:
        """Begin the next epoch."""
        if self._next is not None:
            self.load_state_dict(self._state)
        self.iterator.reset()
        self._state = self.iterator.state_dict()

    def _fetch(self) -> Tuple[List[mx.io.DataBatch], Dict[str, Any]]:
        return split_batch(next(self.iterator), self.contexts, self._pinned), self.iterator.state_dict()
