"""Which comparisons are made: a quick set, and all of them."""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Dict, Iterator, Sequence

import numpy as np

from cian.data.toy import make_toy
from cian.data.tree import DatasetTree
from cian.tools.engine.fidelity.data_checks import (
    check_evaluation,
    check_loader,
    check_sampling,
    compare_sampling,
)
from cian.tools.engine.fidelity.inputs import data_files
from cian.tools.engine.fidelity.ours import TrainCase
from cian.tools.engine.fidelity.process import Original
from cian.tools.engine.fidelity.round_checks import BATCH, check_rounds
from cian.tools.engine.fidelity.table import Row
from cian.tools.engine.fidelity.train_checks import check_losses, check_training

LOADED = 48  # images of a real data set that the loader goes through
R50, R101 = "resnet50_largefov", "resnet101_largefov"
QUICK = (
    TrainCase(R50, 21, 65, 4, 2, "max", 1),
    TrainCase(R50, 7, 72, 6, 3, "avg", 1, second_round=True, seed=3),
    TrainCase(R101, 21, 65, 2, 2, "max", 1, second_round=True, seed=2),
    TrainCase(R50, 21, 65, 4, 2, "max", 2, second_round=True, seed=1),
)
FULL = (
    *QUICK,
    TrainCase(R50, 21, 97, 4, 2, "max", 1, lr=5e-4, seed=4),
    TrainCase(R101, 16, 50, 6, 3, "avg", 2, seed=6),
    TrainCase(R101, 21, 129, 2, 2, "max", 1, seed=7),
    TrainCase(R50, 2, 81, 4, 2, "avg", 2, seed=8),
    TrainCase(R50, 81, 61, 6, 3, "max", 2, second_round=True, seed=9),
    TrainCase(R101, 21, 68, 4, 2, "avg", 1, second_round=True, seed=10),
)
PAPER_SIZE = TrainCase(R50, 21, 321, 2, 2, "max", 1, seed=11)


@dataclass(frozen=True)
class Check:
    """A comparison: its name, what makes its rows, and the folder of its files."""

    name: str
    rows: Callable[[], Sequence[Row]]
    folder: str


def _check(original: Original, name: str, function: Callable[..., Sequence[Row]], /, *values: Any,
           **options: Any) -> Check:
    own = original.below(name)
    return Check(name, partial(function, own, *values, **options), own.work)


def checks(original: Original, *, quick: bool, seed: int, data: str = "", classes: str = "voc",
           data_list: str = "train") -> Iterator[Check]:
    """All comparisons in order. Each can be made in another process.

    Parameters
    ----------
    quick : the small set.
    seed : added to the seeds of all comparisons.
    data, classes, data_list : a data set in VOC layout with its class table and list; empty is none.
    """
    drawn = generated(original, "generated", 40, seed)
    yield _check(original, "losses", check_losses, seed)
    for case in QUICK if quick else FULL:
        yield _check(original, case.name, check_training, replace(case, seed=case.seed + seed))
    names, tree = drawn.classes.foreground, data_files(drawn, drawn.names("train"),
                                                       os.path.join(original.work, "labels"), seed)
    yield from _data_checks(original, tree, names, quick, seed)
    yield _check(original, "evaluation", check_evaluation, tree, names, seed)
    for model in (R50,) if quick else (R50, R101):
        name = f"rounds {model.replace('_largefov', '')}"
        yield _check(original, name, check_rounds, name, tree, names, model, seed=seed, tested=BATCH,
                     predicted=BATCH if quick else 2 * BATCH, size_px=129)
    if data:
        yield from _photograph_checks(original, DatasetTree(data, classes=classes), data_list, quick, seed)
    if not quick:
        yield _check(original, PAPER_SIZE.name, check_training,
                     replace(PAPER_SIZE, seed=PAPER_SIZE.seed + seed))


def generated(original: Original, name: str, count: int, seed: int) -> DatasetTree:
    """The project's generated data set, below the working folder: smaller than the crops at the
    small scales, larger at the others.
    """
    folder = make_toy(os.path.join(original.work, name), count, 0, seed, width_px=128, height_px=96)
    return DatasetTree(folder, classes=os.path.join(folder, "classes.txt"))


def _data_checks(original: Original, tree: Dict[str, Any], names: Sequence[str], quick: bool,
                 seed: int) -> Iterator[Check]:
    settings = [(65, 4, 2, 1), (72, 12, 3, 2)] + ([] if quick else [(321, 4, 2, 2), (33, 8, 4, 1)])
    for crop_px, batch_size, group_size, devices in settings:
        name = f"loader {crop_px}px g{group_size} {devices}dev"
        yield _check(original, name, check_loader, tree, names, crop_px=crop_px, batch_size=batch_size,
                     group_size=group_size, devices=devices, seed=seed + crop_px, name=name)
    many = [(1500, 21, 16, 2, 2)] + ([] if quick else [(10582, 21, 16, 2, 2), (3000, 5, 12, 3, 1)])
    for images, num_classes, batch_size, group_size, devices in many:
        name = f"sampling {images} images {num_classes}cls g{group_size} {devices}dev"
        yield _check(original, name, check_sampling, images=images, num_classes=num_classes,
                     batch_size=batch_size, group_size=group_size, devices=devices, seed=seed + images,
                     name=name)


def _photograph_checks(original: Original, data: DatasetTree, data_list: str, quick: bool,
                       seed: int) -> Iterator[Check]:
    """The like on a real data set: photographs in training steps, in the loader, in whole rounds
    and in evaluation.
    """
    names = data.names(data_list)
    chosen = [names[index] for index in sorted(np.random.RandomState(seed).permutation(len(names))[:LOADED])]
    tree = data_files(data, chosen, os.path.join(original.work, "photographs"), seed)
    foreground, paths = data.classes.foreground, [data.image_path(name) for name in chosen]
    case = TrainCase(R50, len(data.classes), 97, 4, 2, "max", 1, seed=seed)
    yield _check(original, f"{case.name} photographs", check_training, case, paths)
    yield _check(original, "loader photographs", check_loader, tree, foreground, crop_px=65 if quick else 321,
                 batch_size=8, group_size=2, devices=1, seed=seed, name="loader photographs")
    yield _check(original, "sampling photographs", compare_sampling, data.annotation_root, names, foreground,
                 batch_size=16, group_size=2, devices=2, seed=seed, name="sampling photographs")
    yield _check(original, "evaluation photographs", check_evaluation, tree, foreground, seed,
                 "evaluation photographs")
    yield _check(original, "rounds photographs", check_rounds, "rounds photographs", tree, foreground, R50,
                 seed=seed, tested=2, predicted=BATCH, size_px=0)
