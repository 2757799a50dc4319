"""The command line that all tools share: configuration files, overrides, and the flags that users of the original code know.

A tool builds its parser with :func:`make_parser`, adds what is its own, and turns the parsed arguments into a configuration with
:func:`config_from`. Nothing here imports MXNet: the number of its threads depends on the devices, which are known only afterwards.
"""
from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Set, Tuple

import yaml

from cian.errors import InputError
from cian.tools.engine.config import PRESETS, SECTIONS, Config, load_config
from cian.tools.engine.devices import limit_threads

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
    ),
    "run": (
        (("--snapshot",), "run.snapshot"),
        (("--devices",), "run.devices"),
        (("--workers",), "run.workers"),
    ),
}


class _Parser(argparse.ArgumentParser):
    """Errors are one line (an :class:`InputError`), and ``section.key=value`` may stand between flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, field="command line", remedy=f"see {self.prog} --help")

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        return self.parse_intermixed_args(args, namespace)


def make_parser(description: str, groups: Sequence[str], epilog: str = "") -> argparse.ArgumentParser:
    """A parser with the shared flags of the named groups.

    Parameters
    ----------
    description, epilog : text above and below the flags in ``--help``.
    groups : keys of :data:`FLAGS`; where two groups share a flag, the first one has it.

    Raises
    ------
    InputError
        By ``parse_args``, in place of argparse's usage and exit.
    """
    parser = _Parser(description=description, epilog=epilog, allow_abbrev=False, usage="%(prog)s [flags] [section.key=value ...]",
                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=120))
    shared = parser.add_argument_group("configuration")
    shared.add_argument("-c", "--config", action="append", default=[], metavar="FILE",
                        help="YAML file of sections and keys; repeatable, the last wins")
    shared.add_argument("--preset", choices=sorted(PRESETS),
                        help="original: what the released code does (default); paper: what the text says")
    shared.add_argument("--print-config", action="store_true", help="print the resolved configuration with all keys, and stop")
    shared.add_argument("overrides", nargs="*", metavar="section.key=value",
                        help="any key of the configuration; wins over files and flags")
    taken: Set[str] = set()
    for name in groups:
        group = parser.add_argument_group(name)
        for names, key in FLAGS[name]:
            free = [flag for flag in names if flag not in taken]
            if free:
                _add_flag(group, free, key)
            taken.update(names)
        if name == "network":
            group.add_argument("--num-cls", type=int, metavar="N", help="number of classes with background, checked against the class list")
        if name == "prediction":
            group.add_argument("--no-ms", action="store_true", help="scale 1 only: predict.scales=1 predict.add_max=false")
        if name == "run":
            group.add_argument("--gpus", type=_gpus, dest="run.devices", metavar="0,1", help="the same as --devices gpu:0,gpu:1")
    return parser


def config_from(args: argparse.Namespace, files: Sequence[str] = ()) -> Config:
    """The configuration that parsed arguments ask for; ``files`` are laid under those of ``--config``.

    Also sets the number of MXNet's threads that the devices need, so call it before anything that imports MXNet. With
    ``--print-config`` it prints the configuration and ends the process with code 0.

    Raises
    ------
    InputError
        Naming flag, key or file.
    """
    flags: Dict[str, Dict[str, Any]] = {}
    for key, value in vars(args).items():
        if "." in key and value is not None:
            section, name = key.split(".")
            flags.setdefault(section, {})[name] = value
    if getattr(args, "no_ms", False):
        flags.setdefault("predict", {}).update(scales=(1.0,), add_max=False)
    config = load_config([*files, *args.config], args.overrides, args.preset, flags)
    if args.print_config:
        print(describe(config))
        raise SystemExit(0)
    limit_threads(config.run.devices)
    if getattr(args, "num_cls", None) is not None:
        _check_num_cls(args.num_cls, config)
    return config


def describe(config: Config) -> str:
    """The configuration as YAML, each key with its help, and the hash."""
    lines: List[str] = [f"# hash: {config.hash()}", f"preset: {config.preset}"]
    for section, kind in SECTIONS.items():
        lines.append(f"{section}:")
        for key in dataclasses.fields(kind):
            value = _text(getattr(getattr(config, section), key.name))
            lines.append(f"  {key.name + ': ' + value:<32}  # {key.metadata['help']}")
    return "\n".join(lines)


def _add_flag(group: Any, names: List[str], key: str) -> None:
    section, name = key.split(".")
    schema = next(f for f in dataclasses.fields(SECTIONS[section]) if f.name == name)
    kind = typing.get_type_hints(SECTIONS[section])[name]
    text = f"{schema.metadata['help']} {_default(key, schema)}".replace("%", "%%")
    if kind is bool:
        off = names[0].startswith("--no-")
        group.add_argument(*names, dest=key, action="store_const", const=not off, default=None, help=("not: " if off else "") + text)
        return
    reader: Callable[[str], Any] = {int: int, float: float}.get(kind, str)
    group.add_argument(*names, dest=key, type=reader, metavar=_metavar(kind, name, schema.metadata["choices"]), help=text)


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
    parts = [key] + ([] if schema.default == "" else [f"default {_text(schema.default)}"])
    return "[" + "; ".join(parts + ([f"paper {_text(paper[name])}"] if name in paper else [])) + "]"


def _text(value: Any) -> str:
    """A value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([value], default_flow_style=True, width=10 ** 6).strip()[1:-1]


def _gpus(text: str) -> Tuple[str, ...]:
    return tuple(f"gpu:{number.strip()}" for number in text.split(","))


def _check_num_cls(num_cls: int, config: Config) -> None:
    from cian.data.classes import load_classes
    have: Optional[int] = load_classes(config.data.classes).num_classes
    if have != num_cls:
        raise InputError(f"{num_cls} classes were announced, but the class list '{config.data.classes}' has {have} with background",
                         field="--num-cls", remedy="give the list with --classes FILE, background first")
