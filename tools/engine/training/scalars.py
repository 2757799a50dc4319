"""Reading back what a training run wrote for TensorBoard."""
from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from cian.errors import InputError, PathLike
from cian.files import decoding, read_bytes

LENGTH, FRAME = 8, 16  # a record: its length (8 bytes), a checksum (4), the event, a checksum (4)
_REMEDY = "remove it; the curves then lack its steps"


def read_scalars(folder: PathLike) -> Dict[str, List[Tuple[int, float]]]:
    """All scalars of a run.

    Parameters
    ----------
    folder : of the event files, ``<snapshot>/tensorboard``.

    Returns
    -------
    dict
        (step, value) in the order of steps, by name. Of a step that was run twice, because a run
        was broken off, the later value; an event that a killed run left half written is left out,
        and so is a file that it did not get to write to.

    Raises
    ------
    InputError
        Naming a file whose checksums do not hold.
    """
    found: Dict[str, Dict[int, float]] = {}
    files = [path for path in Path(folder).glob("events.out.tfevents.*") if path.stat().st_size]
    for path in sorted(files, key=_age):
        for event in _events(read_bytes(path), path):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: sorted(steps.items()) for name, steps in found.items()}


def _age(path: Path) -> Tuple[int, str]:
    stamp = path.name.rpartition(".")[2]
    return int(stamp) if stamp.isdecimal() else 0, path.name


def _events(content: bytes, path: Path) -> Iterator[Event]:
    at = 0
    while at + FRAME <= len(content):
        length, length_sum = struct.unpack_from("<QI", content, at)
        if length_sum != masked_crc32c(content[at:at + LENGTH]):
            raise InputError(f"is damaged at byte {at}", file=path, remedy=_REMEDY)
        if at + FRAME + length > len(content):
            return
        event = content[at + LENGTH + 4:at + LENGTH + 4 + length]
        if struct.unpack_from("<I", content, at + LENGTH + 4 + length)[0] != masked_crc32c(event):
            raise InputError(f"is damaged at byte {at}", file=path, remedy=_REMEDY)
        with decoding(path, "is damaged", _REMEDY):
            read = Event.FromString(event)
        yield read
        at += FRAME + length
