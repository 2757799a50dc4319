"""Runs a command so that nothing of it escapes: its processes, its files, and when they got names."""
from __future__ import annotations

import ctypes
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from cian.environment import users_environment

TINY = Path(__file__).resolve().parent / "tiny"
MARK, SHARED = "CIAN_FAULT_TRIAL", "/dev/shm"  # the campaign has one of its own
LIMIT_S = 900.0  # of a command on a loaded machine; beyond it, it hangs
# hidden files, and those that are read as far as they are whole
GROWING = re.compile(r"\.log$|\.jsonl$|events\.out\.|\.part$|^features-|\.f16$|\.sums$|^\.")
IN_MODIFY, IN_CREATE, IN_MOVED_TO, IN_ISDIR = 0x2, 0x100, 0x80, 0x40000000


class Watcher:
    """The kernel's record (inotify) of files below a folder that were made or changed under final names."""

    def __init__(self, folder: Path) -> None:
        self.found: List[str] = []
        self._shared = set(os.listdir(SHARED))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        self._folders: Dict[int, str] = {}
        self._stop = threading.Event()
        self._add(str(folder))
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> List[str]:
        """End; returns what was made or changed under its final name."""
        self._stop.set()
        self._thread.join()
        self._read()
        os.close(self._descriptor)
        return sorted(set(self.found))

    def memory(self) -> List[str]:
        """Shared memory and semaphores that were not there before."""
        return sorted(f"{SHARED}/{name}" for name in set(os.listdir(SHARED)) - self._shared)

    def _add(self, folder: str) -> None:
        number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder),
                                              IN_MODIFY | IN_CREATE | IN_MOVED_TO)
        if number < 0:
            return  # it is gone
        self._folders[number] = folder
        for entry in os.scandir(folder):
            if entry.is_dir() and not entry.name.startswith("."):
                self._add(entry.path)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._read()

    def _read(self) -> None:
        try:
            events = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            number, mask, _, length = struct.unpack_from("iIII", events, at)
            name = events[at + 16:at + 16 + length].rstrip(b"\0").decode(errors="replace")
            at += 16 + length
            path = os.path.join(self._folders.get(number, "?"), name)
            if mask & IN_ISDIR:
                if not name.startswith(".") and os.path.isdir(path):
                    self._add(path)
            elif mask & (IN_CREATE | IN_MODIFY) and not GROWING.search(name):
                self.found.append(path)


class Run:
    """A command under way in a session of its own, with everything that it starts."""

    def __init__(self, command: Sequence[str], log: Path, prefix: Sequence[str] = (),
                 variables: Optional[Mapping[str, str]] = None, **options: Any) -> None:
        self.mark = uuid.uuid4().hex
        environment = {**users_environment(), MARK: self.mark, "PYTHONPATH": str(TINY),
                       "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **(variables or {})}
        self.log, self._told = log, b""
        # a pipe, for a limit of file size is not one of what the command may say
        self.process = subprocess.Popen([*prefix, sys.executable, "-m", *command], env=environment,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True, **options)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as told:
            for line in told:
                self._told += line
                with open(self.log, "ab") as stream:
                    stream.write(line)

    def processes(self) -> List[int]:
        """Numbers of all processes that belong to it, orphans too."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    with open(f"/proc/{entry}/environ", "rb") as stream:
                        ours = f"{MARK}={self.mark}".encode() in stream.read().split(b"\0")
                    with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stream:
                        alive = stream.read().rsplit(")", 1)[1].split()[0] not in "ZX"
                except OSError:
                    continue
                if ours and alive:
                    found.append(int(entry))
        return found

    def kill(self, who: str, pick: float, number: int = signal.SIGKILL) -> None:
        """Send a signal to 'all' processes, the 'parent' alone or one of the 'child' processes alone."""
        children = [process for process in self.processes() if process != self.process.pid]
        if who == "child" and children:
            targets = [children[int(pick * len(children))]]
        else:
            targets = [self.process.pid, *(children if who == "all" else [])]
        for target in targets:
            try:
                os.kill(target, number)
            except ProcessLookupError:
                continue

    def end(self, timeout: float = LIMIT_S) -> Optional[int]:
        """Wait for its end; the exit code, or None where it hangs."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill("all", 0)
            self.process.wait()
            return None

    def left(self, patience: float = 20.0) -> List[str]:
        """Processes that outlive the command by ``patience`` seconds; they are ended."""
        until = time.monotonic() + patience
        while self.processes() and time.monotonic() < until:
            time.sleep(0.05)
        found = []
        for process in self.processes():
            try:
                line = Path(f"/proc/{process}/cmdline").read_bytes()
                found.append(line.replace(b"\0", b" ").decode()[-120:])
                os.kill(process, signal.SIGKILL)
            except OSError:
                continue
        return found

    def told(self) -> str:
        """What it has written to its output."""
        self._listener.join(2)
        return self._told.decode(errors="replace")
