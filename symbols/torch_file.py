"""Reads tensors from PyTorch's legacy file format without PyTorch and without running what the file says.

The file is five pickles and then the tensors' bytes. A pickle may name any function to call; this
reader admits the four names that tensors need, puts harmless stand-ins in their place, and refuses
everything else.
"""
from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np

from cian.errors import InputError, PathLike

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DAMAGED = "the file is damaged or not a list of tensors; fetch it again"


class _Storage(NamedTuple):
    """Where a tensor's numbers are."""

    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """How a tensor's numbers are laid out in its storage, counted in numbers."""

    storage: _Storage
    offset: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]

    def view(self, numbers: np.ndarray) -> np.ndarray:
        strides = tuple(stride * numbers.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(numbers[self.offset:], self.shape, strides).copy()


def _rebuild_tensor(storage: _Storage, offset: int, shape: Tuple[int, ...], strides: Tuple[int, ...],
                    *_: Any) -> _Tensor:
    tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
    if len(shape) != len(strides) or min((offset, *strides), default=0) < 0 or min(shape, default=1) < 1:
        raise pickle.UnpicklingError("a tensor has an impossible layout")
    if offset + sum((side - 1) * stride for side, stride in zip(shape, strides)) >= storage.length:
        raise pickle.UnpicklingError("a tensor lies outside of its storage")
    return tensor


ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = pid[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(length, int) or length < 0:
            raise pickle.UnpicklingError("it asks for something that is no storage of a tensor")
        return _Storage(str(key), dtype, length)


def read_torch_arrays(content: bytes, path: PathLike) -> Dict[str, np.ndarray]:
    """Name to array of a PyTorch state dict in the legacy format; ``path`` names it in errors.

    Raises
    ------
    InputError
        For another format, damage, and a file that asks for anything but tensors.
    """
    stream = io.BytesIO(content)
    try:
        magic, protocol, _, tensors, keys = (_Unpickler(stream).load() for _ in range(5))
        if magic != MAGIC or protocol != PROTOCOL or not isinstance(tensors, dict):
            raise InputError("is not a PyTorch file of the legacy format", file=path, remedy=DAMAGED)
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        numbers = _read_storages(stream, [storages[key] for key in keys])
        return {name: tensor.view(numbers[tensor.storage.key]) for name, tensor in tensors.items()}
    except InputError:
        raise
    except Exception as error:  # the unpickler raises nearly any kind of error on damaged bytes
        raise InputError(f"cannot be read as tensors ({error})", file=path, remedy=DAMAGED) from error


def _read_storages(stream: io.BytesIO, storages: List[_Storage]) -> Dict[str, np.ndarray]:
    numbers = {}
    for storage in storages:
        length = int.from_bytes(stream.read(8), "little")
        data = stream.read(storage.length * storage.dtype.itemsize)
        if length != storage.length or len(data) != storage.length * storage.dtype.itemsize:
            raise pickle.UnpicklingError("a storage is cut off")
        numbers[storage.key] = np.frombuffer(data, storage.dtype)
    return numbers
