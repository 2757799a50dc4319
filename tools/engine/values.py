"""Values of the configuration as they are written: a value means what stands there, and nothing is dropped.

YAML 1.1 takes 2024_05_01 for a number, 12:30 for 750 seconds, off for a truth value and the rest of
a line after # for a comment. Here YAML gives the structure and text, and the type of the key
decides what a text means. Text for a key that holds text stays as it is; what cannot be meant so
(null, ~, a home folder that nobody replaces) is refused.
"""
from __future__ import annotations

import math
import os
import re
from typing import Any, Dict, Hashable, List, Tuple

import yaml

from cian.errors import InputError
from cian.files import decoding, read_text

TRUTH = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}
NOTHING = ("null", "Null", "NULL", "~")
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*(_[0-9]+)*)")
_NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Written(str):
    """Text without quotes around it, in a file or on the command line."""


class _Loader(yaml.SafeLoader):
    """Scalars stay text; a key that occurs twice is refused."""

    yaml_implicit_resolvers: Dict[str, List[Tuple[str, Any]]] = {
        "<": [pair for pair in yaml.SafeLoader.yaml_implicit_resolvers["<"] if pair[0].endswith(":merge")]}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Dict[Hashable, Any]:
        seen: Dict[Any, yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice, in line {seen[key.value].line + 1} too",
                    key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return Written(node.value) if node.style is None else node.value


_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def read_layers(path: str, seen: Tuple[str, ...] = ()) -> List[Tuple[str, Dict[str, Any]]]:
    """The sections of a YAML file, after those of its ``base``; (file, sections) each.

    Raises
    ------
    InputError
        Naming the file: unreadable, invalid, a key twice, bases in a circle.
    """
    if os.path.abspath(path) in seen:
        raise InputError("base files refer to each other in a circle", file=path, field="base")
    text = read_text(path)
    with decoding(path, "is not valid YAML"):
        content = yaml.load(text, _Loader)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError("must hold sections of keys", file=path, remedy="see experiments/ for examples")
    content.pop("claim", None)
    base = content.pop("base", None)
    if base is not None and (not isinstance(base, str) or not base):
        raise InputError(f"needs the name of one file, not {base!r}", file=path, field="base")
    layers = [] if base is None else read_layers(os.path.join(os.path.dirname(path), base),
                                                 (*seen, os.path.abspath(path)))
    return [*layers, (path, content)]


def items(value: Any, source: str, name: str) -> List[Any]:
    """The entries of a key that holds several: a list, or text with commas."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = yaml.load(text, _Loader)
            except (yaml.YAMLError, RecursionError, ValueError) as error:
                raise InputError(f"the list {text!r} is not valid YAML", file=source, field=name) from error
        else:
            value = [Written(entry.strip()) for entry in text.split(",")] if text.strip("'\"") else []
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(entry == "" for entry in entries):
        raise InputError("has an empty entry", file=source, field=name, remedy="remove the comma")
    return entries


def scalar(value: Any, kind: type, source: str, name: str) -> Any:
    """One value as the type of its key.

    Raises
    ------
    InputError
        Naming source and key: a value of another type, one that is not finite, or text that is
        no value of this key.
    """
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{str(value)!r} holds a zero byte", file=source, field=name)
    if kind is str and isinstance(value, Written):
        return _unquoted(value, source, name)
    if isinstance(value, str) and kind is not str:
        value = _number(value.strip(), kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        shown = str(value) if isinstance(value, str) else value
        raise InputError(f"needs a value of type {kind.__name__}, not {shown!r}", file=source, field=name)
    return value


def _number(text: str, kind: type) -> Any:
    """``text`` as a truth value, an integer or a number; as it is where it is none."""
    if kind is bool:
        return TRUTH.get(text.lower(), text)
    if kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if kind is float and _NUMBER.fullmatch(text):
        vanishes = float(text) == 0 and re.search("[1-9]", re.split("[eE]", text)[0])
        return text if vanishes else float(text)
    return text


def _unquoted(text: str, source: str, name: str) -> str:
    """Text without the quotes around all of it; refused where a program would have to guess."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2:
        return str(text[1:-1])
    if text in NOTHING:
        raise InputError(f"{str(text)!r} says that there is no value", file=source, field=name,
                         remedy=f"leave the key out, or write '' for none (or \"{text}\" for a name)")
    if text.startswith("~/"):
        raise InputError(f"{str(text)!r} begins with the home folder, which is not filled in here",
                         file=source,
                         field=name, remedy="write the path in full")
    return str(text)
