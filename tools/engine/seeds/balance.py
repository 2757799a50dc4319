"""What image-level labels alone tell of label maps: how much is labelled, how much of that is
objects, which classes are implausible, and what a second round's labels have lost.

No ground truth is opened here.
"""
from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from cian.data.classes import IGNORE, ClassTable, read_label_png
from cian.errors import PathLike
from cian.tools.engine.metrics import pair_counts
from cian.tools.engine.report import text_table

OBJECTS = (0.35, 0.75)  # of the labelled pixels; a second round shrinks objects below, and grows them above
WITHOUT = 0.1  # of a class's images
APART = 3.0  # times the median of the classes' shares, or less than its inverse
LOST = 0.7  # of the seeds of objects, or of a class, that a second round's labels have to keep


def label_pixels(folder: PathLike, names: Sequence[str], workers: int = 1) -> np.ndarray:
    """(n, 256) int64: how many pixels of ``folder``/NAME.png have each value."""
    def count(name: str) -> np.ndarray:
        labels = read_label_png(os.path.join(os.fspath(folder), f"{name}.png"))
        return np.bincount(labels.ravel(), minlength=256)

    with ThreadPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(count, names)))


def seed_balance(pixels: np.ndarray, labels: np.ndarray, classes: ClassTable) -> Dict[str, Any]:
    """The balance of label maps.

    Parameters
    ----------
    pixels : (n, 256) of :func:`label_pixels`.
    labels : (n, C) image-level labels, multi-hot, background first.

    Returns
    -------
    JSON-able dict: ``coverage`` (labelled portion of all pixels), ``objects`` (portion of the
    labelled ones that are no background), and by class the ``images`` with its label, those of them
    ``without`` a pixel of it, and its mean ``share`` of their pixels. None stands where there is
    nothing to divide by.
    """
    number = classes.num_classes
    labelled, sizes = pixels[:, :IGNORE].sum(), pixels.sum(axis=1)
    found: Dict[str, Any] = {}
    for value, name in list(enumerate(classes.names))[1:]:
        own = pixels[labels[:, value] > 0, value]
        share = (own / np.maximum(sizes[labels[:, value] > 0], 1)).mean() if len(own) else None
        found[name] = {"images": len(own), "without": int((own == 0).sum()),
                       "share": None if share is None else float(share)}
    objects = pixels[:, 1:number].sum()
    return {"images": len(pixels), "coverage": float(labelled / max(sizes.sum(), 1)),
            "objects": float(objects / labelled) if labelled else None, "classes": found}


def implausible(balance: Dict[str, Any]) -> List[str]:
    """What is implausible in a :func:`seed_balance`, a sentence each."""
    found, share = [], balance["objects"]
    if share is not None and not OBJECTS[0] <= share <= OBJECTS[1]:
        found.append(f"objects are {share:.0%} of the labelled pixels: a second round on such labels "
                     f"{'loses' if share < OBJECTS[0] else 'swells'} objects; "
                     f"{'lower' if share < OBJECTS[0] else 'raise'} seeds.background_threshold or "
                     f"{'lower' if share < OBJECTS[0] else 'raise'} seeds.foreground_threshold")
    shares = [row["share"] for row in balance["classes"].values() if row["share"]]
    usual = float(np.median(shares)) if shares else 0.0
    for name, row in balance["classes"].items():
        if row["images"] and row["without"] > WITHOUT * row["images"]:
            found.append(f"{name}: {row['without']} of its {row['images']} images have no seed of it")
        elif row["images"] and not usual / APART <= row["share"] <= usual * APART:
            found.append(f"{name}: {row['share']:.1%} of its images' pixels, where {usual:.1%} is usual")
    return found


def balance_table(balance: Dict[str, Any]) -> str:
    """The balance as text, in per cent, what is implausible below it."""
    rows = [(name, str(row["images"]), str(row["without"]), _cell(row["share"]))
            for name, row in balance["classes"].items()]
    head = f"{balance['coverage']:.1%} of the pixels labelled, {_cell(balance['objects'])} of them objects"
    return "\n".join([text_table(("class", "images", "without a seed", "share of pixels"), rows), head,
                      *(f"note: {text}" for text in implausible(balance))])


def lost_labels(seed_root: PathLike, label_root: PathLike, names: Sequence[str], classes: ClassTable,
                workers: int = 1) -> List[str]:
    """What the labels of a second round have lost against the seeds of the first, a sentence each.

    Of the pixels that the seeds give to objects, and to each class, the labels should keep
    ``LOST``: give them to an object, and to the class. Seeds err, so that not all are to be kept.
    """
    def compare(name: str) -> np.ndarray:
        seeds, labels = (read_label_png(os.path.join(os.fspath(root), f"{name}.png"))
                         for root in (seed_root, label_root))
        return pair_counts(seeds, labels)

    with ThreadPoolExecutor(workers) as pool:
        pairs = sum(pool.map(compare, names))
    return losses(np.asarray(pairs), classes)


def losses(pairs: np.ndarray, classes: ClassTable) -> List[str]:
    """The sentences of :func:`lost_labels` from (256, 256) pixel counts of (seed, label)."""
    number, found = classes.num_classes, []
    seeds, labels = pairs[1:number].sum(), pairs[:, :number].sum()
    kept = pairs[1:number, 1:number].sum()
    if seeds and kept < LOST * seeds:
        found.append(f"{1 - kept / seeds:.0%} of the seeds of objects became background; objects are "
                     f"{pairs[:, 1:number].sum() / labels:.0%} of the labels, "
                     f"{seeds / pairs[:number].sum():.0%} of the seeds")
    for value, name in list(enumerate(classes.names))[1:]:
        own = pairs[value].sum()
        if own and pairs[value, value] < LOST * own:
            found.append(f"{name}: {1 - pairs[value, value] / own:.0%} of its seeds are lost")
    return found


def _cell(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.1%}"
