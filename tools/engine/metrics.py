"""Scores predictions against ground truth: an exact confusion matrix, intersection over union, and
every misfit by name.

Nothing is dropped: a prediction that is missing, of another size, unreadable or outside of the
class list stops the evaluation after all files were looked at, and the report names each of them.
"""
from __future__ import annotations

import functools
import os
import sys
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

import numpy as np
from tqdm import tqdm

from cian.data.classes import IGNORE, read_label_png
from cian.environment import keep_freed_memory, usable_cores
from cian.errors import InputError, PathLike, Problems
from cian.processes import end_with_parent, pool_context
from cian.tools.engine.ledger import Ledger
from cian.tools.engine.shards import check_parts

CHUNK = 16  # images that a process takes at a time


@dataclass(frozen=True)
class Evaluation:
    """The result: ``confusion[truth, prediction]`` counts pixels as int64, with ignored pixels left out."""

    class_names: Tuple[str, ...]
    confusion: np.ndarray
    images: int
    unscored: Tuple[str, ...] = ()

    @property
    def iou(self) -> np.ndarray:
        """(C,) float64: intersection over union of each class, NaN for one that neither truth nor
        prediction has.
        """
        both = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - both
        return np.where(union > 0, both / np.maximum(union, 1), np.nan)

    @property
    def mean_iou(self) -> float:
        """Mean over all classes, one that occurs nowhere counted as 0, as the original's evaluation does."""
        return float(np.nan_to_num(self.iou, nan=0.0).mean())

    @property
    def mean_iou_present(self) -> float:
        """Mean over the classes that occur in the truth or in a prediction; NaN when there is none."""
        present = self.iou[~np.isnan(self.iou)]
        return float(present.mean()) if len(present) else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Portion of the pixels that are right; NaN without a pixel."""
        total = self.confusion.sum()
        return float(np.diag(self.confusion).sum() / total) if total else float("nan")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Evaluation:
        """From :meth:`to_dict`."""
        return cls(tuple(content["iou"]), np.array(content["confusion"], np.int64), content["images"],
                   tuple(content["unscored"]))

    def to_dict(self) -> Dict[str, Any]:
        """JSON-able; NaN becomes None."""
        def number(value: float) -> Optional[float]:
            return None if np.isnan(value) else float(value)
        return {
            "images": self.images, "unscored": list(self.unscored), "mean_iou": self.mean_iou,
            "mean_iou_present": number(self.mean_iou_present), "pixel_accuracy": number(self.pixel_accuracy),
            "iou": {name: number(value) for name, value in zip(self.class_names, self.iou)},
            "confusion": self.confusion.tolist(),
        }


def pair_counts(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(256, 256) int64: how many pixels have each pair of (truth, prediction). Both are uint8 of
    one shape (H, W).
    """
    pairs, lengths = _runs(truth, prediction)
    return np.bincount(pairs, weights=lengths, minlength=2 ** 16).astype(np.int64).reshape(256, 256)


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64 of one image, rows are the truth; truth pixels of 255 are left out.

    Raises
    ------
    InputError
        For a shape that differs and for values that are no class: a prediction has no ignored pixels.
    """
    if truth.shape != prediction.shape:
        height, width = prediction.shape
        raise InputError(
            f"prediction is {width}x{height} pixels, the truth {truth.shape[1]}x{truth.shape[0]}")
    pairs, lengths = _runs(truth, prediction)
    classes, predicted = pairs >> 8, pairs & 255
    _refuse_strangers(predicted, num_classes, "prediction")
    _refuse_strangers(classes[classes != IGNORE], num_classes, "truth")
    kept = classes != IGNORE
    codes = classes[kept].astype(np.int64) * num_classes + predicted[kept]
    counts = np.bincount(codes, weights=lengths[kept], minlength=num_classes ** 2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def _runs(truth: np.ndarray, prediction: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Runs of pixels, row after row, with one pair of values: 256 * truth + prediction (uint16),
    and how long each is.

    Label maps are made of few long runs, so whatever is counted over runs is nearly free. Lengths
    are summed as float64, which is exact up to 2^53 pixels.
    """
    truth, prediction = truth.ravel(), prediction.ravel()
    ends = truth[1:] != truth[:-1]
    ends |= prediction[1:] != prediction[:-1]
    last = np.append(np.flatnonzero(ends), truth.size - 1)
    return truth[last].astype(np.uint16) << 8 | prediction[last], np.diff(last, prepend=-1)


def _refuse_strangers(values: np.ndarray, num_classes: int, what: str) -> None:
    strangers = np.unique(values[values >= num_classes])
    if len(strangers):
        raise InputError(
            f"{what} holds {', '.join(map(str, strangers))}, but the classes are 0 to {num_classes - 1}")


def evaluate(names: Sequence[str], prediction_root: PathLike, truth_root: PathLike,
             class_names: Sequence[str], *, subset: bool = False, workers: int = 0,
             progress: bool = False, among: Sequence[str] = ()) -> Evaluation:
    """Score ``prediction_root/NAME.png`` against ``truth_root/NAME.png`` for every name.

    ``workers`` processes (0: one a core) work side by side; threads do where MXNet is loaded, whose
    own threads a fork does not survive, and for few names.

    Parameters
    ----------
    subset : score those of the names that have a prediction, and ignore predictions that are not in
        the list. Without it both are problems.
    among : the whole list, where ``names`` are a part of it: what else may have a prediction.

    Raises
    ------
    Problems
        Naming every prediction that is missing, extra, unreadable, of another size or holds values
        that are no class.
    """
    prediction_root, truth_root = os.fspath(prediction_root), os.fspath(truth_root)
    found = _png_names(prediction_root)
    if not os.path.isdir(truth_root):
        raise InputError("is not a folder", file=truth_root,
                         remedy="name the folder of ground truth NAME.png")
    scored = [name for name in names if name in found] if subset else list(names)
    problems = [] if subset else [InputError("has no prediction", field=name)
                                  for name in names if name not in found]
    if not subset:
        problems += [InputError("has a prediction and is not in the list", field=name)
                     for name in sorted(found.difference(names, among))]
    if subset and not scored:
        raise InputError("no image of the list has a prediction", file=prediction_root)

    ledger = Ledger(prediction_root)
    problems += [InputError("was made from an image that EXIF says is to be turned (orientation "
                            f"{ledger[name]['orientation']}), and its truth may not be turned", field=name)
                 for name in scored if "orientation" in ledger[name]]
    total = np.zeros((len(class_names), len(class_names)), np.int64)
    present = [name for name in scored if name in found]
    score = functools.partial(_score, prediction_root, truth_root, len(class_names))
    with _pool(workers or usable_cores(), len(present)) as pool:
        for result in tqdm(pool.map(score, present, chunksize=CHUNK), total=len(present), unit="image",
                           disable=not progress, leave=False):
            if isinstance(result, InputError):
                problems.append(result)
            else:
                total += result
    if problems:
        raise _told(problems, prediction_root, truth_root)
    if not total[1:].any():
        raise InputError(f"not one pixel of the truth has a class: {int(total.sum())} are background and the "
                         "rest is ignored", file=truth_root,
                         remedy=f"look at the masks; in masks of 0 and {IGNORE} write the class for {IGNORE}")
    return Evaluation(tuple(class_names), total, len(scored),
                      tuple(name for name in names if name not in found))


def _told(problems: Sequence[InputError], prediction_root: str, truth_root: str) -> Problems:
    """All problems in one, with what to do about those of the truth and those of the predictions."""
    of_truth = [problem for problem in problems
                if problem.file and os.path.dirname(problem.file).startswith(truth_root)]
    remedies = ["mend the truth"] if of_truth else []
    if len(of_truth) < len(problems):
        remedies.append("predict the whole list again, or score a part of it with --subset")
    return Problems(problems, file=truth_root if len(of_truth) == len(problems) else prediction_root,
                    remedy=" and ".join(remedies))


def _score(prediction_root: str, truth_root: str, num_classes: int, name: str) -> Union[np.ndarray,
                                                                                        InputError]:
    """The confusion matrix of one image, or what is wrong with it."""
    try:
        prediction = read_label_png(os.path.join(prediction_root, name + ".png"), palette_classes=num_classes)
        truth = read_label_png(os.path.join(truth_root, name + ".png"), palette_classes=num_classes)
    except InputError as error:
        return error
    try:
        return confusion_matrix(truth, prediction, num_classes)
    except InputError as error:
        file = os.path.join(truth_root, name + ".png") if error.problem.startswith("truth") else None
        return InputError(error.problem, field=name, file=file)


def _pool(workers: int, count: int) -> Executor:
    """Processes or threads, as :func:`evaluate` says, for ``count`` images."""
    workers = max(1, min(workers, count // CHUNK))
    if workers > 1 and "mxnet" not in sys.modules:
        return ProcessPoolExecutor(workers, mp_context=pool_context("fork"), initializer=_start_worker)
    return ThreadPoolExecutor(workers)


def _start_worker() -> None:
    end_with_parent()
    keep_freed_memory()


def _png_names(folder: str) -> Set[str]:
    """Names of all PNG files below a folder, relative to it and without suffix."""
    if not os.path.isdir(folder):
        raise InputError("is not a folder", file=folder, remedy="name the folder of predicted NAME.png")
    return {os.path.relpath(os.path.join(parent, file), folder)[:-4]
            for parent, _, files in os.walk(folder) for file in files if file.endswith(".png")}


def merge_scores(parts: Mapping[str, Mapping[str, Any]]) -> Dict[str, Any]:
    """The score of a whole list from those of its shards, by the file of each, as tools/evaluate.py
    writes them.

    Raises
    ------
    InputError
        A file that is no score of a shard, or of other predictions; shards that overlap or leave gaps.
    """
    first = next(iter(parts))
    merged: List[Evaluation] = []
    for path, part in parts.items():
        try:
            merged.append(Evaluation.from_dict(part))
            whole = (part["made_by"], list(part["iou"]))
            [*part["shard"], part["of"], *part["names"]]  # noqa: B018 - they must be there
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("is not the score of a shard", file=path,
                             remedy="score it with --shard") from error
        if whole != (parts[first]["made_by"], list(parts[first]["iou"])):
            raise InputError(f"is of other predictions than {first}", file=path,
                             remedy="merge the scores of one run")
    check_parts(parts)
    total = Evaluation(merged[0].class_names, np.sum([one.confusion for one in merged], axis=0),
                       sum(one.images for one in merged), sum((one.unscored for one in merged), ()))
    return {**{key: value for key, value in parts[first].items() if key not in ("shard", "of", "names")},
            **total.to_dict()}


def score_rows(evaluation: Evaluation) -> List[Tuple[str, str]]:
    """(name, per cent) for the printed table: every class, then both means where they differ."""
    rows = [(name, "absent" if np.isnan(value) else f"{100 * value:.2f}")
            for name, value in zip(evaluation.class_names, evaluation.iou)]
    rows.append(("mean IoU", f"{100 * evaluation.mean_iou:.2f}"))
    absent = int(np.isnan(evaluation.iou).sum())
    if absent:
        rows.append((f"mean IoU without the {absent} absent", f"{100 * evaluation.mean_iou_present:.2f}"))
    rows.append(("pixel accuracy", f"{100 * evaluation.pixel_accuracy:.2f}"))
    return rows
