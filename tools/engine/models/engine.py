"""What runs a network that does not train: MXNet, or on a CPU onnxruntime, which needs less time there.

The graph that onnxruntime gets is the network's own (:mod:`~cian.tools.engine.models.to_onnx`), for
images of any size, and it is held against MXNet before it is used.
"""
from __future__ import annotations

import functools
import sys
from typing import Any, Dict, List, Optional, Tuple

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from cian.errors import InputError
from cian.symbols.layers import reorder_sums
from cian.tools.engine.models.agreement import ExportError, Network
from cian.tools.engine.models.graph_cache import MXNET, GraphCache, hold_against, onnxruntime_version, probe
from cian.tools.engine.models.onnx_folding import fold_messages
from cian.tools.engine.models.onnx_model import import_onnx, run_session, start_session
from cian.tools.engine.models.symbol_graph import SymbolGraph
from cian.tools.engine.models.to_onnx import GraphWriter, add_network, make_onnx

KEY = "predict.engine"


def start_engine(net: HybridBlock, wanted: str, device: mx.Context,
                 cache: Optional[GraphCache] = None, passes: int = 1) -> Tuple[str, Network]:
    """A network's first output as a function of arrays (N, 3, H, W), and the name of what computes it.

    Parameters
    ----------
    net : with its parameters on ``device``.
    wanted : 'mxnet', 'onnx' or 'auto'. 'auto' is onnx on a CPU, unless onnxruntime is missing or
        cannot compute this network; the reason is printed then, once.
    cache : where to keep the network's graph.
    passes : calls that may be under way at a time in threads of the caller, with onnxruntime.

    Returns
    -------
    'mxnet', or onnxruntime with its version, which decides how it rounds; and the function.

    Raises
    ------
    InputError
        For 'onnx': the device is a GPU, onnxruntime is missing, or it cannot compute this network.
    """
    def live(images: np.ndarray) -> np.ndarray:
        outputs = net(mx.nd.array(images, ctx=device))
        return (outputs[0] if isinstance(outputs, (list, tuple)) else outputs).asnumpy()

    reorder_sums(net, False)  # what is exported; MXNet may have another order afterwards
    net.hybridize()
    if wanted != MXNET:
        try:
            content, network = _onnx(net, device, passes)
            logits = live(probe())
            hold_against(logits, network)
            if cache is not None:
                cache.write(content, logits)
            return expected_engine(wanted, device), network
        except (InputError, ExportError) as error:
            if wanted == "onnx":
                raise InputError(f"onnx cannot be used: {error}", field=KEY, remedy="use mxnet") from error
            _tell(f"{KEY}=auto takes mxnet: {error}")
    return MXNET, live


def expected_engine(wanted: str, device: mx.Context) -> str:
    """The name that :func:`start_engine` gives for a network that onnxruntime can compute."""
    if wanted == MXNET or wanted == "auto" and device.device_type != "cpu":
        return MXNET
    version = onnxruntime_version()
    return f"onnxruntime {version}" if version else MXNET


def _onnx(net: HybridBlock, device: mx.Context, passes: int) -> Tuple[bytes, Network]:
    """The network as an ONNX file, and run by onnxruntime."""
    if device.device_type != "cpu":
        raise InputError(f"onnxruntime is used on CPUs only, and the device is {device}")
    import_onnx("the network")
    symbol = net(mx.sym.var("data"))
    writer = GraphWriter()
    params = {name: param.data(device).asnumpy() for name, param in net.collect_params().items()}
    graph = SymbolGraph.of(symbol[0] if isinstance(symbol, (list, tuple)) else symbol)
    output = add_network(writer, graph, params, "images")[0]
    fold_messages(writer, [output])
    shapes: Dict[str, List[Any]] = {"images": ["n", 3, "h", "w"], output: ["n", "c", "h8", "w8"]}
    content = make_onnx(writer, output, shapes, {}, check=False).SerializeToString()
    session = start_session(content, "the network", passes)
    return content, lambda images: run_session(session, images, "the network")


@functools.cache
def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
