"""Packing images with their labels, and label maps, into record sets. See :mod:`cian.data.manifest`
for the format.
"""
from __future__ import annotations

import zlib
from typing import Optional, Sequence

import numpy as np

from cian.data.checks import CheckedFiles, check_images, check_labels, encoded_labels
from cian.data.classes import ClassTable
from cian.data.manifest import HEADER, IMAGES, LABELS
from cian.data.pictures import decode_jpeg
from cian.data.records import RecordSet
from cian.data.writer import record_writer
from cian.errors import InputError, PathLike, Problems
from cian.files import read_bytes


def pack_images(folder: PathLike, name: str, names: Sequence[str], paths: Sequence[str], labels: np.ndarray,
                classes: ClassTable, *, num_parts: int = 1, workers: int = 0,
                checked: Optional[CheckedFiles] = None, fingerprint: str = "") -> RecordSet:
    """Pack JPEG files, as they are, with their image-level labels; of one that its decoder warns of
    without a loss of pixels, what it warns of is put right.

    Parameters
    ----------
    folder, name : the record set to write.
    names, paths : n names, without duplicates, and the file of each.
    labels : (n, num_classes) uint8, multi-hot.
    num_parts : record files to spread the set over.
    workers : processes of the check; 0 is one a core.
    checked : result of :func:`~cian.data.checks.check_images` on ``paths``, when it was made before.
    fingerprint : text kept in the manifest, by which the caller recognises the same input.

    Raises
    ------
    Problems
        Naming every missing or damaged file; the old set of this name, if any, stays as it was.
    InputError
        The disk is full, or another process packs the same set.
    """
    checked = checked or check_images(paths, workers=workers)
    if checked.problems:
        raise Problems(checked.problems)
    vectors = labels.astype("<f4")
    with record_writer(folder, name, IMAGES, classes, len(names), num_parts=num_parts,
                       fingerprint=fingerprint) as writer:
        for index, path in enumerate(paths):
            content = read_bytes(path)
            if zlib.crc32(content) != checked.crc32[index]:
                raise InputError("changed while it was packed", file=path,
                                 remedy="pack again when nothing writes to the folder")
            if index in checked.warnings:
                content = decode_jpeg(content, path, "accept").content
            header = HEADER.pack(vectors.shape[1], 0, index, 0) + vectors[index].tobytes()
            writer.add(names[index], header + content, checked.sizes[index])
        writer.finish(np.packbits(labels.astype(bool), axis=1), {
            "turned": [names[index] for index in checked.turned],
            "warnings": {names[index]: text for index, text in checked.warnings.items()}})
    return RecordSet.open(folder, name)


def pack_labels(folder: PathLike, name: str, names: Sequence[str], paths: Sequence[str], classes: ClassTable,
                *, num_parts: int = 1, workers: int = 0, checked: Optional[CheckedFiles] = None,
                fingerprint: str = "") -> RecordSet:
    """Pack label maps (seeds) as 8-bit gray PNG; parameters and errors as :func:`pack_images`."""
    checked = checked or check_labels(paths, classes.num_classes, workers=workers)
    if checked.problems:
        raise Problems(checked.problems)
    with record_writer(folder, name, LABELS, classes, len(names), num_parts=num_parts,
                       fingerprint=fingerprint) as writer:
        for index, (crc32, content) in enumerate(encoded_labels(paths, classes.num_classes, workers=workers)):
            if crc32 != checked.crc32[index]:
                raise InputError("changed while it was packed", file=paths[index],
                                 remedy="pack again when nothing writes to the folder")
            writer.add(names[index], HEADER.pack(0, 0, index, 0) + content, checked.sizes[index])
        writer.finish(np.zeros((len(names), 0), np.uint8), {})
    return RecordSet.open(folder, name)
