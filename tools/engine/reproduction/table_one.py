"""Parameters and multiply-adds of a network, counted layer by layer on its symbol graph (paper, Table 1).

Two ways of counting:

* everything: every use of every convolution, dense layer and matrix product, with all trained or
  frozen parameters;
* the paper's convention, found by matching all six figures of its Table 1: convolution weights only
  (no batch norm, no bias, not the classification layer ``fc1``), each weight once however often it
  is applied, all matrix products of the affinities, and the stride of a ResNet stage in its first
  1x1 convolution. The released network has it in the 3x3 one, see :func:`stride_first`.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Tuple

import mxnet as mx

from cian.errors import InputError
from cian.symbols.cian import CIAN

Shape = Tuple[int, ...]

# Rows of the paper's Table 1: (name, affinity of the network, parameters in millions, multiply-adds
# in billions).
TABLE_ONE = (("Vanilla DeepLab", "none", 42.4, 72.5), ("Baseline", "self", 50.8, 88.2),
             ("Ours", "cross", 50.8, 89.7))
TABLE_ONE_PX = 321

# Operators that compute nothing: they rename, move or cut arrays.
_MOVES = frozenset(["null", "Reshape", "reshape_like", "Flatten", "transpose", "expand_dims", "squeeze",
                    "SliceChannel", "slice", "slice_axis", "slice_like", "Concat", "stack", "BlockGrad",
                    "_copy", "identity", "Dropout", "Cast"])


@dataclass(frozen=True)
class Layer:
    """One operator: its counts are for the whole input batch.

    ``parameters`` are weights, biases, gamma and beta, at the layer that uses them first;
    ``statistics`` are moving means and variances; ``multiply_adds`` those of convolutions, dense
    layers and matrix products; ``other`` the operations of all other layers, one for an output
    element and, in pooling, one for an element of the window.
    """

    name: str
    operator: str
    weight: str
    shape: Shape
    parameters: int = 0
    weight_parameters: int = 0
    statistics: int = 0
    multiply_adds: int = 0
    other: int = 0
    reused: bool = False


@dataclass(frozen=True)
class Totals:
    """Sums over layers, operations for one image."""

    parameters: int
    statistics: int
    multiply_adds: float
    other: float


@dataclass(frozen=True)
class TableOneRow:
    """A row of Table 1: the paper's figures, ours by its convention, by the same on the released
    network, and everything.
    """

    name: str
    paper: Tuple[float, float]
    convention: Totals
    released: Totals
    everything: Totals


def table_one() -> List[TableOneRow]:
    """Table 1 of the paper for ResNet-101, 21 classes and one 321x321 image, counted on our
    networks' graphs.
    """
    rows = []
    for name, affinity, millions, billions in TABLE_ONE:
        symbol, images = network_symbol("resnet101_largefov", affinity)
        shape = (images, 3, TABLE_ONE_PX, TABLE_ONE_PX)
        layers = count_layers(symbol, shape)
        moved = count_layers(stride_first(symbol), shape)
        rows.append(TableOneRow(name, (millions, billions), totals_by_convention(moved, images),
                                totals_by_convention(layers, images), totals(layers, images)))
    return rows


def network_symbol(model: str, affinity: str, num_classes: int = 21,
                   group_size: int = 2) -> Tuple[mx.sym.Symbol, int]:
    """The network as one symbol of ``data``, and the smallest batch that it takes (a group for
    'cross', else 1).
    """
    network = CIAN(model, num_classes=num_classes, affinity=affinity, group_size=group_size)
    return mx.sym.Group(network(mx.sym.var("data"))), group_size if affinity == "cross" else 1


def count_layers(symbol: mx.sym.Symbol, shape: Shape) -> List[Layer]:
    """Layers of ``symbol`` in order, for an input ``data`` of ``shape`` (N, 3, H, W); shapes are
    inferred by MXNet.

    Raises
    ------
    InputError
        A symbol whose shapes do not follow from that input.
    """
    shapes = _output_shapes(symbol, shape)
    nodes = json.loads(symbol.tojson())["nodes"]
    auxiliary = set(symbol.list_auxiliary_states())
    used: set = set()
    layers = []
    for index, node in enumerate(nodes):
        if node["op"] == "null":
            continue
        inputs = [(nodes[source[0]], shapes[source[0]][source[1]]) for source in node["inputs"]]
        variables = [(source["name"], size) for source, size in inputs if source["op"] == "null"
                     and source["name"] != "data"]
        fresh = [(name, math.prod(size)) for name, size in variables if name not in used]
        used.update(name for name, _ in fresh)
        weight = next((name for name, _ in variables if name.endswith("_weight")), "")
        output = shapes[index][0]
        layers.append(Layer(
            node["name"], node["op"], weight, output,
            parameters=sum(size for name, size in fresh if name not in auxiliary),
            weight_parameters=sum(size for name, size in fresh if name == weight),
            statistics=sum(size for name, size in fresh if name in auxiliary),
            multiply_adds=_multiply_adds(node, [size for _, size in inputs], output),
            other=_other(node, output), reused=bool(weight) and weight not in dict(fresh)))
    return layers


def totals(layers: Iterable[Layer], images: int) -> Totals:
    """Everything counted; ``images`` is the batch size that the layers were counted for."""
    layers = list(layers)
    return Totals(sum(layer.parameters for layer in layers), sum(layer.statistics for layer in layers),
                  sum(layer.multiply_adds for layer in layers) / images,
                  sum(layer.other for layer in layers) / images)


def totals_by_convention(layers: Iterable[Layer], images: int) -> Totals:
    """The paper's convention (see the module's text): the classification layer is left out."""
    counted = [layer for layer in layers if layer.operator == "batch_dot"
               or (layer.operator == "Convolution" and layer.weight != "fc1_weight" and not layer.reused)]
    return Totals(sum(layer.weight_parameters for layer in counted), 0,
                  sum(layer.multiply_adds for layer in counted) / images, 0)


def stride_first(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The same graph with the stride of every bottleneck moved from its 3x3 ``*_conv2`` to its 1x1
    ``*_conv1``.
    """
    graph = json.loads(symbol.tojson())
    by_name = {node["name"]: node for node in graph["nodes"] if node["op"] == "Convolution"}
    weights = {graph["nodes"][node["inputs"][1][0]]["name"]: node for node in by_name.values()}
    for name, node in weights.items():
        first = weights.get(name.replace("_conv2_weight", "_conv1_weight"))
        if name.endswith("_conv2_weight") and first is not None and first["attrs"]["kernel"] == "(1, 1)":
            stride = node["attrs"].get("stride", "(1, 1)")
            node["attrs"]["stride"], first["attrs"]["stride"] = first["attrs"].get("stride", "(1, 1)"), stride
    return mx.sym.load_json(json.dumps(graph))


def _output_shapes(symbol: mx.sym.Symbol, shape: Shape) -> List[List[Shape]]:
    """Shapes of the visible outputs of every node, in the order of the symbol's JSON."""
    internals = symbol.get_internals()
    inferred = internals.infer_shape_partial(data=shape)[1]
    pending = list(zip(internals.list_outputs(), inferred))
    result: List[List[Shape]] = []
    for node in json.loads(symbol.tojson())["nodes"]:
        outputs = [pending.pop(0)]
        while pending and node["op"] != "null" and pending[0][0] == f"{node['name']}_output{len(outputs)}":
            outputs.append(pending.pop(0))
        if any(size is None or 0 in size for _, size in outputs):
            raise InputError(f"the shape of {node['name']} does not follow from an input of {shape}",
                             field="--size")
        result.append([tuple(size) for _, size in outputs])
    return result


def _multiply_adds(node: Dict[str, Any], inputs: List[Shape], output: Shape) -> int:
    if node["op"] in ("Convolution", "FullyConnected"):
        weight = inputs[1]
        return math.prod(output) * math.prod(weight[1:])
    if node["op"] == "batch_dot":
        transposed = node.get("attrs", {}).get("transpose_a", "False") in ("True", "1")
        return math.prod(output) * inputs[0][1 if transposed else 2]
    return 0


def _other(node: Dict[str, Any], output: Shape) -> int:
    if node["op"] in _MOVES or node["op"] in ("Convolution", "FullyConnected", "batch_dot"):
        return 0
    if node["op"] == "Pooling" and node["attrs"].get("global_pool", "False") not in ("True", "1"):
        return math.prod(output) * math.prod(
            json.loads(node["attrs"]["kernel"].replace("(", "[").replace(",)", "]").replace(")", "]")))
    return math.prod(output)
