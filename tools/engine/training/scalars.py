"""The curves of a run as lines of JSON beside TensorBoard's events, to be read back: an object a
report, with its step, its values by name and a checksum.
"""
from __future__ import annotations

import json
import os
import zlib
from typing import Any, Dict, List, Mapping, Tuple

from cian.errors import PathLike, write_error
from cian.files import decoding, read_bytes

NAME = "scalars.jsonl"


def append_scalars(folder: PathLike, step: int, values: Mapping[str, float]) -> None:
    """Add the values of a step to the curves in a folder, on a line of its own whatever a killed
    process left half written.
    """
    path, content = os.path.join(folder, NAME), {"step": step, **values}
    try:
        with open(path, "ab", buffering=0) as stream:
            stream.write(b"\n" + json.dumps({**content, "crc32": _checksum(content)}).encode())
    except OSError as error:
        raise write_error(error, path) from error


def read_scalars(folder: PathLike) -> Dict[str, List[Tuple[int, float]]]:
    """The curves in ``<snapshot>/tensorboard``: (step, value) in the order of steps, by name; none
    where there is no file. Of a step that was run twice, because a run was broken off, the later value
    counts; a line that a killed run left half written is left out. An :class:`InputError` names a line
    whose checksum does not hold.
    """
    path = os.path.join(folder, NAME)
    found: Dict[str, Dict[int, float]] = {}
    written = os.path.exists(path) and os.path.getsize(path)
    for number, line in enumerate(read_bytes(path).split(b"\n") if written else (), 1):
        if line.endswith(b"}"):
            with decoding(path, f"line {number} is damaged", "remove it; the curves then lack its step"):
                content = json.loads(line)
                if content.pop("crc32") != _checksum(content):
                    raise ValueError("its checksum does not hold")
            step = content.pop("step")
            for name, value in content.items():
                found.setdefault(name, {})[step] = value
    return {name: sorted(steps.items()) for name, steps in found.items()}


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
