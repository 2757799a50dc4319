"""Reading back what a training run wrote for TensorBoard."""
from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

from tensorboardX.proto.event_pb2 import Event

from cian.errors import PathLike
from cian.files import read_bytes

LENGTH, FRAME = 8, 16  # a record: its length (8 bytes), a checksum (4), the event, a checksum (4)


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
    """
    found: Dict[str, Dict[int, float]] = {}
    files = [path for path in Path(folder).glob("events.out.tfevents.*") if path.stat().st_size]
    for path in sorted(files, key=_age):
        for event in _events(read_bytes(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: sorted(steps.items()) for name, steps in found.items()}


def _age(path: Path) -> Tuple[int, str]:
    stamp = path.name.rpartition(".")[2]
    return int(stamp) if stamp.isdecimal() else 0, path.name


def _events(content: bytes) -> Iterator[Event]:
    at = 0
    while at + FRAME <= len(content):
        length = struct.unpack_from("<Q", content, at)[0]
        if at + FRAME + length > len(content):
            return
        yield Event.FromString(content[at + LENGTH + 4:at + LENGTH + 4 + length])
        at += FRAME + length
