"""How a process of a benchmark does one piece of work again and again when it is told to. Standard
library only.
"""
from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterator


def serve(file_number: int, unit: Callable[[], float]) -> None:
    """Run ``unit`` once to warm up, then once for every True that arrives through the pipe; sends
    back the seconds that it returns.
    """
    pipe = Connection(file_number)
    unit()
    pipe.send("ready")
    while pipe.recv():
        pipe.send(unit())


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A unit that takes as long as ``work`` does."""
    def unit() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    return unit


def batch_taker(loader: Any) -> Callable[[], None]:
    """A function that takes one more batch of ``loader``, epoch after epoch, to arrays that can be used."""
    def endless() -> Iterator[Any]:
        while True:
            loader.reset()
            yield from loader

    batches = endless()

    def take() -> None:
        batch = next(batches)
        batch.data[0].wait_to_read()
        batch.label[0].wait_to_read()
    return take


def timed_batches(take: Callable[[], object], batches: int, ahead: int) -> Callable[[], float]:
    """A unit of ``batches`` calls of ``take``; ``ahead`` calls, as many as may have been prepared
    before, go by untimed.
    """
    def unit() -> float:
        for _ in range(ahead):
            take()
        start = time.perf_counter()
        for _ in range(batches):
            take()
        return time.perf_counter() - start
    return unit
