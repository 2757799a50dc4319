"""Symbol files are checked in Python, and only what was checked reaches MXNet."""
import json

import mxnet as mx
import pytest

from cian.errors import InputError
from cian.tools.engine.models import symbol_graph
from cian.tools.engine.models.symbol_graph import SymbolGraph, number_names, parse_symbol, read_symbol
from cian.tools.engine.models.symbol_model import SymbolNetwork


def content():
    """A convolution and a ReLU, as a parsed symbol file."""
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=5, kernel=(3, 3), pad=(1, 1), name="conv")
    return json.loads(mx.sym.relu(x, name="top").tojson())


def parse(graph):
    return parse_symbol(json.dumps(graph), "net-symbol.json")


def test_a_graph_survives_and_is_written_anew():
    graph = parse(content())
    assert graph.variables == ["data", "conv_weight", "conv_bias"]
    again = mx.sym.load_json(graph.to_json())
    assert again.list_arguments() == graph.variables and again.list_outputs() == ["top_output"]
    assert again.infer_shape(data=(1, 3, 7, 11))[1] == [(1, 5, 7, 11)]


def test_attributes_that_start_training_or_choose_devices_are_left_out():
    graph = content()
    graph["nodes"][1]["attrs"] = {"__init__": "[\"anything\", {}]", "__lr_mult__": "10.0",
                                  "__ctx_group__": "dev1"}
    graph["nodes"][3]["attrs"].update(cudnn_tune="fastest", workspace="1024")
    checked = parse(graph)
    assert checked.nodes[1].attrs == {"__lr_mult__": "10.0"}
    assert set(checked.nodes[3].attrs) == {"num_filter", "kernel", "pad"}


@pytest.mark.parametrize(("change", "message"), [
    (lambda g: g["nodes"][3].update(op="Custom"),
     r"nodes\[3\] conv: the operator 'Custom' is not one of this project's"),
    (lambda g: g["nodes"][3]["attrs"].update(kernel="(3, 99999)"),
     r"Convolution attribute kernel='\(3, 99999\)' is not allowed"),
    (lambda g: g["nodes"][3]["attrs"].update(num_filter="99999999"),
     "attribute num_filter='99999999' is not allowed"),
    (lambda g: g["nodes"][3]["attrs"].update(subgraph="x"), "attribute subgraph='x' is not allowed"),
    (lambda g: g["nodes"][3]["attrs"].update(kernel=3), "attribute kernel='3' is not allowed"),
    (lambda g: g["nodes"][3].update(attrs=[1]), "attributes must be names and texts"),
    (lambda g: g["nodes"][3].update(name="a/../b"), "is not made of letters"),
    (lambda g: g["nodes"][4].update(name="conv"), "the name 'conv' occurs twice"),
    (lambda g: g["nodes"][4].update(inputs=[[4, 0, 0]]),
     "refers to output 0 of node 4, which does not precede it"),
    (lambda g: g["nodes"][4].update(inputs=[[3, 1, 0]]), "refers to output 1 of node 3"),
    (lambda g: g["nodes"][4].update(inputs=[[3]]), r"\[3\] is not a reference"),
    (lambda g: g["nodes"][4].update(inputs=[]), "needs 1 to 1 inputs"),
    (lambda g: g.update(heads=[[9, 0, 0]]), "heads: refers to output 0 of node 9"),
    (lambda g: g.update(nodes=[]), "must hold a list of 1 to"),
    (lambda g: g["nodes"].insert(0, 7), r"nodes\[0\]: is not a node"),
])
def test_what_is_unknown_or_absurd_is_named(change, message):
    graph = content()
    change(graph)
    with pytest.raises(InputError, match=f"^net-symbol.json: .*{message}"):
        parse(graph)


def test_what_is_no_symbol_is_said_so(tmp_path, monkeypatch):
    for text in ("{", "[" * 100_000, "[]", "7"):
        with pytest.raises(InputError, match="symbol file|must hold a list"):
            parse_symbol(text, "x")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_symbol(tmp_path / "x")
    monkeypatch.setattr(symbol_graph, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="characters long"):
        parse(content())


def test_a_layer_that_is_used_twice_gets_numbers_and_its_variables_keep_their_names():
    weight = mx.sym.var("w")
    x = mx.sym.var("data")
    for _ in range(3):
        x = mx.sym.Convolution(x, weight, num_filter=3, kernel=(1, 1), no_bias=True, name="conv")
    names = [node["name"] for node in json.loads(number_names(x.tojson()))["nodes"]]
    assert names == ["data", "w", "conv", "conv.1", "conv.2"]
    assert mx.sym.load_json(number_names(x.tojson(),
                                         {"w": {"__lr_mult__": "3"}})).attr_dict()["w"]["__lr_mult__"] == "3"


def test_a_softmax_is_seen_through_names():
    x = mx.sym.var("data")
    assert SymbolGraph.of(mx.sym.identity(mx.sym.softmax(x, axis=1), name="out")).ends_in_softmax
    assert not SymbolGraph.of(mx.sym.softmax(x, axis=1) * 2).ends_in_softmax


@pytest.mark.parametrize(("build", "message"), [
    (lambda x: mx.sym.contrib.BilinearResize2D(x, height=8192, width=8192), "makes a map of .* values"),
    (lambda x: mx.sym.reshape(x, shape=(0, -1)), r"gives an output of the shape \(1, 49923\)"),
    (lambda x: mx.sym.batch_dot(mx.sym.slice_axis(x, axis=3, begin=1, end=None), x), "MXNet cannot build it"),
    (lambda x: mx.sym.Group([x, mx.sym.relu(x)]), "has one output"),
    (lambda x: x + mx.sym.var("other"), "without a value are data, other"),
])
def test_a_network_of_absurd_or_wrong_shapes_is_refused_before_it_runs(build, message, capsys):
    graph = SymbolGraph.of(build(mx.sym.relu(mx.sym.var("data"))))
    with pytest.raises(InputError, match=f"^net.json: .*{message}"):
        SymbolNetwork(graph, {}, "net.json")
    assert capsys.readouterr().out == ""


def test_parameters_must_have_the_shapes_that_the_symbol_needs():
    params = {"conv_weight": mx.nd.zeros((5, 3, 3, 3)).asnumpy(), "conv_bias": mx.nd.zeros(4).asnumpy()}
    with pytest.raises(InputError, match=r"conv_bias: has the shape \(4,\), and the symbol needs \(5,\)"):
        SymbolNetwork(parse(content()), params, "net.json")
