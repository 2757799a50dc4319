"""From a data set's files to record sets: check everything first, then write."""
from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import List, Optional, Sequence, Tuple

import numpy as np

from cian.data.checks import CheckedFiles, check_images, check_labels
from cian.data.classes import ClassTable
from cian.data.degenerate import check_pixels, oddities, tell
from cian.data.lists import check_resolved_list
from cian.data.packing import pack_images, pack_labels
from cian.data.provenance import PREDICTIONS, check_label_folder, label_manifest
from cian.data.records import RecordSet
from cian.data.tree import DatasetTree
from cian.data.verification import damaged_files
from cian.data.writer import remove_leftovers
from cian.errors import InputError, PathLike, Problems, collecting


@dataclass
class Survey:
    """What :func:`survey` found out about one list; ``images`` and ``seeds`` are None where a
    packed set is up to date.
    """

    name: str
    names: List[str]
    labels: np.ndarray
    images: Optional[CheckedFiles] = None
    seeds: Optional[CheckedFiles] = None
    fingerprint: str = ""
    seeds_fingerprint: str = ""
    problems: List[InputError] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """The record sets of one list, open."""

    images: RecordSet
    seeds: Optional[RecordSet]


def prepare(tree: DatasetTree, name_or_path: PathLike, out: PathLike, *, num_parts: int = 1,
            workers: int = 0) -> Prepared:
    """Pack one list of ``tree`` into the record sets NAME and, where the tree has a ``label_root``,
    NAME_seeds in the folder ``out``.

    What is already packed from the same files (names, labels, sizes and times agree, and the record
    files are whole) is not packed again, so new seeds leave the images alone. Nothing is written
    before everything was checked.

    Raises
    ------
    Problems
        With one InputError for everything that is wrong: see :func:`survey`.
    """
    result = survey(tree, name_or_path, out, num_parts=num_parts, workers=workers)
    if result.problems:
        raise Problems(result.problems, remedy="tools/prepare.py lists them all"
                       if len(result.problems) > Problems.quoted else None)
    return pack(tree, result, out, num_parts=num_parts, workers=workers)


def survey(tree: DatasetTree, name_or_path: PathLike, out: PathLike, *, num_parts: int = 1,
           workers: int = 0) -> Survey:
    """Check a list, the labels, images and seeds of its names; all problems are in the result, and
    nothing is written.

    Found are: duplicates and malformed lines in the list; labels that are missing or of unknown
    classes; images that are missing, truncated, damaged or no JPEG; seeds that are missing,
    damaged, of another size than their image or with values that no class has.
    """
    name = os.path.splitext(os.path.basename(os.fspath(name_or_path)))[0]
    names, problems = check_resolved_list(tree.root, name_or_path)
    labels, label_problems = tree.check_labels(names)
    result = Survey(name, names, labels, problems=problems + label_problems)
    paths = [tree.image_path(entry) for entry in names]
    result.fingerprint = _fingerprint(tree.classes, names, paths, labels, tree.jpeg_warnings)
    packed = _up_to_date(out, name, result.fingerprint, num_parts)
    if packed is None:
        result.images = check_images(paths, workers=workers, warnings=tree.jpeg_warnings)
        result.problems += result.images.problems
    if tree.label_root:
        sizes, turned = None, []
        if packed is not None:
            sizes, turned = packed.sizes, packed.turned()
        elif result.images is not None:
            sizes, turned = result.images.sizes, [names[index] for index in result.images.turned]
        with collecting(result.problems):
            check_label_folder(tree.label_root, tree.classes, tree.classes.file or "VOC's class list",
                               "seeds",
                               turned)
        seed_paths = [tree.label_path(entry) for entry in names]
        result.seeds_fingerprint = _fingerprint(tree.classes, names, seed_paths, sizes)
        if _up_to_date(out, f"{name}_seeds", result.seeds_fingerprint, num_parts) is None:
            result.seeds = _check_seeds(tree.label_root, seed_paths, tree.classes, sizes, workers)
            result.problems += result.seeds.problems
    return result


def pack(tree: DatasetTree, result: Survey, out: PathLike, *, num_parts: int = 1,
         workers: int = 0) -> Prepared:
    """Write the record sets of a survey without problems, and open them."""
    if result.problems:
        raise Problems(result.problems)
    if result.images is None:
        images = _open_whole(out, result.name)
    else:
        images = pack_images(out, result.name, result.names, [tree.image_path(name) for name in result.names],
                             result.labels, tree.classes, num_parts=num_parts, checked=result.images,
                             fingerprint=result.fingerprint)
    seeds = None
    if tree.label_root and result.seeds is None:
        seeds = _open_whole(out, f"{result.name}_seeds")
    elif result.seeds is not None:
        seeds = pack_labels(out, f"{result.name}_seeds", result.names,
                            [tree.label_path(name) for name in result.names], tree.classes,
                            num_parts=num_parts, workers=workers, checked=result.seeds,
                            fingerprint=result.seeds_fingerprint)
    return Prepared(images, seeds)


def prepare_seeds(images: RecordSet, label_root: PathLike, out: PathLike, *, workers: int = 0) -> RecordSet:
    """Pack the label maps label_root/NAME.png of packed images as the set NAME_seeds in ``out``,
    unless that was done from the same files.

    Raises
    ------
    Problems
        Naming every label map that is missing, damaged, of another size than its image or with
        values that no class has.
    """
    if not os.path.isdir(label_root):
        raise InputError("is not a folder", file=label_root, remedy="check the path of the seeds")
    check_label_folder(label_root, images.classes, images.path, "seeds", images.turned())
    name, names = f"{images.name}_seeds", list(images.names)
    paths = [os.path.join(label_root, f"{entry}.png") for entry in names]
    fingerprint = _fingerprint(images.classes, names, paths, images.sizes)
    packed = _up_to_date(out, name, fingerprint)
    if packed is not None:
        remove_leftovers(out, name, packed.identity)
        return packed
    checked = _check_seeds(label_root, paths, images.classes, images.sizes, workers)
    return pack_labels(out, name, names, paths, images.classes, checked=checked, workers=workers,
                       fingerprint=fingerprint)


def _check_seeds(folder: PathLike, paths: Sequence[str], classes: ClassTable, sizes: Optional[np.ndarray],
                 workers: int) -> CheckedFiles:
    """Every label map by itself, and all of them together."""
    checked = check_labels(paths, classes.num_classes, sizes=sizes, workers=workers)
    if not checked.problems:
        with collecting(checked.problems):
            # what a network predicts may be background alone
            predicted = os.path.basename(label_manifest(folder) or "") == PREDICTIONS
            check = oddities if predicted else check_pixels
            tell(check(checked.counts, classes.names, "the seeds", folder), folder)
    return checked


def _open_whole(out: PathLike, name: str) -> RecordSet:
    """A set that is up to date, without what a packer left beside it that was killed at its end."""
    records = RecordSet.open(out, name)
    remove_leftovers(out, name, records.identity)
    return records


def _fingerprint(classes: ClassTable, names: Sequence[str], paths: Sequence[str],
                 array: Optional[np.ndarray], jpeg_warnings: str = "harmless") -> str:
    """A digest of names, classes, sizes and times of files, and labels or sizes of images."""
    digest = hashlib.sha256("\n".join([*classes.names, "", *names, ""]).encode())
    digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    digest.update(b"" if jpeg_warnings == "harmless" else jpeg_warnings.encode())
    for path in paths:
        digest.update(b"%s %d %d\n" % (os.fsencode(os.path.abspath(path)), *_size_and_time(path)))
    return digest.hexdigest()


def _size_and_time(path: str) -> Tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1  # the check names it
    return status.st_size, status.st_mtime_ns


def _up_to_date(out: PathLike, name: str, fingerprint: str, num_parts: int = 1) -> Optional[RecordSet]:
    """The packed set, if it is whole and was made from the same files; what is wrong with it does
    not matter, it is made again.
    """
    try:
        records = RecordSet.open(out, name)
    except InputError:
        return None
    same = records.manifest["fingerprint"] == fingerprint and len(records.manifest["parts"]) == num_parts
    if same and not damaged_files(records):
        return records
    records.close()
    return None


