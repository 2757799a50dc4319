"""The PNG that seeds are packed as: 8-bit gray, rows without filters, so that inflating it is all
the decoding there is.

OpenCV's own files of the same map take three times as long to decode, and as many bytes. Any PNG
reader reads both.
"""
from __future__ import annotations

import struct
import zlib
from typing import Optional

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY_8_BIT = b"\x08\x00\x00\x00\x00"  # bits, colour type gray, deflate, filters by row, not interlaced
HEADER_BYTES = 33  # signature and IHDR chunk


def encode_gray_png(label: np.ndarray) -> bytes:
    """``label``, (H, W) uint8, as a PNG file."""
    height, width = label.shape
    rows = np.zeros((height, width + 1), np.uint8)  # the first column says: no filter
    rows[:, 1:] = label
    chunks = (b"IHDR" + struct.pack(">II", width, height) + GRAY_8_BIT,
              b"IDAT" + zlib.compress(rows.tobytes(), 9), b"IEND")
    return SIGNATURE + b"".join(struct.pack(">I", len(chunk) - 4) + chunk
                                + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)


def decode_gray_png(content: bytes) -> Optional[np.ndarray]:
    """The map of an :func:`encode_gray_png` file, (H, W) uint8; None for every other file, whole or
    damaged: leave those to OpenCV.

    Checksums of chunks are not compared: a record has one over all of them.
    """
    if content[:8] != SIGNATURE or content[12:16] != b"IHDR" or content[24:29] != GRAY_8_BIT:
        return None
    width, height = struct.unpack_from(">II", content, 16)
    length = int.from_bytes(content[HEADER_BYTES:HEADER_BYTES + 4], "big")
    start = HEADER_BYTES + 8
    if content[start - 4:start] != b"IDAT" or content[start + length + 8:start + length + 12] != b"IEND":
        return None
    inflate = zlib.decompressobj()
    try:
        # no more memory than the size announces
        rows = inflate.decompress(content[start:start + length], height * (width + 1) + 1)
    except zlib.error:
        return None
    if len(rows) != height * (width + 1) or not rows or not inflate.eof:
        return None
    table = np.frombuffer(rows, np.uint8).reshape(height, width + 1)
    return None if table[:, 0].any() else table[:, 1:].copy()
