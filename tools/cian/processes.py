"""Processes that end with the one that has started them, even where that is killed."""
from __future__ import annotations

import contextlib
import glob
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from typing import Any, Mapping, Sequence

PARENT = "CIAN_PARENT"  # process number, for a program that run_child() has started
LOOK_S = 0.1


def end_with_parent(parent: int = 0) -> None:
    """Have this process end with ``parent``, by itself the one that ``multiprocessing`` names.

    The kernel's own signal for it (PR_SET_PDEATHSIG) comes already when the thread ends that has
    started this process.
    """
    known = multiprocessing.parent_process()
    expected = parent or (known.pid if known else os.getppid())

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_starter() -> None:
    """:func:`end_with_parent` in a program that :func:`run_child` has started."""
    parent = os.environ.pop(PARENT, "")
    if parent:
        end_with_parent(int(parent))


def pool_context(method: str) -> Any:
    """The context of ``multiprocessing`` for a pool of processes.

    They end with this process, also where a pool could not be started whole (concurrent.futures then
    forgets those that it has started, and Python waits for them). Semaphores have names under 'spawn'
    that say whose they are; those of processes that were killed are removed.

    Parameters
    ----------
    method : 'fork' or 'spawn'.
    """
    context: Any = multiprocessing.get_context(method)

    class Ending(type(context)):  # type: ignore[misc]
        def Process(self, *arguments: Any, **options: Any) -> Any:
            return context.Process(*arguments, **options, daemon=True)

    if sys.platform == "linux":
        prefix = f"cian-{os.stat('/proc/self/ns/pid').st_ino}-"  # numbers of processes are of a namespace
        multiprocessing.current_process()._config["semprefix"] = f"/{prefix}{os.getpid()}"  # type: ignore
        for path in glob.glob(f"/dev/shm/sem.{prefix}*"):
            if not os.path.exists(f"/proc/{path.split('-')[2]}"):
                with contextlib.suppress(OSError):  # another process has removed it, or may
                    os.unlink(path)
    return Ending()


def run_child(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> int:
    """Run one of our programs to its end, which is this process's at the latest; its exit code.

    ``options`` are those of ``subprocess.run``.
    """
    return subprocess.run(command, env={**environment, PARENT: str(os.getpid())}, **options).returncode
