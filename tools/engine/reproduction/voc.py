"""PASCAL VOC 2012: what must be downloaded, whether it is complete, and the archive for its test server."""
from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import List, Sequence

from cian.data.lists import read_list, resolve_list, write_list
from cian.errors import InputError, PathLike, Problems
from cian.files import atomic_write
from cian.tools.engine.reproduction.plan import Measurement, Place

# Names in the lists of the paper, section 'Datasets'.
COUNTS = {"train_aug": 10582, "val": 1449, "test": 1456}
DOWNLOADS = """PASCAL VOC 2012 is not complete in {root}. It takes:
  1. VOCtrainval_11-May-2012.tar from the challenge's page (host.robots.ox.ac.uk/pascal/VOC/voc2012):
     JPEGImages/, Annotations/ and ImageSets/Segmentation/val.txt;
  2. SegmentationClassAug/ of the Semantic Boundaries Dataset (Hariharan et al. 2011) in VOC's palette,
     12,031 masks: its names make the list train_aug (or --sbd does, of SBD's own lists), and its masks
     score the predictions;
  3. for Table 5's test column VOC2012test.tar from the evaluation server, with
     ImageSets/Segmentation/test.txt.
Beside it, ImageNet weights (network.pretrained=gluon cam.pretrained=gluon fetches them) and saliency
maps. docs/voc.md tells all of it."""


def check_voc(root: PathLike, *lists: str) -> None:
    """Check that a tree is VOC 2012 as the paper uses it: lists of the right length, and an image
    and an annotation for every name.

    Raises
    ------
    Problems
        Naming each list that is missing or of another length, and how many images or annotations
        are missing, with what to download.
    """
    problems: List[InputError] = []
    for name in dict.fromkeys(lists):
        try:
            names = resolve_list(root, name)
        except InputError as problem:
            problems.append(problem)
            continue
        stem = Path(name).stem
        if len(names) != COUNTS.get(stem, len(names)):
            problems.append(InputError(f"has {len(names)} names, not {COUNTS[stem]}", file=root,
                                       field=f"list {stem}"))
        for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
            present = set(os.listdir(os.path.join(root, folder))) if os.path.isdir(
                os.path.join(root, folder)) else set()
            missing = [entry for entry in names if entry + suffix not in present]
            # the test set's annotations are the server's
            if missing and not (stem == "test" and folder == "Annotations"):
                problems.append(InputError(
                    f"{len(missing)} of {len(names)} files are missing, first {missing[0]}{suffix}",
                    file=os.path.join(root, folder), field=f"list {stem}"))
    if problems:
        raise Problems(problems, remedy="\n" + DOWNLOADS.format(root=os.fspath(root)))


def write_submission(predictions: PathLike, root: PathLike, test_list: str, path: PathLike) -> str:
    """Pack predictions for the test server:
    ``results/VOC2012/Segmentation/comp6_test_cls/NAME.png``, palette PNGs.

    Returns
    -------
    The archive's path.

    Raises
    ------
    InputError
        When a prediction of the list is missing.
    """
    names = resolve_list(root, test_list)
    missing = [name for name in names if not os.path.isfile(os.path.join(predictions, f"{name}.png"))]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} predictions are missing, first {missing[0]}.png",
                         file=predictions, remedy="run tools/predict.py on the test list")
    with atomic_write(path) as stream, tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in names:
            archive.add(os.path.join(predictions, f"{name}.png"),
                        f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png")
    return os.fspath(path)


def write_submissions(measurements: Sequence[Measurement], place: Place) -> None:
    """Archives of all rows for the test server; the rows must have been run with --val-list test."""
    for row in measurements:
        folder = row.scores["val"].after[0].folder
        target = place.out / f"{row.experiment.name.replace('/', '-')}-{row.seed}.tgz"
        print(f"submission: {write_submission(folder / 'pred_crf', place.data, place.val_list, target)}")


def write_train_aug(root: PathLike, sbd: PathLike) -> str:
    """Write the list ``train_aug`` of a VOC 2012 tree: the names of VOC's ``trainval`` and of SBD's
    ``train`` and ``val`` that are not in VOC's ``val``, sorted; no mask is opened. Returns its path.

    Raises
    ------
    InputError
        When a list is missing, naming it.
    """
    folder = Path(root) / "ImageSets" / "Segmentation"
    names = {name for path in (folder / "trainval.txt", Path(sbd) / "train.txt", Path(sbd) / "val.txt")
             for name in read_list(path)}
    target = folder / "train_aug.txt"
    write_list(target, sorted(names - set(read_list(folder / "val.txt"))))
    return os.fspath(target)
