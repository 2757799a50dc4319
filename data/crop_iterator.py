"""What the iterators over record sets share: drawing ahead, workers, parts, and the exact state.

Batches are made ahead of use by processes (``workers``), in order, and are the same for every
number of them. The state of an iterator is that of the last batch it handed out, however many were
made ahead; restored, it hands out the very batches that would have followed.
"""
from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import asdict
from typing import Any, Deque, Dict, List, Mapping, Optional, Tuple, Union, cast

import mxnet as mx
import numpy as np

from cian.data.pairs import GroupSampler, ImageSampler, check_settings, random_state, set_random_state
from cian.data.workers import BatchMaker, Sample
from cian.errors import InputError


class CropIter(mx.io.DataIter, contextlib.AbstractContextManager["CropIter"]):
    """Random crops of the images that a sampler names, batch by batch; the base of
    :mod:`cian.data.iterators`.

    Parameters
    ----------
    sampler : draws ``rows``, the image positions of an epoch
    maker : reads and cuts the images
    batch_size : images a batch of this part
    workers : processes that make batches ahead, forked: make the iterator before threads of your own;
        0 makes each batch when it is asked for
    part_index, num_parts : this is one of ``num_parts`` processes that share each batch of so many
        times ``batch_size`` images
    """

    def __init__(self, sampler: Union[GroupSampler, ImageSampler], maker: BatchMaker, batch_size: int,
                 workers: int, part_index: int, num_parts: int) -> None:
        super().__init__(batch_size)
        if not 0 <= part_index < num_parts:
            raise InputError(f"{part_index} is not a part of {num_parts}", field="part_index")
        if workers < 0:
            raise InputError(f"must be at least 0, not {workers}", field="workers")
        self.sampler, self.maker, self.part_index, self.num_parts = sampler, maker, part_index, num_parts
        transform = maker.transform
        self._image_shape = (batch_size, *maker.image_shape)
        self._label_shape = (batch_size, transform.label_px,
                             transform.label_px) if maker.seeds is not None else (0,)
        self._pool = maker.pool(workers, self._image_shape, self._label_shape) if workers else None
        self._scratch = (np.zeros(self._image_shape, maker.dtype), np.zeros(self._label_shape, np.uint8))
        # state of the sampler's stream after the last batch handed out
        self._random: Optional[Dict[str, Any]] = None
        # rows of a batch and that state after it
        self._ahead: Deque[Tuple[np.ndarray, Optional[Dict[str, Any]]]] = deque()
        self._samples: List[Sample] = []
        self._closed = False
        self._begin()

    # -- to be given by the iterators --------------------------------------------------------------

    def _epoch_rows(self) -> np.ndarray:
        """Image positions of the sampler's current epoch, (num_batches, batch_size * num_parts)."""
        raise NotImplementedError

    def _labels(self, index: np.ndarray, seeds: np.ndarray) -> List[mx.nd.NDArray]:
        """The labels of a batch."""
        raise NotImplementedError

    def _pad(self) -> int:
        """How many of the batch's last images fill it up."""
        return 0

    # -- the iterator ------------------------------------------------------------------------------

    @property
    def provide_data(self) -> List[mx.io.DataDesc]:
        """Name, shape and type of the data."""
        return [mx.io.DataDesc("data", self._image_shape)]

    @property
    def num_batches(self) -> int:
        """Batches of the current epoch."""
        return len(self._rows)

    def __len__(self) -> int:
        return self.num_batches

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self.sampler.epoch

    @property
    def position(self) -> int:
        """Batches of the current epoch handed out so far."""
        return self._position

    @property
    def worker_pids(self) -> List[int]:
        """Process numbers of the workers."""
        return self._pool.pids if self._pool is not None else []

    def reset(self) -> None:
        """Begin the next epoch; changes nothing when no batch of the current one was handed out."""
        if self._position or not self.num_batches:
            self._forget_ahead()
            self._begin()

    def next(self) -> mx.io.DataBatch:
        """The next batch: ``data`` [images], ``label``, ``index`` (positions in the record set),
        ``pad``; StopIteration at the end.

        Raises
        ------
        InputError, RuntimeError
            Naming the image that could not be read; the iterator is closed then.
        """
        if self._closed:
            raise RuntimeError("the iterator is closed")
        if self._position >= self.num_batches:
            raise StopIteration
        try:
            self._plan_ahead()
            images, seeds = self._take()
        except BaseException:
            self.close()
            raise
        rows, self._random = self._ahead.popleft()
        data = mx.nd.from_numpy(images.astype(np.float32))  # the NDArray keeps this new array: no second copy
        batch = mx.io.DataBatch(data=[data], label=self._labels(rows, seeds), pad=self._pad(), index=rows)
        self._position += 1
        if self._pool is not None:
            self._plan_ahead()
        return batch

    def ready(self) -> bool:
        """Whether :meth:`next` would hand out a batch without waiting for a worker."""
        return self._pool is not None and self._pool.ready()

    def state_dict(self) -> Dict[str, Any]:
        """State after the last batch handed out, fit for JSON; the same in all parts, and that of
        one iterator in place of them.
        """
        return {"settings": self._settings(), "sampler": self.sampler.state_dict(),
                "position": self._position, "random": self._random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that ``state`` was taken at, with any number of workers.

        Raises
        ------
        InputError
            Naming the setting in which the state's iterator differs from this one.
        """
        check_settings(state["settings"], self._settings())
        self.sampler.load_state_dict(state["sampler"])
        self._use_rows()
        self._position, self._random = int(state["position"]), state["random"]
        self._forget_ahead()
        self._plan_ahead()

    def close(self) -> None:
        """End the workers; harmless to call again."""
        self._closed = True
        if self._pool is not None:
            self._pool.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.__dict__.get("_closed", True):
            self.close()

    # -- inside ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.sampler.next_epoch()
        self._use_rows()
        self._position = self._planned = 0
        self._random = random_state(self.sampler.rng) if self.sampler.rng is not None else None
        self._plan_ahead()

    def _plan_ahead(self) -> None:
        """Draw and submit as many batches as fit; without workers, only the next one."""
        limit = self._pool.capacity if self._pool is not None else 1
        while len(self._ahead) < limit and self._planned < self.num_batches:
            samples = self._draw(self._rows[self._planned])
            own = slice(self.part_index * self.batch_size, (self.part_index + 1) * self.batch_size)
            if self._pool is not None:
                self._pool.submit(samples[own])
            self._samples = samples[own]
            state = random_state(self.sampler.rng) if self.sampler.rng is not None else None
            self._ahead.append((self._rows[self._planned][own], state))
            self._planned += 1

    def _draw(self, rows: np.ndarray) -> List[Sample]:
        """The draws of a whole batch, those of other parts included: they come from the same stream."""
        transform, sizes = self.maker.transform, self.maker.images.sizes
        if self.sampler.rng is not None:
            return [(index, transform.draw_in_order(self.sampler.rng, sizes[index]))
                    for index in rows.tolist()]
        servings = self._servings[self._planned]
        seed, epoch = cast(int, self.sampler.seed), self.sampler.epoch
        return [(index, transform.draw_by_counter(seed, epoch, index, serving, sizes[index]))
                for index, serving in zip(rows.tolist(), servings.tolist())]

    def _take(self) -> Tuple[np.ndarray, np.ndarray]:
        if self._pool is not None:
            return self._pool.result()
        self.maker(self._samples, *self._scratch)
        return self._scratch

    def _forget_ahead(self) -> None:
        """Undo everything that was done ahead of the last batch handed out."""
        if self._pool is not None:
            self._pool.drain()
        self._ahead.clear()
        self._planned = self._position
        if self._random is not None and self.sampler.rng is not None:
            set_random_state(self.sampler.rng, self._random)

    def _use_rows(self) -> None:
        """Take the rows of the sampler's current epoch."""
        self._rows = self._epoch_rows()
        self._servings = serving_numbers(self._rows)

    def _settings(self) -> Dict[str, Any]:
        transform = {name: list(value) if isinstance(value, tuple) else value
                     for name, value in asdict(self.maker.transform).items()}
        return {**transform, "batch_size": self.batch_size * self.num_parts,
                "images": self.maker.images.identity,
                "seeds": self.maker.seeds.identity if self.maker.seeds is not None else None}


def serving_numbers(rows: np.ndarray) -> np.ndarray:
    """How often each entry of ``rows`` (any shape, in reading order) occurred before itself."""
    flat = rows.ravel()
    by_image = np.argsort(flat, kind="stable")
    sorted_images = flat[by_image]
    first = np.searchsorted(sorted_images, sorted_images, side="left")
    numbers = np.empty(len(flat), np.int32)
    numbers[by_image] = np.arange(len(flat)) - first
    return numbers.reshape(rows.shape)
