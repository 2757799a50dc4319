"""What a training run reports: a progress bar, a text log and TensorBoard scalars, all from the
same numbers.
"""
from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from typing import Dict, List, Mapping, Optional

from tensorboardX import SummaryWriter
from tqdm import tqdm

from cian.errors import InputError, PathLike, write_error
from cian.tools.engine.training.scalars import append_scalars


class Meter:
    """Sums of named quantities since the last report.

    Each step adds ``numerators[name] / denominator`` pairs, so that a mean over steps weighs every
    image or pixel the same, whatever the step it was in.
    """

    def __init__(self) -> None:
        self._sums: Dict[str, List[float]] = {}

    def add(self, name: str, value: float, count: float) -> None:
        """Add a sum of ``value`` over ``count`` images or pixels."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += value
        entry[1] += count

    def take(self) -> Dict[str, float]:
        """Means since the last call, in the order of their first mention; NaN where nothing was
        counted. Starts again from zero.
        """
        means = {name: value / count if count else math.nan for name, (value, count) in self._sums.items()}
        self._sums.clear()
        return means

    def state_dict(self) -> Dict[str, List[float]]:
        """The sums as plain numbers, for a checkpoint."""
        return {name: list(entry) for name, entry in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, List[float]]) -> None:
        """Continue from :meth:`state_dict`."""
        self._sums = {name: [float(number) for number in entry] for name, entry in state.items()}


class Clock:
    """Speed since the last report and time left, from what this process itself has done."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._steps = 0

    def tick(self) -> None:
        """A step has ended."""
        self._steps += 1
        if self._steps == 1:  # the first step also builds the graph
            self._start = time.monotonic()

    def images_per_second(self, images: int) -> float:
        """Speed over the last ``images`` images; starts the next stretch."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return images / max(elapsed, 1e-9)

    def seconds_left(self, steps: int) -> float:
        """Time for ``steps`` more steps at the mean speed of those after the first; NaN before
        there are any.
        """
        return (time.monotonic() - self._start) / (self._steps - 1) * steps if self._steps > 1 else math.nan


class RunLog(contextlib.AbstractContextManager["RunLog"]):
    """The three places a run reports to; a context manager.

    Parameters
    ----------
    folder : the run's folder; holds ``NAME.log`` (text, appended to) and ``tensorboard/`` (event files,
        and :mod:`the curves <cian.tools.engine.training.scalars>` as lines of JSON).
    name : of the log file, without extension.
    total : steps of the whole run, for the progress bar (an estimate may be corrected by :meth:`advance`).
    done : steps that were done before this process; scalars of later steps that a killed process
        left are hidden.
    rank : number of this process among several: all but 0 write only a text log, ``NAME.workerN.log``.
    """

    def __init__(self, folder: PathLike, name: str, total: int, done: int = 0, rank: int = 0) -> None:
        name, self._speaks = f"{name}.worker{rank}" if rank else name, not rank
        path = os.path.join(os.fspath(folder), f"{name}.log")
        try:
            os.makedirs(folder, exist_ok=True)
            self._text = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror})", file=path) from error
        self._curves = os.path.join(os.fspath(folder), "tensorboard")
        self._events = SummaryWriter(self._curves, purge_step=done + 1 if done else None, flush_secs=10,
                                     filename_suffix=f".{os.getpid()}.{time.time_ns()}",
                                     write_to_disk=self._speaks)
        self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True,
                         disable=None if self._speaks else True,
                         file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(self, text: str) -> None:
        """One line with the time of day, to the text log and the terminal."""
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}"
        try:
            self._text.write(stamped + "\n")
        except OSError as error:
            raise write_error(error, self._text.name) from error
        if self._speaks:
            tqdm.write(stamped, file=sys.stdout)
            sys.stdout.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Scalars of a step (counted from 1)."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._speaks:
            append_scalars(self._curves, step, values)

    def advance(self, step: int, total: int, loss: Optional[float] = None) -> None:
        """Move the progress bar to ``step`` of ``total``."""
        self._bar.total = total
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Write out what is buffered and close the files."""
        self._bar.close()
        self._events.close()
        self._text.close()


def duration(seconds: float) -> str:
    """Seconds as 1:02:03, or '?' where unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
