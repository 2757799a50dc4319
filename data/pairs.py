"""The groups of one epoch after another, from a random state that can be saved and restored exactly."""
from __future__ import annotations

import base64
import warnings
import zlib
from typing import Any, Dict, Mapping, Optional, Sequence, Union

import numpy as np

from cian.choices import LONELY, ORDERS, PAIRINGS
from cian.data.groups import (
    EpochAccount,
    account,
    class_masks,
    class_tree,
    common_groups,
    even_groups,
    lonely_images,
    random_groups,
)
from cian.errors import InputError


def pack_array(values: Any) -> str:
    """Integers below 2**32 as base64 of little-endian uint32: short, exact, and fit for JSON."""
    return base64.b64encode(np.asarray(values, "<u4").tobytes()).decode("ascii")


def unpack_array(text: str) -> np.ndarray:
    """Inverse of :func:`pack_array`, int64."""
    return np.frombuffer(base64.b64decode(text), "<u4").astype(np.int64)


def random_state(rng: np.random.RandomState) -> Dict[str, Any]:
    """State of a Mersenne twister, fit for JSON."""
    _, keys, position, has_gauss, gauss = rng.get_state(legacy=True)  # type: ignore[misc]
    return {"keys": pack_array(keys), "position": int(position), "has_gauss": int(has_gauss),
            "gauss": float(gauss)}


def set_random_state(rng: np.random.RandomState, state: Mapping[str, Any]) -> None:
    """Inverse of :func:`random_state`."""
    rng.set_state(("MT19937", unpack_array(state["keys"]).astype(np.uint32), state["position"],
                   state["has_gauss"], state["gauss"]))


class GroupSampler:
    """Draws the groups of each epoch.

    Parameters
    ----------
    labels : (N, num_classes) array of 0 and 1, column 0 background
    group_size : images in a group, at least 2
    groups_per_batch : an epoch's groups are a multiple of it: ``even`` serves some groups again to
        reach it, the others drop some
    pairing : 'common', 'even' or 'random', see :mod:`cian.data.groups`
    order : 'original': one stream of NumPy's legacy generator, ``rng``, from which the transforms
        draw too, and a list that every epoch shuffles further, like the original's; 'counter':
        epoch e depends on (seed, e) alone
    seed : an integer, or a RandomState for 'original'
    lonely : what 'common' does with an image that shares no class with any other. 'end': as in the
        original, the epoch ends when such an image comes to the front of the queue; 'skip': it is
        left out
    names : of the images, for messages

    Raises
    ------
    InputError
        Bad labels or option, or fewer images than a batch needs.
    """

    def __init__(self, labels: np.ndarray, *, group_size: int = 2, groups_per_batch: int = 1,
                 pairing: str = "common", order: str = "original",
                 seed: Union[int, np.random.RandomState] = 0, lonely: str = "end",
                 names: Optional[Sequence[str]] = None) -> None:
        for field, value, choices in (("pairing", pairing, PAIRINGS), ("order", order, ORDERS),
                                      ("lonely", lonely, LONELY)):
            if value not in choices:
                raise InputError(f"{value!r} is not allowed", field=field,
                                 remedy=f"use one of: {', '.join(choices)}")
        if group_size < 2:
            raise InputError(f"a group needs at least 2 images, not {group_size}", field="group_size")
        self.labels = _checked_labels(labels)
        if len(self.labels) < group_size * groups_per_batch:
            raise InputError(
                f"{len(self.labels)} images do not fill one batch of {group_size * groups_per_batch}",
                field="batch_size", remedy="use a smaller batch or more images")
        self.group_size, self.groups_per_batch, self.pairing, self.order, self.lonely = (
            group_size, groups_per_batch, pairing, order, lonely)
        self.seed = seed if isinstance(seed, (int, np.integer)) else None
        if order == "counter" and self.seed is None:
            raise InputError("order 'counter' needs an integer", field="seed")
        _check_seed(self.seed)
        self.rng: Optional[np.random.RandomState] = None
        if order == "original":
            self.rng = seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)
        self.epoch = -1
        self.groups = np.zeros((0, group_size), np.int64)
        self._masks = class_masks(self.labels) if pairing == "common" else []
        self._edges = class_tree(self.labels) if pairing == "even" else []
        self.lonely_images = lonely_images(self.labels)
        if pairing == "common" and len(self.lonely_images):
            self._warn_of_lonely(names)
        self._list = np.arange(len(self.labels))
        if self.rng is not None:
            # the original shuffles when its loader is made and again at the start of each epoch
            self.rng.shuffle(self._list)
        self._before = self._snapshot()

    def next_epoch(self) -> np.ndarray:
        """Draw the groups of the next epoch: (num_groups, group_size) image positions, kept as ``groups``."""
        self._before = self._snapshot()
        self.epoch += 1
        rng = self.rng
        if rng is not None:
            rng.shuffle(self._list)
            order = self._list
        else:
            rng = counter_rng(int(self.seed or 0), self.epoch)
            order = rng.permutation(len(self.labels))
        self.groups = self._whole_batches(self._draw(order, rng), rng)
        if not len(self.groups):
            warnings.warn(f"epoch {self.epoch} has no batch: fewer than {self.groups_per_batch} groups of "
                          "common class were found", stacklevel=2)
        return self.groups

    def account(self) -> EpochAccount:
        """Account of the current epoch."""
        return account(self.groups, self.labels)

    def state_dict(self) -> Dict[str, Any]:
        """State from which :meth:`load_state_dict` restores the current epoch, fit for JSON."""
        return {"settings": self._settings(), "epoch": self.epoch, **self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore an epoch and draw its groups again; ``rng`` stands where it stood after drawing them.

        Raises
        ------
        InputError
            Naming the setting in which the state's sampler differs from this one.
        """
        check_settings(state["settings"], self._settings())
        if self.rng is not None:
            self._list = unpack_array(state["list"])
            set_random_state(self.rng, state["rng"])
        self.epoch = int(state["epoch"])
        self._before = self._snapshot()
        if self.epoch >= 0:
            self.epoch -= 1
            self.next_epoch()

    def _draw(self, order: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        if self.pairing == "even":
            return even_groups(self.labels, self.group_size, rng, self._edges)
        if self.pairing == "random":
            return random_groups(order, self.group_size)
        if self.lonely == "skip":
            order = order[~np.isin(order, self.lonely_images)]
        groups = common_groups(order.tolist(), self._masks, self.group_size)
        return np.array(groups, np.int64).reshape(-1, self.group_size)

    def _whole_batches(self, groups: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        if self.pairing != "even":
            return groups[:len(groups) // self.groups_per_batch * self.groups_per_batch].copy()
        missing = -len(groups) % self.groups_per_batch
        return np.concatenate([groups, groups[rng.randint(0, len(groups), missing)]])

    def _snapshot(self) -> Dict[str, Any]:
        return {"list": pack_array(self._list), "rng": random_state(self.rng)} if self.rng is not None else {}

    def _settings(self) -> Dict[str, Any]:
        return {"pairing": self.pairing, "order": self.order, "group_size": self.group_size,
                "groups_per_batch": self.groups_per_batch, "lonely": self.lonely, "images": len(self.labels),
                "labels": zlib.crc32(np.packbits(self.labels).tobytes()),
                "seed": self.seed if self.order == "counter" else None}

    def _warn_of_lonely(self, names: Optional[Sequence[str]]) -> None:
        shown = ", ".join(str(names[i]) if names is not None else f"number {i}"
                          for i in self.lonely_images[:5])
        more = f" and {len(self.lonely_images) - 5} more" if len(self.lonely_images) > 5 else ""
        effect = "are left out" if self.lonely == "skip" else (
            "end the epoch when their turn comes, as in the original; use train.lonely=skip or "
            "train.pairing=even to train on the others")
        warnings.warn(f"{len(self.lonely_images)} image(s) share no class with any other ({shown}{more}): "
                      f"they {effect}", stacklevel=3)


class ImageSampler:
    """Single images in batches, each image once an epoch; the last batch is filled up from the
    beginning of the epoch.

    Parameters
    ----------
    images : number of images
    batch_size : images a batch
    seed : epoch e depends on (seed, e) alone
    """

    rng: Optional[np.random.RandomState] = None

    def __init__(self, images: int, batch_size: int, seed: int = 0) -> None:
        if images < 1:
            raise InputError("there are no images", field="images")
        _check_seed(seed)
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.epoch = -1
        self.pad = -images % batch_size
        self.rows = np.zeros((0, batch_size), np.int64)

    def next_epoch(self) -> np.ndarray:
        """Draw the order of the next epoch: (num_batches, batch_size) image positions, kept as ``rows``."""
        self.epoch += 1
        order = counter_rng(self.seed, self.epoch).permutation(self.images)
        self.rows = np.resize(order, (self.images + self.pad) // self.batch_size * self.batch_size).reshape(
            -1, self.batch_size)
        return self.rows

    def state_dict(self) -> Dict[str, Any]:
        """State from which :meth:`load_state_dict` restores the current epoch."""
        return {"settings": self._settings(), "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore an epoch; :class:`InputError` names a setting that differs."""
        check_settings(state["settings"], self._settings())
        self.epoch = int(state["epoch"]) - 1
        self.next_epoch()

    def _settings(self) -> Dict[str, Any]:
        return {"images": self.images, "batch_size": self.batch_size, "seed": self.seed}


def counter_rng(seed: int, epoch: int) -> np.random.RandomState:
    """Random numbers of an epoch's order that depend on nothing but (seed, epoch)."""
    return np.random.RandomState(np.random.Philox(key=[seed, epoch]))


def _check_seed(seed: Optional[int]) -> None:
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"must be from 0 to {2**32 - 1}, not {seed}", field="seed")


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a state of other settings with an :class:`InputError` that names the first that differs."""
    for field, value in current.items():
        if saved.get(field) != value:
            raise InputError(f"the saved state has {saved.get(field)!r}, this run {value!r}", field=field,
                             remedy="resume with the settings and the data of the interrupted run")


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] < 2 or not np.isin(labels, (0, 1)).all():
        raise InputError("must be 0 or 1 for each image and class, background first, not an array of "
                         f"shape {labels.shape}", field="labels")
    return np.ascontiguousarray(labels, np.uint8)
