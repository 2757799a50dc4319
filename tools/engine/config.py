"""The one configuration: presets, YAML files and command-line overrides over the sections of
:mod:`~cian.tools.engine.schema`, and the hash of a run.

A configuration is a :class:`Config` of frozen dataclasses. It comes from, in this order: the
schema's defaults, the preset (``original`` or ``paper``), YAML files (each may name a ``base``
file), then ``section.key=value`` from the command line. Unknown keys and wrong types are refused by
name.
"""
from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import typing
from dataclasses import dataclass, fields
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import yaml

from cian.errors import InputError, PathLike
from cian.files import atomic_write_bytes, read_text
from cian.tools.engine.schema import (
    CamConfig,
    DataConfig,
    LossConfig,
    NetworkConfig,
    PredictConfig,
    RunConfig,
    SeedConfig,
    TrainConfig,
)
from cian.tools.engine.values import Written, items, read_layers, scalar


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of."""

    preset: str = "original"
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    cam: CamConfig = CamConfig()
    seeds: SeedConfig = SeedConfig()
    predict: PredictConfig = PredictConfig()
    run: RunConfig = RunConfig()

    def replace(self, **sections: Mapping[str, Any]) -> Config:
        """A copy with keys of sections replaced: ``config.replace(train={"epochs": 3})``. Same
        checks as a file's.
        """
        return _merge(self, sections, "replace()")

    def to_dict(self) -> Dict[str, Any]:
        """Plain nested dict of lists, strings and numbers, ready for YAML or JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def hash(self, sections: Iterable[str] = ("preset", "network", "loss", "train", "cam", "seeds", "predict",
                                              "run")) -> str:
        """Twelve hexadecimal digits of SHA-256 over the hashed keys of the named sections (SHA-256
        of a canonical JSON).
        """
        content: Dict[str, Any] = {}
        for name in sorted(sections):
            section = getattr(self, name)
            content[name] = section if isinstance(section, str) else _hashed(section)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def hashed_keys(self, sections: Iterable[str]) -> Dict[str, Any]:
        """The hashed keys of the named sections and their values, by their full names (``train.lr``)."""
        return {f"{name}.{key}": value for name in sections
                for key, value in _hashed(getattr(self, name)).items()}


def _hashed(section: Any) -> Dict[str, Any]:
    values = {key.name: getattr(section, key.name) for key in fields(section) if key.metadata["hashed"]}
    usual = {key.name: key.default for key in fields(section) if key.metadata["hashed"] == "changed"}
    return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


SECTIONS: Dict[str, type] = {name: kind
                             for name, kind in typing.get_type_hints(Config).items() if name != "preset"}

# What a preset changes of the schema's defaults. 'original' is what the released code does and
# equals the defaults.
PRESETS: Dict[str, Dict[str, Dict[str, Any]]] = {"original": {}, "paper": {
    "loss": {"completion_labels": "image", "completion_target": "own", "normalise": "image"},
    "train": {"label_padding": "ignore", "label_resize": "nearest", "lr_decay": "iteration",
              "order": "counter"}}}


def load_config(files: Iterable[PathLike] = (), overrides: Iterable[str] = (), preset: Optional[str] = None,
                flags: Optional[Mapping[str, Mapping[str, Any]]] = None,
                defaults: Optional[Mapping[str, Mapping[str, Any]]] = None) -> Config:
    """Resolve a configuration.

    Parameters
    ----------
    files : paths of YAML files, later ones win; a file may name ``base: other.yaml`` (relative to
        itself) and ``preset:``.
    overrides : ``section.key=value`` strings; see :mod:`~cian.tools.engine.values` for values.
    preset : 'original' or 'paper'; wins over the files' own.
    flags : sections of keys with values of the schema's types, laid over the files and under ``overrides``.
    defaults : likewise, laid over the preset and under the files.

    Raises
    ------
    InputError
        Naming file, key and remedy: unreadable or invalid YAML, unknown section or key, wrong type,
        value out of range.
    """
    layers: List[Tuple[str, Dict[str, Any]]] = []
    for name in files:
        layers.extend(read_layers(os.fspath(name)))
    overridden: Dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if key.strip() == "preset" and equals:
            preset = value.strip()
            continue
        if not (equals and dot):
            raise InputError(f"'{text}' is not of the form section.key=value", field="command line",
                             remedy="write for example train.epochs=3")
        overridden.setdefault(section, {})[name] = Written(value)
    given = {section: {key: Written(value) if isinstance(value, str) else value for key,
                       value in keys.items()}
             for section, keys in (flags or {}).items()}
    layers.extend([("command line", given), ("command line", overridden)])
    presets = [(source, layer.pop("preset")) for source, layer in layers if "preset" in layer]
    source, chosen = ("command line", preset) if preset else presets[-1] if presets else ("", "original")
    if str(chosen) not in PRESETS:
        raise InputError(f"unknown preset {chosen!r}", file=source, field="preset",
                         remedy=f"use one of: {', '.join(PRESETS)}")
    config = dataclasses.replace(_merge(Config(), PRESETS[str(chosen)], f"preset {chosen}"),
                                 preset=str(chosen)).replace(**(defaults or {}))
    for source, layer in layers:
        config = _merge(config, layer, source)
    return config


def save_config(config: Config, path: PathLike) -> None:
    """Write the resolved configuration as YAML, with its hash in a comment on the first line;
    replaces the file at once.
    """
    text = f"# hash: {config.hash()}\n" + yaml.safe_dump(config.to_dict(), sort_keys=False)
    atomic_write_bytes(path, text.encode())


def check_recorded(path: PathLike) -> Config:
    """The configuration that :func:`save_config` has written, after its hash was compared.

    Raises
    ------
    InputError
        As :func:`load_config`, and when the file has other settings than it was written with.
    """
    config = load_config([path])
    if read_text(path).split("\n", 1)[0] != f"# hash: {config.hash()}":
        raise InputError("holds other settings than were recorded", file=path, field="hash",
                         remedy="restore it, or give the settings with -c")
    return config


def _merge(config: Config, layer: Mapping[str, Any], source: str) -> Config:
    """``config`` with the sections of ``layer`` laid over it; every key checked."""
    changed: Dict[str, Any] = {}
    for name, values in layer.items():
        if name not in SECTIONS:
            raise InputError(f"unknown section {name!r}", file=source, remedy=_suggest(str(name), SECTIONS))
        if not isinstance(values, Mapping):
            raise InputError(f"must hold keys, not {values!r}", file=source, field=name)
        known = {f.name: f for f in fields(SECTIONS[name])}
        checked = {}
        for key, value in values.items():
            if key not in known:
                raise InputError(f"unknown key {key!r}", file=source, field=f"{name}.{key}",
                                 remedy=_suggest(str(key), known))
            checked[key] = _check(value, known[key], typing.get_type_hints(SECTIONS[name])[key], source,
                                  f"{name}.{key}")
        changed[name] = dataclasses.replace(getattr(config, name), **checked)
    return dataclasses.replace(config, **changed)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _check(value: Any, key: dataclasses.Field[Any], kind: Any, source: str, name: str) -> Any:
    """``value`` converted to the key's type, or an :class:`InputError` that names it."""
    low, high = key.metadata["low"], key.metadata["high"]
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_in_range(scalar(entry, item, source, name), low, high, source, name)
                     for entry in items(value, source, name))
    converted = _in_range(scalar(value, kind, source, name), low, high, source, name)
    choices = key.metadata["choices"]
    if choices and converted not in choices:
        raise InputError(f"{converted!r} is not allowed", file=source, field=name,
                         remedy=f"use one of: {', '.join(map(str, choices))}")
    return converted


def _in_range(value: Any, low: Optional[float], high: Optional[float], source: str, name: str) -> Any:
    if low is not None and not value >= low:
        raise InputError(f"{value!r} is below {low:g}", file=source, field=name)
    if high is not None and not value <= high:
        raise InputError(f"{value!r} is above {high:g}", file=source, field=name)
    return value
