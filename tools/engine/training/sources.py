"""The record sets that a training run reads. Ground-truth masks have no place here: no stage of
training opens them.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

from cian.data.classes import load_classes, require_same
from cian.data.lists import resolve_list
from cian.data.preparation import prepare, prepare_seeds
from cian.data.records import RecordSet
from cian.errors import InputError, PathLike
from cian.files import changed_keys
from cian.tools.engine.config import Config
from cian.tools.engine.images import data_tree
from cian.tools.engine.ledger import mark

ANEW = "use another --snapshot, or --fresh to remove its checkpoints and start anew"


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

    Without ``data.records`` the files are checked and packed into ``SNAPSHOT/records``, unless they
    are there already. With it, images come from there, and seeds too, unless ``data.label_root``
    names others: those are packed into ``SNAPSHOT/records``.

    Raises
    ------
    InputError
        Nothing was named to read, or a file is wrong; several problems are listed in one
        :class:`~cian.errors.Problems`.
    """
    data, own = config.data, os.path.join(config.run.snapshot, "records")
    name = list_name(data.train_list)
    if data.records:
        images = _named_classes(config, RecordSet.open(data.records, name))
        seeds = prepare_seeds(images, data.label_root, own,
                              workers=config.run.workers) if data.label_root else RecordSet.open(
            data.records, f"{name}_seeds")
        return images, seeds
    if not data.label_root:
        raise InputError("no seeds were named", field="data.label_root",
                         remedy="give --label-root, the folder of NAME.png seeds, or --records, what "
                         "tools/prepare.py --seeds packed")
    prepared = prepare(data_tree(data), data.train_list, own, workers=config.run.workers)
    if prepared.seeds is None:
        raise RuntimeError("prepare() packs seeds where the tree has a label_root")
    return prepared.images, prepared.seeds


def open_images(config: Config, name_or_path: str) -> RecordSet:
    """The packed images of a list, with their image-level labels: from ``data.records``, else
    packed into ``SNAPSHOT/records``.

    Raises
    ------
    InputError
        As :func:`open_training_records`, or when there is no folder to pack into.
    """
    if config.data.records:
        return _named_classes(config, RecordSet.open(config.data.records, list_name(name_or_path)))
    if not config.run.snapshot:
        raise InputError(
            "no folder of packed images was named", field="data.records",
            remedy="give --records, what tools/prepare.py packed, or --snapshot to pack them below it")
    tree = data_tree(config.data, seeds=False)
    return prepare(tree, name_or_path, os.path.join(config.run.snapshot, "records"),
                   workers=config.run.workers).images


def run_sources(config: Config, start: PathLike, images: RecordSet, seeds: RecordSet) -> Dict[str, str]:
    """The content that a run depends on: its images, seeds and first weights, by their digests."""
    weights = os.fspath(start) or config.network.pretrained
    return {"images": images.identity, "seeds": seeds.identity,
            "first weights": mark(weights)[-1] if os.path.isfile(weights) else weights or "random"}


def refuse_other_sources(state: Optional[Mapping[str, Any]], sources: Mapping[str, str],
                          snapshot: PathLike) -> None:
    """Refuse to go on with other content under the same names."""
    changed = changed_keys(state["sources"], sources) if state else []
    if changed:
        raise InputError(f"belongs to a run whose {' and '.join(changed)} had another content",
                         file=snapshot, remedy=ANEW)


def _named_classes(config: Config, images: RecordSet) -> RecordSet:
    """The set, if a class list that was named is its own."""
    if config.data.classes != "voc":
        require_same(images.classes.names, images.path, load_classes(config.data.classes).names,
                     config.data.classes)
    return images
