"""The flags that several tools share, by group; each sets one key of the configuration and takes
its help from the schema.
"""
from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple

import yaml

from cian.tools.engine.config import PRESETS, SECTIONS

# Flags of a group: their names, and the configuration key that they set. The help is the key's.
FLAGS: Dict[str, Tuple[Tuple[Tuple[str, ...], str], ...]] = {
    "data": (
        (("--data",), "data.root"),
        (("--image-root",), "data.image_root"),
        (("--annotation-root",), "data.annotation_root"),
        (("--labels-file",), "data.labels_file"),
        (("--label-root",), "data.label_root"),
        (("--classes",), "data.classes"),
        (("--train-list",), "data.train_list"),
        (("--test-list", "--val-list"), "data.val_list"),
        (("--records",), "data.records"),
    ),
    "masks": (
        (("--groundtruth-root", "--mask-root"), "data.mask_root"),
    ),
    "network": (
        (("--model",), "network.model"),
        (("--affinity",), "network.affinity"),
        (("--group-size", "--group_size"), "network.group_size"),
        (("--merge-type",), "network.merge_type"),
        (("--pretrained",), "network.pretrained"),
    ),
    "training": (
        (("--num-epoch", "--epochs"), "train.epochs"),
        (("--batch-size",), "train.batch_size"),
        (("--image-size",), "train.crop_px"),
        (("--lr",), "train.lr"),
        (("--pairing",), "train.pairing"),
        (("--seed",), "train.seed"),
        (("--log-frequency",), "train.log_every"),
        (("--num-save",), "train.keep"),
        (("--save-every",), "train.save_every"),
        (("--data-list",), "data.train_list"),
    ),
    "classifier": (
        (("--model",), "cam.model"),
        (("--pretrained",), "cam.pretrained"),
        (("--num-epoch", "--epochs"), "cam.epochs"),
        (("--batch-size",), "cam.batch_size"),
        (("--image-size",), "cam.crop_px"),
        (("--lr",), "cam.lr"),
        (("--seed",), "cam.seed"),
    ),
    "seeds": (
        (("--saliency",), "seeds.saliency"),
        (("--saliency-root",), "seeds.saliency_root"),
        (("--foreground-threshold",), "seeds.foreground_threshold"),
        (("--background-threshold",), "seeds.background_threshold"),
    ),
    "prediction": (
        (("--image-size",), "predict.size_px"),
        (("--fit",), "predict.fit"),
        (("--no-mirror",), "predict.mirror"),
        (("--crf",), "predict.crf"),
        (("--data-list",), "data.val_list"),
        (("--processes",), "run.processes"),
    ),
    "run": (
        (("--snapshot",), "run.snapshot"),
        (("--devices",), "run.devices"),
        (("--workers",), "run.workers"),
    ),
}


def add_flags(parser: argparse.ArgumentParser, groups: Sequence[str]) -> None:
    """Add the flags of the named groups of :data:`FLAGS`; where two groups share a flag, the first
    one has it. A flag's value is stored
    under its key (``train.lr``), None where it was not given."""
    taken: Set[str] = set()
    for name in groups:
        group = parser.add_argument_group(name)
        for names, key in FLAGS[name]:
            free = [flag for flag in names if flag not in taken]
            if free:
                _add_flag(group, free, key)
            taken.update(names)
        if name == "network":
            group.add_argument("--num-cls", type=int, metavar="N",
                               help="number of classes with background, checked against the class list")
        if name == "prediction":
            group.add_argument("--no-ms", action="store_true",
                               help="scale 1 only: predict.scales=1 predict.add_max=false")
        if name == "run":
            group.add_argument("--gpus", dest="run.devices", metavar="0,1",
                               type=lambda text: tuple(f"gpu:{number.strip()}" for number in text.split(",")),
                               help="the same as --devices gpu:0,gpu:1")


def _add_flag(group: Any, names: List[str], key: str) -> None:
    section, name = key.split(".")
    schema = next(f for f in dataclasses.fields(SECTIONS[section]) if f.name == name)
    kind = typing.get_type_hints(SECTIONS[section])[name]
    text = f"{schema.metadata['help']} {_default(key, schema)}".replace("%", "%%")
    if kind is bool:
        off = names[0].startswith("--no-")
        group.add_argument(*names, dest=key, action="store_const", const=not off, default=None,
                           help=("not: " if off else "") + text)
        return
    reader: Callable[[str], Any] = {int: int, float: float}.get(kind, str)
    group.add_argument(*names, dest=key, type=reader,
                       metavar=_metavar(kind, name, schema.metadata["choices"]), help=text)


def _metavar(kind: Any, name: str, choices: Tuple[Any, ...]) -> str:
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    if kind is int:
        return "N"
    if kind is float:
        return "X"
    if name in ("devices", "model", "snapshot"):
        return {"devices": "cpu:0,...", "model": "NAME", "snapshot": "FOLDER"}[name]
    return "FOLDER" if name.endswith("root") or name == "records" else "FILE"


def _default(key: str, schema: Any) -> str:
    """[key, default value], with the default of the preset 'paper' where it differs."""
    section, name = key.split(".")
    paper = PRESETS["paper"].get(section, {})
    parts = [key] + ([] if schema.default == "" else [f"default {value_text(schema.default)}"])
    return "[" + "; ".join(parts + ([f"paper {value_text(paper[name])}"] if name in paper else [])) + "]"


def value_text(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([value], default_flow_style=True, width=10 ** 6).strip()[1:-1]
