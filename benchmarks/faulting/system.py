"""Faults of the system while a stage runs: one line, an exit code, and what was there is whole."""
from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

from faulting.running import Run, Watcher
from faulting.stages import Template, command, restore, run_again

MOUNTS = {  # in a mount namespace of its own; $0 is the folder of the run, NUMBER is drawn
    "read-only folder": 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
    "disk full": """mkdir -p "$0.real" && mount --bind "$0" "$0.real" && size=$(du -s "$0" | cut -f1) &&
        mount -t tmpfs -o size=$((size + NUMBER))k tmpfs "$0" && cp -a "$0.real/." "$0/" && {
        "$@"; code=$?; find "$0.real" -mindepth 1 -delete; cp -a "$0/." "$0.real/"; exit $code; }""",
    "shared memory of 1 MB": 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"',
}
LIMITS = {"file size": resource.RLIMIT_FSIZE, "descriptors": resource.RLIMIT_NOFILE,
          "memory": resource.RLIMIT_AS}
MIDWAY = ("SIGTERM", "Ctrl-C", "a stopped child", "a folder vanishes", "permission lost", "clock set back")
FAULTS = (*LIMITS, *MOUNTS, *MIDWAY[:3], "two at once", *MIDWAY[3:])


def can_mount() -> bool:
    """Whether this process may have a mount namespace of its own."""
    return subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def system_trial(seed: int, fault: str, stage: str, number: int, template: Template,
                 home: Path) -> Dict[str, Any]:
    """A stage with a fault, and the same command without it; faults are what is not as promised."""
    rng = random.Random(f"{seed} {fault} {stage} {number}")
    run, log = home / "run", home / "trial.log"
    restore(template.before, run)
    log.unlink(missing_ok=True)
    if fault in MOUNTS and not can_mount() or fault == "permission lost" and _chattr(run, "-i"):
        return {"skipped": "this system does not let us", "faults": []}
    watcher = None if fault == "disk full" else Watcher(run)  # which is copied back as it is left
    codes, faults = _with_fault(fault, rng, stage, template, run, log)
    told = log.read_text(errors="replace") if log.exists() else ""
    if fault == "Ctrl-C" and "run_tool" not in told:  # Python's own, before the program has begun
        told = told.replace("Traceback", "interrupted")
    # native code that gets no memory may end in a signal, which nobody can tell of
    failed = [code for code in codes if code and (code > 0 or fault != "memory")]
    if "Traceback" in told:
        faults.append(f"a traceback: {told[-700:]}")
    if None in codes:
        faults.append("hangs")
    if fault == "a stopped child" and failed:
        faults.append(f"ends with {failed}: {told[-300:]}")
    silent = "error:" not in told and "interrupted" not in told
    if failed and silent and fault not in ("SIGTERM", "a folder vanishes", "clock set back"):
        faults.append(f"ends with {failed} and says nothing: {told[-300:]}")
    clock = {"CIAN_FAULT_CLOCK": "1"} if fault == "clock set back" else {}
    again = run_again(stage, run, log, watcher or Watcher(run), template, clock)
    return {"codes": codes, "faults": faults + again}


def _with_fault(fault: str, rng: random.Random, stage: str, template: Template, run: Path, log: Path) -> Any:
    options: Dict[str, Any] = {}
    if fault in LIMITS:
        limit = int({"file size": 10 ** rng.uniform(2.5, 6), "descriptors": rng.uniform(5, 60),
                     "memory": rng.uniform(0.1, 3) * 2 ** 30}[fault])
        options["preexec_fn"] = lambda: resource.setrlimit(LIMITS[fault], (limit, limit))
    prefix = []
    if fault in MOUNTS:
        mounts = MOUNTS[fault].replace("NUMBER", str(rng.randint(0, template.written_kb)))
        prefix = ["unshare", "-m", "sh", "-c", mounts, str(run)]
    trials = [Run(command(stage, run), log, prefix, **options) for _ in range(1 + (fault == "two at once"))]
    if fault in MIDWAY:
        time.sleep(rng.uniform(0, 1) * template.seconds)
        _disturb(fault, rng, trials[0], run, {path.name for path in template.before.iterdir()})
    codes = [trial.end() for trial in trials]
    if fault == "permission lost":
        _chattr(run, "-i")
    return codes, [f"outlives the fault: {line}" for trial in trials for line in trial.left()]


def _chattr(run: Path, how: str) -> int:
    """Let no file in the folders of a run be made, renamed or removed ('+i'), or let it again."""
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    return subprocess.run(["chattr", how, *folders], stderr=subprocess.DEVNULL, check=False).returncode


def _disturb(fault: str, rng: random.Random, trial: Run, run: Path, there: Any) -> None:
    if fault in ("SIGTERM", "clock set back"):
        trial.kill("parent", 0, signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
    elif fault == "Ctrl-C":
        try:
            os.killpg(trial.process.pid, signal.SIGINT)
        except ProcessLookupError:
            return
    elif fault == "a stopped child":
        pick = rng.random()
        trial.kill("child", pick, signal.SIGSTOP)
        time.sleep(2)
        trial.kill("all", pick, signal.SIGCONT)
    elif fault == "permission lost":  # for root too
        _chattr(run, "+i")
    else:
        for path in [path for path in run.iterdir() if path.name not in there]:
            shutil.rmtree(path, ignore_errors=True)


def steps(faults: Sequence[str], stages: List[str], tries: int) -> List[Any]:
    """(fault, stage, number), ``tries`` of each fault, spread over the stages."""
    return [(fault, stages[(number + place) % len(stages)], number) for number in range(tries)
            for place, fault in enumerate(faults)]
