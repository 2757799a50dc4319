"""The class table, its colours, and label maps as PNG files."""
from __future__ import annotations

import difflib
import functools
import io
import os
import struct
from typing import Iterable, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from cian.choices import IGNORE
from cian.data.label_png import GRAY, PALETTE, decode_index_png, palette_of
from cian.data.pictures import UPRIGHT, png_orientation
from cian.errors import InputError, PathLike
from cian.files import atomic_write, decoding, read_bytes, read_text

# Far above any photograph; Pillow warns of larger pictures, and a filter for that warning would not
# be safe between threads.
MAX_PIXELS = 2 ** 26
BACKGROUND = "background"
VOC_CLASSES: Tuple[str, ...] = (BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
                                "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
                                "pottedplant", "sheep", "sofa", "train", "tvmonitor")


class ClassTable:
    """Names of the classes; the position is the value of a pixel, and position 0 is the background.

    Parameters
    ----------
    names : class names, 'background' first, at most 255 (255 is the ignored value).
    file : where they come from, for messages.
    """

    def __init__(self, names: Iterable[str], file: Optional[PathLike] = None) -> None:
        self.names: Tuple[str, ...] = tuple(names)
        self.file = None if file is None else os.fspath(file)
        if len(self.names) < 2 or self.names[0] != BACKGROUND:
            raise InputError(f"the first class must be '{BACKGROUND}' and at least one more must follow",
                             file=file, remedy="write one class a line, background first")
        if len(self.names) > IGNORE:
            raise InputError(
                f"{len(self.names)} classes do not fit into a label map, which has {IGNORE} values",
                file=file)
        self._index = {name: index for index, name in enumerate(self.names)}
        for line, name in enumerate(self.names, 1):
            if not name or name.split() != [name]:
                raise InputError(f"a class name must be one word, not {name!r}", file=file,
                                 field=f"line {line}")
            if self._index[name] != line - 1:
                raise InputError(f"the class {name!r} occurs twice", file=file,
                                 field=f"lines {line} and {self._index[name] + 1}")

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassTable) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"ClassTable({len(self.names)} classes: {', '.join(self.names)})"

    @property
    def num_classes(self) -> int:
        """Number of classes with the background."""
        return len(self.names)

    @property
    def foreground(self) -> Tuple[str, ...]:
        """Names without the background."""
        return self.names[1:]

    def index(self, name: str) -> int:
        """Pixel value of a class; an :class:`InputError` that names it and the closest known one
        otherwise.
        """
        if name not in self._index:
            close = difflib.get_close_matches(name, self.names, 1)
            raise InputError(f"unknown class {name!r}", remedy=f"did you mean {close[0]!r}?" if close else
                             f"known classes: {', '.join(self.foreground)}")
        return self._index[name]


def load_classes(source: PathLike = "voc") -> ClassTable:
    """The class table of VOC for 'voc', else that of a text file with one class a line, background first."""
    if os.fspath(source) == "voc":
        return ClassTable(VOC_CLASSES)
    return ClassTable((line.strip() for line in read_text(source).rstrip().splitlines()), file=source)


def require_same(names: Sequence[str], file: PathLike, other: Sequence[str], other_file: PathLike) -> None:
    """Refuse two things of different class names, which one stage is about to put together.

    Raises
    ------
    InputError
        Naming both files and the first class at which they differ.
    """
    if list(names) == list(other):
        return
    at = next((index for index, pair in enumerate(zip(names, other)) if pair[0] != pair[1]),
              min(len(names), len(other)))
    here, there = (f"'{table[at]}'" if at < len(table) else "missing" for table in (names, other))
    raise InputError(f"has other classes than {other_file}: class {at} is {here} here and {there} there "
                     f"({len(names)} and {len(other)} with background)", file=file, field="classes",
                     remedy="name the class list that both were made with (--classes), or make one again")


@functools.lru_cache(maxsize=1)
def _palette_bytes() -> bytes:
    """VOC's colour map: bit 7 - k of red, green and blue are bits 3k, 3k + 1 and 3k + 2 of the index."""
    return bytes(sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(3))
                 for index in range(256) for channel in range(3))


def palette() -> np.ndarray:
    """The colours of PASCAL VOC as (256, 3) uint8 RGB; the last one is that of ignored pixels."""
    return np.frombuffer(_palette_bytes(), np.uint8).reshape(256, 3).copy()


def write_label_png(path: PathLike, labels: np.ndarray) -> None:
    """Write an (H, W) array of class indices 0..255 as a PNG with VOC's palette; the file is whole
    or absent.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"a label map has shape (H, W), not {labels.shape}")
    if labels.dtype != np.uint8:
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 255:
            raise ValueError(
                f"a label map holds integers 0..255, not {labels.dtype} in [{labels.min()}, {labels.max()}]")
        labels = labels.astype(np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette(_palette_bytes())
    with atomic_write(path) as stream:
        picture.save(stream, "png")


def read_label_png(path: PathLike, num_classes: Optional[int] = None, *,
                   palette_classes: Optional[int] = None) -> np.ndarray:
    """Read a palette or 8-bit gray PNG as (H, W) uint8 class indices.

    Parameters
    ----------
    num_classes : refuse pixels that are neither below it nor 255.
    palette_classes : classes whose colours a palette must not give to other indices; default
        ``num_classes``, or all.

    Raises
    ------
    InputError
        Naming the file: missing, damaged, turned by EXIF, colours in place of indices, colours of
        other classes than the indices', or a value that no class has.
    """
    return decode_label_png(read_bytes(path), path, num_classes, palette_classes=palette_classes)


def decode_label_png(content: bytes, path: PathLike, num_classes: Optional[int] = None, *,
                     palette_classes: Optional[int] = None, check_palette: bool = True) -> np.ndarray:
    """:func:`read_label_png` of a file's content; ``path`` is for messages, and without
    ``check_palette`` the values count, whatever colours they have.
    """
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
        raise InputError("is not a PNG file", file=path, remedy="label maps are palette or gray PNG files")
    bit_depth, colour_type = struct.unpack_from(">BB", content, 24)
    if colour_type not in (GRAY, PALETTE):
        raise InputError("holds colours in place of class indices", file=path,
                         remedy="tools/convert_masks.py makes index maps of masks in colours")
    if colour_type == GRAY and bit_depth != 8:
        raise InputError(f"has {bit_depth} bits a pixel in place of 8", file=path,
                         remedy="save the class indices as a palette or 8-bit gray PNG")
    width, height = struct.unpack_from(">II", content, 16)
    if width * height > MAX_PIXELS:
        raise InputError(f"announces {width}x{height} pixels, which no label map has", file=path,
                         remedy="make or copy it again")
    if b"eXIf" in content and png_orientation(content) != UPRIGHT:
        raise InputError("has an EXIF orientation, and label maps have none", file=path,
                         remedy="store it upright")
    labels = decode_index_png(content)
    if labels is None:
        labels = _decode_any_png(content, path)
    if colour_type == PALETTE and check_palette:
        _check_colours(labels, palette_of(content), path, palette_classes or num_classes)
    if num_classes is not None:
        strangers = np.flatnonzero(np.bincount(labels.ravel(),
                                               minlength=256)[num_classes:IGNORE]) + num_classes
        if strangers.size:
            raise InputError(
                f"holds the value {', '.join(map(str, strangers[:5]))}, but there are {num_classes} classes",
                file=path, remedy=f"use values 0..{num_classes - 1} and {IGNORE} for ignored pixels")
    return labels


def _decode_any_png(content: bytes, path: PathLike) -> np.ndarray:
    with decoding(path, "is damaged", "make or copy it again"):
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()  # every chunk's checksum
        with Image.open(io.BytesIO(content)) as picture:
            return np.array(picture, np.uint8)


def _check_colours(labels: np.ndarray, colours: bytes, path: PathLike, num_classes: Optional[int]) -> None:
    """Refuse a palette in which an index that occurs has the colour of another class.

    Colours that no class has say nothing, and neither does one that its own class has as well (as
    black, with which a short palette is filled up).
    """
    voc = _palette_bytes()
    if voc.startswith(colours):
        return
    classes = [*range(IGNORE if num_classes is None else num_classes), IGNORE]
    owner = {voc[3 * index:3 * index + 3]: index for index in reversed(classes)}
    for value in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist():
        colour = colours[3 * value:3 * value + 3]
        index = owner.get(colour, value)
        if index != value and colours[3 * index:3 * index + 3] != colour:
            raise InputError(f"gives the value {value} the colour {tuple(colour)}, which is that of class "
                             f"{index}: another program has ordered its palette anew", file=path,
                             remedy="make index maps of its colours with tools/convert_masks.py, or, if the "
                             "values are right, with its --by index")
