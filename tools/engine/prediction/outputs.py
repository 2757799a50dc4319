"""The folder of predictions: it knows which images are done, and refuses those of another model or
another configuration.
"""
from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from cian.data.classes import palette, write_label_png
from cian.data.provenance import PREDICTIONS as MANIFEST
from cian.errors import InputError, PathLike
from cian.files import atomic_write, atomic_write_bytes, read_json
from cian.later import imported_later
from cian.tools.engine.images import Sample
from cian.tools.engine.ledger import Ledger, Mark
from cian.tools.engine.models.run_state import write_arrays
from cian.tools.engine.prediction.crf import CRFPreset
from cian.tools.engine.prediction.finishing import Finished
from cian.tools.engine.shards import Shard

with imported_later("cv2"):
    import cv2

PROBABILITIES = ("npy", "npz")
LABEL_FOLDERS = ("train_aug_pred", "train_aug_pred_crf")  # of the second round, without and with CRF


def label_folder(crf: str) -> str:
    """The folder that a second round trains on when its labels were made with this CRF preset or 'none'."""
    return LABEL_FOLDERS[crf != "none"]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image with its classes in VOC's colours and a light line around
    them; background stays.
    """
    colours = palette()[labels]
    blended = np.where((labels > 0)[..., None], (1 - opacity) * image + opacity * colours,
                       image).astype(np.uint8)
    edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    blended[edges] = 255
    return blended


class Outputs:
    """``root/pred/NAME.png`` and, with a CRF, ``root/pred_crf/NAME.png``; on request ``overlay/``
    and ``probabilities/``.

    Parameters
    ----------
    root : folder, made when needed.
    identity : JSON-able description of model and settings. A folder whose manifest tells another
        one is refused.
    folders : names of the folders without and with CRF.
    crf : None writes no folder with CRF.
    overlays : write the image under its classes as ``overlay/NAME.png``.
    probabilities : 'npy' (float32), 'npz' (float16, compressed, with the class names) or '' for none.
    """

    def __init__(self, root: PathLike, identity: Mapping[str, Any], class_names: Sequence[str], *,
                 folders: Tuple[str, str] = ("pred", "pred_crf"), crf: Optional[CRFPreset] = None,
                 overlays: bool = False, probabilities: str = "") -> None:
        if probabilities not in ("", *PROBABILITIES):
            raise InputError(f"{probabilities!r} is not allowed", field="probabilities",
                             remedy=f"use one of: {', '.join(PROBABILITIES)}")
        self.root, self.class_names, self.crf = os.fspath(root), tuple(class_names), crf
        self.overlays, self.probabilities, self._folders = overlays, probabilities, folders
        self._ledgers: Dict[str, Ledger] = {}
        described = {**identity, "classes": list(class_names)}
        with_crf = {**described, "crf": None if crf is None else crf.described()}
        self._claim(folders[0], {**described, "crf": None})
        if crf is not None:
            self._claim(folders[1], with_crf)
        for extra in [name for name, wanted in (("overlay", overlays), ("probabilities", probabilities))
                      if wanted]:
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

    def record(self, shard: Shard, names: Sequence[str]) -> None:
        """Say in all folders that this part of the images is done."""
        for path in self.paths("").values():
            shard.record(os.path.dirname(path), names)

    def done(self, sample: Sample) -> bool:
        """Whether every file of the image is there and was made from this image with these classes;
        files appear whole, so an interrupted run leaves none in between.
        """
        return all(os.path.exists(path) and self._ledger(path).same(
            sample.name, {"image": sample.path}, allowed=sample.allowed)
            for path in self.paths(sample.name).values())

    def write(self, finished: Finished, sample: Sample, image: Mark,
              notes: Optional[Mapping[str, Any]] = None) -> None:
        """Write all files of one image, and what they were made from: ``image`` as it was read."""
        paths = self.paths(finished.name)
        write_label_png(paths["pred"], finished.labels)
        if finished.labels_crf is not None:
            write_label_png(paths["crf"], finished.labels_crf)
        if self.overlays:
            picture = overlay(finished.image, finished.best)
            atomic_write_bytes(paths["overlay"], cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        if self.probabilities:
            self._write_probabilities(paths["probabilities"], finished)
        for path in paths.values():
            self._ledger(path).add(sample.name, {"image": image}, notes, allowed=sample.allowed)

    def remove(self, name: str) -> None:
        """Remove what is there of an image that is not done."""
        for path in self.paths(name).values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _ledger(self, path: str) -> Ledger:
        folder = os.path.relpath(path, self.root).split(os.sep)[0]
        if folder not in self._ledgers:
            self._ledgers[folder] = Ledger(os.path.join(self.root, folder))
        return self._ledgers[folder]

    def _write_probabilities(self, path: str, finished: Finished) -> None:
        if finished.probabilities is None:
            raise ValueError(f"the task of {finished.name} did not ask for probabilities")
        with atomic_write(path) as stream:
            if self.probabilities == "npy":
                np.save(stream, finished.probabilities)
            else:
                write_arrays(stream, {"probabilities": finished.probabilities.astype(np.float16),
                                      "classes": np.array(self.class_names)}, compressed=True)

    def _claim(self, folder: str, identity: Mapping[str, Any]) -> None:
        """Write the manifest of a new folder, or compare with that of an old one."""
        path = os.path.join(self.root, folder)
        identity = json.loads(json.dumps(identity))  # tuples as JSON reads them
        there = read_manifest(path)
        if there is None:
            if os.path.isdir(path) and any(name.endswith((".png", ".npy", ".npz"))
                                           for name in os.listdir(path)):
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
    return read_json(path, "manifest of predictions", "remove its folder and predict again")
