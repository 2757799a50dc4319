"""Reading record sets: images with their image-level labels, or label maps (seeds), in MXNet's
RecordIO files.

Nothing from a file reaches a decoder before its checksum was compared. For the files see
:mod:`cian.data.manifest`.
"""
from __future__ import annotations

import contextlib
import os
import struct
import zlib
from typing import Any, Dict, List, Optional, Tuple

import cv2
import numpy as np
import simplejpeg

from cian.data.classes import ClassTable, require_same
from cian.data.framing import unframe
from cian.data.label_png import decode_index_png
from cian.data.manifest import (
    AGAIN,
    HEADER,
    IMAGES,
    LABELS,
    NameTable,
    manifest_path,
    read_manifest,
    read_table,
)
from cian.data.pictures import jpeg_pixels
from cian.errors import InputError, PathLike


class RecordSet(contextlib.AbstractContextManager["RecordSet"]):
    """An open record set; use :meth:`open`. It may be forked, pickled and read from several threads.

    Attributes
    ----------
    folder, name, path : where it is; ``path`` is the manifest.
    kind : 'images' or 'labels'.
    classes : ClassTable.
    identity : SHA-256 of the content in hexadecimal.
    names : NameTable, a sequence of n strings in the order of the list.
    sizes : (n, 2) int32, height and width of each in pixels.
    labels : (n, num_classes) uint8, multi-hot with column 0 (the background) 1; images only.
    """

    def __init__(self, folder: str, name: str, manifest: Dict[str, Any], table: Dict[str, np.ndarray],
                 descriptors: List[int]) -> None:
        self.folder, self.name, self.path = folder, name, manifest_path(folder, name)
        self.manifest, self.kind, self.identity = manifest, manifest["kind"], manifest["identity"]
        self.classes = ClassTable(manifest["classes"], self.path)
        self.names = NameTable(table.pop("names").tobytes())
        self.sizes = table["size"]
        self._table, self._descriptors = table, descriptors
        self._labels: Optional[np.ndarray] = None

    @classmethod
    def open(cls, folder: PathLike, name: str) -> RecordSet:
        """Open the set ``name`` in ``folder``.

        Raises
        ------
        InputError
            Naming the file: the set, one of its files or a version of the format is missing, a file
            has another size or checksum.
        """
        folder = os.fspath(folder)
        manifest = read_manifest(folder, name)
        descriptors: List[int] = []
        try:
            for part in manifest["parts"]:
                descriptors.append(_open_part(os.path.join(folder, part["rec"]), part["bytes"]))
            return cls(folder, name, manifest, read_table(folder, name, manifest), descriptors)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def close(self) -> None:
        """Close the files; harmless to call again."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_descriptors" in self.__dict__:
            self.close()

    def __reduce__(self):
        return _reopen, (os.path.abspath(self.folder), self.name, self.identity)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> np.ndarray:
        """(n, num_classes) uint8, multi-hot with column 0 (the background) 1; ValueError for a set
        of label maps.
        """
        if self.kind != IMAGES:
            raise ValueError(f"{self.path} holds label maps; image-level labels are in the set of the images")
        if self._labels is None:
            self._labels = np.unpackbits(self._table["labels"], axis=1, count=self.classes.num_classes)
        return self._labels

    def files(self) -> List[Tuple[str, str]]:
        """Paths of the parts, (``.rec``, ``.idx``) each."""
        return [(os.path.join(self.folder, part["rec"]), os.path.join(self.folder, part["idx"]))
                for part in self.manifest["parts"]]

    def read(self, index: int) -> bytes:
        """The packed file (JPEG or PNG) of record ``index``; an :class:`InputError` names the
        record where it is damaged.
        """
        index = range(len(self))[index]
        part, offset, span = (int(self._table[column][index]) for column in ("part", "offset", "span"))
        try:
            record = os.pread(self._descriptors[part], span, offset)
        except OSError as error:
            raise self._damage(index, f"cannot be read ({error.strerror})") from error
        if len(record) != span:
            raise self._damage(index, f"is truncated: {len(record)} of {span} bytes are left")
        if zlib.crc32(record) != self._table["crc32"][index]:
            raise self._damage(index, "does not match its checksum")
        try:
            content = unframe(record)
            count, _, identifier, _ = HEADER.unpack_from(content)
        except (ValueError, struct.error) as error:
            raise self._damage(index, str(error)) from error
        if identifier != index:
            raise self._damage(index, f"is number {identifier} in place of {index}")
        return content[HEADER.size + 4 * count:]

    def image(self, index: int) -> np.ndarray:
        """Image ``index`` as (H, W, 3) uint8 **BGR**, as a viewer shows it and ``cv2.imread`` gives it."""
        return self._decode(index, IMAGES)

    def label(self, index: int) -> np.ndarray:
        """Label map ``index`` as (H, W) uint8 class indices, 255 ignored."""
        return self._decode(index, LABELS)

    def turned(self) -> List[str]:
        """Names of the images that EXIF says are to be turned."""
        return list(self.manifest.get("turned", ()))

    def _decode(self, index: int, kind: str) -> np.ndarray:
        if self.kind != kind:
            raise ValueError(f"{self.path} holds {self.kind}, not {kind}")
        content = self.read(index)
        height, width = self.sizes[index]
        try:
            announced = simplejpeg.decode_jpeg_header(content)[:2] if kind == IMAGES else _png_size(content)
            # a picture that its EXIF says is turned has its sides exchanged
            if sorted(announced) != sorted((height, width)):
                raise ValueError(
                    f"announces {announced[1]}x{announced[0]} pixels in place of {width}x{height}")
            picture = jpeg_pixels(content) if kind == IMAGES else decode_index_png(content)
            if picture is None and kind == LABELS:
                picture = cv2.imdecode(np.frombuffer(content, np.uint8),
                                       cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
        except (ValueError, cv2.error) as error:
            raise self._damage(index, f"cannot be decoded ({error})") from error
        if picture is None or picture.shape[:2] != (height, width):
            raise self._damage(index, f"does not decode to {width}x{height} pixels")
        return picture

    def _damage(self, index: int, problem: str) -> InputError:
        part = self.manifest["parts"][int(self._table["part"][index])]
        return InputError(problem, file=os.path.join(self.folder, part["rec"]),
                          field=f"record {index} ({self.names[index]})", remedy=AGAIN)

    def rows(self) -> Dict[str, np.ndarray]:
        """The columns of the table, for checks: part, offset, span, crc32 and more."""
        return self._table


def _png_size(content: bytes) -> Tuple[int, int]:
    """Height and width in a PNG's header; ValueError where a chunk leaves the file (OpenCV
    allocates what a chunk announces).
    """
    position = 8
    while position <= len(content) - 12:
        position += 12 + int.from_bytes(content[position:position + 4], "big")
    if position != len(content) or position < 45:
        raise ValueError("its chunks do not fit into the file")
    width, height = struct.unpack_from(">II", content, 16)
    return height, width


def match_seeds(images: RecordSet, seeds: RecordSet) -> np.ndarray:
    """Position in ``seeds`` of each image's label map, (n,) int64; the two sets may hold other
    names beside and other orders.

    Raises
    ------
    InputError
        Naming the first images that have no label map or one of another size, or class tables that differ.
    """
    if seeds.kind != LABELS or images.kind != IMAGES:
        raise ValueError(f"needs a set of images and one of label maps, not {images.kind} and {seeds.kind}")
    require_same(seeds.classes.names, seeds.path, images.classes.names, images.path)
    if images.names == seeds.names:
        positions = np.arange(len(images))
    else:
        where = {name: position for position, name in enumerate(seeds.names)}
        positions = np.array([where.get(name, -1) for name in images.names], np.int64)
    missing = np.flatnonzero(positions < 0)
    if missing.size:
        raise InputError(f"lacks {missing.size} of {len(images)} label maps: "
                         f"{', '.join(images.names[int(i)] for i in missing[:5])}", file=seeds.path,
                         remedy="make seeds for every image and pack them with tools/prepare.py --seeds")
    other = np.flatnonzero((seeds.sizes[positions] != images.sizes).any(axis=1))
    if other.size:
        raise InputError(f"has {other.size} label maps of another size than their images: "
                         f"{', '.join(images.names[int(i)] for i in other[:5])}", file=seeds.path,
                         remedy=AGAIN)
    return positions


def _reopen(folder: str, name: str, identity: str) -> RecordSet:
    records = RecordSet.open(folder, name)
    if records.identity != identity:
        raise InputError("was packed anew while it was in use", file=records.path, remedy="start again")
    return records


def _open_part(path: str, expected: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot be opened ({error.strerror})", file=path, remedy=AGAIN) from error
    size = os.fstat(descriptor).st_size
    if size != expected:
        os.close(descriptor)
        raise InputError(f"has {size} bytes in place of {expected}", file=path, remedy=AGAIN)
    return descriptor
