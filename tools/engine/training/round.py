"""Training rounds: data, network and optimiser put together, epochs run, progress reported, and
everything saved so that it can go on.
"""
from __future__ import annotations

import contextlib
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

import mxnet as mx

from cian.data.classes import require_same
from cian.data.iterators import PairIter
from cian.data.records import RecordSet
from cian.data.windows import Maps
from cian.environment import usable_cores
from cian.errors import InputError, PathLike
from cian.symbols.cian import CIAN
from cian.symbols.layers import constant_parts
from cian.symbols.metadata import metadata_path, read_metadata
from cian.symbols.params import assign, initialize, load_params
from cian.symbols.pretrained import load_pretrained
from cian.tools.engine.config import Config
from cian.tools.engine.devices import parse_devices
from cian.tools.engine.models.features import Below, View, stored_features
from cian.tools.engine.models.snapshot import (
    OthersSnapshot,
    Snapshot,
    build_network,
    find_checkpoints,
    resolve_checkpoint,
)
from cian.tools.engine.training.distributed import Workers
from cian.tools.engine.training.epochs import refuse_other_settings
from cian.tools.engine.training.precision import begin_mixed, refuse_cpus
from cian.tools.engine.training.run import TrainingRun, configure, rounded_identity
from cian.tools.engine.training.sources import ANEW, open_training_records, refuse_other_sources, run_sources
from cian.tools.engine.training.step import network_values
from cian.tools.engine.training.watch import Member


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
    contexts = _devices(config)
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


def _devices(config: Config) -> List[mx.Context]:
    """The devices, prepared for the precision."""
    contexts = parse_devices(config.run.devices)
    if config.run.precision == "mixed":
        begin_mixed(contexts)
    if config.run.pinned:
        refuse_cpus(contexts, "run.pinned", "leave run.pinned out")
    return contexts


def _check(config: Config, num_devices: int) -> None:
    if not config.run.snapshot:
        raise InputError("no folder for the checkpoints was named", field="run.snapshot",
                         remedy="give --snapshot FOLDER")
    block = config.network.group_size * num_devices
    if config.train.batch_size % block:
        raise InputError(f"{config.train.batch_size} images do not divide into groups of "
                         f"{config.network.group_size} on {num_devices} " f"device{'s' * (num_devices > 1)}",
                         field="train.batch_size", remedy=f"use a multiple of {block}")


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
    refuse_other_settings(snapshot, state["identity"], rounded_identity(config, start))
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
