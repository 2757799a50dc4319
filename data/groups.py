"""Groups of images that share a class: which images meet in a batch, and the account of an epoch.

Three ways to draw groups (``pairing``), paper section "Query-Reference Pairs" and Table 3:

``common``
    The queue of the original's loader, group by group the same from the same random state. An image
    takes the next ones of the shuffled list that share a class with it (with *every* earlier member
    of the group); the ones passed over queue up behind those that already wait, and waiting ones
    are asked first. What is left at the end of the list is dropped.
``even``
    Nothing is dropped. Every member of a group is a query of CIAN, so each image belongs to exactly
    one group an epoch: it draws one of its classes with equal chances, and the images of a class
    are grouped at random.
``random``
    Consecutive images of the shuffled list, whatever their classes.
"""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import numpy as np


def class_masks(labels: np.ndarray) -> List[int]:
    """One integer an image whose bit ``c`` says that it holds class ``c``; background (column 0)
    never counts.

    Parameters
    ----------
    labels : (N, num_classes) array of 0 and 1
    """
    bits = np.packbits(np.asarray(labels, bool)[:, 1:], axis=1, bitorder="little")
    different, which = np.unique(np.ascontiguousarray(bits).view(f"V{bits.shape[1]}"), return_inverse=True)
    masks = np.array([int.from_bytes(mask.tobytes(), "little") for mask in different], object)
    return masks[which.ravel()].tolist()  # images of the same classes share one integer: 8 bytes an image


def lonely_images(labels: np.ndarray) -> np.ndarray:
    """Positions of the images that share no class with any other one: no label at all, or only
    classes of a single image.
    """
    foreground = np.asarray(labels, bool)[:, 1:]
    shared = foreground.sum(axis=0) >= 2
    return np.flatnonzero(~foreground[:, shared].any(axis=1))


def common_groups(order: Sequence[int], masks: Sequence[int], group_size: int) -> List[Tuple[int, ...]]:
    """Groups of common class, in the order in which the original's loader forms them.

    The waiting images form one queue; a search asks its front first, then the rest of ``order``.
    Images that a search passed over go behind the ones that it did not reach. The search for a
    partner ends the epoch when nothing is left to ask.

    Parameters
    ----------
    order : shuffled image positions
    masks : of :func:`class_masks`
    group_size : images in a group; each pair of them shares a class (not necessarily the same one)
    """
    waiting: deque[int] = deque()
    take_waiting, fresh = waiting.popleft, iter(order)
    groups: List[Tuple[int, ...]] = []
    try:
        while True:
            group = [take_waiting() if waiting else next(fresh)]
            passed: List[int] = []
            while len(group) < group_size:
                if len(group) == 1:
                    mask = masks[group[0]]
                    image = take_waiting() if waiting else next(fresh)
                    while not masks[image] & mask:
                        passed.append(image)
                        image = take_waiting() if waiting else next(fresh)
                else:
                    image = take_waiting() if waiting else next(fresh)
                    while not all(masks[image] & masks[member] for member in group):
                        passed.append(image)
                        image = take_waiting() if waiting else next(fresh)
                group.append(image)
            groups.append(tuple(group))
            waiting.extend(passed)
    except StopIteration:
        return groups


def random_groups(order: np.ndarray, group_size: int) -> np.ndarray:
    """Consecutive groups of ``order``, (num_groups, group_size); an incomplete last one is dropped."""
    usable = len(order) // group_size * group_size
    return np.asarray(order[:usable]).reshape(-1, group_size)


def even_groups(labels: np.ndarray, group_size: int, rng: np.random.RandomState,
                edges: Optional[Sequence[Tuple[int, int]]] = None) -> np.ndarray:
    """Groups in which every image occurs, exactly once but for the few that fill up incomplete groups.

    Each image draws one of its classes with equal chances; the images of a class are grouped at
    random. Before that, classes hand on what would be left over: along a tree of classes, images
    that hold both classes of an edge move until the number of images of each class is a multiple of
    ``group_size``. Where no image can move, other images of the class serve twice. An image without
    any partner makes a group with itself (its crops differ).

    Parameters
    ----------
    labels : (N, num_classes) array of 0 and 1, column 0 background
    group_size : images in a group; all of them share one class
    rng : the source of the draws
    edges : of :func:`class_tree`, where it is known already

    Returns
    -------
    (num_groups, group_size) int64 array of image positions, in random order
    """
    foreground = np.asarray(labels, bool)[:, 1:]
    drawn = _draw_classes(foreground, rng)
    _hand_on_remainders(drawn, foreground, class_tree(labels) if edges is None else edges, group_size, rng)
    by_class = np.argsort(drawn, kind="stable")
    bounds = np.searchsorted(drawn[by_class], np.arange(-1, foreground.shape[1] + 1))
    alone = by_class[bounds[0]:bounds[1]]  # drawn == -1: no label
    groups = [np.repeat(alone[:, None], group_size, axis=1)]
    for label in range(foreground.shape[1]):
        members = rng.permutation(by_class[bounds[label + 1]:bounds[label + 2]])
        missing = -len(members) % group_size
        if missing:
            members = np.concatenate(
                [members, _fillers(members, np.flatnonzero(foreground[:, label]), missing, group_size, rng)])
        groups.append(members.reshape(-1, group_size))
    joined = np.concatenate(groups)
    return joined[rng.permutation(len(joined))]


def _draw_classes(foreground: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """One class an image, drawn from its own with equal chances; -1 for an image without any."""
    images, classes = np.nonzero(foreground)
    counts = np.bincount(images, minlength=len(foreground))
    first = np.cumsum(counts) - counts
    pick = (rng.random_sample(len(foreground)) * counts).astype(np.int64)
    drawn = np.full(len(foreground), -1, np.int64)
    labelled = counts > 0
    drawn[labelled] = classes[(first + pick)[labelled]]
    return drawn


def _hand_on_remainders(drawn: np.ndarray, foreground: np.ndarray, edges: Sequence[Tuple[int, int]],
                        group_size: int, rng: np.random.RandomState) -> None:
    """Change ``drawn`` so that as many classes as possible hold a multiple of ``group_size`` images."""
    for child, parent in edges:
        surplus = int((drawn == child).sum()) % group_size
        if not surplus:
            continue
        both = foreground[:, child] & foreground[:, parent]
        ways = [(child, parent, surplus), (parent, child, group_size - surplus)]
        if rng.random_sample() * group_size < surplus:
            ways.reverse()  # on average neither class gains images
        for source, target, number in ways:
            movable = np.flatnonzero(both & (drawn == source))
            if len(movable) >= number:
                drawn[rng.permutation(movable)[:number]] = target
                break


def class_tree(labels: np.ndarray) -> List[Tuple[int, int]]:
    """(child, parent) edges of a forest over the foreground classes that share images, children
    before their parents.

    Of the edges that could join a class, the one with the most shared images is taken (Prim's
    algorithm). Classes count from 0 without background.
    """
    foreground = np.asarray(labels)[:, 1:]
    number = foreground.shape[1]
    shared = np.zeros((number, number), np.int64)
    # float32 products are exact and fast; blocks bound the memory
    for start in range(0, len(foreground), 65536):
        block = foreground[start:start + 65536].astype(np.float32)
        shared += (block.T @ block).astype(np.int64)
    np.fill_diagonal(shared, 0)
    joined = np.zeros(number, bool)
    edges: List[Tuple[int, int]] = []
    for _ in range(number):
        reach = np.where(joined[:, None] & ~joined[None, :], shared, 0)
        parent, child = divmod(int(reach.argmax()), number)
        if reach[parent, child] > 0:
            edges.append((child, parent))
            joined[child] = True
        else:
            joined[int(np.argmin(joined))] = True  # the root of the next tree
    return edges[::-1]


def _fillers(members: np.ndarray, candidates: np.ndarray, missing: int, group_size: int,
             rng: np.random.RandomState) -> np.ndarray:
    """``missing`` images of a class that complete its last group, different from those in it as far
    as there are such.
    """
    last_group = members[len(members) // group_size * group_size:]
    others = rng.permutation(np.setdiff1d(candidates, last_group))[:missing]
    if len(others) == missing:
        return others
    present = np.concatenate([last_group, others])
    return np.concatenate([others, present[rng.randint(0, len(present), missing - len(others))]])


def batch_rows(groups: np.ndarray, groups_per_batch: int, num_devices: int) -> np.ndarray:
    """Order the images of each batch by device, and within a device all first members of groups,
    then all second ones, and so on.

    Parameters
    ----------
    groups : (num_groups, group_size), a multiple of ``groups_per_batch`` groups

    Returns
    -------
    (num_batches, groups_per_batch * group_size)
    """
    by_device = groups.reshape(-1, num_devices, groups_per_batch // num_devices, groups.shape[1])
    return by_device.transpose(0, 1, 3, 2).reshape(-1, groups_per_batch * groups.shape[1])


@dataclass(frozen=True)
class EpochAccount:
    """What an epoch does with the images.

    Attributes
    ----------
    served : (N,) how often each image is in a group
    groups : number of groups
    pairs_by_class : (num_classes,) pairs of images in a group that share the class; a pair that
        shares two counts for both
    pairs : number of pairs of images in a group
    pairs_without_class : pairs that share no class (``random``), an image with itself and without
        label included
    images_by_class : (num_classes,) images that hold the class
    """

    served: np.ndarray
    groups: int
    pairs_by_class: np.ndarray
    pairs: int
    pairs_without_class: int
    images_by_class: np.ndarray

    @property
    def used(self) -> int:
        """Images served at least once."""
        return int((self.served > 0).sum())

    @property
    def dropped(self) -> int:
        """Images not served."""
        return int((self.served == 0).sum())


def account(groups: np.ndarray, labels: np.ndarray) -> EpochAccount:
    """Count what ``groups`` (num_groups, group_size) make of the images of ``labels`` (N, num_classes)."""
    groups, labels = np.asarray(groups), np.asarray(labels, bool)
    by_class, without, group_size = np.zeros(labels.shape[1], np.int64), 0, groups.shape[1]
    for first in range(group_size):
        for second in range(first + 1, group_size):
            shared = labels[groups[:, first]] & labels[groups[:, second]]
            shared[:, 0] = False
            by_class += shared.sum(axis=0)
            without += int((~shared.any(axis=1)).sum())
    return EpochAccount(np.bincount(groups.ravel(), minlength=len(labels)), len(groups), by_class,
                        len(groups) * group_size * (group_size - 1) // 2, without, labels.sum(axis=0))
