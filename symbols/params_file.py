"""MXNet's parameter files (``<model>-<epoch>.params``), read and written in Python.

MXNet's own reader trusts the file: a damaged one can abort the process or ask for any amount of
memory. This one checks every length against the bytes that are there before it uses it. The layout
(little endian), from the newest writer back to that of the model zoo's 2016 files: ``uint64``
0x112, ``uint64`` 0, ``uint64`` number of arrays, the arrays, ``uint64`` number of names, the names.
"""
from __future__ import annotations

import math
import os
import struct
from typing import Any, Dict, Mapping, Tuple

import numpy as np

from cian.errors import InputError, PathLike
from cian.files import atomic_write

LIST_MAGIC = 0x112
V1_MAGIC, V2_MAGIC, V3_MAGIC = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
MAX_DIMENSIONS = 8
DTYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 5: np.int8, 6: np.int64}
DAMAGED = "the file is damaged or of another kind; fetch or write it again"
Arrays = Dict[str, np.ndarray]


class _Cursor:
    """Reads little-endian values from bytes and refuses to go past their end."""

    def __init__(self, content: bytes, path: str) -> None:
        self._content, self._path, self._at = content, path, 0

    def error(self, problem: str) -> InputError:
        return InputError(f"{problem} (byte {self._at})", file=self._path, remedy=DAMAGED)

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise self.error(f"ends too early: {count} bytes are needed and {self.left} are left")
        self._at += count
        return memoryview(self._content)[self._at - count:self._at]

    def unpack(self, layout: str) -> Tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def count(self, smallest: int) -> int:
        """A ``uint64`` number of entries, each of at least ``smallest`` bytes."""
        number = self.unpack("Q")[0]
        if number > self.left // smallest:
            raise self.error(f"names {number} entries, more than it can hold")
        return number


def _read_shape(cursor: _Cursor) -> Tuple[int, ...]:
    magic = cursor.unpack("I")[0]
    if magic in (V2_MAGIC, V3_MAGIC) and cursor.unpack("i")[0] != 0:
        raise cursor.error("holds a sparse array")
    newer = magic in (V1_MAGIC, V2_MAGIC, V3_MAGIC)
    # before V1 the number of dimensions stood in the magic's place
    dimensions = cursor.unpack("i")[0] if newer else magic
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"holds an array of {dimensions} dimensions")
    shape = cursor.unpack(f"{dimensions}{'q' if newer else 'I'}")
    if min(shape) < 1:
        raise cursor.error(f"holds an array of the shape {shape}")
    return shape


def _read_array(cursor: _Cursor) -> np.ndarray:
    shape = _read_shape(cursor)
    _, _, type_flag = cursor.unpack("iii")  # device kind and number of the writer, element type
    if type_flag not in DTYPES:
        raise cursor.error(f"holds an array of the unknown type {type_flag}")
    dtype = np.dtype(DTYPES[type_flag])
    array = np.frombuffer(cursor.take(math.prod(shape) * dtype.itemsize),
                          dtype=dtype.newbyteorder("<")).reshape(shape)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise cursor.error("holds values that are not finite")
    return array


def read_arrays(path: PathLike) -> Arrays:
    """Every array of an MXNet parameter file by its full name (``arg:conv0_weight``), read-only.

    Raises
    ------
    InputError
        Naming the file: unreadable, damaged, of another kind, with repeated names or values that
        are not finite.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path,
                         remedy="name an existing .params file") from error
    return parse_arrays(content, path)


def parse_arrays(content: bytes, path: PathLike) -> Arrays:
    """As :func:`read_arrays`, of the bytes of a file; ``path`` names them in errors."""
    path = os.fspath(path)
    cursor = _Cursor(content, path)
    if cursor.left < 24 or cursor.unpack("QQ") != (LIST_MAGIC, 0):
        raise InputError("is not an MXNet parameter file", file=path,
                         remedy="name a .params file with arg: and aux: entries")
    arrays = [_read_array(cursor) for _ in range(cursor.count(smallest=4))]
    names = []
    for _ in range(cursor.count(smallest=8)):
        try:
            names.append(bytes(cursor.take(cursor.count(smallest=1))).decode("ascii"))
        except UnicodeDecodeError as error:
            raise cursor.error("holds a name that is not ASCII") from error
    if cursor.left:
        raise cursor.error(f"goes on for {cursor.left} bytes after its last name")
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise cursor.error(f"holds {len(arrays)} arrays under {len(set(names))} names")
    return dict(zip(names, arrays))


def parse_array(content: bytes, path: PathLike) -> np.ndarray:
    """One array as MXNet writes it without a list around it, for example inside the state of an
    optimiser; ``path`` names it in errors.
    """
    cursor = _Cursor(content, os.fspath(path))
    array = _read_array(cursor)
    if cursor.left:
        raise cursor.error(f"goes on for {cursor.left} bytes after its array")
    return array


def read_params(path: PathLike) -> Tuple[Arrays, Arrays]:
    """The parameters and the auxiliary states (moving statistics) of a file of MXNet's Module, by
    name without ``arg:`` and ``aux:``.

    Returns
    -------
    (dict, dict)
        Name to read-only NumPy array.

    Raises
    ------
    InputError
        As :func:`read_arrays`, and for names of another kind of file.
    """
    return module_parts(read_arrays(path), path)


def module_parts(arrays: Arrays, path: PathLike) -> Tuple[Arrays, Arrays]:
    """As :func:`read_params`, of arrays by their full names; ``path`` names the file in errors."""
    parts: Dict[str, Arrays] = {"arg": {}, "aux": {}}
    for full_name, array in arrays.items():
        kind, _, name = full_name.partition(":")
        if kind not in parts or not name:
            raise InputError(
                "is not named as a file of MXNet's Module", file=path, field=full_name,
                remedy="names must start with arg: or aux:; Gluon's zoo is read as pretrained weights")
        parts[kind][name] = array
    if not parts["arg"]:
        raise InputError("holds no parameters", file=path, remedy=DAMAGED)
    return parts["arg"], parts["aux"]


def write_params(path: PathLike, arg_params: Mapping[str, np.ndarray],
                 aux_params: Mapping[str, np.ndarray]) -> None:
    """Write a file that :func:`read_params` and MXNet's Module read, the same bytes as MXNet's own
    writer; whole or not at all.

    Written here, for MXNet's writer does not notice a disk that is full when it closes the file.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise InputError("lies in no folder", file=path, remedy="make the folder first")
    arrays = {**{f"arg:{k}": v for k, v in arg_params.items()},
              **{f"aux:{k}": v for k, v in aux_params.items()}}
    flags = {np.dtype(dtype): flag for flag, dtype in DTYPES.items()}
    with atomic_write(path, sync=True) as stream:
        stream.write(struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays)))
        for array in arrays.values():
            # 0: dense; 1, 0: the first CPU
            header = (V2_MAGIC, 0, array.ndim, *array.shape, 1, 0, flags[array.dtype])
            stream.write(struct.pack(f"<Iii{array.ndim}qiii", *header))
            stream.write(np.ascontiguousarray(array).data)
        stream.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            stream.write(struct.pack("<Q", len(name)) + name.encode("ascii"))
