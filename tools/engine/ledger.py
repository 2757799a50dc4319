"""What the finished files of a folder were made from, so that yesterday's result is not taken for today's.

A stage that goes on where it was asks whether a result is there, and whether it was made from the
same files. Files are compared by size and time first, which costs nothing, and by their digest only
where the time differs and the size does not.
"""
from __future__ import annotations

import json
import os
import threading
from typing import Any, Dict, List, Mapping, Optional

from cian.errors import InputError, PathLike, write_error
from cian.files import sha256_of

NAME = "made_from.jsonl"
Mark = List[Any]  # [bytes, time in ns, SHA-256]; empty for a file that does not exist


def mark(path: PathLike) -> Mark:
    """What a file is known by: size, time and SHA-256 of its content; empty where it cannot be read."""
    try:
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns, sha256_of(path)]
    except (OSError, InputError):
        return []  # whoever needs the file names it


def unchanged(path: PathLike, known: Mark) -> bool:
    """Whether a file still has the content that it was marked with."""
    try:
        status = os.stat(path)
    except OSError:
        return known == []
    if not known or status.st_size != known[0]:
        return False
    return status.st_mtime_ns == known[1] or mark(path)[2:] == known[2:]


class Ledger:
    """One line of JSON for each result of a folder: its name, the files that it was made from, and what
    else decides it. The last line of a name counts; a line that a killed process left half written
    counts nothing.
    """

    def __init__(self, folder: PathLike) -> None:
        self.path = os.path.join(os.fspath(folder), NAME)
        self._lock = threading.Lock()
        self._lines: Dict[str, Dict[str, Any]] = {}
        try:
            with open(self.path, "rb") as stream:
                content = stream.read()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=self.path) from error
        self._begin = b"" if content[-1:] in (b"", b"\n") else b"\n"  # after half a line
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                self._lines[entry["name"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # its result is made again

    def __getitem__(self, name: str) -> Dict[str, Any]:
        return self._lines.get(name, {})

    def same(self, name: str, files: Mapping[str, PathLike], **others: Any) -> bool:
        """Whether ``name`` was made from these files, as they are now, and from the same ``others``."""
        entry = self[name]
        marks = entry.get("files")
        return (isinstance(marks, dict) and set(marks) == set(files)
                and entry.get("others") == json.loads(json.dumps(others))
                and all(unchanged(path, marks[key]) for key, path in files.items()))

    def add(self, name: str, marks: Mapping[str, Mark], notes: Optional[Mapping[str, Any]] = None,
            **others: Any) -> None:
        """Record that ``name`` is finished; ``notes`` are kept and not compared."""
        entry = {**(notes or {}), "name": name, "files": dict(marks), "others": others}
        line = json.dumps(entry).encode() + b"\n"
        try:
            with self._lock, open(self.path, "ab", buffering=0) as stream:
                stream.write(self._begin + line)
                self._begin = b""
        except OSError as error:
            raise write_error(error, self.path) from error
        self._lines[name] = json.loads(line)
