"""Image-level labels, the only supervision of training: from VOC's XML, from a text file or from an
array file.
"""
from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
import zipfile
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np

from cian.data.classes import ClassTable
from cian.errors import InputError, PathLike
from cian.files import Problems, read_bytes, read_text

Labels = Tuple[int, ...]


def read_xml_labels(path: PathLike, classes: ClassTable) -> Labels:
    """Sorted class indices of a VOC annotation: of the objects that are not ``difficult``, or of
    all where all are.

    Raises
    ------
    InputError
        Naming the file: missing, not XML, an unknown class, an object without a name, no object at all.
    """
    try:
        root = ElementTree.fromstring(read_bytes(path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"is not valid XML ({error})", file=path) from error
    plain: Set[int] = set()
    difficult: Set[int] = set()
    for number, item in enumerate(root.findall("object"), 1):
        name = (item.findtext("name") or "").strip()
        flag = (item.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            raise InputError(f"'difficult' is 0 or 1, not {flag!r}", file=path, field=f"object {number}")
        (difficult if flag == "1" else plain).add(_foreground_index(name, classes, path, f"object {number}"))
    if not plain and not difficult:
        raise InputError("names no object, so the image has no label", file=path,
                         remedy="annotate it or take it off the list")
    return tuple(sorted(plain or difficult))


def read_labels_file(path: PathLike, classes: ClassTable) -> Dict[str, Labels]:
    """Sorted class indices by image name from one file.

    Text: ``NAME class class ...`` a line. ``.npz``: ``names`` (n,) and ``labels`` (n, foreground
    classes), nonzero where present.

    Raises
    ------
    Problems
        Naming every line with an unknown class, without a class, or with a name that occurred before.
    """
    if os.fspath(path).endswith(".npz"):
        return _read_labels_npz(path, classes)
    labels: Dict[str, Labels] = {}
    problems = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"line {number} ({words[0]})"
        try:
            if words[0] in labels:
                raise InputError("occurs twice", file=path, field=where,
                                 remedy="write all classes of an image in one line")
            if len(words) == 1:
                raise InputError("has no label", file=path, field=where,
                                 remedy="label it or take it off the list")
            labels[words[0]] = tuple(
                sorted({_foreground_index(word, classes, path, where) for word in words[1:]}))
        except InputError as problem:
            problems.append(problem)
    if problems:
        raise Problems(problems)
    return labels


def multi_hot(labels: Sequence[Labels], num_classes: int) -> np.ndarray:
    """(n, num_classes) uint8, 1 where an image has the class; column 0, the background, is 1 for
    every image (Eq. 7 lets it through).
    """
    table = np.zeros((len(labels), num_classes), np.uint8)
    table[:, 0] = 1
    for row, indices in enumerate(labels):
        table[row, list(indices)] = 1
    return table


def _foreground_index(name: str, classes: ClassTable, path: PathLike, where: str) -> int:
    try:
        index = classes.index(name)
    except InputError as error:
        raise InputError(error.problem, file=path, field=where, remedy=error.remedy) from error
    if index == 0:
        raise InputError(f"{name!r} is no label of an image", file=path, field=where,
                         remedy="name foreground classes")
    return index


def _read_labels_npz(path: PathLike, classes: ClassTable) -> Dict[str, Labels]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, table = arrays["names"], arrays["labels"]
    except FileNotFoundError as error:
        raise InputError("does not exist", file=path) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"is not an array file with 'names' and 'labels' ({error})", file=path) from error
    if table.ndim != 2 or names.shape != table.shape[:1] or table.shape[1] != len(classes.foreground):
        raise InputError(f"'labels' has shape {table.shape} for {names.shape} names and "
                         f"{len(classes.foreground)} foreground classes", file=path, field="labels",
                         remedy="give one row a name and one column a foreground class")
    labels = {str(name): tuple(int(index) + 1 for index in np.flatnonzero(row))
              for name, row in zip(names, table)}
    problems: List[InputError] = [InputError("has no label", file=path, field=name)
                                  for name, row in labels.items() if not row]
    if len(labels) < len(names):
        problems.append(InputError(f"{len(names) - len(labels)} names occur twice", file=path, field="names"))
    if problems:
        raise Problems(problems)
    return labels
