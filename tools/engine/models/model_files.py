"""Opens whatever holds a trained network: a checkpoint, an exported symbol or an ONNX file, with
what is needed to predict with it.

Files are data: nothing in them is executed, and all of it is checked before native code sees it.
MXNet is loaded by the files that need it.
"""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from cian.data.classes import ClassTable, require_same
from cian.errors import InputError, PathLike
from cian.files import sha256_of
from cian.symbols.metadata import metadata_path, read_metadata
from cian.symbols.params_file import read_params
from cian.tools.engine.config import NetworkConfig, PredictConfig
from cian.tools.engine.models.graph_cache import MXNET, Graph, GraphCache
from cian.tools.engine.models.onnx_model import OnnxNetwork
from cian.tools.engine.models.procedure import Procedure
from cian.tools.engine.models.snapshot import load_network, resolve_checkpoint

if TYPE_CHECKING:
    import mxnet as mx

    from cian.symbols.cian import CIAN

Network = Callable[["mx.nd.NDArray"], List["mx.nd.NDArray"]]
MAX_WIDTH, MAX_UNITS, MAX_STAGES = 65536, 200, 16
SYMBOL_SUFFIX, PARAMS_SUFFIX = "-symbol.json", "-0000.params"


@dataclass(frozen=True)
class ModelFile:
    """An opened model file.

    Attributes
    ----------
    path : the file that holds the weights.
    kind : 'checkpoint', 'symbol' or 'onnx'.
    network : raw RGB (N, 3, H, W) to a list with one map of logits; or the checkpoint's graph.
    classes : names of the classes, background first.
    metadata : what the file carries.
    procedure : what an exported file does with an image; None for a checkpoint, which leaves it to
        the caller.
    cache : where the graph of a checkpoint can be kept.
    """

    path: str
    kind: str
    network: Union[Network, Graph]
    classes: ClassTable
    metadata: Dict[str, Any]
    procedure: Optional[Procedure] = None
    cache: Optional[GraphCache] = None

    def settings(self, wanted: PredictConfig) -> PredictConfig:
        """``wanted`` as far as the file leaves a choice: scales and mirror of an exported file are
        those inside it, and so is its size.
        """
        if self.procedure is None:
            return wanted
        allowed = replace(wanted, scales=(1.0,), add_max=False, mirror=False)
        if not self.procedure.size_px:
            return allowed
        return replace(allowed, size_px=self.procedure.size_px, fit="warp" if wanted.fit == "warp" else "pad")


def open_model(path: PathLike, *, ctx: Optional[mx.Context] = None, model: str = "",
               classes: Optional[ClassTable] = None, engine: str = MXNET, passes: int = 1) -> ModelFile:
    """Open a model file.

    Parameters
    ----------
    path : a snapshot folder (its last checkpoint), a ``.params`` file, ``PREFIX-symbol.json`` or
        ``PREFIX-0000.params`` of an exported network, or a ``.onnx`` file.
    ctx : device, default the CPU; ONNX runs on the CPU only.
    model : model name, for a ``.params`` file without metadata, as the original code writes it.
    classes : class names, for a file without metadata.
    engine : what will run a checkpoint's network; unless it is 'mxnet', a graph that was kept on a
        CPU is opened in place of the network, for so many ``passes`` at a time.

    Raises
    ------
    InputError
        Naming the file and what is wrong with it; what a file without metadata leaves open is asked
        for by flag.
    """
    name = os.fspath(path)
    if name.endswith(".onnx"):
        return _open_onnx(name, ctx, classes)
    if name.endswith(SYMBOL_SUFFIX):
        return _open_symbol(name[:-len(SYMBOL_SUFFIX)] + PARAMS_SUFFIX, ctx, classes)
    name = resolve_checkpoint(name, model if os.path.isdir(name) else "")
    with_symbol = name.endswith(PARAMS_SUFFIX) and os.path.exists(name[:-len(PARAMS_SUFFIX)] + SYMBOL_SUFFIX)
    carried = read_metadata(name, verify=False) if os.path.exists(metadata_path(name)) else None
    if with_symbol and (carried is None or _export(carried).get("kind") == "symbol"):
        return _open_symbol(name, ctx, classes)
    cache = None
    if engine != MXNET and (ctx is None or ctx.device_type == "cpu"):
        cache, kept = _kept(name, carried, model, classes, passes)
        if kept is not None:
            return kept
    net, metadata = load_checkpoint(name, for_prediction=True, ctx=ctx, model=model, classes=classes)
    if cache is not None:
        cache.network = metadata["network"]
    return ModelFile(name, "checkpoint", net, ClassTable(metadata["classes"]), metadata, cache=cache)


def _kept(path: str, metadata: Optional[Dict[str, Any]], model: str, classes: Optional[ClassTable],
          passes: int) -> Tuple[Optional[GraphCache], Optional[ModelFile]]:
    """Where a checkpoint's graph is kept, and what it holds; None where there is none."""
    if metadata is None and not (model and classes):
        return None, None
    built = {"model": model, "classes": classes and len(classes.names)}
    cache = GraphCache(path, {"checkpoint": metadata.get("sha256") if metadata else sha256_of(path),
                              "network": metadata["network"] if metadata else built})
    graph = cache.read(passes)
    if graph is None:
        return cache, None
    found = metadata or {"network": graph.network, "classes": list(classes.names if classes else ())}
    table = _classes(found, classes, path, graph.num_classes)
    return cache, ModelFile(path, "checkpoint", graph, table, found)


def load_checkpoint(path: PathLike, *, for_prediction: bool = False, ctx: Optional[mx.Context] = None,
                    model: str = "", classes: Optional[ClassTable] = None) -> Tuple[CIAN, Dict[str, Any]]:
    """The network of a checkpoint as it was trained, or for prediction, and its metadata.
    Parameters and errors as :func:`open_model`.

    Of a file without metadata, its parameters tell whether it has the affinity module, and how wide it is.
    """
    name = resolve_checkpoint(path, model if os.path.isdir(path) else "")
    if os.path.exists(metadata_path(name)):
        _check_sizes(read_metadata(name, verify=False)["network"], metadata_path(name))
        net, metadata = load_network(name, for_prediction=for_prediction, ctx=ctx)
    else:
        missing = [flag for flag, given in (("--model", model), ("--classes", classes)) if not given]
        if missing:
            raise InputError(f"has no metadata ({os.path.basename(metadata_path(name))})", file=name,
                             remedy=f"give {' and '.join(missing)} (in Python: model=, classes=)")
        query = read_params(name)[0].get("conv_embed_q_weight")
        network = NetworkConfig(model, "none") if query is None else NetworkConfig(model,
                                                                                   embed_channels=len(query))
        net, metadata = load_network(name, for_prediction=for_prediction, ctx=ctx, network=network,
                                     classes=classes.names if classes else ())
    _classes(metadata, classes, name, net.settings["num_classes"])
    return net, metadata


def _open_symbol(params_path: str, ctx: Optional[mx.Context], classes: Optional[ClassTable]) -> ModelFile:
    symbol_path = params_path[:-len(PARAMS_SUFFIX)] + SYMBOL_SUFFIX if params_path.endswith(
        PARAMS_SUFFIX) else params_path
    metadata = read_metadata(params_path) if os.path.exists(metadata_path(params_path)) else {}
    if _export(metadata).get("kind") == "training":
        raise InputError("is a training symbol, which predicts nothing", file=symbol_path,
                         remedy=f"open {os.path.basename(params_path)}")
    recorded = _export(metadata).get("symbol_sha256", "")
    if recorded and recorded != sha256_of(symbol_path):
        raise InputError("is not the symbol that was exported with these parameters", file=symbol_path,
                         field="symbol_sha256", remedy="copy both files again")
    from cian.tools.engine.models.symbol_model import load_symbol
    net = load_symbol(symbol_path, params_path, ctx)
    net.hybridize()
    table = _classes(metadata, classes, params_path, net.num_classes)
    return _exported(params_path, "symbol", net.run, table, metadata, net.ends_in_softmax)


def _open_onnx(path: str, ctx: Optional[mx.Context], classes: Optional[ClassTable]) -> ModelFile:
    if ctx is not None and ctx.device_type != "cpu":
        raise InputError("ONNX files run on the CPU only", file=path, field="run.devices",
                         remedy="use cpu:0, or export a symbol")
    import mxnet as mx
    onnx = OnnxNetwork(path)

    def network(images: mx.nd.NDArray) -> List[mx.nd.NDArray]:
        parts = np.split(images.asnumpy(), len(images)) if onnx.image_shape[0] == 1 else [images.asnumpy()]
        return [mx.nd.array(np.concatenate([onnx(part) for part in parts]))]
    return _exported(path, "onnx", network, _classes(onnx.metadata, classes, path, onnx.num_classes),
                     onnx.metadata, onnx.ends_in_softmax, onnx.image_shape)


def _exported(path: str, kind: str, network: Network, classes: ClassTable, metadata: Dict[str, Any],
              probabilities: bool, image_shape: Sequence[Optional[int]] = ()) -> ModelFile:
    """What an exported file does is read from its metadata; what matters for the numbers, from the
    graph itself.
    """
    sides = [side for side in image_shape[1:] if side]
    if sides and sides != [sides[0]] * 2:
        raise InputError(f"takes images of {sides}, and only squares or any size can be predicted", file=path)
    procedure = replace(Procedure.recorded(_export(metadata)), output="probabilities" if probabilities
                        else "logits", size_px=sides[0] if sides else 0)
    return ModelFile(path, kind, _as_logits(network) if probabilities else network, classes, metadata,
                     procedure)


def _as_logits(network: Network) -> Network:
    """Probabilities to logits: their logarithms, which give the same probabilities and the same labels."""
    import mxnet as mx

    def logits(images: mx.nd.NDArray) -> List[mx.nd.NDArray]:
        return [mx.nd.log(mx.nd.maximum(output, 1e-30)) for output in network(images)]
    return logits


def _classes(metadata: Mapping[str, Any], given: Optional[ClassTable], path: str,
             num_classes: Optional[int]) -> ClassTable:
    """The class table of a file: its own, else the given one; as many names as the network has classes."""
    own = metadata.get("classes")
    if own is None and given is None:
        raise InputError("carries no class names", file=path, remedy="give --classes (in Python: classes=)")
    if own is not None and not (isinstance(own, list) and all(isinstance(name, str) for name in own)):
        raise InputError("must be a list of names", file=path, field="classes",
                         remedy="export it again with tools/export.py")
    table = ClassTable(own, file=path) if own is not None else given
    assert table is not None
    if given is not None:
        require_same(table.names, path, given.names, given.file or "the list that was given")
    if num_classes not in (None, table.num_classes):
        raise InputError(f"has {num_classes} classes, and {table.num_classes} are named", file=path,
                         field="classes", remedy="name as many, background first")
    return table


def _check_sizes(settings: Any, file: str, field: str = "network") -> None:
    """Refuse to build a network of absurd size before its parameters are there to contradict it."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            _check_sizes(value, file, f"{field}.{key}"[:80])
    elif isinstance(settings, list):
        for value in settings[:MAX_STAGES + 1]:
            _check_sizes(value, file, field)
    limit = MAX_UNITS if field.endswith((".units", ".repeats")) else MAX_WIDTH
    if isinstance(settings, (int, float)) and not 0 <= settings <= limit or isinstance(
            settings, list) and len(settings) > MAX_STAGES:
        raise InputError(f"{str(settings)[:60]} is an absurd size", file=file, field=field,
                         remedy="copy the checkpoint again")


def _export(metadata: Mapping[str, Any]) -> Dict[str, Any]:
    found = metadata.get("export", {})
    return found if isinstance(found, dict) else {}
