"""Parts of a stage that several processes or machines do, and the putting together of what they
wrote: nothing is lost, taken twice or taken from another run.
"""
from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Set, TypeVar

from cian.errors import InputError, PathLike
from cian.files import read_json, write_json
from cian.tools.engine.ledger import NAME as LEDGER

SUFFIXES = (".png", ".npy", ".npz")
AGAIN = "run that shard again"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``: every count-th item from the index-th on, so that all parts are
    disjoint and together are all.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From 'I/N'; an :class:`InputError` where that is none."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InputError(f"{text!r} is no shard", field="--shard",
                             remedy="write I/N with I below N, for example 0/2 and 1/2")
        return cls(int(index), int(count))

    def of(self, items: Sequence[Item]) -> List[Item]:
        """Its items of all."""
        return list(items[self.index::self.count])

    @property
    def suffix(self) -> str:
        """What tells its files from those of other parts; empty for the whole."""
        return f"-{self.index}-of-{self.count}" if self.count > 1 else ""

    def describe(self, names: Sequence[str]) -> Dict[str, Any]:
        """What a result of this part says of itself; ``names`` are those of all items."""
        whole = hashlib.sha256("\n".join(names).encode()).hexdigest()
        return {"shard": [self.index, self.count], "of": whole, "names": self.of(names)}

    def record(self, folder: PathLike, names: Sequence[str]) -> None:
        """Say in a folder that this part of it is done; nothing where it is the whole."""
        if self.count > 1:
            write_json(os.path.join(os.fspath(folder), f"shard{self.suffix}.json"), self.describe(names))


def check_parts(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse parts that are not those of one list, each once and all there. They are given by the
    file that each comes from, as :meth:`Shard.describe` has them.

    Raises
    ------
    InputError
        Naming the part that is there twice, is missing, overlaps or is of another whole.
    """
    seen: Dict[int, str] = {}
    owners: Dict[str, str] = {}
    first = next(iter(parts))
    for where, part in parts.items():
        index, count = part["shard"]
        if (count, part["of"]) != (parts[first]["shard"][1], parts[first]["of"]):
            raise InputError(f"is a shard of another list or number than {first}", file=where, remedy=AGAIN)
        if index in seen:
            raise InputError(f"shard {index}/{count} is in {seen[index]} too", file=where,
                             remedy="leave one out")
        seen[index] = where
        twice = [name for name in part["names"] if name in owners]
        if twice:
            raise InputError(f"{twice[0]} is in {owners[twice[0]]} too", file=where, remedy=AGAIN)
        owners.update(dict.fromkeys(part["names"], where))
    missing = [f"{index}/{count}" for index in range(count) if index not in seen]
    if missing:
        raise InputError(f"shard {', '.join(missing)} is missing", file=first,
                         remedy="run it, or name where it is")


def merge_folders(folders: Sequence[PathLike], out: PathLike = "") -> int:
    """Check the shards of one stage in one or several folders, and copy them into ``out``, a new
    folder, which is whole or absent. Without ``out`` they are only checked.

    Returns
    -------
    Number of images.

    Raises
    ------
    InputError
        As :func:`check_parts`; folders of different settings; a file that is missing, or is of
        another shard; an ``out`` that exists.
    """
    parts: Dict[str, Dict[str, Any]] = {}
    manifests: List[Dict[str, Any]] = []
    for folder in [os.fspath(name) for name in folders]:
        if not os.path.isdir(folder):
            raise InputError("is not a folder", file=folder)
        read = functools.partial(_read, folder)
        records = {name: read(name) for name in sorted(os.listdir(folder)) if name.startswith("shard-")}
        if not records:
            raise InputError("holds no shard that is done", file=folder, remedy=AGAIN)
        parts.update({os.path.join(folder, name): record for name, record in records.items()})
        manifests.append({name: read(name) for name in ("predictions.json", "seeds.json")
                          if os.path.exists(os.path.join(folder, name))})
        if manifests[-1] != manifests[0]:
            raise InputError(f"was made with other settings than {folders[0]}", file=folder, remedy=AGAIN)
        _check_files(folder, {name for record in records.values() for name in record["names"]})
    check_parts(parts)
    if out:
        _copy([os.fspath(folder) for folder in folders], os.fspath(out))
    return sum(len(part["names"]) for part in parts.values())


def _read(folder: str, name: str) -> Dict[str, Any]:
    return read_json(os.path.join(folder, name), "record of a shard", AGAIN)


def _check_files(folder: str, names: Set[str]) -> None:
    found = {os.path.relpath(os.path.join(parent, file), folder)[:-4] for parent, _, files in os.walk(folder)
             for file in files if file.endswith(SUFFIXES)}
    for problem, wrong in (("is missing, which its shard has done", names - found),
                           ("is there, and of none of its shards", found - names)):
        if wrong:
            raise InputError(problem, file=folder, field=min(wrong), remedy=AGAIN)


def _copy(folders: Sequence[str], out: str) -> None:
    if os.path.exists(out):
        raise InputError("exists already", file=out, remedy="name a new folder")
    parent = os.path.dirname(os.path.abspath(out))
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=parent) as temporary:
            whole = os.path.join(temporary, "whole")
            for folder in folders:
                shutil.copytree(folder, whole, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LEDGER))
                if os.path.exists(os.path.join(folder, LEDGER)):  # lines, one for each image
                    with open(os.path.join(folder, LEDGER), "rb") as own, open(
                            os.path.join(whole, LEDGER), "ab") as joined:
                        shutil.copyfileobj(own, joined)
            os.rename(whole, out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=out) from error
