"""Starts the original in a process of its own and exchanges arrays with it through files."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from cian.errors import InputError, PathLike

NEEDED = ("lib/models/cian_models.py", "lib/loader/voc_seg_group_loader.py", "scripts/train_infer_segment.py",
          "scripts/generate_retrain.py", "scripts/eval_segment.py")
TIMEOUT_S, OVERTIME = 3600, 124


@dataclass(frozen=True)
class Answer:
    """Arrays by name, the report, and the lines that the original printed."""

    arrays: Dict[str, np.ndarray]
    report: Dict[str, Any]
    log: List[str]

    def prefixed(self, prefix: str) -> Dict[str, np.ndarray]:
        """The arrays called ``prefix/NAME``, by NAME."""
        return {name[len(prefix) + 1:]: array
                for name, array in self.arrays.items() if name.startswith(prefix + "/")}


class Original:
    """A checkout of github js-fan/CIAN.

    Parameters
    ----------
    checkout : its folder.
    work : an existing folder for the files that are exchanged.

    Raises
    ------
    InputError
        Naming the first file of the original that the folder lacks.
    """

    def __init__(self, checkout: PathLike, work: PathLike) -> None:
        self.checkout, self.work = os.path.abspath(os.fspath(checkout)), os.path.abspath(os.fspath(work))
        for name in NEEDED:
            if not os.path.isfile(os.path.join(self.checkout, name)):
                raise InputError(f"is no checkout of the original code: it lacks {name}", file=checkout,
                                 field="--original",
                                 remedy="clone https://github.com/js-fan/CIAN and name its folder")

    @property
    def commit(self) -> str:
        """The checkout's commit, with '+' when files differ from it; 'unknown' where git cannot tell."""
        told = [subprocess.run(["git", "-C", self.checkout, *command], capture_output=True, text=True,
                               check=False)
                for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])]
        if any(result.returncode for result in told):
            return "unknown"
        return told[0].stdout.strip()[:12] + ("+" if told[1].stdout.strip() else "")

    def below(self, name: str) -> Original:
        """The same checkout with a new folder below the working folder for its files."""
        work = os.path.join(self.work, name.replace(" ", "_"))
        os.makedirs(work)
        return Original(self.checkout, work)

    def run(self, name: str, request: Mapping[str, Any],
            inputs: Optional[Mapping[str, np.ndarray]] = None) -> Answer:
        """Run one job (see :mod:`cian.tools.engine.fidelity.original`) in a folder ``name`` below
        the working folder.

        Raises
        ------
        InputError
            When the original fails or does not end; quotes the last line that it printed and names
            its whole log.
        """
        folder = os.path.join(self.work, name)
        os.makedirs(folder)
        with open(os.path.join(folder, "request.json"), "w", encoding="utf-8") as stream:
            json.dump(request, stream)
        if inputs is not None:
            np.savez(os.path.join(folder, "inputs.npz"), **inputs)  # type: ignore[arg-type]
        log = os.path.join(folder, "log.txt")
        command = [sys.executable, "-m", "cian.tools.engine.fidelity.original", self.checkout, folder]
        with open(log, "w", encoding="utf-8") as stream:
            try:
                code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, timeout=TIMEOUT_S,
                                      check=False, env={**os.environ, "OMP_NUM_THREADS": "1",
                                                        "PYTHONDONTWRITEBYTECODE": "1"}).returncode
            except subprocess.TimeoutExpired:
                code = OVERTIME
        with open(log, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
        if code:
            how, last = "did not end in time" if code == OVERTIME else "failed", lines[
                -1] if lines else "it printed nothing"
            raise InputError(f"the original {how} at the job {name!r}: {last}", file=log,
                             remedy="keep the files with --work and read it")
        with np.load(os.path.join(folder, "outputs.npz")) as archive:
            arrays = {key: archive[key] for key in archive.files}
        os.remove(os.path.join(folder, "outputs.npz"))  # a ResNet-101 case takes a gigabyte
        with open(os.path.join(folder, "report.json"), encoding="utf-8") as stream:
            report = json.load(stream)
        return Answer(arrays, report, lines)
