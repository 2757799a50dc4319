"""Reads tensors from ``.safetensors`` files: ``uint64`` length of a JSON header (little endian), the
header (name to dtype, shape and place), and the numbers."""
from __future__ import annotations

import json
import math
from typing import Any, Dict

import numpy as np

from cian.errors import InputError, PathLike

DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8"}
DAMAGED = "the file is damaged or of another kind; fetch it again"


def read_safetensors(content: bytes, path: PathLike) -> Dict[str, np.ndarray]:
    """Name to array, read-only; ``path`` names the file in errors.

    Raises
    ------
    InputError
        For damage, and numbers of another type than float16, float32, float64 or int64.
    """
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:8 + length].decode("utf-8"))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _array(content, 8 + length, entry) for name, entry in entries.items()}
    except _UnknownType as error:
        raise InputError(f"holds numbers of the type {error}", file=path,
                         remedy="use a float32 file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot be read as safetensors ({error})", file=path, remedy=DAMAGED) from error


class _UnknownType(Exception):
    """A dtype that NumPy does not have, such as BF16."""


def _array(content: bytes, start: int, entry: Any) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise _UnknownType(entry["dtype"])
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("a shape or a place is no whole number")
    if end - begin != math.prod(shape) * dtype.itemsize or start + end > len(content):
        raise ValueError("a tensor lies outside of the file")
    return np.frombuffer(content, dtype, math.prod(shape), start + begin).reshape(shape)
