"""What is computed from an image's logits beside the network, and the folder that it goes to.

:func:`finish` runs in worker processes and imports no MXNet; :class:`Outputs` writes its results, knows which images are done,
and refuses to add to predictions of another model or another configuration.
"""
from __future__ import annotations

import json
import multiprocessing
import os
import threading
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np
import threadpoolctl

from cian.data.classes import palette, write_label_png
from cian.data.files import atomic_write, atomic_write_bytes, read_text
from cian.errors import InputError, PathLike

from .crf import CRFPreset, dense_crf
from .fitting import Fit

MANIFEST = "predictions.json"
PROBABILITIES = ("npy", "npz")
LABEL_FOLDERS = ("train_aug_pred", "train_aug_pred_crf")  # of the second round, without and with CRF


def label_folder(crf: str) -> str:
    """The folder that a second round trains on when its labels were made with this CRF preset or 'none'."""
    return LABEL_FOLDERS[crf != "none"]


@dataclass(frozen=True)
class Task:
    """One image on its way from the network to its files.

    Attributes
    ----------
    name : the image's name, without folder and suffix.
    image : (H, W, 3) uint8 RGB.
    coarse : (C, h, w) float32 logits as the network leaves them.
    fit : how the image was brought to the network.
    allowed : classes that a pixel may take, with background; None is all.
    crf : parameters of the CRF; None is without.
    probabilities : return the class probabilities too.
    """

    name: str
    image: np.ndarray
    coarse: np.ndarray
    fit: Fit
    allowed: Optional[Tuple[int, ...]] = None
    crf: Optional[CRFPreset] = None
    probabilities: bool = False


@dataclass(frozen=True)
class Finished:
    """Label maps (H, W) uint8 without and with CRF, and class probabilities (C, H, W) float32 of the last step."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    labels_crf: Optional[np.ndarray] = None
    probabilities: Optional[np.ndarray] = None

    @property
    def best(self) -> np.ndarray:
        """The label map with CRF where there is one."""
        return self.labels if self.labels_crf is None else self.labels_crf


def prepare_worker() -> None:
    """Make this process one of several that finish images beside the network, which has precedence at the cores.

    Matrix products keep to one thread: several would wait for cores a hundred times as long as the small products of :meth:`Fit.enlarge`
    take. The process ends with the one that it works for, even a killed one.
    """
    os.nice(10)
    threadpoolctl.threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def finish(task: Task) -> Finished:
    """Enlarge the logits, choose labels, and refine them by the CRF; classes that are not allowed take no part in either.

    Raises
    ------
    InputError
        For logits that are not finite, naming the image.
    """
    allowed = np.arange(len(task.coarse)) if task.allowed is None else np.asarray(task.allowed)
    logits = task.fit.enlarge(task.coarse[allowed])
    if not np.isfinite(logits).all():
        raise InputError("the network's logits are not finite", field=task.name, remedy="its training may have diverged")
    result = Finished(task.name, task.image, allowed[logits.argmax(axis=0)].astype(np.uint8))
    refined = None if task.crf is None else dense_crf(logits, task.image, task.crf)
    if refined is not None:
        result = replace(result, labels_crf=allowed[refined.argmax(axis=0)].astype(np.uint8))
    if task.probabilities:
        probabilities = np.zeros((len(task.coarse), *logits.shape[1:]), np.float32)
        probabilities[allowed] = softmax(logits) if refined is None else refined
        result = replace(result, probabilities=probabilities)
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis."""
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image with its classes in VOC's colours and a light line around them; background stays."""
    colours = palette()[labels]
    blended = np.where((labels > 0)[..., None], (1 - opacity) * image + opacity * colours, image).astype(np.uint8)
    edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    blended[edges] = 255
    return blended


class Outputs:
    """``root/pred/NAME.png`` and, with a CRF, ``root/pred_crf/NAME.png``; on request ``overlay/`` and ``probabilities/``.

    Parameters
    ----------
    root : folder, made when needed.
    identity : JSON-able description of model and settings. A folder whose manifest tells another one is refused.
    folders : names of the folders without and with CRF.
    crf : None writes no folder with CRF.
    overlays : write the image under its classes as ``overlay/NAME.png``.
    probabilities : 'npy' (float32), 'npz' (float16, compressed, with the class names) or '' for none.
    """

    def __init__(self, root: PathLike, identity: Mapping[str, Any], class_names: Sequence[str], *,
                 folders: Tuple[str, str] = ("pred", "pred_crf"), crf: Optional[CRFPreset] = None, overlays: bool = False,
                 probabilities: str = "") -> None:
        if probabilities not in ("", *PROBABILITIES):
            raise InputError(f"{probabilities!r} is not allowed", field="probabilities", remedy=f"use one of: {', '.join(PROBABILITIES)}")
        self.root, self.class_names, self.crf = os.fspath(root), tuple(class_names), crf
        self.overlays, self.probabilities, self._folders = overlays, probabilities, folders
        described = {**identity, "classes": list(class_names)}
        with_crf = {**described, "crf": None if crf is None else asdict(crf)}
        self._claim(folders[0], {**described, "crf": None})
        if crf is not None:
            self._claim(folders[1], with_crf)
        for extra in [name for name, wanted in (("overlay", overlays), ("probabilities", probabilities)) if wanted]:
            self._claim(extra, with_crf)

    def path(self, folder: str, name: str, suffix: str = ".png") -> str:
        """The file of image ``name`` in one of the folders."""
        return os.path.join(self.root, folder, name + suffix)

    def paths(self, name: str) -> Dict[str, str]:
        """All files of one image by kind: pred, and as asked for crf, overlay, probabilities."""
        found = {"pred": self.path(self._folders[0], name)}
        if self.crf is not None:
            found["crf"] = self.path(self._folders[1], name)
        if self.overlays:
            found["overlay"] = self.path("overlay", name)
        if self.probabilities:
            found["probabilities"] = self.path("probabilities", name, "." + self.probabilities)
        return found

    def done(self, name: str) -> bool:
        """Whether every file of the image is there; files appear whole, so an interrupted run leaves none in between."""
        return all(os.path.exists(path) for path in self.paths(name).values())

    def write(self, finished: Finished) -> None:
        """Write all files of one image."""
        paths = self.paths(finished.name)
        write_label_png(paths["pred"], finished.labels)
        if finished.labels_crf is not None:
            write_label_png(paths["crf"], finished.labels_crf)
        if self.overlays:
            picture = overlay(finished.image, finished.best)
            atomic_write_bytes(paths["overlay"], cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        if self.probabilities:
            self._write_probabilities(paths["probabilities"], finished)

    def _write_probabilities(self, path: str, finished: Finished) -> None:
        if finished.probabilities is None:
            raise ValueError(f"the task of {finished.name} did not ask for probabilities")
        with atomic_write(path) as stream:
            if self.probabilities == "npy":
                np.save(stream, finished.probabilities)
            else:
                np.savez_compressed(stream, probabilities=finished.probabilities.astype(np.float16), classes=np.array(self.class_names))

    def _claim(self, folder: str, identity: Mapping[str, Any]) -> None:
        """Write the manifest of a new folder, or compare with that of an old one."""
        path = os.path.join(self.root, folder)
        identity = json.loads(json.dumps(identity))  # tuples as JSON reads them
        there = read_manifest(path)
        if there is None:
            if os.path.isdir(path) and any(name.endswith((".png", ".npy", ".npz")) for name in os.listdir(path)):
                raise InputError(f"holds files but no {MANIFEST} that says what made them", file=path,
                                 remedy="remove the folder or write to another one")
            atomic_write_bytes(os.path.join(path, MANIFEST), json.dumps(identity, indent=1).encode())
            return
        different = [key for key in sorted({*there, *identity}) if there.get(key) != identity.get(key)]
        if different:
            raise InputError(f"holds predictions made with another {' and '.join(different)}", file=path,
                             remedy="remove the folder or write to another one")


def read_manifest(folder: PathLike) -> Optional[Dict[str, Any]]:
    """What made the predictions in a folder, or None where nothing says it."""
    path = os.path.join(os.fspath(folder), MANIFEST)
    if not os.path.exists(path):
        return None
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"is not valid JSON ({error})", file=path, remedy="remove its folder and predict again") from error
    if not isinstance(content, dict):
        raise InputError("does not describe predictions", file=path, remedy="remove its folder and predict again")
    return content
