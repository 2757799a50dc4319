"""What a reproduction needs before its first stage: lists, pictures, weights, saliency maps, masks,
devices and disk."""
from __future__ import annotations

import os
import shutil
from typing import Callable, Iterable, List

from cian.data.lists import MASK_FOLDER, resolve_list
from cian.errors import InputError, PathLike, collecting
from cian.symbols.cam import CAMClassifier
from cian.symbols.cian import CIAN
from cian.symbols.pretrained import read_pretrained
from cian.tools.engine.config import Config
from cian.tools.engine.devices import parse_devices
from cian.tools.engine.reproduction.plan import Place
from cian.tools.engine.reproduction.voc import check_voc

DISK_GB = 20  # of a table with ResNet-101: kept checkpoints and states, records, label maps of every row


def needs(place: Place, configs: Iterable[Config], *, voc: bool) -> List[InputError]:
    """Everything that is missing, each with its remedy.

    Parameters
    ----------
    place : data set and folders
    configs : the rows'
    voc : the data set is PASCAL VOC 2012, whose lists have known lengths
    """
    configs = [place.lay_under(config) for config in configs]
    problems: List[InputError] = []

    def tried(function: Callable[..., object], *arguments: object) -> None:
        with collecting(problems):
            function(*arguments)

    if voc:
        tried(check_voc, place.data, place.train_list, place.val_list)
    weights = [entry for config in configs
               for entry in ((config.network.pretrained, config.network.model, False),
                             (config.cam.pretrained, config.cam.model, True))]
    for pretrained, model, classifier in dict.fromkeys(weights):
        if pretrained and pretrained != "gluon":  # which is fetched when it is used
            net = CAMClassifier(model) if classifier else CIAN(model, affinity="none")
            tried(read_pretrained, net, pretrained)
    if any(config.seeds.saliency == "images" for config in configs):
        tried(_have, place.saliency_root, place.data, place.train_list, "--saliency-root")
    root, scored = place.scored
    masks = {config.data.mask_root or os.path.join(root, MASK_FOLDER) for config in configs}
    masks |= {os.path.join(place.data, MASK_FOLDER) for config in configs if config.seeds.strong_ratio}
    for folder in sorted(masks):
        tried(_have, folder, root, scored, "masks to measure with")
    for devices in {tuple(config.run.devices) for config in configs}:
        tried(parse_devices, devices)
    parent = next(folder for folder in (place.out, *place.out.parents) if folder.exists())
    free = shutil.disk_usage(parent).free / 1e9
    if voc and free < DISK_GB:
        problems.append(InputError(f"has {free:.0f} GB free, and a table takes about {DISK_GB}", file=parent,
                                   remedy="choose another --out"))
    return problems


def _have(folder: PathLike, root: PathLike, listed: str, what: str) -> None:
    """Refuse a folder that lacks the PNG of a name of the list."""
    names = resolve_list(root, listed)
    if not folder or not os.path.isdir(folder):
        raise InputError("is no folder" if folder else "no folder was named", file=folder or None, field=what,
                         remedy="docs/voc.md tells where they come from")
    present = set(os.listdir(folder))
    missing = [name for name in names if f"{name}.png" not in present]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} are missing, first {missing[0]}.png", file=folder,
                         field=what)
