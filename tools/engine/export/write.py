"""Writes a network for other programs, and holds what was written against the live network before
it gets its name.

Three kinds: ``symbol`` (the test-time network as MXNet's JSON and parameters), ``training`` (the
siamese network with its loss, likewise) and ``onnx``. The first two are what
``SymbolBlock.imports``, ``Module`` and ``model.load_checkpoint`` read.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from dataclasses import asdict, fields, replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

import mxnet as mx
import numpy as np
from mxnet.gluon import SymbolBlock

from cian.errors import InputError, PathLike, write_error
from cian.files import atomic_write_bytes, staging
from cian.symbols.cian import CIAN
from cian.symbols.layers import reorder_sums
from cian.symbols.losses import CIANLoss
from cian.symbols.metadata import RAW_RGB, metadata_path, read_metadata, versions, write_metadata
from cian.symbols.params import AUXILIARY, configure_training, save_params
from cian.tools.engine.config import LossConfig
from cian.tools.engine.models.agreement import Agreement, as_numpy, compare, fitted, generated_images
from cian.tools.engine.models.onnx_folding import fold_messages
from cian.tools.engine.models.onnx_model import OPSET, OnnxNetwork, graph_digest, import_onnx, write_props
from cian.tools.engine.models.procedure import Procedure
from cian.tools.engine.models.symbol_graph import SymbolGraph, number_names
from cian.tools.engine.models.to_onnx import GraphWriter, add_network, make_onnx

FILES = {
    "symbol": ("{}-symbol.json", "{}-0000.params", "{}-0000.params.json"),
    "onnx": ("{}.onnx",),
    "training": ("{}-train-symbol.json", "{}-train-0000.params", "{}-train-0000.params.json"),
}


def export_network(kind: str, net: CIAN, prefix: PathLike, metadata: Mapping[str, Any], procedure: Procedure,
                   *, loss: Optional[LossConfig] = None, pictures: Sequence[np.ndarray] = ()) -> Agreement:
    """Write one kind of :data:`FILES` from the network as it was trained.

    Parameters
    ----------
    procedure : what the file shall compute; its size is for ONNX alone.
    loss : of the training symbol, where the metadata does not tell it.
    pictures : (H, W, 3) uint8 RGB to compare on; without any, generated ones.

    Raises
    ------
    InputError, ExportError
        See :func:`export_symbol`.
    """
    if kind not in FILES:
        raise InputError(f"there is no format {kind!r}", field="--format",
                         remedy=f"use some of: {', '.join(FILES)}")
    if kind != "onnx":
        procedure = replace(procedure, size_px=0)
    images = [fitted(picture, procedure.size_px)
              for picture in pictures] or generated_images(procedure.size_px)
    if kind == "training":
        own = recorded(metadata, "loss", [key.name for key in fields(LossConfig)])
        return export_training(net, prefix, metadata, replace(loss or LossConfig(), **own), images)
    return {"symbol": export_symbol, "onnx": export_onnx}[kind](net.for_prediction(), prefix, metadata,
                                                                procedure, images)


def recorded(metadata: Mapping[str, Any], section: str, keys: Sequence[str]) -> Dict[str, Any]:
    """Those keys of a configuration's section that a checkpoint's metadata records."""
    config = metadata.get("config")
    return {key: config[f"{section}.{key}"]
            for key in keys if f"{section}.{key}" in config} if isinstance(config, dict) else {}


def export_symbol(net: CIAN, prefix: PathLike, metadata: Mapping[str, Any], procedure: Procedure,
                  images: Sequence[np.ndarray]) -> Agreement:
    """Write ``PREFIX-symbol.json``, ``PREFIX-0000.params`` and ``PREFIX-0000.params.json``.

    Parameters
    ----------
    net : network that returns [logits], see :meth:`~cian.symbols.CIAN.for_prediction`; its
        parameters are on the CPU.
    metadata : that of the checkpoint; goes into the file with the procedure and what the comparison found.
    images : (1, 3, H, W) float32 raw RGB each, to compare on.

    Raises
    ------
    InputError
        When the files cannot be written, or the procedure fixes the size, which a symbol does not.
    ExportError
        When the reloaded network differs from the live one; nothing is left under the names then.
    """
    if procedure.size_px:
        raise InputError("a symbol takes images of any size", field="--size",
                         remedy="leave it out for this format")
    reorder_sums(net, False)
    live = procedure.network(net)
    graph = SymbolGraph.of(live(mx.sym.var("data")))
    with _staged(prefix) as stage:
        symbol_path, params_path = f"{stage}-symbol.json", f"{stage}-0000.params"
        atomic_write_bytes(symbol_path, graph.to_json().encode())
        save_params(live, params_path)
        with warnings.catch_warnings():
            # of the images; imports() gives them none
            warnings.filterwarnings("ignore", "Cannot decide type")
            block = SymbolBlock.imports(symbol_path, ["data"], params_path, ctx=mx.cpu())
        agreement = compare(as_numpy(live), as_numpy(block), images)
        digest = hashlib.sha256(graph.to_json().encode()).hexdigest()
        write_metadata(params_path,
                       _describe(metadata, "symbol", asdict(procedure), agreement, symbol_sha256=digest))
    return agreement


def export_training(net: CIAN, prefix: PathLike, metadata: Mapping[str, Any], loss: LossConfig,
                    images: Sequence[np.ndarray]) -> Agreement:
    """Write the network that was trained, with its loss: ``PREFIX-train-symbol.json`` and
    ``PREFIX-train-0000.params``, with metadata.

    Inputs ``data``, ``seed_label`` (N, h, w) and, where the loss takes the classes from the image,
    ``image_labels`` (N, C); outputs ``loss`` (1,), a sum over images, and the logits of each branch
    without gradient. Multipliers of learning rate and decay are in the symbol; the names of frozen
    parameters, Module's ``fixed_param_names``, in the metadata. The network is configured for
    training. Raises as :func:`export_symbol`; the logits are compared.
    """
    configure_training(net, **recorded(metadata, "train", ("lr_mult_new", "decay_beta", "freeze")))
    parameters = net.collect_params()
    criterion = CIANLoss(net.settings["num_classes"], net.settings["affinity"], loss.completion,
                         loss.completion_labels, loss.completion_target, loss.normalise)
    reorder_sums(net, False)
    branches = net(mx.sym.var("data"))
    total, _ = criterion(branches, mx.sym.var("seed_label"), mx.sym.var("image_labels"))
    names = ("logits_self", "logits_cross") if len(branches) > 1 else ("logits",)
    heads = [mx.sym.BlockGrad(branch, name=name) for branch, name in zip(branches, names)]
    multipliers = {name: {"__lr_mult__": str(param.lr_mult), "__wd_mult__": str(param.wd_mult)}
                   for name, param in parameters.items()}
    text = number_names(
        mx.sym.Group([mx.sym.identity(mx.sym.make_loss(total), name="loss"), *heads]).tojson(), multipliers)
    fixed = sorted(name for name, param in parameters.items() if param.grad_req == "null"
                   and not name.endswith(AUXILIARY))
    group = net.settings["group_size"] if len(branches) > 1 else 1
    batches = [np.concatenate([image] * group) for image in images]
    with _staged(f"{os.fspath(prefix)}-train") as stage:
        symbol_path, params_path = f"{stage}-symbol.json", f"{stage}-0000.params"
        atomic_write_bytes(symbol_path, text.encode())
        save_params(net, params_path)
        internals = mx.sym.load(symbol_path).get_internals()
        outputs = mx.sym.Group([internals[f"{name}_output"] for name in names])
        block = SymbolBlock(outputs, mx.sym.var("data", dtype="float32"))
        block.collect_params().load(params_path, ctx=mx.cpu())
        agreement = compare(as_numpy(net), as_numpy(block), batches)
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_metadata(params_path,
                       _describe(metadata, "training", {"loss": asdict(loss), "fixed_param_names": fixed},
                                 agreement, symbol_sha256=digest))
    return agreement


def export_onnx(net: CIAN, prefix: PathLike, metadata: Mapping[str, Any], procedure: Procedure,
                images: Sequence[np.ndarray]) -> Agreement:
    """Write ``PREFIX.onnx`` with its metadata inside. Parameters and errors as :func:`export_symbol`.

    With ``procedure.size_px`` the file takes one image of that size; without it any number of
    images of any size.
    """
    import_onnx(f"{os.fspath(prefix)}.onnx")
    reorder_sums(net, False)
    live = procedure.network(net)
    writer = GraphWriter()
    params = {name: param.data(mx.cpu()).asnumpy() for name, param in live.collect_params().items()}
    output = add_network(writer, SymbolGraph.of(live(mx.sym.var("data"))), params, "images")[0]
    fold_messages(writer, [output])
    with _staged(prefix) as stage:
        path = f"{stage}.onnx"
        shapes = _onnx_shapes(procedure, net.settings["num_classes"], output)
        model = make_onnx(writer, output, shapes, {})
        atomic_write_bytes(path, model.SerializeToString())
        agreement = compare(as_numpy(live), OnnxNetwork(path), images)
        described = _describe(metadata, "onnx", asdict(procedure), agreement, opset=OPSET,
                              graph_sha256=graph_digest(model))
        atomic_write_bytes(path,
                           make_onnx(writer, output, shapes, write_props(described)).SerializeToString())
        OnnxNetwork(path)
    return agreement


def _describe(metadata: Mapping[str, Any], kind: str, procedure: Mapping[str, Any], agreement: Agreement,
              **more: Any) -> Dict[str, Any]:
    """The metadata of an exported file."""
    kept = {key: value for key, value in metadata.items() if key not in ("sha256", "versions", "export")}
    export = {"kind": kind, **procedure, "agreement": asdict(agreement),
              "checkpoint_sha256": metadata.get("sha256", ""), **more}
    return {"preprocessing": RAW_RGB, **kept, "versions": versions(), "export": export}


def _onnx_shapes(procedure: Procedure, num_classes: int, output: str) -> Dict[str, List[Any]]:
    side = procedure.size_px
    batch, rows, columns = (1, side, side) if side else ("batch", "height", "width")
    result: List[Any] = [rows, columns]
    if procedure.resolution == "stride8":
        result = [(side - 1) // 8 + 1] * 2 if side else ["height_8", "width_8"]
    return {"images": [batch, 3, rows, columns], output: [batch, num_classes, *result]}


@contextlib.contextmanager
def _staged(prefix: PathLike) -> Iterator[str]:
    """A prefix in a temporary folder; when the block ends well its files get their names beside
    ``prefix``, the metadata last.
    """
    folder, name = os.path.split(os.path.abspath(os.fspath(prefix)))
    try:
        with staging(folder, name, "this export") as stage:
            yield os.path.join(stage, name)
            taken = os.path.join(folder, f"{name}-0000.params")
            if os.path.basename(taken) in os.listdir(stage):
                _refuse_checkpoint(taken)
            for written in sorted(os.listdir(stage), key=lambda file: (file.endswith(".params.json"), file)):
                os.replace(os.path.join(stage, written), os.path.join(folder, written))
    except OSError as error:
        raise write_error(error, folder) from error


def _refuse_checkpoint(path: str) -> None:
    """An exported file may be written again; a checkpoint of the same name may not be lost to it."""
    if os.path.exists(path) and not (os.path.exists(metadata_path(path))
                                     and "export" in read_metadata(path, verify=False)):
        raise InputError("is no exported file, and would be overwritten", file=path, field="--out",
                         remedy="choose another name")
