"""An exported symbol and its parameters as a network, built from checked content only."""
from __future__ import annotations

import contextlib
import io
import math
import os
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock

from cian.errors import InputError, PathLike
from cian.symbols.params_file import read_params
from cian.tools.engine.models.symbol_graph import SymbolGraph, read_symbol

INPUT = "data"
PROBE_PX = 129  # side of the image for which all shapes are worked out before anything runs
MAX_VALUES = 1 << 26  # in one of the maps of that image
_REMEDY = "export it again with tools/export.py, or copy both files again"


class SymbolNetwork(HybridBlock):
    """A checked symbol with its parameters: raw RGB (N, 3, H, W) to a list with its one output.

    Parameters
    ----------
    graph : as :func:`~cian.tools.engine.models.symbol_graph.read_symbol` gives it.
    params : every parameter and moving statistic by name.
    file : where they come from, for messages.
    ctx : device or devices.

    Raises
    ------
    InputError
        When symbol and parameters do not fit each other, or the symbol asks for absurd sizes.
    """

    def __init__(self, graph: SymbolGraph, params: Mapping[str, np.ndarray], file: PathLike,
                 ctx: Any = None) -> None:
        super().__init__(prefix="")
        inputs = sorted(set(graph.variables) - set(params))
        if inputs != [INPUT] or len(graph.heads) != 1:
            raise InputError(f"needs '{INPUT}' as its one input and has one output; without a value are "
                             f"{', '.join(inputs[:5]) or 'none'}", file=file, remedy=_REMEDY)
        try:
            symbol = mx.sym.load_json(graph.to_json())
            shapes = _probe(symbol, file)
            block = SymbolBlock(symbol, mx.sym.var(INPUT, dtype="float32"))
        except mx.MXNetError as error:
            raise InputError(f"MXNet cannot build it ({_first_line(error)})", file=file,
                             remedy=_REMEDY) from error
        for name, param in block.collect_params().items():
            if shapes[name] != params[name].shape:
                raise InputError(f"has the shape {params[name].shape}, and the symbol needs {shapes[name]}",
                                 file=file, field=name, remedy=_REMEDY)
            param.shape = shapes[name]
            param.initialize(mx.init.Zero(), ctx=ctx or mx.cpu())
            param.set_data(mx.nd.array(params[name], dtype=np.float32))
        self.block, self._file = block, file
        #: C, and whether the output is probabilities.
        self.num_classes, self.ends_in_softmax = shapes[""][1], graph.ends_in_softmax

    def hybrid_forward(self, F: Any, x: Any) -> List[Any]:
        return [self.block(x)]

    def run(self, images: mx.nd.NDArray) -> List[mx.nd.NDArray]:
        """The network on images, with an :class:`InputError` where the symbol does not take their size."""
        try:
            return self(images)
        except mx.MXNetError as error:
            raise InputError(f"cannot be run on images of {images.shape[2]}x{images.shape[3]} pixels "
                             f"({_first_line(error)})", file=self._file, remedy=_REMEDY) from error


def load_symbol(symbol_path: PathLike, params_path: PathLike, ctx: Any = None) -> SymbolNetwork:
    """Read both files of an exported network; raises as :class:`SymbolNetwork` and naming damage in
    either file.
    """
    graph = read_symbol(symbol_path)
    arg_params, aux_params = read_params(params_path)
    return SymbolNetwork(graph, {**arg_params, **aux_params}, os.fspath(symbol_path), ctx)


def _probe(symbol: mx.sym.Symbol, file: PathLike) -> Dict[str, Tuple[int, ...]]:
    """Shapes of all variables by name, and of the output under ''; nothing is allocated."""
    known = {INPUT: (1, 3, PROBE_PX, PROBE_PX)}
    with contextlib.redirect_stdout(io.StringIO()):  # MXNet prints before it raises
        arguments, outputs, states = symbol.infer_shape(**known)
        _, maps, _ = symbol.get_internals().infer_shape(**known)
    if arguments is None or maps is None or not all(_known(shape)
                                                    for shape in [*arguments, *states, *outputs, *maps]):
        raise InputError("leaves shapes open", file=file, remedy=_REMEDY)
    largest = max(math.prod(shape) for shape in maps)
    if largest > MAX_VALUES:
        raise InputError(f"makes a map of {largest} values of an image of {PROBE_PX}x{PROBE_PX} pixels",
                         file=file, remedy=_REMEDY)
    if len(outputs[0]) != 4 or outputs[0][0] != 1:
        raise InputError(f"gives an output of the shape {outputs[0]}, not (N, C, H, W)", file=file,
                         remedy=_REMEDY)
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    return {"": outputs[0], **dict(zip(names, [*arguments, *states]))}


def _known(shape: Sequence[int]) -> bool:
    return len(shape) > 0 and min(shape) > 0


def _first_line(error: BaseException) -> str:
    """The message of a native error without its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Error" in line or "Check failed" in line),
                lines[0] if lines else "")[:200]
