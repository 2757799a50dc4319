"""What a graph of one image need not compute for every pixel: the way from the messages of an affinity to
logits is linear, and so is the affinity's weighted mean.

With v_j the values of the pooled pixels and a_ij the affinity, whose sum over j is 1, the logits of
a pixel i are::

    head(x_i + norm(out(sum_j a_ij v_j))) = places(weight x_i + sum_j a_ij taps(v_j))

``weight`` are the head's, a 1x1 convolution to a map for every class and place in the kernel, which
``places`` shifts and adds; ``taps`` are out, norm and that weight, multiplied beforehand, and run on
a quarter of the pixels.
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional

import numpy as np

from cian.tools.engine.models.to_onnx import GraphWriter

# From the head back to the pooled values: operators, and which input leads to the next.
_CHAIN = (("Conv", 0), ("Add", 1), ("BatchNormalization", 0), ("Conv", 0), ("Reshape", 0), ("MatMul", 0),
          ("Reshape", 0))


def fold_messages(writer: GraphWriter, outputs: List[str]) -> None:
    """Compute every head behind an affinity in this way where that is fewer operations, and leave
    what ``outputs`` are computed from.
    """
    nodes: List[Any] = []
    makers = {name: node for node in writer.nodes for name in node.output}
    for node in list(writer.nodes):
        begin = len(writer.nodes)
        chain = _find(makers, node)
        folded = chain is not None and _fold(writer, *chain)
        nodes += writer.nodes[begin:] if folded else [node]
    needed = set(outputs)
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
    writer.nodes[:] = [node for node in nodes if needed.intersection(node.output)]
    for name in set(writer.initializers).difference(needed):
        del writer.initializers[name]


def _find(makers: Dict[str, Any], node: Any) -> Optional[List[Any]]:
    """The nodes of :data:`_CHAIN` that end in ``node``; None where others are in their place."""
    found: List[Any] = []
    for op, place in _CHAIN:
        if node is None or node.op_type != op:
            return None
        found.append(node)
        node = makers.get(node.input[place])
    return found


def _fold(writer: GraphWriter, head: Any, added: Any, norm: Any, out: Any, _: Any, product: Any,
          flat: Any) -> bool:
    """Append nodes that compute the output of ``head``; False where they would not be faster."""
    from onnx.helper import get_attribute_value
    weight, last, gamma, beta, mean, variance = (writer.initializers[name].astype(np.float64) for name in (
        head.input[1], out.input[1], *norm.input[1:]))
    classes, channels, rows, columns = weight.shape
    maps = classes * rows * columns
    if maps >= len(last[0]) or len(out.input) > 2:
        return False
    slope = gamma / np.sqrt(variance + get_attribute_value(norm.attribute[0]))
    weight = weight.transpose(2, 3, 0, 1).reshape(maps, channels)
    shifts = np.eye(maps).reshape(rows, columns, classes, maps).transpose(2, 3, 0, 1)

    def constant(name: str, values: np.ndarray) -> str:
        writer.initializers[f"{head.input[1]}/{name}"] = np.ascontiguousarray(values, np.float32)
        return f"{head.input[1]}/{name}"

    taps = writer.one("Conv", flat.input[0],
                      constant("taps", (weight * slope @ last[:, :, 0, 0])[..., None, None]),
                      constant("shift", weight @ (beta - mean * slope)), kernel_shape=[1, 1])
    mixed = writer.one("MatMul", writer.one("Reshape", taps, writer.constant([0, 0, -1])), product.input[1])
    straight = writer.one("Conv", added.input[0], constant("straight", weight[..., None, None]),
                          kernel_shape=[1, 1])
    both = writer.one("Add", straight, writer.one("Reshape", mixed, writer.one("Shape", straight)))
    writer.add("Conv", [both, constant("places", shifts), *head.input[2:]], name=head.name,
               **{entry.name: get_attribute_value(entry) for entry in head.attribute})
    return True
