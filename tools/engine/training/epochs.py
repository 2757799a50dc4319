"""What every training does: epochs of steps, checked and logged, that go on from their last state as
if they had never stopped.
"""
from __future__ import annotations

from typing import Any, Dict, Mapping, Sequence

from cian.data.records import RecordSet
from cian.errors import InputError
from cian.files import changed_keys
from cian.tools.engine.config import Config
from cian.tools.engine.models.snapshot import Snapshot, find_checkpoints
from cian.tools.engine.training.logs import Clock, Meter, RunLog
from cian.tools.engine.training.sources import ANEW
from cian.tools.engine.training.step import NotFinite


class EpochRun:
    """A training under way. A subclass says what a step learns, and what is reported and kept.

    Attributes
    ----------
    SECTION : of the configuration, with the epochs and the learning rate.
    feed : of batches, which can be reset and has a state.
    epoch, batch, step : done so far: whole epochs, batches of the current one, steps in all.
    """

    SECTION: str
    feed: Any

    def __init__(self, config: Config, snapshot: Snapshot, images: RecordSet) -> None:
        self.config, self.snapshot, self.images = config, snapshot, images
        self.epochs: int = getattr(config, self.SECTION).epochs
        self.epoch = self.batch = self.step = 0
        self._meter = Meter()

    def run_epochs(self, messages: Sequence[str], rank: int = 0) -> str:
        """Run the epochs that are left; returns the path of the last network."""
        self._clock = Clock()
        with RunLog(self.snapshot.folder, self.snapshot.model, self._total_steps(), self.step,
                    rank) as self._log:
            for message in messages:
                self._log.line(message)
            while self.epoch < self.epochs:
                self._run_epoch()
            last = self._finish()
            self._log.line(f"done: {self.epochs} epochs, {self.step} steps; {last}")
        return last

    def state_dict(self) -> Dict[str, Any]:
        """Everything that decides how it goes on."""
        return {"identity": self.identity(), "epoch": self.epoch, "batch": self.batch, "step": self.step,
                **self._own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.epoch, self.batch, self.step = state["epoch"], state.get("batch", 0), state["step"]

    def identity(self) -> Dict[str, Any]:
        """The settings and inputs that decide the result."""
        raise NotImplementedError

    def _own_state(self) -> Dict[str, Any]:
        """What it decides on: network, optimiser and batches."""
        raise NotImplementedError

    def _rate(self) -> float:
        """The learning rate of the next step."""
        raise NotImplementedError

    def _step(self, batch: Any, rate: float) -> None:
        """Learn from a batch, or raise :class:`~cian.tools.engine.training.step.NotFinite`."""
        raise NotImplementedError

    def _end_step(self, rate: float) -> None:
        """Report, and keep what is to be kept within an epoch."""

    def _end_epoch(self, rate: float) -> None:
        """Report, and keep the state."""
        raise NotImplementedError

    def _finish(self) -> str:
        """Leave the last network; returns its path."""
        return self.snapshot.epoch_path(self.epochs - 1)

    def _begin_epoch(self) -> None:
        if not self.batch:
            self.feed.reset()

    def _run_epoch(self) -> None:
        self._begin_epoch()
        for batch in self.feed:
            rate = self._rate()
            self._learn(batch, rate)
            self._end_step(rate)
            self._log.advance(self.step, self._total_steps())
        self.epoch, self.batch = self.epoch + 1, 0
        self._end_epoch(rate)

    def _learn(self, batch: Any, rate: float) -> None:
        try:
            self._step(batch, rate)
        except NotFinite as error:
            parts = batch if isinstance(batch, list) else [batch]
            names = ", ".join(self.images.names[int(index)] for part in parts for index in part.index)
            raise InputError(f"{error}, in step {self.step + 1} (epoch {self.epoch + 1}, learning rate "
                             f"{rate:.3g}) with the images {names}", file=self.snapshot.folder,
                             remedy=f"look at these images, or lower {self.SECTION}.lr; "
                                    f"{self._kept()}") from error
        self.batch += 1
        self.step += 1
        self._clock.tick()

    def _kept(self) -> str:
        """What is safe when a run has to stop."""
        found = find_checkpoints(self.snapshot.folder, self.snapshot.model)
        return f"the last good checkpoint is {found[-1].path}" if found else "there is no checkpoint yet"

    def _total_steps(self) -> int:
        """Steps of the whole run, if the epochs to come have as many batches as this one."""
        return self.step - self.batch + (self.epochs - self.epoch) * self.feed.num_batches


def refuse_other_settings(snapshot: Snapshot, was: Mapping[str, Any], now: Mapping[str, Any],
                          whose: str = "run of another configuration") -> None:
    """Refuse to go on with the state of another training, with an :class:`InputError` that names what
    has changed.
    """
    changed = [f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in changed_keys(was, now)]
    if changed:
        raise InputError(f"belongs to a {whose}: {'; '.join(changed[:3])}", file=snapshot.folder, remedy=ANEW)
