"""A training round under way: its steps, reports, checkpoints and state."""
from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

import cv2
import mxnet as mx

from cian.data.iterators import DeviceFeed, PairIter
from cian.data.records import RecordSet
from cian.errors import InputError
from cian.files import write_json
from cian.symbols.cian import CIAN
from cian.symbols.losses import CIANLoss
from cian.symbols.metadata import versions
from cian.symbols.params import configure_training
from cian.tools.engine.config import Config, TrainConfig, save_config
from cian.tools.engine.devices import parse_devices
from cian.tools.engine.models.engine import MXNET, expected_engine
from cian.tools.engine.models.snapshot import Snapshot
from cian.tools.engine.training.distributed import Workers, source_digest, values_digest
from cian.tools.engine.training.epochs import EpochRun
from cian.tools.engine.training.logs import duration
from cian.tools.engine.training.step import Trainer, learning_rate, network_values

SECTIONS = ("network", "loss", "train", "run")  # of the configuration, what a training run depends on


class TrainingRun(EpochRun):
    """A round under way: what it has done, and how it goes on."""

    SECTION = "train"

    def __init__(self, config: Config, snapshot: Snapshot, net: CIAN, images: RecordSet, iterator: PairIter,
                 contexts: Sequence[mx.Context], start: str = "",
                 workers: Optional[Workers] = None, sources: Optional[Mapping[str, str]] = None) -> None:
        super().__init__(config, snapshot, images)
        self.net, self.start, self._sources = net, start, dict(sources or {})
        self._workers = workers or Workers()
        self._whole = self._workers.as_one(config)  # what decides the result
        self.feed = DeviceFeed(iterator, contexts, config.run.pinned)
        configure(net, config.train)
        self._loss_parts = _loss_parts(config)
        self._trainer = Trainer(net, training_loss(config, images.classes.num_classes), contexts,
                                config.train, mixed=config.run.precision == "mixed",
                                reordered=config.run.sums == "fast", stored=bool(config.train.features),
                                workers=self._workers)
        self._images_since = 0

    def run(self, messages: Sequence[str] = ()) -> str:
        """Run the epochs that are left; returns the path of the last checkpoint."""
        if not self._workers.rank:
            self._write_settings()
        if not self.step:
            self._save_state(wait=False)
        return self.run_epochs(messages, self._workers.rank)

    def identity(self) -> Dict[str, Any]:
        """See :func:`rounded_identity`."""
        return rounded_identity(self._whole, self.start)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.feed.load_state_dict(state["iterator"])
        self._trainer.load_state_dict(state["trainer"])
        self._meter.load_state_dict(state["meter"])

    def description(self) -> Dict[str, Any]:
        """What all workers have to agree on before the first step."""
        state = self._trainer.state_dict()
        return {"code": source_digest(), **versions(), "opencv": cv2.__version__,
                **self.identity(), "run.kvstore": self.config.run.kvstore,
                "classes": self.images.classes.names, "position": (self.epoch, self.batch, self.step),
                **{kind: values_digest(state[kind]) for kind in ("parameters", "momentum")}}

    def _own_state(self) -> Dict[str, Any]:
        return {"sources": self._sources, "iterator": self.feed.state_dict(),
                "trainer": self._trainer.state_dict(), "meter": self._meter.state_dict()}

    def _rate(self) -> float:
        return learning_rate(self.config.train, self.epoch, self.batch, self.feed.num_batches)

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        if not self.feed.num_batches:
            raise InputError(f"epoch {self.epoch + 1} has no batch: no {self.config.train.batch_size} images "
                             "fall into groups", field="train.pairing",
                             remedy="use train.pairing=even, a smaller batch or more images")

    def _step(self, batch: Sequence[mx.io.DataBatch], rate: float) -> None:
        values = self._trainer.step(batch, rate, self.step)
        images = sum(len(part.index) for part in batch) * self._workers.num
        self._images_since += images
        for name in self._loss_parts:
            self._meter.add(f"loss/{name}", values[name], images)
        for name, part, whole in (("labelled", "labelled_pixels", "pixels"),
                                  ("agreeing", "agreeing_pixels", "labelled_pixels"),
                                  ("completion", "completion_pixels", "pixels")):
            self._meter.add(f"pixels/{name}", values[part], values[whole])

    def _end_step(self, rate: float) -> None:
        train, more = self.config.train, self.batch < self.feed.num_batches
        self.snapshot.poll()
        if self.step % train.log_every == 0 or not more:
            self._report(rate)
        if train.save_every and self.step % train.save_every == 0 and more:
            self._save_state()

    def _report(self, rate: float) -> None:
        """Means over the steps since the last report; losses are those of an image."""
        means = self._meter.take()
        losses = {name[5:]: value for name, value in means.items() if name.startswith("loss/")}
        speed, self._images_since = self._clock.images_per_second(self._images_since), 0
        left = self._clock.seconds_left(self._total_steps() - self.step)
        scalars = {"loss/total": sum(losses.values()), **means, "learning_rate": rate,
                   "images_per_second": speed}
        self._log.scalars(scalars, self.step)
        self._log.advance(self.step, self._total_steps(), scalars["loss/total"])
        self._log.line(f"epoch {self.epoch + 1}/{self.epochs} batch {self.batch}/{self.feed.num_batches} "
                       f"step {self.step}: loss {scalars['loss/total']:.4f} "
                       f"({', '.join(f'{name} {value:.4f}' for name, value in losses.items())}), "
                       f"pixels: {means['pixels/labelled']:.1%} labelled, {means['pixels/agreeing']:.1%} "
                       f"of them predicted so, {means['pixels/completion']:.1%} in completion; "
                       f"lr {rate:.3g}, {speed:.2f} images/s, {duration(left)} left{self._workers.report()}")

    def _end_epoch(self, rate: float) -> None:
        self._refuse_broken_parameters()
        state = self.state_dict()
        path = self.snapshot.save_epoch(
            self.epoch - 1, network_values(state["trainer"]),
            {"network": self.net.settings, "classes": list(self.images.classes.names),
             "model": self.config.network.model, "num_classes": self.images.classes.num_classes,
             "config": _identity(self._whole, self.start), "config_hash": self._whole.hash(SECTIONS),
             "epoch": self.epoch - 1, "step": self.step, "seed": self.config.train.seed}, state)
        self._log.line(f"epoch {self.epoch}/{self.epochs} done: {path}")

    def _save_state(self, wait: bool = True) -> None:
        self._refuse_broken_parameters()
        self.snapshot.save_state(self.state_dict(), wait=wait)

    def _refuse_broken_parameters(self) -> None:
        if not self._trainer.parameters_finite():
            raise InputError(f"a parameter is not finite after step {self.step}", file=self.snapshot.folder,
                             remedy=f"lower train.lr; {self._kept()}")

    def _write_settings(self) -> None:
        """Leave the resolved configuration, its hash, versions and seeds beside the results."""
        save_config(self.config, self.snapshot.path("config.yaml"))
        content = {"hash": self.config.hash(), "training_hash": self._whole.hash(SECTIONS),
                   "seed": self.config.train.seed, "versions": {**versions(), "opencv": cv2.__version__},
                   "devices": list(self.config.run.devices), "omp_threads": os.environ.get("OMP_NUM_THREADS"),
                   "classes": list(self.images.classes.names), "images": self.images.identity,
                   "start": self.start or self.config.network.pretrained or "random"}
        write_json(self.snapshot.path("run.json"), content)


def training_loss(config: Config, num_classes: int) -> CIANLoss:
    """The loss of a configuration."""
    loss = config.loss
    return CIANLoss(num_classes, config.network.affinity, loss.completion, loss.completion_labels,
                    loss.completion_target, loss.normalise)


def configure(net: CIAN, settings: TrainConfig) -> None:
    """Say what of a network trains, as the settings ask for."""
    configure_training(net, lr_mult_new=settings.lr_mult_new, decay_beta=settings.decay_beta,
                       freeze=settings.freeze)


def _identity(config: Config, start: str) -> Dict[str, Any]:
    """Every key that the hash of a training run covers, by its name."""
    return {**config.hashed_keys(SECTIONS), "start": os.path.basename(start)}


def rounded_identity(config: Config, start: str) -> Dict[str, Any]:
    """The same, and what decides how a run rounds, so that one that goes on ends as if it had never
    stopped.
    """
    engine = expected_engine(config.predict.engine, parse_devices(config.run.devices)[0])
    return {**_identity(config, start), "run.sums": config.run.sums,
            "predict.engine": engine if config.train.features else MXNET}


def _loss_parts(config: Config) -> List[str]:
    """Names of the losses that this configuration has."""
    branches = ("self", "cross") if config.network.affinity == "cross" else ("self",)
    return [f"{kind}_{branch}" for kind in (("seed", "completion") if config.loss.completion else ("seed",))
            for branch in branches]
