"""Lists of image names, one a line."""
from __future__ import annotations

import os
from typing import Dict, Iterable, List, Tuple

from cian.errors import InputError, PathLike, Problems
from cian.files import IMAGE_SUFFIXES, atomic_write, read_text

LIST_FOLDER = os.path.join("ImageSets", "Segmentation")
MASK_FOLDER = "SegmentationClassAug"


def check_list(path: PathLike) -> Tuple[List[str], List[InputError]]:
    """The good names of a list file in its order, and every problem of it; InputError where the
    file cannot be read at all.
    """
    first_line: Dict[str, int] = {}
    problems = []
    for number, line in enumerate(read_text(path).rstrip().splitlines(), 1):
        name, where = image_name(line), f"line {number}"
        if not name:
            problems.append(InputError("is empty", file=path, field=where, remedy="remove the line"))
        elif len(name.split()) > 1:
            problems.append(InputError(f"holds {name!r}, not one name", file=path, field=where,
                                       remedy="write one image name a line, without labels"))
        elif not name.isprintable():
            problems.append(InputError(f"{name!r} holds characters that cannot be seen", file=path,
                                       field=where,
                                       remedy="remove them"))
        elif os.path.isabs(name) or ".." in name.split("/"):
            problems.append(InputError(f"{name!r} leaves the image folder", file=path, field=where))
        elif name in first_line:
            problems.append(InputError(f"{name!r} is already in line {first_line[name]}", file=path,
                                       field=where, remedy="remove the duplicate"))
        else:
            first_line[name] = number
    if not first_line and not problems:
        problems.append(InputError("holds no names", file=path))
    return list(first_line), problems


def image_name(text: str) -> str:
    """The name that a line of a list means: NAME, NAME.jpg, or DeepLab's two paths of an image and its
    label map; a line of another kind as it is.
    """
    words = text.split()
    if len(words) == 2 and all(word.endswith(IMAGE_SUFFIXES) for word in words):
        stems = [os.path.splitext(word)[0] for word in words]
        if os.path.basename(stems[0]) == os.path.basename(stems[1]):
            return os.path.basename(stems[0])
    name = os.path.normpath(text.strip()) if text.strip() else ""
    return os.path.splitext(name)[0] if name.endswith(IMAGE_SUFFIXES) else name


def read_list(path: PathLike) -> List[str]:
    """The names of a list file, in its order.

    Raises
    ------
    InputError
        Naming the file and the lines: duplicates, empty lines between names, more than one word in
        a line, no name at all.
    """
    names, problems = check_list(path)
    if problems:
        raise Problems(problems)
    return names


def list_path(root: PathLike, name_or_path: PathLike) -> str:
    """Path of a list: the file of that path where there is one, else NAME.txt in
    ROOT/ImageSets/Segmentation (it may be missing).
    """
    given = os.fspath(name_or_path)
    if not given:
        raise InputError("no list was named", remedy="name a file, or a list below ImageSets/Segmentation")
    if os.path.isfile(given) or not os.fspath(root):
        return given
    return os.path.join(root, LIST_FOLDER, given if given.endswith(".txt") else f"{given}.txt")


def resolve_list(root: PathLike, name_or_path: PathLike) -> List[str]:
    """Names of a list given as a file, or as a name below ROOT/ImageSets/Segmentation.

    ``train_aug`` is no file of the VOC download. Where it is missing it is derived as the community
    does: the names of all masks in ROOT/SegmentationClassAug that are not in the ``val`` list,
    sorted. The masks themselves are not opened.

    Raises
    ------
    InputError
        As :func:`read_list`; also when the list does not exist, naming the lists that do.
    """
    names, problems = check_resolved_list(root, name_or_path)
    if problems:
        raise Problems(problems)
    return names


def check_resolved_list(root: PathLike, name_or_path: PathLike) -> Tuple[List[str], List[InputError]]:
    """:func:`resolve_list` with the problems returned, as :func:`check_list` does."""
    path = list_path(root, name_or_path)
    if os.path.isfile(path):
        return check_list(path)
    masks = os.path.join(root, MASK_FOLDER)
    validation = list_path(root, "val")
    if os.fspath(name_or_path) == "train_aug" and os.path.isdir(masks) and os.path.isfile(validation):
        names = sorted({entry[:-4] for entry in os.listdir(masks) if entry.endswith(".png")}
                       - set(read_list(validation)))
        problems = [InputError(f"{name!r} is not UTF-8", file=masks, remedy="rename the file and its image")
                    for name in names if not name.isprintable()]
        return names, problems if names else [InputError("holds no mask beside those of the val list",
                                                         file=masks)]
    folder = os.path.dirname(path)
    known = sorted(entry[:-4]
                   for entry in os.listdir(folder) if entry.endswith(".txt")) if os.path.isdir(folder) else []
    raise InputError("does not exist", file=path,
                     remedy=f"lists there: {', '.join(known)}" if known else "name a list file")


def write_list(path: PathLike, names: Iterable[str]) -> None:
    """Write names one a line; the file is whole or absent."""
    with atomic_write(path, "w") as stream:
        stream.writelines(f"{name}\n" for name in names)
