"""Reads tensors from PyTorch's files (``.pth``) without PyTorch and without running what they say.

Both formats name tensors in pickles: the legacy one is five pickles and then the tensors' bytes, the
newer one a ZIP archive of one pickle and a member for each storage, uncompressed. A pickle may name
any function to call; this reader admits the names that tensors need, puts harmless stand-ins in
their place, and refuses everything else.
"""
from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np

from cian.errors import InputError, PathLike
from cian.pickles import Admitting

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
ZIP_MAGIC = b"PK\x03\x04"
DAMAGED = "the file is damaged or not a list of tensors; fetch it again"
STATE_DICT = "save the weights alone: torch.save(model.state_dict(), FILE), in float32"


class _Storage(NamedTuple):
    """Where a tensor's numbers are."""

    key: str
    dtype: str
    length: int

    @property
    def size(self) -> int:
        return self.length * np.dtype(self.dtype).itemsize


class _Tensor(NamedTuple):
    """How a tensor's numbers are laid out in its storage, counted in numbers."""

    storage: _Storage
    offset: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]

    def view(self, numbers: np.ndarray) -> np.ndarray:
        last = self.offset + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides))
        if last >= len(numbers) or math.prod(self.shape) > len(numbers):
            raise pickle.UnpicklingError("a tensor lies outside of its storage")
        strides = tuple(stride * numbers.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(numbers[self.offset:], self.shape, strides).copy()


def _rebuild_tensor(storage: _Storage, offset: int, shape: Tuple[int, ...], strides: Tuple[int, ...],
                    *_: Any) -> _Tensor:
    if len(shape) != len(strides) or min((offset, *strides), default=0) < 0 or min(shape, default=1) < 1:
        raise pickle.UnpicklingError("a tensor has an impossible layout")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Parameter:
    """Stands for ``torch.nn.Parameter``, whose state begins with its tensor, in files of 2017."""

    tensor: Any = None

    def __setstate__(self, state: Tuple[Any, ...]) -> None:
        self.tensor = state[0]


ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.nn.parameter", "Parameter"): _Parameter,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(Admitting):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage") and (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"its numbers are of the type {name[:-len('Storage')]}, not Float")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = pid[:5]
        if kind != "storage" or dtype not in ("<f4", "<i8") or not isinstance(length, int) or length < 0 \
                or any(pid[5:]):  # a view of another storage
            raise pickle.UnpicklingError("it asks for something that is no storage of a tensor")
        return _Storage(str(key), dtype, length)


def read_torch_arrays(content: bytes, path: PathLike) -> Dict[str, np.ndarray]:
    """Name to array of a PyTorch state dict in either format; ``path`` names it in errors.

    Raises
    ------
    InputError
        For another format, damage, numbers that are not float32 (counters: int64), and a file that
        asks for or holds anything but tensors.
    """
    try:
        return (_read_zip if content.startswith(ZIP_MAGIC) else _read_legacy)(content, path)
    except InputError:
        raise
    except Exception as error:  # the unpickler raises nearly any kind of error on damaged bytes
        remedy = STATE_DICT if "it asks for" in str(error) or "its numbers" in str(error) else DAMAGED
        raise InputError(f"cannot be read as tensors ({error})", file=path, remedy=remedy) from error


def _read_legacy(content: bytes, path: PathLike) -> Dict[str, np.ndarray]:
    stream = io.BytesIO(content)
    magic, protocol, _, state, keys = (_Unpickler(stream, ADMITTED).load() for _ in range(5))
    if magic != MAGIC or protocol != PROTOCOL:
        raise InputError("is not a PyTorch file", file=path, remedy=DAMAGED)
    tensors = _tensors(state, path)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    return _views(tensors, _read_storages(stream, [storages[key] for key in keys]))


def _read_zip(content: bytes, path: PathLike) -> Dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in members:
            raise InputError("is a ZIP archive, but none of PyTorch's", file=path,
                             remedy="unpack it and name the file inside")

        def read(name: str) -> bytes:
            if members[name].compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"{name} is compressed, which PyTorch never does")
            return archive.read(members[name])

        if "byteorder" in members and read("byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        tensors = _tensors(_Unpickler(io.BytesIO(read("data.pkl")), ADMITTED).load(), path)
        numbers = {}
        for storage in {tensor.storage for tensor in tensors.values()}:
            data = read(f"data/{storage.key}")
            if len(data) != storage.size:
                raise pickle.UnpicklingError("a storage is cut off")
            numbers[storage.key] = np.frombuffer(data, storage.dtype)
        return _views(tensors, numbers)


def _tensors(state: Any, path: PathLike) -> Dict[str, _Tensor]:
    """The tensors of a state dict by name."""
    if not isinstance(state, dict):
        raise InputError(f"holds one {type(state).__name__.lstrip('_')}, not a state dict", file=path,
                         remedy=STATE_DICT)
    tensors = {name: value.tensor if isinstance(value, _Parameter) else value
               for name, value in state.items()}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor) \
                or not isinstance(tensor.storage, _Storage):
            raise InputError("is no tensor, as all entries of a state dict are", file=path, field=str(name),
                             remedy=STATE_DICT)
    return tensors


def _views(tensors: Dict[str, _Tensor], numbers: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    return {name: tensor.view(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _read_storages(stream: io.BytesIO, storages: List[_Storage]) -> Dict[str, np.ndarray]:
    numbers = {}
    for storage in storages:
        length = int.from_bytes(stream.read(8), "little")
        data = stream.read(storage.size)
        if length != storage.length or len(data) != storage.size:
            raise pickle.UnpicklingError("a storage is cut off")
        numbers[storage.key] = np.frombuffer(data, storage.dtype)
    return numbers
