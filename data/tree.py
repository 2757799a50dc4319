"""Where the files of a data set are: the VOC layout, or folders named one by one."""
from __future__ import annotations

import os
from typing import List, Optional, Sequence, Tuple

import numpy as np

from cian.data.annotations import Labels, multi_hot, read_labels_file, read_xml_labels
from cian.data.classes import ClassTable, load_classes
from cian.data.lists import MASK_FOLDER, resolve_list
from cian.errors import InputError, PathLike, Problems, collecting
from cian.files import IMAGE_SUFFIXES


class DatasetTree:
    """A data set in the VOC layout.

    Parameters
    ----------
    root : folder with JPEGImages/, Annotations/, ImageSets/Segmentation/ and SegmentationClassAug/;
        each of the others, where not empty, stands for one of these.
    image_root : folder of NAME.jpg.
    annotation_root : folder of NAME.xml.
    labels_file : image-level labels in one file, in place of the annotations; see
        :func:`~cian.data.annotations.read_labels_file`.
    label_root : folder of NAME.png seeds.
    mask_root : folder of NAME.png ground truth, for measurement only.
    classes : 'voc' or a file with a class a line.
    jpeg_warnings : see :func:`~cian.data.pictures.decode_jpeg`.

    Raises
    ------
    InputError
        Neither ``root`` nor ``image_root``, or a folder that does not exist.
    """

    def __init__(self, root: PathLike = "", *, image_root: PathLike = "", annotation_root: PathLike = "",
                 labels_file: PathLike = "", label_root: PathLike = "", mask_root: PathLike = "",
                 classes: PathLike = "voc", jpeg_warnings: str = "harmless") -> None:
        self.jpeg_warnings = jpeg_warnings
        self.root = os.fspath(root)
        if not self.root and not os.fspath(image_root):
            raise InputError("no data set was named", field="root",
                             remedy="give --root, the folder that holds JPEGImages/")
        self.image_root = self._folder(image_root, "JPEGImages")
        self.annotation_root = self._folder(annotation_root, "Annotations")
        self.mask_root = self._folder(mask_root, MASK_FOLDER)
        self.label_root = os.fspath(label_root)
        self.labels_file = os.fspath(labels_file)
        for folder, given in ((self.root, self.root), (self.image_root, True),
                              (self.annotation_root, annotation_root), (self.label_root, self.label_root),
                              (self.mask_root, mask_root)):
            if given and not os.path.isdir(folder):
                raise InputError("is not a folder", file=folder, remedy="check the path")
        self.classes: ClassTable = load_classes(classes)

    def _folder(self, given: PathLike, name: str) -> str:
        return os.fspath(given) or (os.path.join(self.root, name) if self.root else "")

    def image_path(self, name: str) -> str:
        """Path of an image: NAME.jpg, or where there is none the file of another usual suffix."""
        return self._path(self.image_root, name, "--image-root", *IMAGE_SUFFIXES)

    def annotation_path(self, name: str) -> str:
        """Path of an image's XML annotation."""
        return self._path(self.annotation_root, name, "--annotation-root or --labels-file", ".xml", ".XML")

    def label_path(self, name: str) -> str:
        """Path of an image's seed."""
        return self._path(self.label_root, name, "--label-root", ".png", ".PNG")

    def mask_path(self, name: str) -> str:
        """Path of an image's ground truth."""
        return self._path(self.mask_root, name, "--mask-root", ".png", ".PNG")

    @staticmethod
    def _path(folder: str, name: str, flag: str, *suffixes: str) -> str:
        """The file of the first suffix that is there, else of the first suffix."""
        if not folder:
            raise InputError("the folder was not given", field=name, remedy=f"give {flag}, or --root")
        paths = [os.path.join(folder, name + suffix) for suffix in suffixes]
        return next((path for path in paths if os.path.exists(path)), paths[0])

    def names(self, name_or_path: PathLike) -> List[str]:
        """The names of a list; see :func:`~cian.data.lists.resolve_list`."""
        return resolve_list(self.root, name_or_path)

    def labels(self, names: Sequence[str]) -> np.ndarray:
        """Image-level labels as (n, num_classes) uint8, multi-hot with column 0 (the background) 1;
        raises all problems at once.
        """
        table, problems = self.check_labels(names)
        if problems:
            raise Problems(problems)
        return table

    def check_labels(self, names: Sequence[str]) -> Tuple[np.ndarray, List[InputError]]:
        """:meth:`labels` with the problems returned; rows of images with a problem have column 0 only."""
        problems: List[InputError] = []
        rows: List[Labels] = []
        known: Optional[dict] = None
        if self.labels_file:
            try:
                known = read_labels_file(self.labels_file, self.classes)
            except Problems as error:
                return multi_hot([()] * len(names), len(self.classes)), error.problems
        elif not os.path.isdir(self.annotation_root):
            raise InputError("is not a folder", file=self.annotation_root or None, field="image-level labels",
                             remedy="give --annotation-root or --labels-file")
        for name in names:
            row: Labels = ()
            with collecting(problems):
                row = self._labels_of(name, known)
            rows.append(row)
        return multi_hot(rows, len(self.classes)), problems

    def _labels_of(self, name: str, known: Optional[dict]) -> Labels:
        if known is None:
            return read_xml_labels(self.annotation_path(name), self.classes)
        if name not in known:
            raise InputError(f"has no label for {name!r}", file=self.labels_file,
                             remedy="label the image or take it off the list")
        return known[name]
