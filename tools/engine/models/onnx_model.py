"""ONNX files as data: checked before onnxruntime's native code builds them, then run on NumPy arrays.

A foreign ONNX file may name other files as the place of its weights, hold operators of any library,
nested graphs, or sizes that take all memory. Here only what :mod:`cian.tools.engine.models.to_onnx`
writes is accepted: its operators with bounded attributes, weights inside the file, one input of
images.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
from typing import Any, Dict, Mapping, Optional, Tuple, Type

import numpy as np

from cian.environment import usable_cores
from cian.errors import InputError, PathLike
from cian.files import read_bytes

OPSET, IR_VERSION = 13, 7  # that the export writes
MAX_NODES = 20_000
_REMEDY = "export it again with tools/export.py, or copy it again"
_WINDOW, _SMALL = 64, 65536
# Integers of attributes by name, (0, _WINDOW) of all others: negative pads end the process, windows of
# 65,536 take its memory. What else is wrong with an attribute, onnx or onnxruntime refuses.
_RANGES = {"axis": (-4, 4), "group": (1, _SMALL)}
OPERATORS = frozenset((
    "Conv", "BatchNormalization", "MaxPool", "AveragePool", "Concat", "Split", "Softmax", "Transpose", "Cast",
    "Pad", "Resize", "Add", "Sub", "Mul", "Div", "Max", "Sum", "Mean", "Clip", "Relu", "Sigmoid", "Tanh",
    "Exp", "Sqrt", "MatMul", "Reshape", "Shape", "Slice", "Mod", "GlobalAveragePool", "GlobalMaxPool"))
_END = np.iinfo(np.int64).max


class OnnxNetwork:
    """A checked ONNX file, run by onnxruntime on the CPU.

    Calling it maps (N, 3, H, W) float32 raw RGB 0..255 to the file's output, (N, C, h, w) float32.

    Attributes
    ----------
    metadata : what the file carries (``classes``, ``export`` and more); empty when it carries nothing.
    image_shape : (N, H, W) that the file is fixed to; None where it is dynamic.
    num_classes : C, or None where the file does not say.
    ends_in_softmax : whether the output is probabilities.

    Raises
    ------
    InputError
        Naming the file and what is wrong with it; onnx or onnxruntime not installed.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = os.fspath(path)
        import_onnx(self.path)
        content = read_bytes(path)
        model = check_model(content, self.path)
        self.metadata = read_props(model, self.path)
        recorded = self.metadata.get("export")
        if isinstance(recorded, dict) and recorded.get("graph_sha256", "") not in ("", graph_digest(model)):
            raise InputError("holds other weights than were exported", file=path, field="graph_sha256",
                             remedy=_REMEDY)
        dims = [dim.dim_value or None for dim in model.graph.input[0].type.tensor_type.shape.dim]
        self.image_shape: Tuple[Optional[int], ...] = (dims[0], *dims[2:])
        output = [dim.dim_value or None for dim in model.graph.output[0].type.tensor_type.shape.dim]
        self.num_classes = output[1]
        self.ends_in_softmax = any(node.op_type == "Softmax" and model.graph.output[0].name in node.output
                                   for node in model.graph.node)
        self._session = start_session(content, self.path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        for have, want in zip((images.shape[0], *images.shape[2:]), self.image_shape):
            if want is not None and have != want:
                raise InputError(f"was exported for {_text(self.image_shape)} (images, height, width), not "
                                 f"{images.shape[0]} of " f"{images.shape[2]}x{images.shape[3]}",
                                 file=self.path, remedy="export it for any size, or warp images to its size "
                                 "(predict.fit=warp)")
        output = run_session(self._session, images, self.path)
        if output.ndim != 4 or len(output) != len(images):
            raise InputError(f"gives an output of the shape {output.shape}", file=self.path, remedy=_REMEDY)
        return output


def import_onnx(file: PathLike) -> Tuple[Any, Any]:
    """The modules ``onnx`` and ``onnxruntime``; an :class:`InputError` says how to get them."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX files need the packages onnx and onnxruntime ({error})", file=file,
                         remedy="pip install 'cian[export]'") from error
    return onnx, onnxruntime


def thread_count() -> int:
    """Threads that a network may use, as many as MXNet has."""
    return int(os.environ.get("OMP_NUM_THREADS") or usable_cores())


def start_session(content: bytes, file: PathLike, passes: int = 1) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU; so many ``passes`` at a time share the threads."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, thread_count() // passes)
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _native_errors() as error:
        raise InputError(f"cannot be built by onnxruntime ({_first_line(error)})", file=file,
                         remedy=_REMEDY) from error


def run_session(session: Any, images: np.ndarray, file: PathLike) -> np.ndarray:
    """The output of a session with one input and one output."""
    try:
        return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(images, np.float32)})[0]
    except _native_errors() as error:
        raise InputError(f"cannot be run by onnxruntime ({_first_line(error)})", file=file,
                         remedy=_REMEDY) from error


def check_model(content: bytes, file: PathLike) -> Any:
    """The parsed ``onnx.ModelProto`` of a file's content, once everything in it was found to be as
    the export writes it.

    Raises
    ------
    InputError
        Naming the file, the node or weight, and what is wrong with it.
    """
    import onnx
    from google.protobuf.message import DecodeError
    try:
        model = onnx.load_model_from_string(content)
        _check_graph(model, file)
        onnx.checker.check_model(content)  # it would write a model as bytes once more
    except (DecodeError, UnicodeDecodeError) as error:
        raise InputError("is not an ONNX file, or a damaged one", file=file, remedy=_REMEDY) from error
    except onnx.checker.ValidationError as error:
        raise InputError(f"is not valid ({_first_line(error)})", file=file, remedy=_REMEDY) from error
    return model


def graph_digest(model: Any) -> str:
    """SHA-256 over the nodes and weights of a parsed model; the export writes it into the metadata,
    to tell a damaged file.
    """
    digest = hashlib.sha256()
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(tensor.name.encode() + tensor.raw_data)
    return digest.hexdigest()


def read_props(model: Any, file: PathLike) -> Dict[str, Any]:
    """The metadata of a parsed model: texts as they are, all else from JSON; see :func:`write_props`."""
    found: Dict[str, Any] = {}
    for entry in model.metadata_props:
        try:
            found[entry.key] = json.loads(entry.value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the metadata {entry.key[:60]!r} is not JSON", file=file,
                             field="metadata_props", remedy=_REMEDY) from error
    return found


def write_props(metadata: Mapping[str, Any]) -> Dict[str, str]:
    """Metadata as the texts of ``metadata_props``: each value in JSON."""
    return {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}


def _check_graph(model: Any, file: PathLike) -> None:
    """Everything that can be seen from the parsed model alone."""
    if [(entry.domain, entry.version)
        for entry in model.opset_import] != [("", OPSET)] or not 0 < model.ir_version <= IR_VERSION:
        raise InputError(f"is not of operator set {OPSET} alone, as the export writes it", file=file,
                         field="opset_import", remedy=_REMEDY)
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer or graph.quantization_annotation:
        raise InputError("holds more than a graph and its weights", file=file, remedy=_REMEDY)
    if not 0 < len(graph.node) <= MAX_NODES:
        raise InputError(f"must hold 1 to {MAX_NODES} nodes, not {len(graph.node)}", file=file, field="node",
                         remedy=_REMEDY)
    _check_ends(graph, file)
    for tensor in graph.initializer:
        _check_weights(tensor, file)
    for node in graph.node:
        _check_node(node, file)


def _check_ends(graph: Any, file: PathLike) -> None:
    """One input (N, 3, H, W) and one output of four dimensions, float32, of bounded size."""
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise InputError(
            f"must have one input and one output, not {len(graph.input)} and {len(graph.output)}", file=file,
            remedy=_REMEDY)
    for value in (graph.input[0], graph.output[0]):
        tensor = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.elem_type != 1 or len(dims) != 4 or not all(0 <= dim <= _SMALL for dim in dims):
            raise InputError(f"must be float32 of four dimensions, not {dims}", file=file,
                             field=value.name[:60], remedy=_REMEDY)
    if graph.input[0].type.tensor_type.shape.dim[1].dim_value != 3:
        raise InputError("must take images of 3 channels", file=file, field=graph.input[0].name[:60],
                         remedy=_REMEDY)


def _check_weights(tensor: Any, file: PathLike) -> None:
    """Weights are in the file, as many as their shape says, and finite; integers are small."""
    # TensorProto.FLOAT, INT64, DOUBLE
    kinds: Dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8"), 11: np.dtype("<f8")}
    field = tensor.name[:60]
    if tensor.data_location != 0 or len(tensor.external_data):
        raise InputError("keeps its values in another file, which is not read", file=file, field=field,
                         remedy=_REMEDY)
    if tensor.data_type not in kinds or len(tensor.dims) > 8 or any(dim < 0 for dim in tensor.dims):
        raise InputError(f"is of type {tensor.data_type} and shape {list(tensor.dims)[:9]}", file=file,
                         field=field, remedy=_REMEDY)
    kind = kinds[tensor.data_type]
    if math.prod(tensor.dims) * kind.itemsize != len(tensor.raw_data):
        raise InputError(f"holds {len(tensor.raw_data)} bytes for the shape {list(tensor.dims)}", file=file,
                         field=field, remedy=_REMEDY)
    values = np.frombuffer(tensor.raw_data, kind)
    if kind.kind == "i":
        if any(abs(value) > _SMALL and abs(value) != _END for value in values.tolist()):
            raise InputError("holds absurd sizes", file=file, field=field, remedy=_REMEDY)
    elif not np.isfinite(values).all():
        raise InputError("holds values that are not finite", file=file, field=field, remedy=_REMEDY)


def _check_node(node: Any, file: PathLike) -> None:
    field = node.name[:60] or node.op_type[:60]
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        raise InputError(f"the operator {node.domain[:20]}{node.op_type[:60]} is not one of this project's "
                         "networks and is not run", file=file, field=field,
                         remedy="export the network with tools/export.py")
    for attribute in node.attribute:
        low, high = _RANGES.get(attribute.name, (0, _WINDOW))
        if not all(low <= value <= high for value in attribute.ints or [attribute.i]):
            raise InputError(f"the {node.op_type} attribute {attribute.name[:60]!r} is not allowed",
                             file=file, field=field, remedy=_REMEDY)


def _native_errors() -> Tuple[Type[BaseException], ...]:
    """The exceptions of onnxruntime's native code; they share no base class but ``Exception``."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NoModel",
             "NotImplemented", "RuntimeException", "EPFail", "EngineError", "ModelLoaded")
    return tuple(getattr(state, name) for name in names if hasattr(state, name)) + (RuntimeError, MemoryError,
                                                                                    ValueError)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _text(shape: Tuple[Optional[int], ...]) -> str:
    return " x ".join("any" if side is None else str(side) for side in shape)
