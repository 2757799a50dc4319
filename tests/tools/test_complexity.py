"""Counting of parameters and multiply-adds, against figures of the paper and sums written out by hand."""
from __future__ import annotations

import json

import mxnet as mx
import pytest

from cian.errors import InputError
from cian.tools import complexity as tool
from cian.tools.engine.reproduction import table_one as complexity


def by_hand(stride_in_first):
    """(parameters, multiply-adds) of ResNet-101's convolutions on 321x321 at output stride 8, unit
    by unit.
    """
    parameters, work = 64 * 3 * 49, 64 * 3 * 49 * 161 * 161
    side, channels = 81, 64
    for units, width, stride in ((3, 256, 1), (4, 512, 2), (23, 1024, 1), (3, 2048, 1)):
        inner = width // 4
        for unit in range(units):
            before = side
            side = (side - 1) // stride + 1 if unit == 0 else side
            first = channels * inner
            rest = 9 * inner * inner + inner * width + (channels * width if unit == 0 else 0)
            parameters += first + rest
            work += first * (side if stride_in_first else before) ** 2 + rest * side ** 2
            channels = width
    return parameters, work


PRODUCTS = 2 * 1024 * 41 ** 2 * 21 ** 2  # one affinity: query with key, and value with affinity
EMBEDDING = 4 * 1024 * 2048


def test_the_six_figures_of_table_one_come_out_exactly():
    rows = complexity.table_one()
    parameters, work = by_hand(stride_in_first=True)
    assert [row.convention.parameters for row in rows] == [42_394_816, 50_783_424, 50_783_424] == [
        parameters, parameters + EMBEDDING, parameters + EMBEDDING]
    extra = EMBEDDING * 41 ** 2
    assert [row.convention.multiply_adds for row in rows] == [work, work + extra + PRODUCTS,
                                                              work + extra + 2 * PRODUCTS]
    assert [round(row.convention.multiply_adds / 1e9, 3) for row in rows] == [72.533, 88.153, 89.671]
    for row in rows:
        assert (round(row.convention.parameters / 1e6, 1),
                round(row.convention.multiply_adds / 1e9, 1)) == row.paper


def test_the_released_network_differs_from_table_one_by_its_stride_alone():
    rows = complexity.table_one()
    moved = by_hand(stride_in_first=False)[1] - by_hand(stride_in_first=True)[1]
    for row in rows:
        assert row.released.parameters == row.convention.parameters
        assert row.released.multiply_adds - row.convention.multiply_adds == moved


def test_everything_counts_the_head_and_the_cross_branch_too():
    vanilla, baseline, ours = (row.everything for row in complexity.table_one())
    head = 21 * 2048 * 9
    work = by_hand(stride_in_first=False)[1]
    assert vanilla.multiply_adds == work + head * 41 ** 2
    assert baseline.multiply_adds == vanilla.multiply_adds + EMBEDDING * 41 ** 2 + PRODUCTS
    assert ours.multiply_adds == baseline.multiply_adds + (1024 * 2048 + head) * 41 ** 2 + PRODUCTS
    norms = 2 * (3 + 64 + sum(units * (width // 4) * 2 + channels + (units - 1) * width
                              for units, width, channels in ((3, 256, 64), (4, 512, 256), (23, 1024, 512),
                                                             (3, 2048, 1024))) + 2048)
    assert vanilla.parameters == by_hand(False)[0] + head + norms
    assert vanilla.statistics == norms
    assert baseline.parameters == vanilla.parameters + EMBEDDING + 2 * 2048


def test_layers_of_a_small_graph_have_the_counts_worked_out_by_hand():
    data = mx.sym.var("data")
    x = mx.sym.Convolution(data, num_filter=6, kernel=(3, 3), pad=(1, 1), num_group=3, name="conv")
    x = mx.sym.BatchNorm(x, name="norm")
    x = mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max", name="pool")
    x = mx.sym.reshape(x, (0, 0, -1), name="flat")  # (2, 6, 10)
    product = mx.sym.batch_dot(x, x, transpose_a=True, name="product")  # (2, 10, 10)
    symbol = mx.sym.FullyConnected(product, num_hidden=5, name="dense")
    layers = {layer.name: layer for layer in complexity.count_layers(symbol, (2, 3, 4, 10))}
    assert (layers["conv"].parameters, layers["conv"].multiply_adds) == (6 * 9 + 6, 2 * 6 * 40 * 9)
    assert (layers["norm"].parameters, layers["norm"].statistics, layers["norm"].other) == (12, 12,
                                                                                            2 * 6 * 40)
    assert layers["pool"].other == 2 * 6 * 10 * 4
    assert (layers["flat"].multiply_adds, layers["flat"].other) == (0, 0)
    assert layers["product"].multiply_adds == 2 * 10 * 10 * 6
    assert (layers["dense"].parameters, layers["dense"].multiply_adds) == (5 * 100 + 5, 2 * 5 * 100)
    assert complexity.totals(layers.values(),
                             2).multiply_adds == sum(layer.multiply_adds for layer in layers.values()) / 2


def test_a_weight_applied_twice_is_stored_once_and_computed_twice():
    weight = mx.sym.var("shared_weight")
    data = mx.sym.var("data")
    once = mx.sym.Convolution(data, weight, num_filter=3, kernel=(1, 1), no_bias=True, name="first")
    twice = mx.sym.Convolution(once, weight, num_filter=3, kernel=(1, 1), no_bias=True, name="second")
    layers = complexity.count_layers(twice, (1, 3, 5, 7))
    assert [(layer.parameters, layer.multiply_adds, layer.reused) for layer in layers] == [(9, 315, False),
                                                                                           (0, 315, True)]
    assert complexity.totals_by_convention(layers, 1).multiply_adds == 315


def test_the_tool_writes_json_with_layers(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert tool.main(["--model", "resnet18_largefov", "--size", "65", "--num-cls", "7", "--group-size", "3",
                      "--layers", "--json", str(path)]) == 0
    assert "42,394,816   72.533 G" in capsys.readouterr().out
    networks = json.loads(path.read_text())["networks"]
    assert [(network["affinity"], network["images"]) for network in networks] == [("none", 1), ("self", 1),
                                                                                  ("cross", 3)]
    for network in networks:
        assert sum(layer["multiply_adds"]
                   for layer in network["layers"]) == network["totals"]["multiply_adds"] * network["images"]
        heads = [layer for layer in network["layers"] if layer["weight"] == "fc1_weight"]
        assert all(layer["shape"] == [network["images"], 7, 9, 9] for layer in heads)


def test_wrong_values_are_refused_by_name():
    with pytest.raises(InputError, match="resnet50_largefov"):
        tool.main(["--model", "resnet51_largefov"])
    with pytest.raises(InputError, match="--size"):
        tool.main(["--size", "3"])
