"""From a symbol graph to ONNX: one small function for each operator of this project's networks.

MXNet 1.9.1 brings an exporter, ``mxnet.onnx``. It is not used: it declares whatever operator set
the installed ``onnx`` package has newest, which older onnxruntimes refuse, it writes
``BilinearResize2D`` for a fixed size only, and imports ``onnx.mapping``, which is gone. Here operator
set and file version are fixed, and any image size goes in: sizes are computed in the graph.

Images are (N, 3, H, W), raw RGB 0..255; the network's logits are (N, C, (H-1)//8+1, (W-1)//8+1).
"""
from __future__ import annotations

import ast
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from cian.errors import InputError
from cian.tools.engine.models.onnx_model import IR_VERSION, OPSET
from cian.tools.engine.models.symbol_graph import SymbolGraph, SymbolNode

_END = np.iinfo(np.int64).max


class GraphWriter:
    """Collects ONNX nodes and initializers and keeps their names unique; values are referred to by name."""

    def __init__(self) -> None:
        self.nodes: List[Any] = []
        self.initializers: Dict[str, np.ndarray] = {}
        self._constants: Dict[Tuple[str, bytes, Tuple[int, ...]], str] = {}

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, name: str = "",
            **attributes: Any) -> List[str]:
        """Append a node and return the names of its outputs."""
        from onnx import helper
        base = name or f"{op}/{len(self.nodes)}"  # no symbol has a slash in its names
        names = [base] if outputs == 1 else [f"{base}.{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=base, **attributes))
        return names

    def one(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """:meth:`add` for a node with one output."""
        return self.add(op, inputs, name=name, **attributes)[0]

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Name of an initializer that holds ``values``; equal constants share one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = f"constant/{len(self._constants)}"
            self.initializers[self._constants[key]] = array
        return self._constants[key]

    def part(self, vector: str, begin: int, end: int = _END) -> str:
        """``vector[begin:end]`` of a one-dimensional value, such as a shape."""
        return self.one("Slice", vector, self.constant([begin]), self.constant([end]), self.constant([0]))

    def resize(self, images: str, size: str, name: str = "") -> str:
        """(N, C, H, W) resized to the (2,) height and width by bilinear interpolation with aligned
        corners.
        """
        sizes = self.one("Concat", self.part(self.one("Shape", images), 0, 2), size, axis=0)
        return self.one("Resize", images, "", "", sizes, name=name, mode="linear",
                        coordinate_transformation_mode="align_corners")

    def size(self, images: str) -> str:
        """Height and width of (N, C, H, W), as a (2,) value."""
        return self.part(self.one("Shape", images), 2, 4)

    def reverse(self, images: str, axis: int) -> str:
        """``images`` reversed along an axis."""
        return self.one("Slice", images, self.constant([-1]), self.constant([-_END]), self.constant([axis]),
                        self.constant([-1]))


Translation = Callable[[GraphWriter, SymbolNode, List[str]], List[str]]


def add_network(writer: GraphWriter, graph: SymbolGraph, params: Mapping[str, np.ndarray],
                images: str) -> List[str]:
    """Append a network to ``writer`` and return the names of its outputs.

    Parameters
    ----------
    graph : the network, with one input besides its parameters.
    params : arrays by name.
    images : name of the value that takes the place of the graph's input.

    Raises
    ------
    InputError
        Naming an operator that cannot be translated, or parameters that are missing.
    """
    inputs = [name for name in graph.variables if name not in params]
    if len(inputs) != 1:
        raise InputError(f"the network must have one input besides its parameters, not {inputs[:5]}",
                         field="parameters")
    values: List[List[str]] = []
    for node in graph.nodes:
        if node.op == "null":
            if node.name in params:
                writer.initializers[node.name] = np.asarray(params[node.name], np.float32)
            values.append([node.name if node.name in params else images])
            continue
        if node.op not in TRANSLATIONS:
            raise InputError(f"the operator {node.op} has no translation to ONNX", field=node.name)
        values.append(TRANSLATIONS[node.op](writer, node, [values[at][output] for at, output in node.inputs]))
    return [values[at][output] for at, output in graph.heads]


def make_onnx(writer: GraphWriter, output: str, shapes: Mapping[str, Sequence[Any]],
              metadata: Mapping[str, str], check: bool = True) -> Any:
    """The ``onnx.ModelProto`` of what ``writer`` holds: input ``images``, output ``output``.

    Parameters
    ----------
    output : name of the value that becomes the output; it keeps this name.
    shapes : of 'images' and of the output; a text is a dynamic dimension.
    metadata : texts for ``metadata_props``.
    check : have ``onnx`` check all of it.
    """
    from onnx import TensorProto, checker, helper, numpy_helper
    graph = helper.make_graph(
        writer.nodes, "cian",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shapes["images"]))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shapes[output]))],
        [numpy_helper.from_array(array, name) for name, array in writer.initializers.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                              producer_name="cian")
    helper.set_model_props(model, dict(metadata))
    if check:
        checker.check_model(model, full_check=True)
    return model


def _ints(node: SymbolNode, key: str) -> List[int]:
    value = ast.literal_eval(node.attrs.get(key, "()"))
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _int(node: SymbolNode, key: str, default: Optional[int]) -> Optional[int]:
    text = node.attrs.get(key, "None")
    return default if text == "None" else int(text)


def _true(node: SymbolNode, key: str, default: bool) -> bool:
    return node.attrs.get(key, str(default)) in ("1", "True")


def _convolution(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    return writer.add("Conv", inputs, name=node.name, kernel_shape=_ints(node, "kernel"),
                      strides=_ints(node, "stride") or [1, 1], dilations=_ints(node, "dilate") or [1, 1],
                      pads=(_ints(node, "pad") or [0, 0]) * 2, group=_int(node, "num_group", 1))


def _batch_norm(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    if _true(node, "fix_gamma", True):
        inputs = [inputs[0], writer.constant(np.ones_like(writer.initializers[inputs[1]]), np.float32),
                  *inputs[2:]]
    return writer.add("BatchNormalization", inputs, name=node.name,
                      epsilon=float(node.attrs.get("eps", 1e-3)))


def _pooling(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    average = node.attrs.get("pool_type", "max") == "avg"
    if _true(node, "global_pool", False):
        return writer.add("GlobalAveragePool" if average else "GlobalMaxPool", inputs, name=node.name)
    include = {"count_include_pad": int(_true(node, "count_include_pad", True))} if average else {}
    return writer.add("AveragePool" if average else "MaxPool", inputs, name=node.name,
                      kernel_shape=_ints(node, "kernel"), strides=_ints(node, "stride") or [1, 1],
                      pads=(_ints(node, "pad") or [0, 0]) * 2, **include)


def _clip(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    bounds = [writer.constant(float(node.attrs[key]), np.float32) for key in ("a_min", "a_max")]
    return writer.add("Clip", [*inputs, *bounds], name=node.name)


def _split(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    return writer.add("Split", inputs, int(node.attrs["num_outputs"]), node.name, axis=_int(node, "axis", 1))


def _slice_axis(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    bounds = (int(node.attrs["begin"]), _int(node, "end", _END), int(node.attrs["axis"]))
    return writer.add("Slice", [*inputs, *(writer.constant([value]) for value in bounds)], name=node.name)


def _batch_dot(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    factors = [writer.one("Transpose", value, perm=[0, 2, 1]) if _true(node, f"transpose_{side}", False)
               else value for value, side in zip(inputs, "ab")]
    return writer.add("MatMul", factors, name=node.name)


def _reshape(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    shape = _ints(node, "shape")
    if shape[-1] == -3 and min(shape[:-1], default=0) >= 0:
        shape[-1] = -1  # MXNet's -3 merges two dimensions; as the last of them it is what is left
    if min(shape) < -1 or shape.count(-1) > 1:
        raise InputError(f"reshape to {tuple(shape)} has no translation to ONNX", field=node.name,
                         remedy="use 0 and one -1")
    return writer.add("Reshape", [inputs[0], writer.constant(shape)], name=node.name)


def _reshape_like(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    left, right = (writer.one("Shape", value) for value in inputs)
    begin, end = _int(node, "lhs_begin", 0) or 0, _int(node, "lhs_end", None)
    parts = [writer.part(right, _int(node, "rhs_begin", 0) or 0, _int(node, "rhs_end", None) or _END)]
    if begin:
        parts.insert(0, writer.part(left, 0, begin))
    if end is not None:
        parts.append(writer.part(left, end))
    return writer.add("Reshape", [inputs[0], writer.one("Concat", *parts, axis=0)], name=node.name)


def _pad(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    width = _ints(node, "pad_width")
    value = writer.constant(float(node.attrs.get("constant_value", 0)), np.float32)
    return writer.add("Pad", [*inputs, writer.constant(width[::2] + width[1::2]), value], name=node.name,
                      mode=node.attrs["mode"])


def _reverse(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    value = inputs[0]
    for axis in _ints(node, "axis"):
        value = writer.reverse(value, axis)
    return [value]


def _slice(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    begin, end = (ast.literal_eval(node.attrs[key]) for key in ("begin", "end"))
    bounds = [[value or 0 for value in begin], [_END if value is None else value for value in end],
              list(range(len(begin)))]
    return writer.add("Slice", [*inputs, *map(writer.constant, bounds)], name=node.name)


def _bilinear(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
    mode = node.attrs.get("mode", "size")
    if not _true(node, "align_corners", True) or (mode == "size" and "scale_height" in node.attrs):
        raise InputError(
            "BilinearResize2D without aligned corners, or by a plain scale, has no translation to ONNX",
            field=node.name,
            remedy="resize to a size, by an odd scale or like another value, with aligned corners")
    if mode == "like":
        size = writer.size(inputs[1])
    elif mode == "odd_scale":
        size = _odd_scale(writer, writer.size(inputs[0]),
                          [float(node.attrs[f"scale_{side}"]) for side in ("height", "width")])
    else:
        size = writer.constant([int(node.attrs["height"]), int(node.attrs["width"])])
    return [writer.resize(inputs[0], size, node.name)]


def _odd_scale(writer: GraphWriter, size: str, scales: List[float]) -> str:
    """MXNet's rule, in single precision as there: int(side scale) of an even side, int((side - 1)
    scale) + 1 of an odd one.
    """
    odd = writer.one("Mod", size, writer.constant([2]))
    even = writer.one("Cast", writer.one("Sub", size, odd), to=1)  # TensorProto.FLOAT
    # to INT64
    return writer.one("Add", writer.one("Cast", writer.one("Mul", even, writer.constant(scales, np.float32)),
                                        to=7), odd)


def _plain(op: str, **from_attrs: Tuple[str, Any]) -> Translation:
    """An ONNX operator with the same inputs; ``axis=("dim", 1)`` passes MXNet's integer attribute
    ``dim``, 1 without it, as ``axis``.
    """
    def translate(writer: GraphWriter, node: SymbolNode, inputs: List[str]) -> List[str]:
        attributes: Dict[str, Any] = {key: _int(node, source, default)
                                      for key, (source, default) in from_attrs.items()}
        return writer.add(op, inputs, name=node.name, **attributes)
    return translate


def _with_scalar(op: str) -> Translation:
    return lambda writer, node, inputs: writer.add(
        op, [*inputs, writer.constant(float(node.attrs["scalar"]), np.float32)], name=node.name)


_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}
TRANSLATIONS: Dict[str, Translation] = {
    "Convolution": _convolution, "BatchNorm": _batch_norm, "Pooling": _pooling, "clip": _clip,
    "SliceChannel": _split,
    "slice_axis": _slice_axis, "slice": _slice, "batch_dot": _batch_dot, "Reshape": _reshape,
    "reshape_like": _reshape_like, "Pad": _pad, "reverse": _reverse, "_contrib_BilinearResize2D": _bilinear,
    "Activation": lambda writer, node,
    inputs: writer.add(_ACTIVATIONS[node.attrs["act_type"]], inputs, name=node.name),
    "transpose": lambda writer, node,
    inputs: writer.add("Transpose", inputs, name=node.name, perm=_ints(node, "axes")),
    "Concat": _plain("Concat", axis=("dim", 1)), "softmax": _plain("Softmax", axis=("axis", -1)),
    "add_n": _plain("Sum"),
    **{op: lambda writer, node, inputs: [inputs[0]] for op in ("Dropout", "BlockGrad", "identity", "_copy")},
    **{op: _plain(translated) for op, translated in {
        "relu": "Relu", "sigmoid": "Sigmoid", "exp": "Exp", "sqrt": "Sqrt", "elemwise_add": "Add",
        "elemwise_sub": "Sub", "elemwise_mul": "Mul", "elemwise_div": "Div", "broadcast_add": "Add",
        "broadcast_sub": "Sub", "broadcast_mul": "Mul", "broadcast_div": "Div", "broadcast_maximum": "Max",
        "_maximum": "Max"}.items()},
    **{op: _with_scalar(translated) for op, translated in {
        "_plus_scalar": "Add", "_minus_scalar": "Sub", "_mul_scalar": "Mul", "_div_scalar": "Div"}.items()},
}
