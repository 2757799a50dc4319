"""What a folder of label maps says about itself: the manifest beside maps that this program has made."""
from __future__ import annotations

import os
from typing import Iterable, Optional

from cian.data.classes import ClassTable, require_same
from cian.data.pictures import refuse_turned
from cian.errors import PathLike
from cian.files import read_json

SEEDS, PREDICTIONS = "seeds.json", "predictions.json"


def label_manifest(folder: PathLike) -> Optional[str]:
    """Path of the manifest in a folder of seeds or predictions, or None where this program did not
    make it.
    """
    paths = [os.path.join(os.fspath(folder), name) for name in (SEEDS, PREDICTIONS)]
    return next((path for path in paths if os.path.exists(path)), None)


def check_label_folder(folder: PathLike, classes: ClassTable, beside: PathLike, what: str,
                       turned: Iterable[str] = ()) -> None:
    """Refuse a folder of label maps that cannot be put beside images.

    Parameters
    ----------
    classes, beside : class table of the images, and the file or folder that has it.
    what : 'seeds', 'masks' and so on, for the message.
    turned : names of images that EXIF says are to be turned.

    Raises
    ------
    InputError
        The folder's manifest names other classes; or the maps are of another origin, and there are
        images that are turned.
    """
    path = label_manifest(folder)
    if path is None:
        refuse_turned(turned, what, folder)
        return
    names = read_json(path, "manifest of label maps", "make them again").get("classes")
    if isinstance(names, list):
        require_same(names, path, classes.names, beside)
