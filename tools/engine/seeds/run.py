"""The CAM classifier's training under way: its steps, state and report, and the network itself."""
from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import mxnet as mx
import numpy as np
from mxnet import autograd

from cian.data.iterators import ClassificationIter
from cian.data.records import RecordSet
from cian.environment import usable_cores
from cian.errors import InputError
from cian.files import read_json, sha256_of, write_json
from cian.symbols.cam import CAMClassifier
from cian.symbols.metadata import metadata_path, read_metadata, versions
from cian.symbols.params import configure_training, initialize, named_values
from cian.symbols.pretrained import SOURCES, load_pretrained
from cian.tools.engine.config import CamConfig, Config, save_config
from cian.tools.engine.models.agreement import Network
from cian.tools.engine.models.engine import MXNET, expected_engine, start_engine
from cian.tools.engine.models.snapshot import Snapshot
from cian.tools.engine.seeds.features import STRAIGHT, FeatureIter, images_rgb, network_input, pooled_features
from cian.tools.engine.seeds.maps import average_precisions, mean_of_present
from cian.tools.engine.training.distributed import Workers, source_digest, values_digest
from cian.tools.engine.training.epochs import EpochRun, refuse_other_settings
from cian.tools.engine.training.logs import duration
from cian.tools.engine.training.step import NotFinite, Sgd, all_finite, poly_decay, step_seed


class CamRun(EpochRun, contextlib.AbstractContextManager["CamRun"]):
    """A training under way; a context manager, because batches may come from processes. ``net`` is the
    CAMClassifier, initialised or pretrained.
    """

    SECTION = "cam"

    def __init__(self, config: Config, images: RecordSet, snapshot: Snapshot, device: mx.Context,
                 backbone_options: Mapping[str, Any], workers: Optional[Workers] = None) -> None:
        super().__init__(config, snapshot, images)
        self.cam, self.device, self._workers = config.cam, device, workers or Workers()
        self._loaders = config.run.workers or usable_cores()
        self._weights = weights_digest(self.cam)
        self._options = dict(backbone_options)
        # forks its workers before there are other threads
        crops = None if self.cam.freeze_backbone else ClassificationIter(
            images, batch_size=self.cam.batch_size // self._workers.num, crop_px=self.cam.crop_px,
            seed=self.cam.seed, workers=self._loaders, part_index=self._workers.rank,
            num_parts=self._workers.num)
        self.net = build_classifier(self.cam, images.classes.num_classes - 1, device, backbone_options)
        self.feed: Union[FeatureIter, ClassificationIter] = crops or FeatureIter(
            self.features(images), images.labels[:, 1:], self.cam.batch_size, self.cam.seed)
        self._sgd = Sgd(self.net, self.cam.momentum, self.cam.weight_decay, self._workers.store)

    def __exit__(self, *_: object) -> None:
        if isinstance(self.feed, ClassificationIter):
            self.feed.close()

    @functools.cached_property
    def _engine(self) -> Tuple[str, Network]:
        """What computes the frozen backbone's features, for the training images and for those scored."""
        return start_engine(self.net.backbone, self.config.predict.engine, self.device)

    def features(self, images: RecordSet) -> np.ndarray:
        """(n, 2, C) pooled features of a set by the frozen backbone, from the snapshot's cache."""
        name, network = self._engine
        parts = [images.identity, self.cam.model, self._weights, json.dumps(self._options, sort_keys=True),
                 name]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        return pooled_features(network, self.net.backbone.out_channels, images,
                               self.snapshot.path(f"features-{digest}.f32"), workers=self._loaders,
                               progress=True)

    def identity(self) -> Dict[str, Any]:
        """What the classifier depends on."""
        engine = expected_engine(self.config.predict.engine, self.device)
        return {**self.config.hashed_keys(("cam",)), "weights": self._weights, "images": self.images.identity,
                "predict.engine": engine if self.cam.freeze_backbone else MXNET,
                "backbone_options": json.dumps(self._options, sort_keys=True)}

    def description(self) -> Dict[str, Any]:
        """What all workers have to agree on before the first step."""
        return {"code": source_digest(), **versions(), **self.identity(), "position": (self.epoch, self.step),
                "classes": self.images.classes.names, "parameters": values_digest(named_values(self.net))}

    def resume(self) -> None:
        """Go on from the snapshot's state, if it has one.

        Raises
        ------
        InputError
            The state belongs to other settings or images.
        """
        state = self.snapshot.load_state()
        if state is None:
            return
        refuse_other_settings(self.snapshot, state["identity"], self.identity(),
                              "classifier of other settings")
        self.load_state_dict(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        parameters = self.net.collect_params()
        for name, value in state["parameters"].items():
            parameters[name].set_data(mx.nd.array(value, dtype=np.float32))
        self._sgd.set_momentum(state["momentum"])
        self.feed.load_state_dict(state["batches"])

    def train(self) -> str:
        """Run the epochs that are left; returns the path of the classifier."""
        path = self.snapshot.epoch_path(self.epochs - 1)
        if self.epoch == self.epochs and os.path.exists(metadata_path(path)):
            return path
        if not self._workers.rank:
            save_config(self.config, self.snapshot.path("config.yaml"))
        return self.run_epochs([
            f"{len(self.images)} images, {self.cam.model} from {self.cam.pretrained or 'random weights'}"
            f"{', backbone frozen' if self.cam.freeze_backbone else ''}, {self.step} of "
            f"{self._total_steps()} steps done, on {self.device}"], self._workers.rank)

    def _own_state(self) -> Dict[str, Any]:
        mx.nd.waitall()
        parameters = {name: param.data().asnumpy()
                      for name, param in self.net.collect_params().items() if param.grad_req != "null"}
        return {"parameters": parameters, "momentum": self._sgd.momentum(), "batches": self.feed.state_dict()}

    def _rate(self) -> float:
        return poly_decay(self.cam.lr, self.epoch, self.epochs)

    def _step(self, batch: mx.io.DataBatch, rate: float) -> None:
        data, labels = (arrays[0].as_in_context(self.device) for arrays in (batch.data, batch.label))
        mx.random.seed(step_seed(self.cam.seed, self.step, self._workers.rank))
        with autograd.record():
            logits = self.net.classifier(data).flatten() if self.cam.freeze_backbone else self.net(data)
            loss = sigmoid_loss(logits, labels)
        loss.backward()
        self._sgd.allreduce_grads()
        value = self._workers.share_losses(loss.sum().asnumpy()[:, None]).sum()
        if not (np.isfinite(value) and all_finite(list(self._sgd.gradients().values()))):
            raise NotFinite("the loss or a gradient is not finite")
        self._sgd.set_learning_rate(rate)
        self._sgd.update(len(data) * self._workers.num)
        self._meter.add("loss", float(value), len(data) * self._workers.num)
        self._workers.start_clock()

    def _end_epoch(self, rate: float) -> None:
        self.snapshot.save_state(self.state_dict())
        loss = self._meter.take()["loss"]
        speed = self._clock.images_per_second(len(self.images))
        left = duration(self._clock.seconds_left(self._total_steps() - self.step))
        self._log.scalars({"loss/sigmoid": loss, "learning_rate": rate, "images_per_second": speed},
                          self.step)
        self._log.line(f"epoch {self.epoch}/{self.epochs}: loss {loss:.4f} an image, lr {rate:.3g}, "
                       f"{speed:.1f} images/s, {left} left{self._workers.report()}")

    def _finish(self) -> str:
        return self.snapshot.save_epoch(self.epochs - 1, named_values(self.net), {
            "kind": "cam", "network": self.net.settings, "classes": list(self.images.classes.foreground),
            "training": self.identity(), "config_hash": self.config.hash(("cam",)),
            "epoch": self.epoch - 1, "step": self.step})

    def report(self, path: str, sets: Mapping[str, RecordSet]) -> Dict[str, Any]:
        """Average precision on the image-level labels of each set, by the whole images: written to
        ``<path>`` with the suffix ``.map.json`` and printed; sets that were scored before are not
        scored again.
        """
        target, digest = f"{path[:-len('.params')]}.map.json", read_metadata(path)["sha256"]
        known = read_json(target, "report of precisions", "remove it") if os.path.exists(target) else {}
        scored = known.get("sets", {}) if known.get("classifier") == digest else {}
        if not (isinstance(scored, dict) and all(isinstance(entry, dict) and "mean_average_precision" in entry
                                                 for entry in scored.values())):
            raise InputError("is not a report of precisions", file=target, field="sets", remedy="remove it")
        for name, images in sets.items():
            if scored.get(name, {}).get("images") != images.identity:
                precision = average_precisions(self.scores(images), images.labels[:, 1:])
                by_class = {label: None if np.isnan(value) else float(value)
                            for label, value in zip(images.classes.foreground, precision)}
                scored[name] = {"images": images.identity, "count": len(images),
                                "mean_average_precision": mean_of_present(precision),
                                "average_precision": by_class}
            mean = scored[name]["mean_average_precision"]
            print(f"{name}: mean average precision {'undefined' if mean is None else f'{mean:.4f}'} on the "
                  f"labels of {len(images)} images", flush=True)
        known = {"classifier": digest, "sets": scored}
        write_json(target, known)
        return known

    def scores(self, images: RecordSet) -> np.ndarray:
        """(n, L) float32 class scores (logits) of a set's images, each whole and in its own size."""
        if self.cam.freeze_backbone:
            straight = self.features(images)[:, STRAIGHT]
            blocks = [straight[start:start + 1024, :, None, None] for start in range(0, len(straight), 1024)]
            return np.concatenate([self.net.classifier(
                mx.nd.array(block, ctx=self.device)).flatten().asnumpy() for block in blocks])
        rows = [self.net(mx.nd.array(network_input(image), ctx=self.device)).asnumpy()[0]
                for image in images_rgb(images, range(len(images)), self._loaders)]
        return np.stack(rows)


def build_classifier(settings: CamConfig, num_foreground: int, device: mx.Context,
                     backbone_options: Optional[Mapping[str, Any]] = None) -> CAMClassifier:
    """A classifier with its first values, pretrained where the settings name a source, and with
    what trains of it set.

    Raises
    ------
    InputError
        The source does not hold the backbone's parameters.
    """
    net = CAMClassifier(settings.model, num_foreground, backbone_options)
    if settings.pretrained:
        load_pretrained(net, settings.pretrained, ctx=device)
    initialize(net, settings.seed, ctx=device, missing=True)
    configure_training(net, lr_mult_new=settings.lr_mult_new,
                       freeze=net.backbone.collect_params() if settings.freeze_backbone else ())
    net.hybridize()
    return net


def sigmoid_loss(logits: mx.nd.NDArray, labels: mx.nd.NDArray) -> mx.nd.NDArray:
    """The multi-label sigmoid loss of each image: binary cross-entropy summed over the classes.

    Parameters
    ----------
    logits, labels : (N, L); labels are 0 or 1.

    Returns
    -------
    (N,) losses.
    """
    # Gluon's own loss has a wrong gradient where a logit is exactly 0, and averages over the classes.
    return (mx.nd.Activation(logits, act_type="softrelu") - logits * labels).sum(axis=1)


def weights_digest(settings: CamConfig) -> str:
    """What the backbone starts from: its source, the file's SHA-256, or the seed of random weights."""
    if not settings.pretrained:
        return f"random {settings.seed}"
    return settings.pretrained if settings.pretrained in SOURCES else sha256_of(settings.pretrained)
