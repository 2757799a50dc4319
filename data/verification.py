"""Comparing a packed record set with its checksums."""
from __future__ import annotations

import os
from typing import List

from cian.data.manifest import AGAIN, IMAGES
from cian.data.records import RecordSet
from cian.errors import InputError, collecting
from cian.files import sha256_of


def damaged_files(records: RecordSet) -> List[InputError]:
    """Every record and index file that does not match its SHA-256 in the manifest (1 GB in about a
    second).
    """
    problems: List[InputError] = []
    for part in records.manifest["parts"]:
        for name, expected in ((part["rec"], part["sha256"]), (part["idx"], part["idx_sha256"])):
            path = os.path.join(records.folder, name)
            with collecting(problems):
                if sha256_of(path) != expected:
                    raise InputError("does not match its checksum in the manifest", file=path, remedy=AGAIN)
    return problems


def verify(records: RecordSet) -> List[InputError]:
    """Everything that is wrong with an open set: its files' checksums, and every record read and decoded."""
    problems = damaged_files(records)
    for index in range(len(records)):
        with collecting(problems):
            if records.kind == IMAGES:
                records.image(index)
            else:
                records.label(index)
    return problems
