"""Stages of a long run: what to run, into which folder, after what; done ones are kept and broken
ones resumed.

A stage's folder is named by its kind and a key, and the key is a hash of all that its result
depends on: its own settings and the keys of the stages before it. So rows of a table that have a
stage in common share its folder, and results of different settings never meet.
"""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

from cian.environment import users_environment
from cian.errors import InputError
from cian.files import read_json, write_json
from cian.processes import run_child
from cian.tools.engine.config import Config, save_config

DONE = "done.json"
SETTINGS = "stage.yaml"


@dataclass(frozen=True)
class Stage:
    """One call of one tool.

    Attributes
    ----------
    kind : what it does; with ``key`` the name of its folder.
    key : ten hexadecimal digits, see :func:`stage_key`.
    folder : where its results go.
    tool : module below ``cian.tools``.
    arguments : its command line.
    after : the stages whose results it reads.
    config : its configuration, written to ``<folder>/stage.yaml`` before it starts.
    images : images that it processes, counted over epochs; what its time is proportional to.
    """

    kind: str
    key: str
    folder: Path
    tool: str
    arguments: Tuple[str, ...]
    after: Tuple[Stage, ...] = ()
    config: Optional[Config] = field(default=None, compare=False)
    images: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """What a plan calls it."""
        return f"{self.kind}-{self.key}"

    @property
    def command(self) -> List[str]:
        """The process to start."""
        settings = ("-c", os.fspath(self.folder / SETTINGS)) if self.config else ()
        return [sys.executable, "-m", f"cian.tools.{self.tool}", *settings, *self.arguments]

    @property
    def done(self) -> Optional[Dict[str, Any]]:
        """The record of its completed run (seconds, images, arguments), or None."""
        path = self.folder / DONE
        if not path.exists():
            return None
        again = "remove it and the stage runs again"
        record = read_json(path, "record of a stage", again)
        if record.get("key") != self.key:
            raise InputError(f"belongs to the stage {record.get('key')}, not {self.key}", file=path,
                             remedy="use another --out")
        if not isinstance(record.get("seconds"), (int, float)):
            raise InputError("is not the record of a stage", file=path, field="seconds", remedy=again)
        return record


def stage_key(*parts: Any) -> str:
    """Ten hexadecimal digits of SHA-256 over the parts' JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def in_order(stages: Iterable[Stage]) -> List[Stage]:
    """The stages and all that they need, each once and after what it needs."""
    ordered: Dict[Path, Stage] = {}

    def add(stage: Stage) -> None:
        for needed in stage.after:
            add(needed)
        ordered.setdefault(stage.folder, stage)

    for stage in stages:
        add(stage)
    return list(ordered.values())


def seconds_per_image(stages: Iterable[Stage]) -> Dict[str, float]:
    """Measured seconds per image of each kind of stage, from the done ones; the time left is
    estimated from it.
    """
    totals: Dict[str, List[float]] = {}
    for stage in stages:
        record = stage.done
        if record and stage.images:
            entry = totals.setdefault(stage.kind, [0.0, 0.0])
            entry[0] += record["seconds"]
            entry[1] += stage.images
    return {kind: seconds / images for kind, (seconds, images) in totals.items()}


def run_stage(stage: Stage, threads: int = 0) -> Dict[str, Any]:
    """Run a stage in a process of its own, its output in ``<folder>/stage.log``, and record that it is done.

    ``threads`` is its OMP_NUM_THREADS; 0 leaves the user's.

    Raises
    ------
    InputError
        When it fails, with the last line that it wrote and the path of its log.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    if stage.config:
        save_config(stage.config, stage.folder / SETTINGS)
    log = stage.folder / "stage.log"
    environment = {**users_environment(), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    started = time.monotonic()
    with open(log, "a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(f"$ {' '.join(stage.command)}\n")
        stream.flush()
        code = run_child(stage.command, environment, stdout=stream, stderr=subprocess.STDOUT,
                         stdin=subprocess.DEVNULL)
    if code:
        lines = [line
                 for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise InputError(f"the stage {stage.kind} ended with code {code}: {lines[-1].split(chr(13))[-1]}",
                         file=log,
                         remedy="mend the cause and run the same command again; what is done is kept")
    record = {"key": stage.key, "kind": stage.kind, "seconds": round(time.monotonic() - started, 1),
              "images": stage.images, "command": ["python", *stage.command[1:]],
              "finished": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    write_json(stage.folder / DONE, record)
    return record


def estimate(stages: Iterable[Stage], waiting: Iterable[Stage], jobs: int = 1) -> str:
    """Time that the waiting stages take, ``jobs`` at a time, in words, from what the done ones of
    their kind took for an image.
    """
    speeds = seconds_per_image(stages)
    waiting = list(waiting)
    unknown = sorted({stage.kind for stage in waiting if stage.kind not in speeds})
    minutes = sum(speeds.get(stage.kind, 0.0) * stage.images for stage in waiting) / 60 / jobs
    known = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
    if not unknown:
        return known
    some_known = len(unknown) < len({stage.kind for stage in waiting})
    return (f"{known} and what is not measured yet ({', '.join(unknown)})" if some_known
            else "not measured yet")
