"""The framing of MXNet's RecordIO files, in Python, so that a damaged file ends in an exception and
not in the process's abort.

A record is one or more frames: the magic number, a word with the frame's kind (upper 3 bits) and
length (lower 29 bits), the content, and zeros up to a multiple of 4 bytes. Where the content itself
holds the magic number at a multiple of 4, the record is cut there into a first, middle and last
frame and the number is left out, so that a reader can look for record starts anywhere.
"""
from __future__ import annotations

import struct
from typing import Tuple

MAGIC = struct.pack("<I", 0xced7230a)
MAX_BYTES = (1 << 29) - 1
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


def frame(content: bytes) -> bytes:
    """``content`` as one record, ready to be appended to a ``.rec`` file; ValueError above
    :data:`MAX_BYTES`.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"a record holds at most {MAX_BYTES} bytes, not {len(content)}")
    pieces = []
    start, found = 0, content.find(MAGIC)
    while found >= 0:
        if found % 4 == 0:
            pieces.append(content[start:found])
            start = found + 4
        found = content.find(MAGIC, found + 4 if found % 4 == 0 else found + 1)
    pieces.append(content[start:])
    kinds = [_WHOLE] if len(pieces) == 1 else [_FIRST] + [_MIDDLE] * (len(pieces) - 2) + [_LAST]
    return b"".join(MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + b"\0" * (-len(piece) % 4)
                    for kind, piece in zip(kinds, pieces))


def unframe(record: bytes) -> bytes:
    """The content of exactly one framed record; ValueError that says what is wrong with it."""
    pieces = []
    position = 0
    expected: Tuple[int, ...] = (_WHOLE, _FIRST)
    while expected:
        if record[position:position + 4] != MAGIC or len(record) < position + 8:
            raise ValueError(f"no record starts at byte {position}")
        word, = struct.unpack_from("<I", record, position + 4)
        kind, length = word >> 29, word & MAX_BYTES
        if kind not in expected:
            raise ValueError(f"a frame of kind {kind} at byte {position} is out of order")
        position += 8
        if position + length > len(record):
            raise ValueError(f"a frame of {length} bytes ends beyond the record's {len(record)}")
        pieces.append(record[position:position + length])
        position += length + -length % 4
        expected = () if kind in (_WHOLE, _LAST) else (_MIDDLE, _LAST)
    if position != len(record):
        raise ValueError(f"the record ends at byte {position} of {len(record)}")
    return MAGIC.join(pieces)
