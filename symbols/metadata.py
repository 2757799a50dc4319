"""What a model file needs beside its parameters, as ``<file>.json`` next to ``<file>``, so that the
original code still reads that.
"""
from __future__ import annotations

import json
import os
import platform
from typing import Any, Dict, Mapping

import numpy as np

import cian
from cian.errors import InputError, PathLike
from cian.files import atomic_write_bytes, sha256_of

# Keys that must be there, their types, and what they hold.
REQUIRED = {
    "network": (dict, "arguments that build the network"),
    "classes": (list, "class names in the order of the logits"),
    "preprocessing": (dict, "what enters the network"),
}
RAW_RGB = {"channels": "RGB", "range": [0, 255], "layout": "NCHW", "normalisation": "inside the network"}


def metadata_path(path: PathLike) -> str:
    """Where the metadata of the model file ``path`` is."""
    return f"{os.fspath(path)}.json"


def write_metadata(path: PathLike, metadata: Mapping[str, Any]) -> None:
    """Write the metadata of the model file ``path``, which must exist: its SHA-256 is written too,
    and the versions in use.

    Raises
    ------
    InputError
        When a required key is missing or of a wrong type, or the file cannot be written.
    """
    content = {"preprocessing": RAW_RGB, **metadata, "versions": versions(), "sha256": sha256_of(path)}
    _validate(content, metadata_path(path))
    atomic_write_bytes(metadata_path(path), json.dumps(content, indent=1, sort_keys=True).encode(), sync=True)


def read_metadata(path: PathLike, *, verify: bool = True) -> Dict[str, Any]:
    """The metadata of the model file ``path``; with ``verify`` the file's bytes are held against
    the recorded SHA-256.

    Raises
    ------
    InputError
        When there is none, it is not valid, lacks a key (named), or belongs to other bytes.
    """
    source = metadata_path(path)
    try:
        with open(source, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=source,
                         remedy="a model file of another origin has none: give the model name and the "
                         "classes yourself") from error
    except (ValueError, RecursionError) as error:
        raise InputError("is not valid JSON", file=source, remedy="write the checkpoint again") from error
    _validate(content, source)
    if verify and content.get("sha256") != sha256_of(path):
        raise InputError("was written for other bytes than the model file holds", file=source, field="sha256",
                         remedy="the model file is damaged or was replaced; fetch or write both again")
    return content


def versions() -> Dict[str, str]:
    """The versions that decide what a network computes."""
    import mxnet as mx
    return {"cian": cian.__version__, "mxnet": mx.__version__, "numpy": np.__version__,
            "python": platform.python_version()}


def _validate(content: Any, source: str) -> None:
    if not isinstance(content, dict):
        raise InputError("must hold an object of keys", file=source)
    for key, (kind, meaning) in REQUIRED.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"is {'missing' if key not in content else 'of a wrong type'}", file=source,
                             field=key, remedy=f"it holds the {meaning}")
    classes = content["classes"]
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise InputError("must be different names", file=source, field="classes")
    num_classes = content["network"].get("num_classes", len(classes))
    if num_classes != len(classes):
        raise InputError(f"holds {len(classes)} names, and the network has {num_classes} classes",
                         file=source, field="classes")
