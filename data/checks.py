"""Checks of image and label-map files over several processes; every problem is collected, none
stops the others.
"""
from __future__ import annotations

import signal
import zlib
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from cian.data.classes import decode_label_png
from cian.data.label_png import encode_gray_png
from cian.data.pictures import UPRIGHT, decode_jpeg
from cian.environment import usable_cores
from cian.errors import InputError
from cian.files import read_bytes
from cian.processes import end_with_parent, pool_context

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16  # files a task


@dataclass(frozen=True)
class CheckedFile:
    """One file: height and width, CRC-32 of the content, and what is wrong with it; of an image its
    EXIF orientation and what its decoder warned of, of a label map its pixels by value, (256,).
    """

    size: Tuple[int, int] = (0, 0)
    crc32: int = 0
    problem: Optional[InputError] = None
    orientation: int = UPRIGHT
    warning: str = ""
    counts: Optional[np.ndarray] = None


@dataclass
class CheckedFiles:
    """Of n files: heights and widths (n, 2), CRC-32 (n,) of the content, and what is wrong with
    some of them; positions of images that EXIF has turned, warnings of images by position, and
    pixels of all label maps by value, (256,).
    """

    sizes: np.ndarray
    crc32: np.ndarray
    problems: List[InputError]
    turned: List[int]
    warnings: Dict[int, str]
    counts: np.ndarray


def check_images(paths: Sequence[str], *, workers: int = 0, warnings: str = "harmless") -> CheckedFiles:
    """Read and decode every JPEG of ``paths``; ``workers`` processes, 0 is one a core; ``warnings``
    as in :func:`~cian.data.pictures.decode_jpeg`.
    """
    return _collect(parallel(_check_image, [(path, warnings) for path in paths], workers), len(paths),
                    "images")


def check_labels(paths: Sequence[str], num_classes: int, *, sizes: Optional[np.ndarray] = None,
                 workers: int = 0) -> CheckedFiles:
    """Read and decode every label map; values have to be classes or 255, and sizes those of
    ``sizes`` (n, 2), where given and not 0.
    """
    expected: Iterable[Optional[Tuple[int, int]]] = (
        [None] * len(paths) if sizes is None else [(int(h), int(w)) if h else None for h, w in sizes])
    items = [(path, num_classes, size) for path, size in zip(paths, expected)]
    return _collect(parallel(_check_label, items, workers), len(paths), "label maps")


def encoded_labels(paths: Sequence[str], num_classes: int, *,
                   workers: int = 0) -> Iterator[Tuple[int, bytes]]:
    """CRC-32 of each file, and its label map encoded anew as 8-bit gray PNG, which decodes fastest."""
    return parallel(_encode_label, [(path, num_classes) for path in paths], workers)


def parallel(function: Callable[[Item], Result], items: Sequence[Item], workers: int = 0) -> Iterator[Result]:
    """``map`` over processes, in order and with bounded memory; in this process for few items.

    Raises
    ------
    InputError
        A process died (out of memory, or a decoder crashed); names the first item of those that it
        may have died of.
    """
    count = min(workers or usable_cores(), len(items) // CHUNK)
    if count < 2:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(count, pool_context("fork"), initializer=_start_worker)
    pending: Deque[Tuple[int, Future[List[Result]]]] = deque()
    threads = cv2.getNumThreads()
    # a fork that has to end OpenCV's threads itself waits for ever: they live in the parent only
    cv2.setNumThreads(1)
    try:
        for start in range(0, len(items), CHUNK):
            pending.append((start, pool.submit(_map_chunk, function, items[start:start + CHUNK])))
            while len(pending) > 4 * count or (pending and start + CHUNK >= len(items)):
                yield from pending[0][1].result()
                pending.popleft()
    except BrokenProcessPool as error:
        first: Any = items[pending[0][0] if pending else 0]
        raise InputError("a process died while it read this file or one of the next",
                         file=first if isinstance(first, str) else first[0],
                         remedy="look for a lack of memory, or find the file that crashes its decoder with "
                         "one worker") from error
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _start_worker() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    cv2.setNumThreads(1)


def _map_chunk(function: Callable[[Item], Result], items: Sequence[Item]) -> List[Result]:
    return [function(item) for item in items]


def _collect(results: Iterable[CheckedFile], count: int, what: str) -> CheckedFiles:
    found = CheckedFiles(np.zeros((count, 2), np.int32), np.zeros(count, np.uint32), [], [], {},
                         np.zeros(256, np.int64))
    for index, file in enumerate(tqdm(results, f"checking {what}", count, leave=False, disable=None)):
        found.sizes[index], found.crc32[index] = file.size, file.crc32
        if file.problem is not None:
            found.problems.append(file.problem)
        if file.orientation != UPRIGHT:
            found.turned.append(index)
        if file.warning:
            found.warnings[index] = file.warning
        if file.counts is not None:
            found.counts += file.counts
    return found


def _check_image(item: Tuple[str, str]) -> CheckedFile:
    path, warnings = item
    try:
        content = read_bytes(path)
        picture = decode_jpeg(content, path, warnings)
    except InputError as problem:
        return CheckedFile(problem=problem)
    height, width = picture.pixels.shape[:2]
    return CheckedFile((height, width), zlib.crc32(content), None, picture.orientation, picture.warning)


def _check_label(item: Tuple[str, int, Optional[Tuple[int, int]]]) -> CheckedFile:
    path, num_classes, expected = item
    try:
        content = read_bytes(path)
        labels = decode_label_png(content, path, num_classes)
    except InputError as problem:
        return CheckedFile(problem=problem)
    height, width = labels.shape
    if expected is not None and expected != (height, width):
        return CheckedFile((height, width), problem=InputError(
            f"is {width}x{height} pixels, but its image is {expected[1]}x{expected[0]}", file=path,
            remedy="make it again at the size of the image"))
    return CheckedFile((height, width), zlib.crc32(content), counts=np.bincount(labels.ravel(),
                                                                                minlength=256))


def _encode_label(item: Tuple[str, int]) -> Tuple[int, bytes]:
    path, num_classes = item
    content = read_bytes(path)
    return zlib.crc32(content), encode_gray_png(decode_label_png(content, path, num_classes))
