"""The record sets that a training run reads. Ground-truth masks have no place here: no stage of training opens them."""
from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import List, Tuple

import numpy as np

from cian.data.files import Problems
from cian.data.lists import resolve_list
from cian.data.packing import pack_labels
from cian.data.preparation import prepare
from cian.data.records import RecordSet
from cian.data.tree import DatasetTree
from cian.errors import InputError

from .config import Config, DataConfig


def data_tree(data: DataConfig) -> DatasetTree:
    """The data set's files, without the masks."""
    return DatasetTree(data.root, image_root=data.image_root, annotation_root=data.annotation_root, labels_file=data.labels_file,
                       label_root=data.label_root, classes=data.classes)


def list_name(name_or_path: str) -> str:
    """Name of the record set of a list: its file name without suffix, as tools/prepare.py has it."""
    return os.path.splitext(os.path.basename(name_or_path))[0]


def training_names(config: Config) -> List[str]:
    """Names of the training list, from the packed images or from the list file."""
    if config.data.records:
        with RecordSet.open(config.data.records, list_name(config.data.train_list)) as images:
            return list(images.names)
    return resolve_list(config.data.root, config.data.train_list)


def open_training_records(config: Config) -> Tuple[RecordSet, RecordSet]:
    """Images and seeds of the training list.

    Without ``data.records`` the files are checked and packed into ``SNAPSHOT/records``, unless they are there already. With it, images
    come from there, and seeds too, unless ``data.label_root`` names others: those are packed into ``SNAPSHOT/records``.

    Raises
    ------
    InputError
        Nothing was named to read, or a file is wrong; several problems are listed in one :class:`~cian.data.files.Problems`.
    """
    data, own = config.data, os.path.join(config.run.snapshot, "records")
    name = list_name(data.train_list)
    if data.records:
        images = RecordSet.open(data.records, name)
        seeds = _pack_seeds(images, data.label_root, own, config.run.workers) if data.label_root else RecordSet.open(
            data.records, f"{name}_seeds")
        return images, seeds
    if not data.label_root:
        raise InputError("no seeds were named", field="data.label_root",
                         remedy="give --label-root, the folder of NAME.png seeds, or --records, what tools/prepare.py --seeds packed")
    prepared = prepare(data_tree(data), data.train_list, own, workers=config.run.workers)
    if prepared.seeds is None:
        raise RuntimeError("prepare() packs seeds where the tree has a label_root")
    return prepared.images, prepared.seeds


def _pack_seeds(images: RecordSet, label_root: str, folder: str, workers: int) -> RecordSet:
    """Pack the seeds of packed images, unless that was done from the same files."""
    if not os.path.isdir(label_root):
        raise InputError("is not a folder", file=label_root, field="data.label_root", remedy="check the path")
    names, set_name = list(images.names), f"{images.name}_seeds"
    paths = [os.path.join(label_root, f"{name}.png") for name in names]
    digest = hashlib.sha256(images.identity.encode() + os.path.abspath(label_root).encode())
    for path in paths:
        status = os.stat(path) if os.path.exists(path) else None
        digest.update(b"%d %d\n" % ((status.st_size, status.st_mtime_ns) if status else (-1, -1)))
    fingerprint = digest.hexdigest()
    try:
        packed = RecordSet.open(folder, set_name)
    except InputError:  # none yet, or damaged: made again below
        packed = None
    if packed is not None and packed.manifest["fingerprint"] == fingerprint:
        return packed
    try:
        return pack_labels(folder, set_name, names, paths, images.classes, sizes=np.asarray(images.sizes), workers=workers,
                           fingerprint=fingerprint)
    except Problems as error:
        raise Problems(error.problems, file=label_root, remedy="make seeds for every image of the list") from error


def open_images(config: Config, name_or_path: str) -> RecordSet:
    """The packed images of a list, with their image-level labels: from ``data.records``, else packed into ``SNAPSHOT/records``.

    Raises
    ------
    InputError
        As :func:`open_training_records`, or when there is no folder to pack into.
    """
    if config.data.records:
        return RecordSet.open(config.data.records, list_name(name_or_path))
    if not config.run.snapshot:
        raise InputError("no folder of packed images was named", field="data.records",
                         remedy="give --records, what tools/prepare.py packed, or --snapshot to pack them below it")
    tree = data_tree(dataclasses.replace(config.data, label_root=""))
    return prepare(tree, name_or_path, os.path.join(config.run.snapshot, "records"), workers=config.run.workers).images
