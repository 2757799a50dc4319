"""The images that a prediction is asked for: files, folders, lists and patterns."""
from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from cian.data.pictures import Picture, decode_picture
from cian.data.tree import DatasetTree
from cian.errors import InputError, Problems
from cian.files import IMAGE_SUFFIXES, read_bytes, read_text
from cian.tools.engine.config import DataConfig


@dataclass(frozen=True)
class Sample:
    """An image to predict: its name in the output, its file, and the classes that it may have (None: all)."""

    name: str
    path: str
    allowed: Optional[Tuple[int, ...]] = None


def data_tree(data: DataConfig, *, seeds: bool = True, masks: bool = False) -> DatasetTree:
    """The data set of a configuration; ``seeds`` and ``masks`` say which label maps are looked for."""
    return DatasetTree(data.root, image_root=data.image_root, annotation_root=data.annotation_root,
                       labels_file=data.labels_file, label_root=data.label_root if seeds else "",
                       mask_root=data.mask_root if masks else "", classes=data.classes,
                       jpeg_warnings=data.jpeg_warnings)


def tree_samples(tree: DatasetTree, name_or_path: str, filter_labels: bool = False) -> List[Sample]:
    """Samples of a list of a data set; with ``filter_labels`` each may have its image-level labels
    and background only.
    """
    names = tree.names(name_or_path)
    allowed: Sequence[Optional[Tuple[int, ...]]] = [None] * len(names)
    if filter_labels:
        allowed = [tuple(int(index) for index in np.flatnonzero(row)) for row in tree.labels(names)]
    return [Sample(name, tree.image_path(name), classes) for name, classes in zip(names, allowed)]


def read_picture(path: str, warnings: str = "harmless") -> Picture:
    """An image file's pixels, (H, W, 3) uint8 **RGB**, with what
    :func:`~cian.data.pictures.decode_picture` says about it.
    """
    picture = decode_picture(read_bytes(path), path, warnings)
    return picture._replace(pixels=np.ascontiguousarray(picture.pixels[..., ::-1]))


def read_image(path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file as a viewer shows it; an :class:`InputError` names one that
    is missing, truncated or no image.
    """
    return read_picture(path).pixels


def find_images(inputs: Sequence[str]) -> List[Sample]:
    """Samples of image files, folders (the images directly inside), .txt lists (a path a line) and
    glob patterns.

    Paths in a list are relative to the list's folder. A sample's name is that of its file, without suffix.

    Raises
    ------
    InputError
        For inputs that name no image, and for images of one name, which would share their output;
        all at once.
    """
    paths: List[str] = []
    problems: List[InputError] = []
    for given in inputs:
        found = _expand(given)
        if not found:
            problems.append(InputError("names no image", file=given,
                                       remedy="give an image, a folder, a .txt list or a pattern in quotes"))
        paths.extend(found)
    by_name: Dict[str, str] = {}
    for path in dict.fromkeys(map(os.path.normpath, paths)):
        name = os.path.splitext(os.path.basename(path))[0]
        if name in by_name:
            problems.append(InputError(f"has the same name as {by_name[name]}", file=path,
                                       remedy="rename one, or predict them apart"))
        by_name.setdefault(name, path)
    if problems:
        raise Problems(problems)
    return [Sample(name, path) for name, path in by_name.items()]


def _expand(given: str) -> List[str]:
    if os.path.isdir(given):
        return sorted(os.path.join(given, name)
                      for name in os.listdir(given) if name.lower().endswith(IMAGE_SUFFIXES))
    if os.path.isfile(given):
        if not given.lower().endswith(".txt"):
            return [given]
        folder = os.path.dirname(given)
        return [os.path.join(folder, line.strip()) for line in read_text(given).splitlines() if line.strip()]
    return sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path)
                  and path.lower().endswith(IMAGE_SUFFIXES))
