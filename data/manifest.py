"""The files of a record set besides its records: the manifest, and the table with one row a record.

A record set ``NAME`` in a folder is

* ``NAME.json``: the manifest, with the kind, the class names, and size and SHA-256 of every other
  file and of itself;
* ``NAME.<identity>[.<part>].rec`` with ``.idx``: the records of one part, which
  ``mxnet.recordio.MXIndexedRecordIO`` reads too. A record is ``mxnet.recordio.pack(IRHeader(flag,
  label, id, 0), file)``: ``id`` is the position in the list, ``file`` the original JPEG, or an
  8-bit gray PNG of class indices; images carry the multi-hot vector of their labels;
* ``NAME.<identity>.npz``: the table: names, part, offset, bytes, CRC-32, height and width, labels.

The identity is a digest of the content, so a new manifest, put in place by one rename, is what
replaces a set.
"""
from __future__ import annotations

import hashlib
import json
import os
import struct
from typing import Any, Dict, Iterator, List, Sequence, overload

import numpy as np

from cian.errors import InputError, PathLike
from cian.files import decoding, read_json, sha256_of

FORMAT, VERSION = "cian record set", 1
IMAGES, LABELS = "images", "labels"
COLUMNS = {"names": "uint8", "part": "uint16", "offset": "int64", "span": "int64", "crc32": "uint32",
           "size": "int32", "labels": "uint8"}
AGAIN = "run tools/prepare.py again"
HEADER = struct.Struct("<IfQQ")  # mxnet.recordio.IRHeader: flag (number of labels), label, id, id2

_FIELDS = {"kind": str, "count": int, "classes": list, "fingerprint": str, "identity": str, "parts": list,
           "table": dict}
_PART_FIELDS = {"rec": str, "idx": str, "first": int, "count": int, "bytes": int, "sha256": str,
                "idx_sha256": str}
_TABLE_FIELDS = {"file": str, "bytes": int, "sha256": str}


class NameTable(Sequence[str]):
    """Names as one block of UTF-8 lines: a sequence of strings that takes their bytes and 8 more each."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))

    @classmethod
    def of(cls, names: Sequence[str]) -> NameTable:
        """The table of ``names``."""
        return cls("".join(f"{name}\n" for name in names).encode())

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> List[str]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start = int(self._ends[position - 1]) + 1 if position else 0
        return self._block[start:int(self._ends[position])].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._block.decode().split("\n")[:-1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NameTable) and self._block == other._block

    def __hash__(self) -> int:
        return hash(self._block)

    def find(self, name: str) -> int:
        """Position of ``name``, or -1."""
        line = f"{name}\n".encode()
        found = 0 if self._block.startswith(line) else self._block.find(b"\n" + line) + 1 or -1
        return found if found <= 0 else int(np.searchsorted(self._ends, found))


def manifest_path(folder: PathLike, name: str) -> str:
    """Path of the manifest of the set ``name``."""
    return os.path.join(os.fspath(folder), f"{name}.json")


def manifest_checksum(manifest: Dict[str, Any]) -> str:
    """SHA-256 of the manifest's canonical JSON without its own checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(folder: PathLike, name: str) -> Dict[str, Any]:
    """The manifest of a set as a dict, after its checksum and version were compared;
    :class:`InputError` otherwise.
    """
    path = manifest_path(folder, name)
    if not os.path.exists(path):
        raise InputError("there is no such record set", file=path, remedy="make it with tools/prepare.py")
    manifest = read_json(path, "manifest of a record set", AGAIN)
    if manifest.get("format") != FORMAT:
        raise InputError("is not a manifest of a record set", file=path, remedy=AGAIN)
    if manifest.get("version") != VERSION:
        raise InputError(f"has version {manifest.get('version')!r}, and this code reads {VERSION}", file=path,
                         remedy=AGAIN)
    if manifest.get("checksum") != manifest_checksum(manifest):
        raise InputError("does not match its own checksum", file=path, remedy=AGAIN)
    _check_fields(manifest, _FIELDS, path)
    for part in manifest["parts"]:
        _check_fields(part, _PART_FIELDS, path)
    _check_fields(manifest["table"], _TABLE_FIELDS, path)
    if manifest["kind"] not in (IMAGES, LABELS):
        raise InputError(f"holds {manifest['kind']!r}", file=path, field="kind", remedy=AGAIN)
    if not all(isinstance(name, str) for name in manifest["classes"]):
        raise InputError("holds a class that is no text", file=path, field="classes", remedy=AGAIN)
    return manifest


def _check_fields(content: Any, fields: Dict[str, type], path: str) -> None:
    for field, kind in fields.items():
        value = content.get(field) if isinstance(content, dict) else None
        if type(value) is not kind:
            raise InputError(f"needs a value of type {kind.__name__}, not {value!r}", file=path, field=field,
                             remedy=AGAIN)
        if field in ("file", "rec", "idx") and os.path.basename(str(value)) != value:
            raise InputError(f"{value!r} is no file of this folder", file=path, field=field, remedy=AGAIN)


def read_table(folder: str, name: str, manifest: Dict[str, Any]) -> Dict[str, np.ndarray]:
    """The columns of a set's table, n rows each, after checksum, types and bounds were compared;
    :class:`InputError` otherwise.
    """
    path = os.path.join(folder, manifest["table"]["file"])
    if sha256_of(path) != manifest["table"]["sha256"]:
        raise InputError("does not match its checksum in the manifest", file=path, field=name, remedy=AGAIN)
    table = _load_columns(path)
    problem = _table_problem(table, manifest)
    if problem:
        raise InputError(problem, file=path, remedy=AGAIN)
    return table


def _load_columns(path: str) -> Dict[str, np.ndarray]:
    with decoding(path, "is not the table of a record set", AGAIN), open(path, "rb") as stream, np.load(
            stream, allow_pickle=False) as arrays:
        return {column: arrays[column] for column in COLUMNS}


def _table_problem(table: Dict[str, np.ndarray], manifest: Dict[str, Any]) -> str:
    """What keeps a table from describing the manifest's records, or an empty text."""
    count, bits = manifest["count"], len(manifest["classes"]) if manifest["kind"] == IMAGES else 0
    shapes = {**dict.fromkeys(("part", "offset", "span", "crc32"), (count,)), "size": (count, 2),
              "labels": (count, -(-bits // 8))}
    if any(table[column].dtype != kind for column, kind in COLUMNS.items()) or any(
            table[column].shape != shape for column, shape in shapes.items()) or table["names"].ndim != 1:
        return "has columns of the wrong type or length"
    try:
        names = table["names"].tobytes().decode()
    except UnicodeDecodeError:
        return "holds names that are not UTF-8"
    if names.count("\n") != count or (names and names[-1] != "\n"):
        return f"holds {names.count(chr(10))} names for {count} records"
    room = np.array([part["bytes"] for part in manifest["parts"]] or [0], np.int64)
    if (table["part"] >= len(manifest["parts"])).any():
        return "points to a part that does not exist"
    room = room[table["part"]]
    if (table["span"] < 8).any() or (table["span"] > room).any() or (table["offset"] < 0).any() or (
            table["offset"] > room - table["span"]).any():
        return "points outside the record files"
    return ""
