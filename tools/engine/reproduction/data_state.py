"""The files of a data set beside the stages that were made from them: whether they are still the same."""
from __future__ import annotations

import os
from typing import Dict, List

from cian.data.lists import resolve_list
from cian.data.tree import DatasetTree
from cian.errors import InputError
from cian.tools.engine.ledger import Ledger, mark, unchanged
from cian.tools.engine.reproduction.plan import Place

ENTRY = "data set"


def data_files(place: Place) -> Dict[str, str]:
    """Everything that stages read of a data set: images, annotations, masks and saliency maps by a name."""
    tree = DatasetTree(place.data, classes=place.classes)
    root, scored_list = place.scored
    scored = DatasetTree(root, classes=place.classes)
    files: Dict[str, str] = {}
    for name in resolve_list(place.data, place.train_list):
        files[f"image {name}"] = tree.image_path(name)
        files[f"annotation {name}"] = tree.annotation_path(name)
        files[f"mask {name}"] = tree.mask_path(name)
        if place.saliency_root:
            files[f"saliency {name}"] = os.path.join(place.saliency_root, f"{name}.png")
    for name in resolve_list(root, scored_list):
        files[f"scored image {name}"] = scored.image_path(name)
        files[f"scored mask {name}"] = scored.mask_path(name)
    return files


def hold_to_data(place: Place) -> None:
    """Record the files of the data set in ``place.out``, or compare those that it has a record of.

    Raises
    ------
    InputError
        Naming the files that have another content than when the stages there were made.
    """
    os.makedirs(place.out, exist_ok=True)
    ledger, files = Ledger(place.out), data_files(place)
    known = dict(ledger[ENTRY].get("files", {}))
    changed: List[str] = [name for name, path in files.items() if name in known and not unchanged(path,
                                                                                                  known[name])]
    if changed:
        raise InputError(f"holds stages that were made from other files: {', '.join(changed[:5])}"
                         f"{', ...' if len(changed) > 5 else ''}", file=place.out,
                         remedy="name another --out, or put the data back")
    new = {name: mark(path) for name, path in files.items() if name not in known}
    if new:
        ledger.add(ENTRY, {**known, **new})
