"""Work on several items at a time, in order, by threads."""
from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Deque, Iterable, Iterator, TypeVar

AHEAD = 4  # items under way or finished beyond the one that is asked for
Item = TypeVar("Item")
Result = TypeVar("Result")


def overlapped(pool: ThreadPoolExecutor, function: Callable[[Item], Result],
               items: Iterable[Item]) -> Iterator[Result]:
    """``map(function, items)`` by the threads of ``pool``, a few items ahead of the one asked for.

    ``items`` is advanced by the calling thread. An exception of an item is raised in its place;
    what was ahead is dropped then.
    """
    waiting: Deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
