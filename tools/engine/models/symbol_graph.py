"""Symbol files as data: read in Python, checked against a list of known operators, and written anew
for MXNet's native loader.

MXNet parses a symbol file natively, and an operator named there may do anything that an operator
can, a Python ``Custom`` one included. So nothing of a foreign file reaches it: :func:`parse_symbol`
keeps what :data:`OPERATORS` knows, refuses the rest by name, and :meth:`SymbolGraph.to_json` writes
a fresh file from it. The ONNX translation walks the same graph.
"""
from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from cian.errors import InputError, PathLike
from cian.files import read_text

Check = Callable[[str], bool]

MAX_BYTES = 8 << 20
MAX_NODES = 20_000
_MXNET_VERSION = 10901
_REMEDY = "export it again with tools/export.py, or copy it again"


def _integer(low: int, high: int) -> Check:
    return lambda text: bool(re.fullmatch(r"-?\d{1,9}", text)) and low <= int(text) <= high


def _integers(low: int, high: int) -> Check:
    one = _integer(low, high)

    def check(text: str) -> bool:
        inner = re.fullmatch(r"[(\[]?([-\d, ]{0,99}?),?[)\]]?", text)
        return inner is not None and all(one(part.strip())
                                         for part in inner.group(1).split(",") if inner.group(1))
    return check


def _one_of(*texts: str) -> Check:
    return lambda text: text in texts


def _bounds(text: str) -> bool:
    return _integers(-65536, 65536)(text.replace("None", "0")) and text[:1] in "([" and len(text) < 80


def _optional(check: Check) -> Check:
    return lambda text: text == "None" or check(text)


def _number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and len(text) < 40
    except ValueError:
        return False


_FLAG = _one_of("0", "1", "True", "False")
_CHANNELS, _AXIS, _WINDOW = _integer(1, 65536), _integer(-4, 4), _integers(0, 64)
_SCALAR: Dict[str, Check] = {"scalar": _number, "is_int": _FLAG}


@dataclass(frozen=True)
class Operator:
    """What is allowed of an operator: the least and the most inputs, a check for each attribute,
    the number of outputs.
    """

    inputs: Tuple[int, int]
    attrs: Mapping[str, Check]
    outputs: int = 1


_POINTWISE, _PAIRWISE = Operator((1, 1), {}), Operator((2, 2), {})
_WITH_SCALAR = Operator((1, 1), _SCALAR)
# Every operator of this project's networks, and nothing else.
OPERATORS: Dict[str, Operator] = {
    "null": Operator((0, 0), {"__lr_mult__": _number, "__wd_mult__": _number}),
    "Convolution": Operator((2, 3), {
        "kernel": _integers(1, 64), "stride": _integers(1, 64), "dilate": _integers(1, 64), "pad": _WINDOW,
        "num_filter": _CHANNELS,
        "num_group": _CHANNELS, "no_bias": _FLAG, "layout": _one_of("None", "NCHW")}),
    "BatchNorm": Operator((5, 5), {
        "eps": _number, "momentum": _number, "fix_gamma": _FLAG, "use_global_stats": _FLAG,
        "output_mean_var": _one_of("0", "False"), "axis": _one_of("1")}),
    "Pooling": Operator((1, 1), {
        "kernel": _WINDOW, "stride": _WINDOW, "pad": _WINDOW, "pool_type": _one_of("max", "avg"),
        "global_pool": _FLAG,
        "pooling_convention": _one_of("valid"), "count_include_pad": _FLAG,
        "layout": _one_of("None", "NCHW")}),
    "Activation": Operator((1, 1), {"act_type": _one_of("relu", "sigmoid", "tanh")}),
    "Dropout": Operator((1, 1), {"p": _number, "mode": _one_of("training"), "axes": _integers(0, 4)}),
    "clip": Operator((1, 1), {"a_min": _number, "a_max": _number}),
    "Concat": Operator((1, 64), {"dim": _AXIS, "num_args": _integer(1, 64)}),
    "add_n": Operator((1, 64), {"num_args": _integer(1, 64)}),
    "SliceChannel": Operator((1, 1),
                             {"num_outputs": _integer(1, 64), "axis": _AXIS,
                              "squeeze_axis": _one_of("0", "False")}, 64),
    "slice_axis": Operator((1, 1),
                           {"axis": _AXIS, "begin": _integer(-65536, 65536),
                            "end": _optional(_integer(-65536, 65536))}),
    "slice": Operator((1, 1), {"begin": _bounds, "end": _bounds}),
    "batch_dot": Operator((2, 2), {"transpose_a": _FLAG, "transpose_b": _FLAG,
                                   "forward_stype": _one_of("None")}),
    "softmax": Operator((1, 1), {"axis": _AXIS, "use_length": _one_of("0", "False"),
                                 "temperature": _one_of("None"), "dtype": _one_of("None")}),
    "Reshape": Operator((1, 1), {"shape": _integers(-4, 65536), "reverse": _one_of("0", "False")}),
    "reshape_like": Operator((2, 2),
                             {name: _optional(_AXIS) for name in ("lhs_begin", "lhs_end", "rhs_begin",
                                                                  "rhs_end")}),
    "transpose": Operator((1, 1), {"axes": _integers(0, 4)}),
    "Pad": Operator((1, 1), {"mode": _one_of("constant", "edge", "reflect"), "pad_width": _integers(0, 64),
                             "constant_value": _number}),
    "reverse": Operator((1, 1), {"axis": _integers(0, 4)}),
    "_contrib_BilinearResize2D": Operator((1, 2), {
        "mode": _one_of("size", "like", "odd_scale"), "height": _integer(1, 8192), "width": _integer(1, 8192),
        "scale_height": _number, "scale_width": _number, "align_corners": _FLAG}),
    **dict.fromkeys(("BlockGrad", "identity", "_copy", "relu", "sigmoid", "exp", "sqrt"), _POINTWISE),
    **dict.fromkeys(("elemwise_add", "elemwise_sub", "elemwise_mul", "elemwise_div", "broadcast_add",
                     "broadcast_sub", "broadcast_mul",
                     "broadcast_div", "broadcast_maximum", "_maximum"), _PAIRWISE),
    **dict.fromkeys(("_plus_scalar", "_minus_scalar", "_mul_scalar", "_div_scalar"), _WITH_SCALAR),
}
# Attributes that say how fast or on which device, never what is computed: dropped, like the rest of
# a variable's and all __names__.
_DROPPED = frozenset({"workspace", "cudnn_tune", "cudnn_off", "min_calib_range", "max_calib_range"})


@dataclass(frozen=True)
class SymbolNode:
    """One node; ``inputs`` are pairs of (position of the node, number of its output)."""

    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: Tuple[Tuple[int, int], ...]


@dataclass(frozen=True)
class SymbolGraph:
    """A checked graph: nodes in an order in which each follows its inputs, and the outputs of the whole."""

    nodes: Tuple[SymbolNode, ...]
    heads: Tuple[Tuple[int, int], ...]

    @property
    def variables(self) -> List[str]:
        """Names of the inputs and the parameters, in order."""
        return [node.name for node in self.nodes if node.op == "null"]

    @classmethod
    def of(cls, symbol: Any) -> SymbolGraph:
        """The graph of one of this project's MXNet symbols; nodes that share a name get numbers."""
        return parse_symbol(number_names(symbol.tojson()), "symbol")

    @property
    def ends_in_softmax(self) -> bool:
        """Whether the first output is a softmax, as it is or under another name."""
        node = self.nodes[self.heads[0][0]]
        while node.op in ("identity", "_copy", "BlockGrad"):
            node = self.nodes[node.inputs[0][0]]
        return node.op == "softmax"

    def to_json(self) -> str:
        """The graph in MXNet's format, of known operators and attributes only."""
        nodes = [{"op": node.op, "name": node.name, "attrs": dict(node.attrs),
                  "inputs": [[*pair, 0] for pair in node.inputs]} for node in self.nodes]
        return json.dumps({"nodes": nodes,
                           "arg_nodes": [at for at, node in enumerate(self.nodes) if node.op == "null"],
                           "heads": [[*pair, 0] for pair in self.heads],
                           "attrs": {"mxnet_version": ["int", _MXNET_VERSION]}})


def read_symbol(path: PathLike) -> SymbolGraph:
    """Read and check a symbol file.

    Raises
    ------
    InputError
        Naming the file, the node and what is wrong with it.
    """
    return parse_symbol(read_text(path), path)


def number_names(text: str, attrs: Optional[Mapping[str, Mapping[str, str]]] = None) -> str:
    """A symbol file's content in which operators that share a name (as a layer that is used twice)
    are told apart by ``.1``, ``.2``.

    ``attrs`` replace those of the variables that it names.
    """
    content = json.loads(text)
    seen: Dict[str, int] = {}
    for node in content["nodes"]:
        count = seen[node["name"]] = seen.get(node["name"], -1) + 1
        if node["op"] == "null":
            node["attrs"] = {**node.get("attrs", {}), **(attrs or {}).get(node["name"], {})}
        elif count:
            node["name"] += f".{count}"
    return json.dumps(content)


def parse_symbol(text: str, file: PathLike) -> SymbolGraph:
    """Check the content of a symbol file; ``file`` is for messages. Raises as :func:`read_symbol`."""
    if len(text) > MAX_BYTES:
        raise InputError(
            f"is {len(text)} characters long, and no symbol of this project comes near {MAX_BYTES}",
            file=file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not a symbol file ({error})", file=file, remedy=_REMEDY) from error
    nodes = content.get("nodes") if isinstance(content, dict) else None
    if not isinstance(nodes, list) or not 0 < len(nodes) <= MAX_NODES:
        raise InputError(f"must hold a list of 1 to {MAX_NODES} nodes", file=file, field="nodes",
                         remedy=_REMEDY)
    checked: List[SymbolNode] = []
    names = set()
    for position, node in enumerate(nodes):
        checked.append(_node(node, checked, f"nodes[{position}]", file))
        if checked[-1].name in names:
            raise InputError(f"the name {checked[-1].name!r} occurs twice", file=file,
                             field=f"nodes[{position}]", remedy=_REMEDY)
        names.add(checked[-1].name)
    return SymbolGraph(tuple(checked), _links(content.get("heads"), checked, "heads", file, (1, 16)))


def _node(node: Any, before: List[SymbolNode], field: str, file: PathLike) -> SymbolNode:
    """One checked node; ``before`` are the nodes that it may use."""
    if not isinstance(node, dict):
        raise InputError("is not a node", file=file, field=field, remedy=_REMEDY)
    op, name, attrs = node.get("op"), node.get("name"), node.get("attrs", {})
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]{1,200}", name, re.ASCII):
        raise InputError(f"the name {str(name)[:60]!r} is not made of letters, digits, '_' and '.'",
                         file=file, field=field)
    if not isinstance(op, str) or op not in OPERATORS:
        raise InputError(
            f"the operator {str(op)[:60]!r} is not one of this project's networks and is not run", file=file,
            field=f"{field} {name}", remedy="export the network with tools/export.py")
    if not isinstance(attrs, dict):
        raise InputError("attributes must be names and texts", file=file, field=f"{field} {name}",
                         remedy=_REMEDY)
    kept: Dict[str, str] = {}
    for key, value in attrs.items():
        check = OPERATORS[op].attrs.get(key)
        if check is None and (op == "null" or key in _DROPPED or re.fullmatch(r"__\w+__", key)):
            continue
        if check is None or not isinstance(value, str) or not check(value):
            raise InputError(f"the {op} attribute {key[:60]}={str(value)[:60]!r} is not allowed", file=file,
                             field=f"{field} {name}", remedy=_REMEDY)
        kept[key] = value
    return SymbolNode(op, name, kept,
                      _links(node.get("inputs", []), before, f"{field} {name}", file, OPERATORS[op].inputs))


def _links(pairs: Any, nodes: List[SymbolNode], field: str, file: PathLike,
           count: Tuple[int, int]) -> Tuple[Tuple[int, int], ...]:
    """Checked [node, output, version] triples that point at ``nodes``; ``count`` bounds how many."""
    if not isinstance(pairs, list) or not count[0] <= len(pairs) <= count[1]:
        raise InputError(f"needs {count[0]} to {count[1]} inputs", file=file, field=field, remedy=_REMEDY)
    links: List[Tuple[int, int]] = []
    for pair in pairs:
        if not isinstance(pair,
                          list) or not 2 <= len(pair) <= 3 or not all(type(value) is int for value in pair):
            raise InputError(f"{str(pair)[:60]} is not a reference to a node", file=file, field=field,
                             remedy=_REMEDY)
        at, output = pair[:2]
        if not 0 <= at < len(nodes) or not 0 <= output < _outputs(nodes[at]):
            raise InputError(f"refers to output {output} of node {at}, which does not precede it", file=file,
                             field=field, remedy=_REMEDY)
        links.append((at, output))
    return tuple(links)


def _outputs(node: SymbolNode) -> int:
    return int(node.attrs.get("num_outputs",
                              "1")) if node.op == "SliceChannel" else OPERATORS[node.op].outputs
