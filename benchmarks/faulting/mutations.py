"""10,000 mutated files of every kind, each read in a child process."""
from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from faulting.readers import KINDS

from cian.environment import users_environment

HERE = Path(__file__).resolve().parent.parent
HANG_S = 300.0  # of a loaded machine, whose programs take long to start
BLOCK = 200  # mutations of a child process
OUTCOMES = ("as before", "refused", "otherwise", "fault")


def mutate(kind: str, first: int, count: int, world: Path, scratch: Path, seed: int = 0) -> Dict[str, Any]:
    """Read mutations ``first``.. of a kind of file; counts by outcome, why files were refused, the faults."""
    found: Dict[str, Any] = {**dict.fromkeys(OUTCOMES, 0), "reasons": [], "faults": []}
    at, end = first, first + count
    while at < end:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(world, scratch)
        at = _run(kind, at, end, scratch, found, seed)
    shutil.rmtree(scratch)
    found["reasons"] = sorted(set(found["reasons"]))
    return found


def _run(kind: str, at: int, end: int, scratch: Path, found: Dict[str, Any], seed: int) -> int:
    """One child process; returns the number after the last mutation that it has read."""
    command = [sys.executable, "-W", "ignore", "-m", "faulting.reading", str(scratch), kind,
               str(at), str(end - at), str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE,
                             env={**users_environment(), "OMP_NUM_THREADS": "1"})
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_pass_on, args=(child, lines), daemon=True).start()
    try:
        valid = _next(lines)
        if valid is None or valid[1] is not True:
            raise RuntimeError(f"the valid file of the kind {kind!r} is not read: {command}")
        while at < end:
            told = _next(lines)
            if told is None:
                code = child.poll()
                what = "hangs" if code is None else f"the process died with {code}"
                told = [at, "fault", what]
            found[told[1]] += 1
            if told[1] == "refused":
                found["reasons"].append(told[2])
            if told[1] == "fault":
                found["faults"].append([kind, told[0], told[2]])
            at = told[0] + 1
            if told[2].startswith(("hangs", "the process died")):
                break
    finally:
        child.kill()
        child.wait()
    return at


def _pass_on(child: subprocess.Popen, lines: queue.Queue) -> None:
    for line in child.stdout or ():
        if line.startswith("["):
            lines.put(line)
    lines.put("")


def _next(lines: queue.Queue) -> Any:
    """The next JSON line, or None at the end or after :data:`HANG_S` seconds."""
    try:
        line: str = lines.get(timeout=HANG_S)
    except queue.Empty:
        return None
    return json.loads(line) if line else None


def blocks(total: int, kinds: Sequence[str]) -> List[Tuple[str, int, int]]:
    """(kind, first, count) of all mutations, ``total`` over ``kinds`` by their shares; each is one step."""
    shares = sum(KINDS[name].share for name in kinds)
    found = []
    for name in kinds:
        count = -(-total * KINDS[name].share // shares)
        found += [(name, first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
    return sorted(found, key=lambda block: block[1])
