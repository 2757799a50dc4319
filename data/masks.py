"""Masks in colours, as other programs export them, to index maps."""
from __future__ import annotations

import io
import os
from typing import Dict, List, Optional, Tuple

import numpy as np
from PIL import Image

from cian.data.classes import IGNORE, ClassTable, decode_label_png, palette, write_label_png
from cian.errors import InputError, PathLike, Problems, collecting
from cian.files import decoding, read_bytes, read_text

Colour = Tuple[int, int, int]
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
# What the field's tools call pixels that count nowhere.
IGNORED_NAMES = ("ignore", "ignored", "__ignore__", "void", "unlabeled", "unlabelled")


def voc_colours(classes: ClassTable) -> Dict[Colour, int]:
    """The classes by their colours, those of PASCAL VOC for their positions; and the ignored pixels'."""
    colours = palette()
    return {_colour(colours[index]): index for index in (*range(len(classes)), IGNORE)}


def read_colours(path: PathLike, classes: ClassTable) -> Dict[Colour, int]:
    """The classes by their colours of a file: lines ``NAME R G B``, or CVAT's ``NAME:R,G,B:parts:actions``.

    Names that mean ignored pixels (ignore, void, ...) may stand there; VOC's colour of those counts
    unless the file gives it to a class.

    Raises
    ------
    Problems
        Naming the lines: malformed, an unknown class, a colour twice; and the classes without a
        colour.
    """
    colours: Dict[Colour, int] = {}
    problems: List[InputError] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {number}"
        try:
            name, colour = _colour_line(line, path, where)
            index = IGNORE if name.lower() in IGNORED_NAMES else classes.index(name)
            if colour in colours:
                raise InputError(f"the colour {colour} occurs twice", file=path, field=where)
            colours[colour] = index
        except InputError as error:
            problems.append(InputError(error.problem, file=path, field=where, remedy=error.remedy))
    missing = [name for index, name in enumerate(classes.names) if index not in colours.values()]
    if missing and not problems:
        problems.append(InputError(f"has no colour for {', '.join(missing)}", file=path))
    if problems:
        raise Problems(problems)
    return {_colour(palette()[IGNORE]): IGNORE, **colours}


def _colour_line(line: str, path: PathLike, where: str) -> Tuple[str, Colour]:
    name, colon, rest = line.strip().partition(":")
    words = [name.strip(), *rest.split(":")[0].split(",")] if colon else line.replace(",", " ").split()
    levels = [int(word) for word in words[1:] if word.strip().isdecimal()]
    if len(words) != 4 or len(levels) != 3 or max(levels) > 255:
        raise InputError(f"{line.strip()!r} is no class with a colour", file=path, field=where,
                         remedy="write NAME R G B, each 0..255")
    return words[0], (levels[0], levels[1], levels[2])


def _colour(levels: np.ndarray) -> Colour:
    return int(levels[0]), int(levels[1]), int(levels[2])


def convert_masks(source: PathLike, target: PathLike, classes: ClassTable,
                  colours: Optional[Dict[Colour, int]]) -> int:
    """Write ``target``/NAME.png, an index map, for every mask directly in ``source``; returns how many.

    Parameters
    ----------
    colours : class by colour; None keeps the values of gray and palette PNGs.

    Raises
    ------
    Problems
        Naming every mask that cannot be read, or holds a colour or a value that no class has;
        nothing was written then.
    """
    source = os.fspath(source)
    if not os.path.isdir(source):
        raise InputError("is not a folder", file=source, remedy="name the folder of the masks")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise InputError("is the folder of the masks itself", file=target, remedy="write to another folder")
    files = sorted(name for name in os.listdir(source) if name.lower().endswith(MASK_SUFFIXES))
    problems = [] if files else [InputError("holds no masks", file=source)]
    for write in (False, True):
        for name in files:
            path = os.path.join(source, name)
            with collecting(problems):
                labels = index_map(read_bytes(path), path, classes, colours)
                if write:
                    write_label_png(os.path.join(target, f"{os.path.splitext(name)[0]}.png"), labels)
        if problems:
            raise Problems(problems)
    return len(files)


def index_map(content: bytes, path: PathLike, classes: ClassTable,
              colours: Optional[Dict[Colour, int]]) -> np.ndarray:
    """(H, W) uint8 class indices of one mask file; parameters and errors as :func:`convert_masks`."""
    if colours is None:
        return decode_label_png(content, path, len(classes), check_palette=False)
    with decoding(path, "is no image, or a damaged one", "copy it again"):
        with Image.open(io.BytesIO(content)) as picture:
            picture.verify()
        with Image.open(io.BytesIO(content)) as picture:
            mode, levels = picture.mode, np.asarray(picture.convert("RGB"), np.int32)
    if mode not in ("RGB", "RGBA", "P", "PA"):
        raise InputError(f"holds no colours (Pillow's mode {mode})", file=path,
                         remedy="gray masks of class indices need no conversion")
    codes = levels[..., 0] << 16 | levels[..., 1] << 8 | levels[..., 2]
    found, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    known = [colours.get((code >> 16, code >> 8 & 255, code & 255)) for code in found.tolist()]
    strange = [(f"({code >> 16}, {code >> 8 & 255}, {code & 255})", count)
               for code, count, index in zip(found.tolist(), counts.tolist(), known) if index is None]
    if strange:
        raise InputError(f"holds {len(strange)} colours that no class has: " + ", ".join(
            f"{colour} in {count} pixels" for colour, count in strange[:5]), file=path,
            remedy="give the colours of the classes with --colours; a mask with blended edges (JPEG, or "
            "resized) cannot be converted")
    table = np.array([IGNORE if index is None else index for index in known], np.uint8)
    return table[places.reshape(codes.shape)]
