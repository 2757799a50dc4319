"""Makes comparisons one after the other or several at a time, each in a folder of its own, and
cleans up after each.
"""
from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Iterable, Iterator, List

from cian.errors import InputError
from cian.tools.engine.fidelity.record import Made
from cian.tools.engine.fidelity.suite import Check


def make(checks: Iterable[Check], *, jobs: int = 1, keep: bool = False) -> Iterator[Made]:
    """The rows of all ``checks`` as they come; with ``keep`` the files that were exchanged stay.

    Raises
    ------
    InputError
        When one of several processes was killed; and what a check itself raises.
    """
    if jobs == 1:
        for check in checks:
            yield _make(check, keep)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting: List[Future[Made]] = [pool.submit(_make, check, keep) for check in checks]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError("one of the processes was killed", field="--jobs",
                             remedy="use fewer; each takes up to 4 GB") from error
        finally:
            for future in waiting:
                future.cancel()


def _make(check: Check, keep: bool) -> Made:
    start = time.monotonic()
    try:
        return Made(check.name, tuple(check.rows()), round(time.monotonic() - start, 1))
    finally:
        if not keep:
            shutil.rmtree(check.folder, ignore_errors=True)  # a case of ResNet-101 takes a gigabyte
        _release_memory()


def _release_memory() -> None:
    """Give freed memory back to the system. MXNet's threads have a heap each, and glibc keeps in it
    what was freed: over all
    comparisons they would grow to ten gigabytes."""
    gc.collect()  # networks are cycles of references
    if sys.platform.startswith("linux"):
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
