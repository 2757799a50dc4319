"""Training rounds: data, network and optimiser put together, epochs run, progress reported, and
everything saved so that it can go on.
"""
from __future__ import annotations

import contextlib
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

import cv2
import mxnet as mx

from cian.data.classes import require_same
from cian.data.iterators import DeviceFeed, PairIter
from cian.data.records import RecordSet
from cian.data.windows import Maps
from cian.environment import usable_cores
from cian.errors import InputError, PathLike
from cian.files import changed_keys, write_json
from cian.symbols.cian import CIAN
from cian.symbols.layers import constant_parts
from cian.symbols.losses import CIANLoss
from cian.symbols.metadata import metadata_path, read_metadata, versions
from cian.symbols.params import assign, configure_training, initialize, load_params
from cian.symbols.pretrained import load_pretrained
from cian.tools.engine.config import Config, TrainConfig, save_config
from cian.tools.engine.devices import parse_devices
from cian.tools.engine.models.engine import MXNET, expected_engine
from cian.tools.engine.models.features import Below, View, stored_features
from cian.tools.engine.models.snapshot import (
    OthersSnapshot,
    Snapshot,
    build_network,
    find_checkpoints,
    resolve_checkpoint,
)
from cian.tools.engine.training.distributed import Workers, source_digest, values_digest
from cian.tools.engine.training.logs import Clock, Meter, RunLog, duration
from cian.tools.engine.training.precision import begin_mixed, refuse_cpus
from cian.tools.engine.training.sources import ANEW, open_training_records, refuse_other_sources, run_sources
from cian.tools.engine.training.step import NotFinite, Trainer, learning_rate, network_values
from cian.tools.engine.training.watch import Member

SECTIONS = ("network", "loss", "train", "run")  # of the configuration, what a training run depends on


def fit(config: Config, *, start: PathLike = "", fresh: bool = False, member: Optional[Member] = None,
        backbone_options: Optional[Mapping[str, Any]] = None) -> str:
    """Train a round, or go on with it where it stopped; returns the path of the last checkpoint.

    Parameters
    ----------
    config : data, network, loss, train and run are used; ``run.snapshot`` is the run's folder.
    start : ``.params`` of the first round, which a second round starts from; empty starts from
        ``network.pretrained``.
    fresh : remove what another run left in the folder, in place of refusing it.
    member : of a job of several workers, see :class:`~cian.tools.engine.training.distributed.Workers`.
    backbone_options : of the backbone's class; default those of ``start``, or none.

    Raises
    ------
    InputError
        Wrong devices, batch, data, weights or snapshot; a loss, gradient or parameter that is not
        finite, with the images of the batch.
    """
    contexts = parse_devices(config.run.devices)
    if config.run.precision == "mixed":
        begin_mixed(contexts)
    if config.run.pinned:
        refuse_cpus(contexts, "run.pinned", "leave run.pinned out")
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(config.run, member))
        _check(config, len(contexts) * workers.num)
        with workers.in_turn("files"):
            kind = OthersSnapshot if workers.rank else Snapshot
            snapshot = stack.enter_context(kind(config.run.snapshot, config.network.model, config.train.keep))
            state = _state_to_resume(snapshot, workers.as_one(config), os.fspath(start), fresh)
            images, seeds = (stack.enter_context(records) for records in open_training_records(config))
        if start and os.path.exists(metadata_path(start)):
            require_same(read_metadata(start)["classes"], start, images.classes.names, images.path)
        sources = run_sources(config, start, images, seeds)
        refuse_other_sources(state, sources, snapshot.folder)
        iterator = None
        if not config.train.features:  # forks its workers before other threads
            iterator = stack.enter_context(pair_iterator(config, images, seeds, len(contexts), None, workers))
        net = build_network(config.network, images.classes.num_classes,
                            backbone_options or _backbone_options(os.fspath(start)))
        messages = [f"{images.path}: {len(images)} images; {seeds.path}: {len(seeds)} seeds"]
        if state is None:
            messages.append(_initial_values(net, config, os.fspath(start), contexts))
        else:
            net.initialize(mx.init.Zero(), ctx=contexts)
            assign(net, network_values(state["trainer"]), source=snapshot.state_path)
        if iterator is None:
            with workers.in_turn("features"):
                maps = training_features(config, net, images, contexts[0])
            iterator = stack.enter_context(pair_iterator(config, images, seeds, len(contexts), maps, workers))
        run = TrainingRun(config, snapshot, net, images, iterator, contexts, os.fspath(start), workers,
                          sources)
        if state is not None:
            run.load_state_dict(state)
            messages.append(
                f"resumed after {run.step} steps, in epoch {run.epoch + 1} after {run.batch} batches")
        if member is not None:
            workers.refuse_others({**run.description(), "images": images.identity, "seeds": seeds.identity})
        return run.run(messages)


def first_round_checkpoint(path: PathLike, model: str = "") -> str:
    """The ``.params`` file from which a second round starts: ``path``, or of a snapshot folder the
    last epoch's.

    Raises
    ------
    InputError
        There is none, or the folder's run has epochs left.
    """
    found = resolve_checkpoint(path, model)
    if os.path.isdir(path) and os.path.exists(metadata_path(found)):
        metadata = read_metadata(found)
        epochs = metadata.get("config", {}).get("train.epochs", 0)
        if metadata.get("epoch", epochs) + 1 < epochs:
            raise InputError(f"the first round stopped after epoch {metadata['epoch'] + 1} of {epochs}",
                             file=path,
                             remedy="finish it with tools/train.py, or name a checkpoint with --start")
    return found


def training_loss(config: Config, num_classes: int) -> CIANLoss:
    """The loss of a configuration."""
    loss = config.loss
    return CIANLoss(num_classes, config.network.affinity, loss.completion, loss.completion_labels,
                    loss.completion_target, loss.normalise)


def configure(net: CIAN, settings: TrainConfig) -> None:
    """Say what of a network trains, as the settings ask for."""
    configure_training(net, lr_mult_new=settings.lr_mult_new, decay_beta=settings.decay_beta,
                       freeze=settings.freeze)


def training_features(config: Config, net: CIAN, images: RecordSet, device: mx.Context) -> Maps:
    """The stored features that a run trains on: of the images at every scale, straight and, with
    ``train.mirror``, mirrored, below the first part of the backbone that trains.

    Raises
    ------
    InputError
        As :func:`~cian.tools.engine.models.features.stored_features`.
    """
    train = config.train
    configure(net, train)
    views = [View(scale, mirror, train.crop_px) for scale in dict.fromkeys(train.scales or (1.0,))
             for mirror in ((False, True) if train.mirror else (False,))]
    below = Below(net.backbone, constant_parts(net.backbone), device, config.predict.engine)
    return stored_features(below, images, views, config.run)


def pair_iterator(config: Config, images: RecordSet, seeds: RecordSet, num_devices: int,
                  features: Optional[Maps] = None, workers: Optional[Workers] = None) -> PairIter:
    """The iterator of a configuration, over pixels or over stored features; of several workers, of
    this one's part.
    """
    train, rank, num = config.train, workers.rank if workers else 0, workers.num if workers else 1
    return PairIter(images, seeds, batch_size=train.batch_size // num, part_index=rank, num_parts=num,
                    group_size=config.network.group_size,
                    num_devices=num_devices, crop_px=train.crop_px, scales=train.scales, mirror=train.mirror,
                    label_resize=train.label_resize, label_padding=train.label_padding, pairing=train.pairing,
                    lonely=train.lonely, order=train.order, seed=train.seed,
                    workers=config.run.workers or usable_cores(), features=features)


class TrainingRun:
    """A round under way: what it has done, and how it goes on.

    Attributes
    ----------
    epoch, batch, step : done so far: whole epochs, batches of the current one, steps in all.
    """

    def __init__(self, config: Config, snapshot: Snapshot, net: CIAN, images: RecordSet, iterator: PairIter,
                 contexts: Sequence[mx.Context], start: str = "",
                 workers: Optional[Workers] = None, sources: Optional[Mapping[str, str]] = None) -> None:
        self._sources = dict(sources or {})
        self.config, self.snapshot, self.net, self.images, self.start = config, snapshot, net, images, start
        self.epoch = self.batch = self.step = 0
        self._workers = workers or Workers()
        self._whole = self._workers.as_one(config)  # what decides the result
        self._iterator, self._feed = iterator, DeviceFeed(iterator, contexts, config.run.pinned)
        configure(net, config.train)
        self._loss_parts = _loss_parts(config)
        self._trainer = Trainer(net, training_loss(config, images.classes.num_classes), contexts,
                                config.train, mixed=config.run.precision == "mixed",
                                reordered=config.run.sums == "fast", stored=bool(config.train.features),
                                workers=self._workers)
        self._meter, self._clock = Meter(), Clock()
        self._images_since = 0

    def run(self, messages: Sequence[str] = ()) -> str:
        """Run the epochs that are left; returns the path of the last checkpoint."""
        train, snapshot = self.config.train, self.snapshot
        if not self._workers.rank:
            self._write_settings()
        if not self.step:
            self._save_state(wait=False)
        with RunLog(snapshot.folder, snapshot.model, self._total_steps(), self.step,
                    self._workers.rank) as self._log:
            for message in messages:
                self._log.line(message)
            while self.epoch < train.epochs:
                self._run_epoch()
            last = snapshot.epoch_path(train.epochs - 1)
            self._log.line(f"done: {train.epochs} epochs, {self.step} steps; {last}")
        return last

    def state_dict(self) -> Dict[str, Any]:
        """Everything that decides how the run goes on."""
        return {"identity": _rounded(self._whole, self.start), "sources": self._sources,
                "epoch": self.epoch, "batch": self.batch,
                "step": self.step, "iterator": self._feed.state_dict(), "trainer": self._trainer.state_dict(),
                "meter": self._meter.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self._feed.load_state_dict(state["iterator"])
        self._trainer.load_state_dict(state["trainer"])
        self._meter.load_state_dict(state["meter"])

    def description(self) -> Dict[str, Any]:
        """What all workers have to agree on before the first step."""
        state = self._trainer.state_dict()
        return {"code": source_digest(), **versions(), "opencv": cv2.__version__,
                **_rounded(self._whole, self.start), "run.kvstore": self.config.run.kvstore,
                "classes": self.images.classes.names, "position": (self.epoch, self.batch, self.step),
                **{kind: values_digest(state[kind]) for kind in ("parameters", "momentum")}}

    def _run_epoch(self) -> None:
        train = self.config.train
        if not self.batch:
            self._feed.reset()
        batches = self._iterator.num_batches
        if not batches:
            raise InputError(
                f"epoch {self.epoch + 1} has no batch: no {train.batch_size} images fall into groups",
                field="train.pairing", remedy="use train.pairing=even, a smaller batch or more images")
        for parts in self._feed:
            rate = learning_rate(train, self.epoch, self.batch, batches)
            self._learn(parts, rate)
            self.snapshot.poll()
            if self.step % train.log_every == 0 or self.batch == batches:
                self._report(rate, batches)
            self._log.advance(self.step, self._total_steps())
            if train.save_every and self.step % train.save_every == 0 and self.batch < batches:
                self._save_state()
        self._end_epoch()

    def _learn(self, parts: Sequence[mx.io.DataBatch], rate: float) -> None:
        try:
            values = self._trainer.step(parts, rate, self.step)
        except NotFinite as error:
            names = [self.images.names[int(index)] for part in parts for index in part.index]
            raise InputError(f"{error}, in step {self.step + 1} (epoch {self.epoch + 1}, learning rate "
                             f"{rate:.3g}) with the images " f"{', '.join(names)}", file=self.snapshot.folder,
                             remedy=f"look at these images, or lower train.lr; {self._kept()}") from error
        self.batch += 1
        self.step += 1
        self._clock.tick()
        images = sum(len(part.index) for part in parts) * self._workers.num
        self._images_since += images
        for name in self._loss_parts:
            self._meter.add(f"loss/{name}", values[name], images)
        for name, part, whole in (("labelled", "labelled_pixels", "pixels"),
                                  ("agreeing", "agreeing_pixels", "labelled_pixels"),
                                  ("completion", "completion_pixels", "pixels")):
            self._meter.add(f"pixels/{name}", values[part], values[whole])

    def _report(self, rate: float, batches: int) -> None:
        """Means over the steps since the last report; losses are those of an image."""
        means = self._meter.take()
        losses = {name[5:]: value for name, value in means.items() if name.startswith("loss/")}
        speed, self._images_since = self._clock.images_per_second(self._images_since), 0
        left = self._clock.seconds_left(self._total_steps() - self.step)
        scalars = {"loss/total": sum(losses.values()), **means, "learning_rate": rate,
                   "images_per_second": speed}
        self._log.scalars(scalars, self.step)
        self._log.advance(self.step, self._total_steps(), scalars["loss/total"])
        self._log.line(f"epoch {self.epoch + 1}/{self.config.train.epochs} batch {self.batch}/{batches} "
                       f"step {self.step}: " f"loss {scalars['loss/total']:.4f} "
                       f"({', '.join(f'{name} {value:.4f}' for name, value in losses.items())}), "
                       f"pixels: {means['pixels/labelled']:.1%} labelled, {means['pixels/agreeing']:.1%} "
                       "of them predicted so, "
                       f"{means['pixels/completion']:.1%} in completion; lr {rate:.3g}, {speed:.2f} "
                       f"images/s, {duration(left)} left{self._workers.report()}")

    def _end_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self._refuse_broken_parameters()
        state = self.state_dict()
        path = self.snapshot.save_epoch(
            self.epoch - 1, network_values(state["trainer"]),
            {"network": self.net.settings, "classes": list(self.images.classes.names),
             "model": self.config.network.model, "num_classes": self.images.classes.num_classes,
             "config": _identity(self._whole, self.start), "config_hash": self._whole.hash(SECTIONS),
             "epoch": self.epoch - 1, "step": self.step, "seed": self.config.train.seed}, state)
        self._log.line(f"epoch {self.epoch}/{self.config.train.epochs} done: {path}")

    def _save_state(self, wait: bool = True) -> None:
        self._refuse_broken_parameters()
        self.snapshot.save_state(self.state_dict(), wait=wait)

    def _refuse_broken_parameters(self) -> None:
        if not self._trainer.parameters_finite():
            raise InputError(f"a parameter is not finite after step {self.step}", file=self.snapshot.folder,
                             remedy=f"lower train.lr; {self._kept()}")

    def _kept(self) -> str:
        """What is safe when a run has to stop."""
        found = find_checkpoints(self.snapshot.folder, self.snapshot.model)
        return f"the last good checkpoint is {found[-1].path}" if found else "there is no checkpoint yet"

    def _total_steps(self) -> int:
        """Steps of the whole run, if the epochs to come have as many batches as this one."""
        return self.step - self.batch + (self.config.train.epochs - self.epoch) * self._iterator.num_batches

    def _write_settings(self) -> None:
        """Leave the resolved configuration, its hash, versions and seeds beside the results."""
        save_config(self.config, self.snapshot.path("config.yaml"))
        content = {"hash": self.config.hash(), "training_hash": self._whole.hash(SECTIONS),
                   "seed": self.config.train.seed, "versions": {**versions(), "opencv": cv2.__version__},
                   "devices": list(self.config.run.devices), "omp_threads": os.environ.get("OMP_NUM_THREADS"),
                   "classes": list(self.images.classes.names), "images": self.images.identity,
                   "start": self.start or self.config.network.pretrained or "random"}
        write_json(self.snapshot.path("run.json"), content)


def _check(config: Config, num_devices: int) -> None:
    if not config.run.snapshot:
        raise InputError("no folder for the checkpoints was named", field="run.snapshot",
                         remedy="give --snapshot FOLDER")
    block = config.network.group_size * num_devices
    if config.train.batch_size % block:
        raise InputError(f"{config.train.batch_size} images do not divide into groups of "
                         f"{config.network.group_size} on {num_devices} " f"device{'s' * (num_devices > 1)}",
                         field="train.batch_size", remedy=f"use a multiple of {block}")


def _identity(config: Config, start: str) -> Dict[str, Any]:
    """Every key that the hash of a training run covers, by its name."""
    return {**config.hashed_keys(SECTIONS), "start": os.path.basename(start)}


def _rounded(config: Config, start: str) -> Dict[str, Any]:
    """The same, and what decides how a run rounds, so that one that goes on ends as if it had never
    stopped.
    """
    engine = expected_engine(config.predict.engine, parse_devices(config.run.devices)[0])
    return {**_identity(config, start), "run.sums": config.run.sums,
            "predict.engine": engine if config.train.features else MXNET}


def _state_to_resume(snapshot: Snapshot, config: Config, start: str, fresh: bool) -> Optional[Dict[str, Any]]:
    if fresh:
        snapshot.clear()
    state = snapshot.load_state()
    if state is None:
        if find_checkpoints(snapshot.folder, snapshot.model):
            raise InputError(
                f"holds checkpoints, but no {os.path.basename(snapshot.state_path)} to go on from",
                file=snapshot.folder, remedy=ANEW)
        return None
    # a state from before the keys rounds as the original
    was, now = {"run.sums": "original", "predict.engine": MXNET, **state["identity"]}, _rounded(config, start)
    changed = [f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in changed_keys(was, now)]
    if changed:
        raise InputError(f"belongs to a run of another configuration: {'; '.join(changed[:3])}",
                         file=snapshot.folder, remedy=ANEW)
    return state


def _initial_values(net: CIAN, config: Config, start: str, contexts: Sequence[mx.Context]) -> str:
    """Give the network its first values; returns what was done, in words."""
    if start:
        return f"second round from {start}: {load_params(net, start, ctx=contexts)}"
    message = "all weights are random: no network.pretrained was named"
    if config.network.pretrained:
        message = (
            f"{config.network.pretrained}: {load_pretrained(net, config.network.pretrained, ctx=contexts)}")
    initialize(net, config.train.seed, ctx=contexts, missing=True)
    for name, param in net.collect_params().items():
        # a first round decides its start by itself, whatever the file holds, as in the original
        if name == "bn_out_gamma":
            param.set_data(mx.nd.full(param.shape, config.train.gamma_start))
        if name in ("conv_embed_q_weight", "conv_embed_k_weight"):
            param.set_data(config.train.embed_start * param.data(contexts[0]).as_in_context(mx.cpu()))
    return message


def _backbone_options(start: str) -> Mapping[str, Any]:
    """Those of the network in the file ``start``, where it has metadata."""
    return read_metadata(start)["network"].get("backbone_options",
                                               {}) if start and os.path.exists(metadata_path(start)) else {}


def _loss_parts(config: Config) -> List[str]:
    """Names of the losses that this configuration has."""
    branches = ("self", "cross") if config.network.affinity == "cross" else ("self",)
    return [f"{kind}_{branch}" for kind in (("seed", "completion") if config.loss.completion else ("seed",))
            for branch in branches]
