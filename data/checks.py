"""Checks of image and label-map files over several processes; every problem is collected, none
stops the others.
"""
from __future__ import annotations

import multiprocessing
import signal
import zlib
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Callable, Deque, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

import cv2
import numpy as np
import simplejpeg
from tqdm import tqdm

from cian.data.classes import decode_label_png
from cian.data.gray_png import encode_gray_png
from cian.environment import usable_cores
from cian.errors import InputError
from cian.files import read_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 16  # files a task


@dataclass
class CheckedFiles:
    """Of n files: heights and widths (n, 2), CRC-32 (n,) of the content, and what is wrong with
    some of them.
    """

    sizes: np.ndarray
    crc32: np.ndarray
    problems: List[InputError]


def check_images(paths: Sequence[str], *, workers: int = 0) -> CheckedFiles:
    """Read and decode every JPEG of ``paths``; ``workers`` processes, 0 is one a core."""
    return _collect(parallel(_check_image, paths, workers), len(paths), "images")


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
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=_start_worker)
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    cv2.setNumThreads(1)


def _map_chunk(function: Callable[[Item], Result], items: Sequence[Item]) -> List[Result]:
    return [function(item) for item in items]


def _collect(results: Iterable[Tuple[int, int, int, Optional[InputError]]], count: int,
             what: str) -> CheckedFiles:
    sizes, crcs = np.zeros((count, 2), np.int32), np.zeros(count, np.uint32)
    problems = []
    for index, (height, width, crc32,
                problem) in enumerate(tqdm(results, f"checking {what}", count, leave=False, disable=None)):
        sizes[index], crcs[index] = (height, width), crc32
        if problem is not None:
            problems.append(problem)
    return CheckedFiles(sizes, crcs, problems)


def _check_image(path: str) -> Tuple[int, int, int, Optional[InputError]]:
    try:
        content = read_bytes(path)
        height, width = decode_jpeg(content, path).shape[:2]
    except InputError as problem:
        return 0, 0, 0, problem
    return height, width, zlib.crc32(content), None


def _check_label(item: Tuple[str, int, Optional[Tuple[int, int]]]) -> Tuple[int, int, int,
                                                                            Optional[InputError]]:
    path, num_classes, expected = item
    try:
        content = read_bytes(path)
        height, width = decode_label_png(content, path, num_classes).shape
    except InputError as problem:
        return 0, 0, 0, problem
    if expected is not None and expected != (height, width):
        return height, width, 0, InputError(
            f"is {width}x{height} pixels, but its image is {expected[1]}x{expected[0]}", file=path,
            remedy="make it again at the size of the image")
    return height, width, zlib.crc32(content), None


def _encode_label(item: Tuple[str, int]) -> Tuple[int, bytes]:
    path, num_classes = item
    content = read_bytes(path)
    return zlib.crc32(content), encode_gray_png(decode_label_png(content, path, num_classes))


def decode_jpeg(content: bytes, path: str) -> np.ndarray:
    """An image file's content as (H, W, 3) uint8 BGR; an :class:`InputError` names ``path`` where
    it is truncated or damaged.

    OpenCV, which training decodes with, fills what a damaged file lacks with something;
    ``simplejpeg`` reports what it found.
    """
    if content[:2] != b"\xff\xd8":
        raise InputError("is not a JPEG file", file=path, remedy="convert it to JPEG")
    try:
        simplejpeg.decode_jpeg(content, strict=True)
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except (ValueError, cv2.error) as error:
        raise InputError(f"is a damaged JPEG ({error})", file=path, remedy="copy it again") from error
    if image is None:
        raise InputError("is a JPEG that OpenCV does not decode", file=path,
                         remedy="convert it to plain 8-bit JPEG")
    return image
