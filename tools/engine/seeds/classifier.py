"""Training of the CAM classifier with the multi-label sigmoid loss (paper, "Initial Seeds"),
resumable to the last bit.
"""
from __future__ import annotations

import contextlib
from typing import Any, List, Mapping, Optional

import numpy as np

from cian.data.classes import require_same
from cian.data.degenerate import tell
from cian.data.records import RecordSet
from cian.errors import InputError
from cian.tools.engine.config import Config
from cian.tools.engine.devices import parse_devices
from cian.tools.engine.models.snapshot import OthersSnapshot, Snapshot
from cian.tools.engine.seeds.run import CamRun
from cian.tools.engine.training.distributed import Workers
from cian.tools.engine.training.watch import KVSTORE_ALONE, Member


def train_classifier(config: Config, images: RecordSet, *, score: Optional[Mapping[str, RecordSet]] = None,
                     fresh: bool = False, member: Optional[Member] = None,
                     backbone_options: Optional[Mapping[str, Any]] = None) -> str:
    """Train the classifier, or go on with it where it stopped, and report its mean average precision.

    With ``cam.freeze_backbone`` the classification layer alone is trained, on pooled features of
    whole images that are computed once. One device is used, the first of ``run.devices``. Several
    workers share each batch; a sum over them rounds in another order than that over one's images.

    Parameters
    ----------
    config : cam and run are used; ``run.snapshot`` gets ``MODEL_cam-EPOCH.params``, the state to go
        on from, logs and the report.
    images : training images with image-level labels; nothing else is read.
    score : further labelled images to report the precision on, by name.
    fresh : remove what another run left in the folder, in place of refusing it.
    member : of a job of several workers, see :class:`~cian.tools.engine.training.distributed.Workers`.
    backbone_options : of the backbone's class.

    Returns
    -------
    Path of the classifier.

    Raises
    ------
    InputError
        Wrong device, weights or snapshot; a loss or gradient that is not finite, naming the images
        of the batch.
    """
    if not config.run.snapshot:
        raise InputError("no folder for the classifier was named", field="run.snapshot",
                         remedy="give --snapshot FOLDER")
    if config.run.kvstore != KVSTORE_ALONE and config.cam.freeze_backbone:
        raise InputError("the last layer alone trains in one process", field="cam.freeze_backbone",
                         remedy="leave run.kvstore out")
    device = parse_devices(config.run.devices)[0]
    for other in (score or {}).values():
        require_same(other.classes.names, other.path, images.classes.names, images.path)
    tell(_unlearnable(images), images.path)
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(Workers(config.run, member))
        if config.cam.batch_size % workers.num:
            raise InputError(f"{config.cam.batch_size} images do not divide over {workers.num} workers",
                             field="cam.batch_size", remedy=f"use a multiple of {workers.num}")
        kind = OthersSnapshot if workers.rank else Snapshot
        with workers.in_turn("files"):
            snapshot = stack.enter_context(kind(config.run.snapshot, f"{config.cam.model}_cam"))
        run = stack.enter_context(CamRun(config, images, snapshot, device, backbone_options or {}, workers))
        with workers.in_turn("state"):
            if fresh:
                snapshot.clear()
            run.resume()
        if member is not None:
            workers.refuse_others(run.description())
        path = run.train()
        if not workers.rank:
            run.report(path, {images.name: images, **(score or {})})
    return path


def _unlearnable(images: RecordSet) -> List[str]:
    """What no classifier can learn from the image-level labels, a sentence each."""
    share = images.labels[:, 1:].mean(axis=0)
    names = np.array(images.classes.foreground)
    found = (("no image has", share == 0), ("every image has", share == 1))
    return [f"{problem} {', '.join(names[which])}, so that nothing can be learned of it"
            for problem, which in found if which.any()]
