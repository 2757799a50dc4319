"""Reads mutated files in a process of its own, for native code may take the process with it.

``python -m faulting.reading WORLD KIND FIRST COUNT SEED`` prints a JSON list for the valid file, then for
each mutation: its number, the outcome and what was told.
"""
from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
import traceback
from pathlib import Path
from typing import Any, List, Tuple

from faulting.mutators import MUTATORS
from faulting.readers import KINDS, digest

from cian.errors import InputError

LIMIT = 8 << 30  # of address space
SLACK_KB = 64 << 10  # of memory, beside four times that of the valid file
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
FORBIDDEN = {"subprocess.Popen", "os.system", "socket.connect", "os.exec", "os.posix_spawn"}
outside: List[str] = []


def watch(world: str) -> None:
    """Note everything that this process writes outside of the world, and programs that it starts."""
    def hook(event: str, arguments: Tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            outside.append(f"{event} {arguments[0]}")
            return
        writing = event in WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2]
                                      & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writing and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((world, "/dev/", "/proc/")):
                outside.append(f"{event} {path}")
    sys.addaudithook(hook)


def peak_kb() -> int:
    """Peak of this process's memory since :func:`forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as stream:
        return int(re.search(r"VmHWM:\s+(\d+)", stream.read()).group(1))  # type: ignore[union-attr]


def forget_peak() -> int:
    """Begin a new peak; returns the memory in use."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
        stream.write("5")
    return peak_kb()


def outcome(kind: str, world: Path, path: Path, valid: str) -> Tuple[str, str]:
    """What reading does: 'as before', 'otherwise', 'refused' or 'fault', and what it told."""
    outside.clear()
    try:
        found = digest(KINDS[kind].read(world, path))
    except InputError as error:
        told = str(error)
        if "\n" in told or not (str(world) in told or path.name in told):
            return "fault", f"the message does not name the file: {told[:300]}"
        result = "refused", re.sub(r"[\d.]+|'[^']*'", "#", getattr(error, "problem", told))[:80]
    except Exception as error:  # any other kind is what this process looks for
        frames = traceback.extract_tb(error.__traceback__)
        place, own = frames[-1], [frame for frame in frames if "site-packages" not in frame.filename]
        return "fault", (f"{type(error).__name__} in {os.path.basename(own[-1].filename)}:{own[-1].lineno} "
                         f"({os.path.basename(place.filename)}): {str(error)[:200]}")
    else:
        result = ("as before", "") if found == valid else ("otherwise", "")
    return ("fault", f"wrote or started {outside[0]}") if outside else result


def main(world: Path, kind: str, first: int, count: int, seed: int) -> None:
    """Print the outcomes of mutations ``first``.. of a kind of file."""
    entry = KINDS[kind]
    path = next(world.glob(entry.path))
    content = path.read_bytes()
    valid = digest(entry.read(world, path))
    before = forget_peak()
    again = digest(entry.read(world, path))
    need = peak_kb() - before
    print(json.dumps(["valid", again == valid, need]), flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    watch(os.path.realpath(world))
    for number in range(first, first + count):
        rng = random.Random(f"{seed} {kind} {number}")
        path.write_bytes(MUTATORS[entry.mutator](content, rng))
        try:
            before = forget_peak()
            result, told = outcome(kind, world, path, valid)
            grown = peak_kb() - before
            if result != "fault" and grown > 4 * need + SLACK_KB:
                result, told = "fault", f"takes {grown >> 10} MB, the valid file {need >> 10} MB"
        finally:
            path.write_bytes(content)
        print(json.dumps([number, result, told]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
