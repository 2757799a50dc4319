"""Writing the files of a record set in order, so that the set is whole or absent. See
:mod:`cian.data.manifest` for the format.
"""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import zlib
from array import array
from typing import IO, Any, Dict, Iterable, Iterator, List, Mapping, Optional

import numpy as np

from cian.data.classes import ClassTable
from cian.data.framing import frame
from cian.data.manifest import COLUMNS, FORMAT, VERSION, manifest_checksum, manifest_path
from cian.errors import InputError, PathLike, write_error
from cian.files import atomic_write, lock_path, staging


@contextlib.contextmanager
def record_writer(folder: PathLike, name: str, kind: str, classes: ClassTable, count: int, *,
                  num_parts: int = 1, fingerprint: str = "") -> Iterator[RecordWriter]:
    """A :class:`RecordWriter` in a hidden folder that is removed again whatever happens, under the
    set's lock.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"{name!r} is not a good name for a record set",
                         remedy="use letters, digits, '_', '-' and '.'")
    if not 1 <= num_parts <= max(count, 1):
        raise InputError(f"{count} records cannot be spread over {num_parts} files", field=name)
    folder = os.fspath(folder)
    try:
        with staging(folder, name, f"the record set {name}") as hidden, RecordWriter(
                folder, hidden, name, kind, classes, count, num_parts, fingerprint) as writer:
            yield writer
    except OSError as error:
        raise write_error(error, manifest_path(folder, name)) from error


class RecordWriter(contextlib.AbstractContextManager["RecordWriter"]):
    """Writes the records of one set in order; made by :func:`record_writer`. Memory: one row of the
    table a record.
    """

    def __init__(self, folder: str, hidden: str, name: str, kind: str, classes: ClassTable, count: int,
                 num_parts: int, fingerprint: str) -> None:
        self.folder, self.hidden, self.name, self.kind, self.classes, self.fingerprint = (
            folder, hidden, name, kind, classes, fingerprint)
        self._first_of_part = [part * count // num_parts for part in range(num_parts)] + [count]
        self._names = bytearray()
        self._columns = {"part": array("H"), "offset": array("q"), "span": array("q"), "crc32": array("I"),
                         "size": array("i")}
        self._parts: List[Dict[str, Any]] = []
        self._records: Optional[IO[bytes]] = None
        self._index: Optional[IO[bytes]] = None
        self._digest = self._index_digest = hashlib.sha256()
        self._written = self._offset = 0

    def __exit__(self, kind: object, *_: object) -> None:
        for stream in (self._records, self._index):
            if stream is not None and not stream.closed:
                with contextlib.suppress(OSError):  # what could not be flushed is removed with the folder
                    stream.close()

    def add(self, name: str, content: bytes, size: Iterable[int]) -> None:
        """Append one record: its name, its content (IRHeader and file) and (height, width)."""
        if self._written == self._first_of_part[len(self._parts)]:
            self._start_part()
        assert self._records is not None and self._index is not None
        record = frame(content)
        self._records.write(record)
        self._digest.update(record)
        line = b"%d\t%d\n" % (self._written, self._offset)
        self._index.write(line)
        self._index_digest.update(line)
        for column, value in (("part", len(self._parts) - 1), ("offset", self._offset), ("span", len(record)),
                              ("crc32", zlib.crc32(record))):
            self._columns[column].append(value)
        self._columns["size"].extend(int(side) for side in size)
        self._names += name.encode() + b"\n"
        self._written += 1
        self._offset += len(record)

    def finish(self, labels: np.ndarray, notes: Mapping[str, Any]) -> None:
        """Write the table, give the files their final names and put the manifest in place; (n,
        bytes) packed bits of the labels, and further keys of the manifest.
        """
        if self._written != self._first_of_part[-1]:
            raise ValueError(f"{self._written} of {self._first_of_part[-1]} records were added")
        self._end_part()
        table = self._table(labels)
        manifest = {**notes, "format": FORMAT, "version": VERSION, "kind": self.kind, "count": self._written,
                    "classes": list(self.classes.names), "fingerprint": self.fingerprint,
                    "parts": self._parts,
                    "table": {"bytes": len(table), "sha256": hashlib.sha256(table).hexdigest()}}
        content = [manifest[key] for key in ("kind", "count", "classes", "parts", "table")]
        identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        stem = f"{self.name}.{identity[:12]}"
        for number, part in enumerate(self._parts):
            for suffix in ("rec", "idx"):
                part[suffix] = f"{stem}.{suffix}" if len(self._parts) == 1 else f"{stem}.{number}.{suffix}"
                os.replace(os.path.join(self.hidden, f"{number}.{suffix}"),
                           os.path.join(self.folder, part[suffix]))
        manifest["identity"], manifest["table"]["file"] = identity, f"{stem}.npz"  # type: ignore[index]
        with atomic_write(os.path.join(self.folder, f"{stem}.npz"), sync=True) as stream:
            stream.write(table)
        manifest["checksum"] = manifest_checksum(manifest)
        with atomic_write(manifest_path(self.folder, self.name), sync=True) as stream:
            stream.write(json.dumps(manifest, indent=1).encode() + b"\n")
        for other in others(self.folder, self.name, identity):
            os.unlink(other)

    def _start_part(self) -> None:
        if self._parts:
            self._end_part()
        number = len(self._parts)
        # closed by _end_part or __exit__
        self._records = open(os.path.join(self.hidden, f"{number}.rec"), "wb")  # noqa: SIM115
        self._index = open(os.path.join(self.hidden, f"{number}.idx"), "wb")  # noqa: SIM115
        self._digest, self._index_digest, self._offset = hashlib.sha256(), hashlib.sha256(), 0
        self._parts.append({"first": self._written})

    def _end_part(self) -> None:
        for stream in (self._records, self._index):
            assert stream is not None
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        self._parts[-1].update(count=self._written - self._parts[-1]["first"], bytes=self._offset,
                               sha256=self._digest.hexdigest(), idx_sha256=self._index_digest.hexdigest())

    def _table(self, labels: np.ndarray) -> bytes:
        columns = {name: np.array(column, COLUMNS[name]) for name, column in self._columns.items()}
        columns["size"] = columns["size"].reshape(-1, 2)
        columns["names"] = np.frombuffer(bytes(self._names), np.uint8)
        columns["labels"] = labels
        stream = io.BytesIO()
        np.savez(stream, **columns)
        return stream.getvalue()


def others(folder: str, name: str, identity: str) -> List[str]:
    """Files of replaced or abandoned sets of this name; those who have them open keep reading them
    when they are removed.
    """
    return [os.path.join(folder, entry) for entry in os.listdir(folder)
            if re.fullmatch(re.escape(name) + r"\.[0-9a-f]{12}(\.\d+)?\.(rec|idx|npz)", entry)
            and not entry.startswith(f"{name}.{identity[:12]}.")]


def remove_leftovers(folder: PathLike, name: str, identity: str) -> None:
    """Remove what a packer left that was killed when its set was whole already."""
    folder = os.fspath(folder)
    replaced = others(folder, name, identity)
    if replaced or os.path.exists(lock_path(folder, name)):
        with staging(folder, name, f"the record set {name}"):
            for path in replaced:
                os.unlink(path)
