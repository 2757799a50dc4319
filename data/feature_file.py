"""Features of a set's images in one file that is mapped into memory: made once, read by many runs.

``PATH`` holds the arrays one after the other, ``PATH.sums`` a 64-bit word for each: 0 while it is
missing, else 2**32 + its CRC-32. What is there stays when the process that makes the file is
killed. An array is held against its checksum before its first use in a process.
"""
from __future__ import annotations

import os
import zlib
from typing import Any, Iterable, Sequence, Tuple

import numpy as np

from cian.errors import InputError, PathLike, write_error
from cian.files import atomic_write_bytes

AGAIN = "remove it, it will be made again"
_PRESENT = 1 << 32


class FeatureFile:
    """The features of ``names``, which a caller fills in with :meth:`write`.

    Parameters
    ----------
    path : of the file; its name must say what the features depend on.
    shapes : (n, d), the shape of each array.
    dtype : of all of them.
    names : n, for messages.

    Raises
    ------
    InputError
        The file there has another size than such a one.
    """

    def __init__(self, path: PathLike, shapes: np.ndarray, dtype: Any, names: Sequence[str]) -> None:
        self.path, self.dtype, self.names = os.fspath(path), np.dtype(dtype), names
        self.shapes = np.asarray(shapes, np.int64)
        sizes = self.shapes.prod(axis=1)
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._sums_path = f"{self.path}.sums"
        self._values = self._sums = np.zeros(0)
        self._trusted = np.zeros(len(self.shapes), bool)
        self.refresh()

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return int(self._ends[-1]) * self.dtype.itemsize if len(self._ends) else 0

    @property
    def room(self) -> int:
        """Bytes that the disk has still to give."""
        return max(self.nbytes - (os.stat(self.path).st_blocks * 512 if os.path.exists(self.path) else 0), 0)

    def refresh(self) -> None:
        """Find the file, where another process has begun it meanwhile."""
        if os.path.exists(self._sums_path):
            self._map()

    def lay_out(self) -> None:
        """Begin the file, where there is none."""
        if len(self._sums):
            return
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with open(self.path, "wb") as stream:
                stream.truncate(self.nbytes)
        except OSError as error:
            raise write_error(error, self.path) from error
        atomic_write_bytes(self._sums_path, bytes(8 * len(self.shapes)))
        self._map()

    def missing(self) -> np.ndarray:
        """Positions of the arrays that are not there yet."""
        return np.flatnonzero(self._sums == 0) if len(self._sums) else np.arange(len(self.shapes))

    def write(self, arrays: Iterable[Tuple[int, np.ndarray]]) -> None:
        """Write arrays by position, as they come.

        Raises
        ------
        InputError
            An array is not finite in the file's type, naming the image; the disk is full.
        """
        try:
            with open(self.path, "r+b") as values, open(self._sums_path, "r+b") as sums:
                for index, array in arrays:
                    stored = np.ascontiguousarray(array, self.dtype)
                    if stored.shape != tuple(self.shapes[index]):
                        raise ValueError(f"{stored.shape} in place of {tuple(self.shapes[index])}")
                    if not np.isfinite(stored).all():
                        raise InputError(f"its features are not finite in {self.dtype}",
                                         field=self.names[index], remedy="look at the image and the weights")
                    os.pwrite(values.fileno(), stored.data, int(self._starts[index]) * self.dtype.itemsize)
                    word = np.uint64(_PRESENT + zlib.crc32(stored.data))
                    os.pwrite(sums.fileno(), word.tobytes(), 8 * int(index))
        except OSError as error:
            raise write_error(error, self.path) from error

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        """Array ``index``, mapped from the file.

        Raises
        ------
        InputError
            It does not match its checksum, or was never written.
        """
        index = int(index)
        array = self._values[self._starts[index]:self._ends[index]]
        if not self._trusted[index]:
            if int(self._sums[index]) != _PRESENT + zlib.crc32(array.data):
                raise InputError("does not match its checksum", file=self.path, field=self.names[index],
                                 remedy=f"remove it and {os.path.basename(self._sums_path)}, they will be "
                                        "made again")
            self._trusted[index] = True
        return array.reshape(self.shapes[index])

    def _map(self) -> None:
        for path, size in ((self.path, self.nbytes), (self._sums_path, 8 * len(self.shapes))):
            have = os.stat(path).st_size if os.path.exists(path) else 0
            if have != size:
                raise InputError(f"has {have} bytes in place of {size}", file=path,
                                 remedy=f"remove {os.path.basename(self.path)} and "
                                        f"{os.path.basename(self._sums_path)}, they will be made again")
        self._values = np.memmap(self.path, self.dtype, "r")
        self._sums = np.memmap(self._sums_path, np.uint64, "r")
