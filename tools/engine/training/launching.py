"""Starting the processes of a job, by the tracker that MXNet's wheel brings (``dmlc_tracker``).

The tracker is of Python 3.8's time, listens where it likes and never fails; what is laid over it
here mends that and nothing else. The processes find each other by the variables ``DMLC_*``, so any
batch system that sets them does as well (docs/machines.md).
"""
from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shlex
import socket
import sys
import threading
from typing import Any, Iterator, List, Sequence

from cian.errors import InputError
from cian.processes import PARENT
from cian.tools.engine.training.watch import is_address

LAUNCHERS = ("local", "ssh", "mpi", "sge", "slurm", "yarn", "mesos", "kubernetes")
LOOPBACK = "127.0.0.1"


def launch(command: Sequence[str], workers: int, servers: int, launcher: str = "local", host: str = "",
           port: int = 0, options: Sequence[str] = ()) -> int:
    """Run ``command`` as one scheduler (here), ``servers`` and ``workers``; returns when all have
    ended: 0, or 1 where one has failed.

    Parameters
    ----------
    launcher : of :data:`LAUNCHERS`.
    host : address of this machine at which the scheduler listens; default loopback, for ``local`` only.
    port : of the scheduler; the watch takes the next one. Default: two that are free.
    options : of the tracker itself, such as ``--host-file``.

    Raises
    ------
    InputError
        An address, a command or an option that the launcher cannot use.
    """
    if launcher != "local" and not host:
        raise InputError(f"the others cannot reach {LOOPBACK}", field="--host",
                         remedy="name the address of this machine in their network")
    host = host or LOOPBACK
    if not is_address(host) and launcher != "kubernetes":
        raise InputError(f"{host!r} is no address", field="--host", remedy="give its numbers, as 10.0.0.5")
    from dmlc_tracker import opts, tracker

    quoted = [shlex.quote(part) for part in command]
    if launcher != "local" and quoted != list(command):
        wrong = next(part for part, safe in zip(command, quoted) if part != safe)
        raise InputError(f"the tracker does not quote {wrong!r}", field="--launcher",
                         remedy="put the setting into a file, and name that with -c")
    args = opts.get_opts(["--cluster", launcher, "--num-workers", str(workers), "--num-servers", str(servers),
                          "--host-ip", host, *options, "command"])
    if len(args.command) > 1:
        raise InputError(f"{args.command[1]!r} is not an option of the tracker", field="--tracker")
    args.command = quoted
    failures: List[Any] = []
    threading.Thread.isAlive = threading.Thread.is_alive  # type: ignore[attr-defined]
    tracker.get_host_ip = lambda _=None: host
    port = port or _free_pair(host)
    tracker.PSTracker = functools.partial(tracker.PSTracker, port=port, port_end=port + 1)
    before = threading.enumerate()
    os.environ[PARENT] = str(os.getpid())  # those of them that are here end with this process
    with _collected(failures):
        importlib.import_module(f"dmlc_tracker.{launcher}").submit(args)
        for thread in threading.enumerate():
            if thread not in before:
                thread.join()
    if failures:
        print(f"error: {len(failures)} of {1 + servers + workers} processes have failed, see above",
              file=sys.stderr)
    return int(bool(failures))


def _free_pair(host: str) -> int:
    """A port of ``host`` that is free, and so is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second, contextlib.suppress(OSError):
            first.bind((host, 0))
            port = first.getsockname()[1]
            second.bind((host, port + 1))
            return port


@contextlib.contextmanager
def _collected(failures: List[Any]) -> Iterator[None]:
    """The tracker's threads fail with their whole environment in the message: only count them."""
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        yield
    finally:
        threading.excepthook = before
