"""Image-level labels, the only supervision of training: from VOC's XML, or from one file for all images."""
from __future__ import annotations

import io
import os
import pickle
import xml.etree.ElementTree as ElementTree
from typing import Any, Dict, List, Sequence, Set, Tuple

import numpy as np

from cian.data.classes import ClassTable
from cian.data.lists import image_name
from cian.errors import InputError, PathLike, Problems, collecting
from cian.files import decoding, read_bytes, read_text
from cian.pickles import Admitting

Labels = Tuple[int, ...]


def read_xml_labels(path: PathLike, classes: ClassTable) -> Labels:
    """Sorted class indices of a VOC annotation: of the objects that are not ``difficult``, or of
    all where all are.

    The root may be wrapped in another element or have a namespace, as some programs write it. A
    CVAT file ("for images") with one image gives the labels of that image.

    Raises
    ------
    InputError
        Naming the file: missing, not XML, of another layout, an unknown class, an object without a
        name, no object at all.
    """
    root = _parse(path)
    if _tag(root) == "annotations":
        images = _read_cvat(root, path, classes)
        if len(images) != 1:
            raise InputError(f"is a CVAT file of {len(images)} images, in a place for one", file=path,
                             remedy="give it as --labels-file")
        return next(iter(images.values()))
    plain: Set[int] = set()
    difficult: Set[int] = set()
    for number, item in enumerate(_voc_objects(root, path), 1):
        texts = {_tag(child): (child.text or "").strip() for child in item}
        if texts.get("deleted") == "1":  # LabelMe keeps what was removed
            continue
        flag = {"true": "1", "false": "0", "": "0"}.get(texts.get("difficult", "").lower(),
                                                        texts.get("difficult"))
        if flag not in ("0", "1"):
            raise InputError(f"'difficult' is 0 or 1, not {flag!r}", file=path, field=f"object {number}")
        index = _foreground_index(texts.get("name", ""), classes, path, f"object {number}")
        (difficult if flag == "1" else plain).add(index)
    if not plain and not difficult:
        raise InputError("names no object, so the image has no label", file=path,
                         remedy="annotate it or take it off the list")
    return tuple(sorted(plain or difficult))


def _parse(path: PathLike) -> ElementTree.Element:
    content = read_bytes(path)
    with decoding(path, "is not valid XML"):
        return ElementTree.fromstring(content)


def _tag(element: ElementTree.Element) -> str:
    """An element's name in lower case, without namespace."""
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _voc_objects(root: ElementTree.Element, path: PathLike) -> List[ElementTree.Element]:
    """The objects of the one annotation in a file."""
    found = [root] if _tag(root) == "annotation" else [item for item in root.iter()
                                                       if _tag(item) == "annotation"]
    if len(found) != 1:
        raise InputError(f"has {len(found)} <annotation> in its root <{_tag(root)}>", file=path,
                         remedy="write VOC's layout: one <annotation> that holds <object>s with a <name>")
    objects = [item for item in found[0] if _tag(item) == "object"]
    nested = [item for item in found[0].iter() if _tag(item) == "object"]
    shapes = sorted({_tag(item) for item in found[0]} & {"objects", "item", "shape", "box", "polygon"})
    if not objects and (nested or shapes):
        raise InputError("has no <object> directly in its <annotation>, but "
                         f"{', '.join(f'<{name}>' for name in shapes) or 'deeper ones'}", file=path,
                         remedy="write VOC's layout: one <annotation> that holds <object>s with a <name>")
    return objects


def _read_cvat(root: ElementTree.Element, path: PathLike, classes: ClassTable) -> Dict[str, Labels]:
    """Labels of every image of CVAT's format "for images": those of its shapes and tags."""
    labels: Dict[str, Labels] = {}
    problems: List[InputError] = []
    if not any(_tag(item) == "image" for item in root):
        raise InputError("holds no <image>, so it is not CVAT's format \"for images\"", file=path,
                         remedy="export it in that format, or write VOC's layout")
    for image in (item for item in root if _tag(item) == "image"):
        name = image_name(image.get("name", ""))
        with collecting(problems):
            if not name or name in labels:
                raise InputError("occurs twice" if name else "an image has no name", file=path, field=name)
            words = [item.get("label", "") for item in image if item.get("label") is not None]
            labels[name] = tuple(sorted({_foreground_index(word, classes, path, name) for word in words}))
            if not words:
                raise InputError("has no label", file=path, field=name,
                                 remedy="label it or take it off the list")
    if problems:
        raise Problems(problems)
    return labels


def read_labels_file(path: PathLike, classes: ClassTable) -> Dict[str, Labels]:
    """Sorted class indices by image name from one file.

    * text: ``NAME class class ...`` a line;
    * ``.npz``: ``names`` (n,) and ``labels`` (n, foreground classes) of 0 and 1;
    * ``.npy``: a dict from name to (foreground classes,) of 0 and 1, as ``cls_labels.npy`` of IRN and
      SEAM; read without running what the file says;
    * ``.xml``: CVAT's format "for images".

    A name may have the suffix of its image.

    Raises
    ------
    Problems
        Naming every line with an unknown class, without a class, or with a name that occurred
        before, and every value that is neither 0 nor 1.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix in (".npz", ".npy"):
        return _labels_of_arrays(*(_read_npz if suffix == ".npz" else _read_npy)(path), path, classes)
    if suffix == ".xml":
        return _read_cvat(_parse(path), path, classes)
    labels: Dict[str, Labels] = {}
    problems: List[InputError] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        name = image_name(words[0])
        where = f"line {number} ({words[0]})"
        with collecting(problems):
            if name in labels:
                raise InputError("occurs twice", file=path, field=where,
                                 remedy="write all classes of an image in one line")
            if len(words) == 1:
                raise InputError("has no label", file=path, field=where,
                                 remedy="write NAME class class ..., with blanks between them"
                                 if "," in name or ";" in name else "label it or take it off the list")
            labels[name] = tuple(sorted({_foreground_index(word, classes, path, where)
                                         for word in words[1:]}))
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


def _read_npz(path: PathLike) -> Tuple[Sequence[Any], np.ndarray]:
    content = read_bytes(path)
    with decoding(path, "is not an array file with 'names' and 'labels'"), np.load(
            io.BytesIO(content), allow_pickle=False) as arrays:
        names, table = arrays["names"], arrays["labels"]
    if names.ndim != 1:
        raise InputError(f"holds names of shape {names.shape}", file=path, field="names",
                         remedy="give one name a row of 'labels'")
    return names.tolist(), table


def _latin(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for {encoding}")
    return text.encode("latin1")


# What NumPy's arrays are made of, in files of NumPy 1 and 2; bytes are as Python 2's protocol has them.
_ARRAYS = {("_codecs", "encode"): _latin, ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
           **{(f"numpy.{core}.multiarray", name): getattr(np.core.multiarray, name)
              for core in ("core", "_core") for name in ("_reconstruct", "scalar")}}


def _read_npy(path: PathLike) -> Tuple[Sequence[Any], np.ndarray]:
    stream = io.BytesIO(read_bytes(path))
    with decoding(path, "cannot be read as a dict from name to labels"):
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format._read_array_header(stream, version)  # type: ignore[attr-defined]
        objects = dtype.hasobject and shape == ()
        found = Admitting(stream, _ARRAYS, encoding="latin1").load().item() if objects else None
        if isinstance(found, dict):
            return list(found), np.array(list(found.values()))
    raise InputError("holds no dict from name to labels", file=path,
                     remedy="give cls_labels.npy as IRN and SEAM have it, or an .npz of 'names' and 'labels'")


def _labels_of_arrays(keys: Sequence[Any], table: np.ndarray, path: PathLike,
                      classes: ClassTable) -> Dict[str, Labels]:
    foreground = len(classes.foreground)
    if table.ndim != 2 or len(keys) != len(table) or table.shape[1] != foreground:
        raise InputError(f"'labels' has shape {table.shape} for {len(keys)} names and {foreground} "
                         "foreground classes", file=path, field="labels",
                         remedy="give one row a name and one column a foreground class")
    wrong = ~np.isin(table, (0, 1)) if table.dtype.kind in "biuf" else np.ones(table.shape, bool)
    labels: Dict[str, Labels] = {}
    problems: List[InputError] = []
    for key, row, odd in zip(keys, table, wrong):
        with collecting(problems):
            name = _key(key, path)
            if name in labels:
                raise InputError("occurs twice", file=path, field=name)
            if odd.any():
                raise InputError(f"holds {row[odd][0]!r}, and a label is 0 or 1", file=path, field=name,
                                 remedy="write 1 for a class that the image has, and 0 for every other one "
                                 "(also for VOC's own -1, absent, and 0, difficult)")
            labels[name] = tuple(int(index) + 1 for index in np.flatnonzero(row))
            if not labels[name]:
                raise InputError("has no label", file=path, field=name)
    if problems:
        raise Problems(problems)
    return labels


def _key(key: Any, path: PathLike) -> str:
    """A name as arrays and dicts have it: text, bytes, or IRN's number 2007000032 for 2007_000032."""
    if isinstance(key, bytes):
        key = key.decode("utf-8", "surrogateescape")
    if isinstance(key, (int, np.integer)) and len(str(key)) == 10:
        key = f"{str(key)[:4]}_{str(key)[4:]}"
    if not isinstance(key, str) or not key.strip():
        raise InputError(f"{key!r} is no name of an image", file=path, field="names")
    return image_name(key)
