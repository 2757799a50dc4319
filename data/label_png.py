"""Label maps as PNG: the encoding of packed seeds, and a fast way through the common kinds.

Inflating the rows is most of the work, and libdeflate does that fastest. Seeds are packed as 8-bit
gray without row filters; palette maps are usually stored without them too, and OpenCV stores gray
ones with the filter 'Sub' in every row. All decode here in a third of the time of a general reader;
every other file is left to one.
"""
from __future__ import annotations

import struct
import zlib
from typing import List, Optional

import deflate
import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, PALETTE = 0, 3
NO_FILTER, SUB = 0, 1
GRAY_8_BIT = b"\x08\x00\x00\x00\x00"  # bits, colour type gray, deflate, filters by row, not interlaced


def encode_gray_png(label: np.ndarray) -> bytes:
    """``label``, (H, W) uint8, as a PNG file that decodes fastest."""
    height, width = label.shape
    rows = np.zeros((height, width + 1), np.uint8)  # the first column says: no filter
    rows[:, 1:] = label
    chunks = (b"IHDR" + struct.pack(">II", width, height) + GRAY_8_BIT,
              b"IDAT" + zlib.compress(rows.tobytes(), 9), b"IEND")
    return SIGNATURE + b"".join(struct.pack(">I", len(chunk) - 4) + chunk
                                + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)


def decode_index_png(content: bytes) -> Optional[np.ndarray]:
    """The indices of an 8-bit gray or palette PNG as (H, W) uint8, all checksums compared.

    Returns None for what a general PNG reader has to decide: other kinds, interlaced files, other
    filters, and every damage.
    """
    chunks = _chunks(content)
    if chunks is None:
        return None
    header, data = chunks
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if bits != 8 or colour not in (GRAY, PALETTE) or interlaced or not width or not height:
        return None
    size = height * (width + 1)
    try:
        rows = deflate.zlib_decompress(data, size)  # no more memory than the size announces
    except deflate.DeflateError:
        return None
    if len(rows) != size:
        return None
    table = np.frombuffer(rows, np.uint8).reshape(height, width + 1)
    filters, values = table[:, 0], table[:, 1:]
    if (filters == NO_FILTER).all():
        return values.copy()
    if (filters == SUB).all():
        # Each pixel is stored less its left neighbour, modulo 256: the sum from the row's start is its value.
        return np.cumsum(values, axis=1, dtype=np.uint8)
    return None


def _chunks(content: bytes) -> Optional[List[bytes]]:
    """The header and the joined image data of a PNG file whose chunks are whole, else None."""
    if content[:8] != SIGNATURE:
        return None
    header, data, position = b"", [], 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position:position + 4], "big")
        end = position + 8 + length
        kind, body = content[position + 4:position + 8], content[position + 8:end]
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(content[end:end + 4],
                                                                "big") or end + 4 > len(content):
            return None
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            data.append(body)
        elif kind == b"IEND":
            return [header, b"".join(data)] if len(header) == 13 and data else None
        position = end + 4
    return None


def palette_of(content: bytes) -> bytes:
    """The palette of a PNG file that was decoded before: three bytes a colour, empty where it has none."""
    position = 8
    while position + 12 <= len(content) and content[position + 4:position + 8] != b"IDAT":
        length = int.from_bytes(content[position:position + 4], "big")
        if content[position + 4:position + 8] == b"PLTE":
            return content[position + 8:position + 8 + length]
        position += 12 + length
    return b""
