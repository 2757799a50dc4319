"""How good seeds are, where ground truth is given for measurement: coverage, precision and
intersection over union.
"""
from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Sequence

import numpy as np

from cian.data.classes import ClassTable, read_label_png
from cian.errors import InputError, PathLike
from cian.tools.engine.metrics import Evaluation, confusion_matrix, pair_counts


def measure_seeds(seed_root: PathLike, mask_root: PathLike, names: Sequence[str], classes: ClassTable,
                  workers: int = 1) -> Dict[str, Any]:
    """Compare ``seed_root``/NAME.png with ``mask_root``/NAME.png over the pixels that the truth
    does not ignore.

    Returns
    -------
    JSON-able dict with, over all pixels and (under ``classes``) for each class,

    * ``coverage``: portion of the pixels that have a seed; of a class: portion of its pixels that
      have its seed;
    * ``precision``: portion of the seeds that are right;
    * ``iou_labelled`` and ``mean_iou_labelled``: over the pixels with a seed alone;
    * ``iou`` and ``mean_iou``: over all pixels, one without a seed being missed.

    None stands where there is no pixel to divide by; means are over all classes, such a class counted as 0.

    Raises
    ------
    InputError
        Naming the file that is missing, damaged, of another size or of unknown classes.
    """
    def count(name: str) -> np.ndarray:
        seeds, mask = (_read(root, name, classes) for root in (seed_root, mask_root))
        if seeds.shape != mask.shape:
            raise InputError(
                f"is {seeds.shape[1]}x{seeds.shape[0]} pixels, its mask {mask.shape[1]}x{mask.shape[0]}",
                file=_path(seed_root, name))
        return pair_counts(mask, seeds)

    total = np.zeros((256, 256), np.int64)
    with ThreadPoolExecutor(workers) as pool:
        for counts in pool.map(count, names):
            total += counts
    return {"images": len(names), **seed_scores(total, classes)}


def seed_scores(counts: np.ndarray, classes: ClassTable) -> Dict[str, Any]:
    """The figures of :func:`measure_seeds` from (256, 256) int64 pixel counts of (truth, seed)."""
    number = classes.num_classes
    truth = counts[:number].sum(axis=1)  # (C,) pixels of the class, with and without a seed
    labelled = counts[:number, :number]
    right, claimed = np.diag(labelled), labelled.sum(axis=0)
    per_class = {"coverage": _ratio(right, truth), "precision": _ratio(right, claimed),
                 "iou_labelled": _ratio(right, labelled.sum(axis=1) + claimed - right),
                 "iou": _ratio(right, truth + claimed - right)}
    return {"coverage": _number(_ratio(labelled.sum(), truth.sum())),
            "precision": _number(_ratio(right.sum(), labelled.sum())),
            "mean_iou_labelled": float(np.nan_to_num(per_class["iou_labelled"]).mean()),
            "mean_iou": float(np.nan_to_num(per_class["iou"]).mean()),
            "classes": {name: {key: _number(values[index]) for key, values in per_class.items()}
                        for index, name in enumerate(classes.names)}}


class CamScore:
    """Gathers the score of the CAM itself: the largest map where it exceeds the threshold, else
    background. For ``make_seeds(watch=)``.
    """

    def __init__(self, mask_root: PathLike, classes: ClassTable, threshold: float) -> None:
        self._mask_root, self._classes, self._threshold = mask_root, classes, threshold
        self._confusion = np.zeros((classes.num_classes,) * 2, np.int64)
        self._images, self._lock = 0, threading.Lock()

    def __call__(self, name: str, cams: np.ndarray, present: Sequence[int]) -> None:
        """Add one image; may be called from several threads."""
        mask = _read(self._mask_root, name, self._classes)
        labels = np.zeros(cams.shape[1:], np.uint8)
        if len(present):
            largest = np.asarray(present, np.uint8)[cams.argmax(axis=0)]
            labels = np.where(cams.max(axis=0) > self._threshold, largest, 0).astype(np.uint8)
        counts = confusion_matrix(mask, labels, self._classes.num_classes)
        with self._lock:
            self._confusion += counts
            self._images += 1

    def evaluation(self) -> Evaluation:
        """The score over all images so far."""
        return Evaluation(self._classes.names, self._confusion, self._images)


def quality_table(report: Dict[str, Any]) -> str:
    """The report of :func:`measure_seeds` as text, in per cent; with the CAM's own score where
    ``report['cam']`` holds one.
    """
    columns = ("coverage", "precision", "iou_labelled", "iou")
    rows: List[List[str]] = [["class", *(column.replace("_", " ") for column in columns), "CAM iou"]]
    cam = report.get("cam", {"iou": {}, "mean_iou": None})
    for name, values in report["classes"].items():
        rows.append([name, *(_cell(values[column]) for column in columns), _cell(cam["iou"].get(name))])
    overall = (report["coverage"], report["precision"], report["mean_iou_labelled"], report["mean_iou"],
               cam["mean_iou"])
    rows.append(["all pixels / mean", *(_cell(value) for value in overall)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if not index else cell.rjust(width)
                               for index, (cell, width) in enumerate(zip(row, widths))) for row in rows)


def _read(root: PathLike, name: str, classes: ClassTable) -> np.ndarray:
    return read_label_png(_path(root, name), classes.num_classes)


def _path(root: PathLike, name: str) -> str:
    return os.path.join(os.fspath(root), f"{name}.png")


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _number(value: Any) -> Any:
    return None if np.isnan(value) else float(value)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
