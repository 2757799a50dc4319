"""Momentum in the ``.states`` files of MXNet's Module, as the original code writes them beside its
``.params``.

Such a file is a pickle of a dict: the momentum array of each trained parameter by its position
among all parameters (one device) or by its name (several). Positions are those of the ``.params``
file beside it. It holds no step, no schedule and no state of the loader, so a run cannot be resumed
from it exactly; its momentum can be handed on with
:meth:`~cian.tools.engine.training.step.Sgd.set_momentum`.
"""
from __future__ import annotations

import io
import os
import pickle
from typing import Any, Dict, List, Mapping, Sequence, Union

import mxnet as mx
import numpy as np

from cian.errors import InputError, PathLike
from cian.files import atomic_write, decoding, read_bytes
from cian.pickles import Admitting
from cian.symbols.cian import CIAN
from cian.symbols.params_file import parse_array, read_params

REMEDY = "name the .states file that MXNet's Module saved, with its .params beside it"


class _Array:
    """Stands for MXNet's array while unpickling: keeps its bytes and runs nothing."""

    def __init__(self, handle: None = None) -> None:
        self.content = b""

    def __setstate__(self, state: Any) -> None:
        content = state.get("handle") if isinstance(state, dict) else None
        if not isinstance(content, (bytes, bytearray)):
            raise pickle.UnpicklingError("an array without content")
        self.content = bytes(content)


def _bytes(content: Any = b"") -> bytes:
    """Stands for ``bytearray``, which would make any size of array from a number."""
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("an array without content")
    return content


_ADMITTED = {("mxnet.ndarray.ndarray", "NDArray"): _Array, ("builtins", "bytearray"): _bytes}


def read_momentum(states: PathLike, params: PathLike) -> Dict[str, np.ndarray]:
    """Momentum by parameter name.

    Parameters
    ----------
    states : the ``.states`` file.
    params : the ``.params`` file of the same checkpoint: its order gives the positions their names,
        its shapes are checked.

    Raises
    ------
    InputError
        Naming the file: damaged, of another kind, asking for anything but arrays, or not fitting
        the parameters.
    """
    content = read_bytes(states)
    with decoding(states, "is not the state of an optimiser", REMEDY):
        found = Admitting(io.BytesIO(content), _ADMITTED).load()
    parameters = read_params(params)[0]
    names = list(parameters)
    if not isinstance(found, dict) or not all(isinstance(value, _Array) or value is None
                                              for value in found.values()):
        raise InputError("does not hold one momentum array for each parameter", file=states, remedy=REMEDY)
    momentum: Dict[str, np.ndarray] = {}
    for key, value in found.items():
        name = _name(key, names, states)
        if value is not None:
            momentum[name] = parse_array(value.content, states)
            if momentum[name].shape != parameters[name].shape:
                raise InputError(
                    f"has the shape {momentum[name].shape}, the parameter {parameters[name].shape}",
                    file=states, field=name, remedy=REMEDY)
    return momentum


def _name(key: Any, names: List[str], states: PathLike) -> str:
    if isinstance(key, str) and key in names:
        return key
    if isinstance(key, int) and 0 <= key < len(names):
        return names[key]
    raise InputError(f"holds a momentum for {key!r}, which is none of the {len(names)} parameters",
                     file=states, remedy=REMEDY)


def module_order(network: CIAN) -> List[str]:
    """Parameters in the order of a Module of this network, the original's too: that of the symbol's
    arguments.
    """
    return [name for name in mx.sym.Group(network(mx.sym.var("data"))).list_arguments() if name != "data"]


def write_momentum(states: PathLike, names: Sequence[str], momentum: Mapping[str, np.ndarray], *,
                   devices: int = 1) -> None:
    """Write a ``.states`` file that ``mx.mod.Module.load_optimizer_states`` reads, for a Module on
    ``devices`` devices.

    Parameters
    ----------
    names : of the Module's parameters in its order: :func:`module_order`, or that of a ``.params``
        file that a Module saved.
    """
    lonely = sorted(set(momentum) - set(names))
    if lonely:
        raise InputError(f"the network has no parameter {lonely[0]}", file=states,
                         remedy="name the checkpoint that it belongs to")
    names = list(names)
    content: Dict[Union[int, str], mx.nd.NDArray] = {
        (names.index(name) if devices == 1 else name): mx.nd.array(value) for name, value in momentum.items()}
    with atomic_write(os.fspath(states)) as stream:
        stream.write(pickle.dumps(content))
