"""Devices of a run: 'cpu:0' or 'gpu:1' to MXNet contexts, and the threads that several CPU contexts can bear.

Nothing is imported from MXNet until :func:`parse_devices`, because MXNet reads ``OMP_NUM_THREADS``
when it is loaded.
"""
from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from cian.environment import check_gpu
from cian.errors import InputError

if TYPE_CHECKING:
    import mxnet as mx


def split_devices(names: Sequence[str]) -> List[Tuple[str, int]]:
    """('cpu:0', 'gpu:1') to [('cpu', 0), ('gpu', 1)]; a bare 'cpu' or 'gpu' is number 0.

    Raises
    ------
    InputError
        No device, a name of another form, or the same device twice.
    """
    found: List[Tuple[str, int]] = []
    for name in names:
        match = re.fullmatch(r"(cpu|gpu)(?::(\d+))?", name.strip())
        if match is None:
            raise InputError(f"{name!r} is not a device", field="run.devices",
                             remedy="write for example cpu:0 or gpu:0,gpu:1")
        device = (match.group(1), int(match.group(2) or 0))
        if device in found:
            raise InputError(f"{name!r} is named twice", field="run.devices", remedy="give each device once")
        found.append(device)
    if not found:
        raise InputError("no device is named", field="run.devices",
                         remedy="write for example cpu:0 or gpu:0,gpu:1")
    return found


def limit_threads(names: Sequence[str]) -> None:
    """Give MXNet one OpenMP thread if several CPU devices are named: with more, two CPU contexts of
    one process wait for each other
    for ever. It works until MXNet is loaded; :func:`parse_devices` refuses what came too late."""
    if _cpu_count(names) > 1 and "mxnet" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = "1"


def parse_devices(names: Sequence[str]) -> List[mx.Context]:
    """MXNet contexts of devices, in the order given.

    Raises
    ------
    InputError
        A wrong name, a GPU that does not exist or that this build of MXNet cannot use, or several
        CPU devices in a process whose MXNet was loaded with more than one OpenMP thread.
    """
    devices = split_devices(names)
    limit_threads(names)
    if _cpu_count(names) > 1 and os.environ.get("OMP_NUM_THREADS") != "1":
        raise InputError(
            "several CPU devices need one OpenMP thread each, and MXNet was loaded with "
            f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '(unset)')}", field="run.devices",
            remedy="set OMP_NUM_THREADS=1 before the start, or use one CPU device, which takes all cores")
    for kind, number in devices:
        if kind == "gpu":
            try:
                check_gpu(number)
            except ValueError as error:
                raise InputError(str(error), field="run.devices") from error
    import mxnet as mx
    return [mx.Context(kind, number) for kind, number in devices]


def needed_contexts(names: Sequence[str]) -> List[Optional[mx.Context]]:
    """As :func:`parse_devices`, but None for a CPU alone, for those who may do without MXNet."""
    return [None] if [kind for kind, _ in split_devices(names)] == ["cpu"] else [*parse_devices(names)]


def _cpu_count(names: Sequence[str]) -> int:
    return sum(kind == "cpu" for kind, _ in split_devices(names))
