"""The watch beside MXNet's parameter server: when one process of a job is gone, all others end, each with
one line that says which.

The server's own network layer (ps-lite) waits for ever for a process that was killed. Here every
server and worker keeps a connection to the scheduler, and both ends send a sign of life. A
connection that breaks, or is silent for ``run.patience`` seconds, ends the job. Nothing here imports
MXNet: in the scheduler and the servers its import is their whole work.

The variables are those of MXNet's tracker (``DMLC_ROLE`` and so on). The watch listens on the
scheduler's address, at ``CIAN_WATCH_PORT`` or one port above the scheduler's own.
"""
from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, NoReturn, Optional, Tuple

from cian.errors import InputError
from cian.tools.engine.config import RunConfig

HELP = "start the job with tools/launch.py, see docs/machines.md"
KVSTORE_ALONE = "device"


def join(run: RunConfig) -> Optional[Member]:
    """Join the job that this process is a part of; None where it is alone. The scheduler and the
    servers do their work here and end. Call it before MXNet is imported.

    Raises
    ------
    InputError
        ``run.kvstore`` and the variables of the tracker do not fit.
    """
    role = os.environ.get("DMLC_ROLE", "")
    if run.kvstore == KVSTORE_ALONE:
        if role:
            raise InputError(f"is {run.kvstore}, but this is the {role} of a job of several processes",
                             field="run.kvstore", remedy="add run.kvstore=dist_sync")
        return None
    if role not in ("scheduler", "server", "worker"):
        raise InputError(f"is {run.kvstore}, but this process is no part of a job: DMLC_ROLE is {role!r}",
                         field="run.kvstore", remedy=HELP)
    if role == "worker":
        return Member(role, run.patience)
    beside = Watch(run.patience) if role == "scheduler" else Member(role, run.patience)
    try:
        import mxnet  # noqa: F401 - serves until the workers have ended, then raises SystemExit
    finally:
        beside.leave()
    return None


def variable(name: str) -> str:
    """A variable of the tracker; an :class:`InputError` where it is not set."""
    if not os.environ.get(name):
        raise InputError("is not set", field=name, remedy=HELP)
    return os.environ[name]


def _address() -> Tuple[str, int]:
    host = variable("DMLC_PS_ROOT_URI")
    try:
        port = int(os.environ.get("CIAN_WATCH_PORT") or int(variable("DMLC_PS_ROOT_PORT")) + 1)
    except ValueError as error:
        raise InputError(f"is no port ({error})", field="DMLC_PS_ROOT_PORT", remedy=HELP) from error
    return host, port


def _name_own_address(line: socket.socket) -> None:
    """ps-lite listens at no name, and by itself at the first outer interface: have it listen where this
    machine reaches the scheduler, unless an address or an interface is asked for.
    """
    if not is_address(os.environ.get("DMLC_NODE_HOST", "")):
        os.environ.pop("DMLC_NODE_HOST", None)
        if not os.environ.get("DMLC_INTERFACE"):
            os.environ["DMLC_NODE_HOST"] = line.getsockname()[0]


def is_address(host: str) -> bool:
    """Whether it is an IPv4 address, which ps-lite listens at, and not a name."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True


class _Process:
    """What both ends share: the one end of this process, and the sending of messages."""

    def __init__(self, patience: float) -> None:
        self._patience, self._lock, self._leaving = patience, threading.Lock(), False

    def _send(self, line: socket.socket, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a line that is broken is told by whoever reads it
            line.sendall(json.dumps(message).encode() + b"\n")

    def _messages(self, line: socket.socket) -> Iterator[Dict[str, Any]]:
        """What comes on a line, until it is closed."""
        line.settimeout(self._patience)
        buffer = b""
        while True:
            received = line.recv(65536)
            if not received:
                return
            *whole, buffer = (buffer + received).split(b"\n")
            yield from map(json.loads, whole)

    def _end(self, problem: str) -> None:
        """End this process, unless it is ending already."""
        with self._lock:
            if not self._leaving:
                self._tell(problem)
                _exit(problem)

    def _tell(self, problem: str) -> None:
        """Say it to the others."""


def _exit(problem: str) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {problem}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    os._exit(1)  # from a thread, and past MXNet's end, which waits for all others


class Member(_Process):
    """A server's or a worker's line to the watch."""

    def __init__(self, role: str, patience: float) -> None:
        super().__init__(patience)
        self._line = self._connect(_address())
        _name_own_address(self._line)
        os.register_at_fork(after_in_child=self._line.close)  # a loader must not keep a dead worker's line
        self._send(self._line, role=role, host=socket.gethostname(), pid=os.getpid())
        self._known = threading.Event()
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        threading.Thread(target=self._beat, daemon=True).start()
        self._known.wait(patience)  # from here on it is told what becomes of the others

    def number(self, rank: int) -> None:
        """Tell this worker's number."""
        self._send(self._line, rank=rank)

    def leave(self) -> None:
        """The work is done, and this process may end."""
        self._last(done=True)

    def fail(self, problem: str) -> None:
        """This process ends with an error of its own, and the others have to."""
        self._last(failed=problem)

    def _last(self, **message: Any) -> None:
        """Send the last message, and wait until the watch has closed the line: a process that ends with
        signs of life unread takes back what the other end has not read.
        """
        with self._lock:
            self._leaving = True
        self._send(self._line, **message)
        self._listening.join(self._patience)

    def _connect(self, address: Tuple[str, int]) -> socket.socket:
        until = time.monotonic() + self._patience
        while True:
            try:
                return socket.create_connection(address, self._patience)
            except OSError as error:  # the scheduler may start later
                if time.monotonic() > until:
                    raise InputError(f"no scheduler answers at {address[0]}:{address[1]} within "
                                     f"{self._patience:g} s ({error})", field="DMLC_PS_ROOT_URI",
                                     remedy=HELP) from error
                time.sleep(0.1)

    def _listen(self) -> None:
        problem = "the scheduler has ended before the work was done"
        try:
            for message in self._messages(self._line):
                self._known.set()
                if "end" in message:
                    problem = message["end"]
                    break
        except socket.timeout:
            problem = f"the scheduler was not heard of for {self._patience:g} s"
        except OSError:
            pass  # broken: the scheduler has ended
        self._end(problem)

    def _beat(self) -> None:
        while not self._leaving:
            self._send(self._line, beat=True)
            time.sleep(min(5.0, self._patience / 4))


class Watch(_Process):
    """The scheduler's side: waits for all to join, follows each, and tells all when one is gone."""

    def __init__(self, patience: float) -> None:
        super().__init__(patience)
        host, port = _address()
        if os.environ.get("DMLC_USE_KUBERNETES", "0") != "0":
            host = "0.0.0.0"  # as ps-lite does there: the address is that of a service
        elif not is_address(host):
            raise InputError(f"is {host!r}, and the scheduler listens at addresses alone",
                             field="DMLC_PS_ROOT_URI", remedy="name the address of its machine")
        try:
            self._listener = socket.create_server((host, port), backlog=1024)
        except OSError as error:
            raise InputError(f"cannot listen at {host}:{port} ({error.strerror})", field="CIAN_WATCH_PORT",
                             remedy="name a port that is free") from error
        self._expected = {role: int(variable(f"DMLC_NUM_{role.upper()}")) for role in ("server", "worker")}
        self._joined: Dict[str, int] = {"server": 0, "worker": 0}
        self._members: List[socket.socket] = []
        self._left = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._wait_for_all, daemon=True).start()

    def leave(self) -> None:
        """Wait until all members have left, and end."""
        for _ in range(sum(self._expected.values())):
            self._left.acquire(timeout=self._patience)
        with self._lock:
            self._leaving = True

    def _accept(self) -> None:
        while True:
            line, _ = self._listener.accept()
            threading.Thread(target=self._follow, args=(line,), daemon=True).start()

    def _wait_for_all(self) -> None:
        time.sleep(self._patience)
        missing = [f"{self._joined[role]} of {count} {role}s" for role, count in self._expected.items()
                   if self._joined[role] < count]
        if missing:
            self._end(f"only {' and '.join(missing)} came within {self._patience:g} s")

    def _follow(self, line: socket.socket) -> None:
        role, who, name, problem = "", "", "", "has ended before the work was done"
        try:
            for message in self._messages(line):
                if "role" in message:
                    role, who = message["role"], f"({message['host']}, process {message['pid']})"
                    name = f"a {role} {who}"
                    with self._lock:
                        self._joined[role] += 1
                        self._members.append(line)
                    self._send(line, beat=True)
                elif "rank" in message:
                    name = f"{role} {message['rank']} {who}"
                elif "beat" in message:
                    self._send(line, beat=True)
                elif "done" in message:
                    line.close()
                    self._left.release()
                    return
                elif "failed" in message:
                    problem = f"has failed: {message['failed']}"
                    break
        except socket.timeout:
            problem = f"was not heard of for {self._patience:g} s"
        except (OSError, ValueError, LookupError):
            pass  # broken, or no member of ours
        if name:  # a stranger's line is of no matter
            self._end(f"{name} {problem}")

    def _tell(self, problem: str) -> None:
        for line in self._members:
            self._send(line, end=problem)
