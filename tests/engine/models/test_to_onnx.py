"""Each operator's translation gives onnxruntime the numbers that MXNet computes."""
import mxnet as mx
import numpy as np
import pytest

from cian.tools.engine.models import to_onnx as onnx_export
from cian.tools.engine.models.symbol_graph import OPERATORS, parse_symbol

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SHAPE = (2, 3, 11, 7)
sym = mx.sym


def graph_of(symbol):
    return parse_symbol(symbol.tojson(), "test")


def run_mxnet(symbol, params, images):
    arrays = {name: mx.nd.array(params[name]) for name in symbol.list_inputs() if name != "data"}
    executor = symbol.bind(mx.cpu(), {"data": mx.nd.array(images),
                                      **{n: arrays[n] for n in symbol.list_arguments() if n != "data"}},
                           aux_states={n: arrays[n] for n in symbol.list_auxiliary_states()}, grad_req="null")
    return executor.forward(is_train=False)[0].asnumpy()


def random_params(symbol, shape, rng):
    arguments, _, states = symbol.infer_shape(data=shape)
    shapes = dict(zip(symbol.list_arguments() + symbol.list_auxiliary_states(), arguments + states))
    return {name: rng.uniform(0.5, 1.5, s).astype(np.float32) for name, s in shapes.items() if name != "data"}


def run_onnx(writer, output, images, want):
    dynamic = [f"d{axis}" for axis in range(want.ndim)]
    model = onnx_export.make_onnx(writer, output, {"images": ["n", 3, "h", "w"], output: dynamic}, {})
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], {"images": images})[0]


def flat(x):
    return sym.reshape(x, shape=(0, 0, -1))


def mean_of(x):
    return sym.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="avg")


CASES = {
    "convolution with stride, dilation, padding and bias": lambda x: sym.Convolution(
        x, num_filter=5, kernel=(3, 2), stride=(2, 1), dilate=(1, 2), pad=(1, 2), name="conv"),
    "convolution by channel": lambda x: sym.Convolution(x, num_filter=3, num_group=3, kernel=(3, 3),
                                                        no_bias=True, name="conv"),
    "batch norm": lambda x: sym.BatchNorm(x, fix_gamma=False, eps=1e-3, name="bn"),
    "batch norm with fixed gamma": lambda x: sym.BatchNorm(x, fix_gamma=True, eps=1e-5, name="bn"),
    "batch norm by MXNet's defaults": lambda x: sym.BatchNorm(x, name="bn"),
    "max pooling": lambda x: sym.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max"),
    "average pooling": lambda x: sym.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg"),
    "average pooling without the padding": lambda x: sym.Pooling(
        x, kernel=(3, 3), pad=(1, 1), pool_type="avg", count_include_pad=False),
    "global average": lambda x: sym.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="avg"),
    "global maximum": lambda x: sym.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="max"),
    "activations": lambda x: sym.Activation(sym.sigmoid(sym.relu(x)), act_type="tanh"),
    "clip": lambda x: sym.clip(x, 1, 6),
    "dropout": lambda x: sym.BlockGrad(sym.Dropout(x, p=0.5)),
    "concatenation": lambda x: sym.concat(x, sym.exp(x * 0.1), dim=1),
    "sum of several": lambda x: sym.add_n(x, x * 2, x / 3),
    "split": lambda x: sym.concat(*list(sym.split(x, num_outputs=2, axis=0))[::-1], dim=0),
    "slice": lambda x: sym.slice_axis(sym.slice_axis(x, axis=3, begin=1, end=None), axis=2, begin=2, end=-3),
    "slice of several axes": lambda x: sym.slice(x, begin=(0, None, 1, 1), end=(1, 2, None, -2)),
    "batch products": lambda x: sym.batch_dot(sym.batch_dot(flat(x), flat(x), transpose_a=True), flat(x),
                                              transpose_b=True),
    "softmax": lambda x: sym.softmax(flat(x) * 0.1, axis=1),
    "softmax of the last axis": lambda x: sym.softmax(x),
    "reshape by the merging code": lambda x: sym.reshape(x, shape=(0, 0, -3)),
    "reshape like": lambda x: sym.reshape_like(flat(x) + 1, x),
    "reshape parts like": lambda x: sym.reshape_like(flat(x), sym.concat(x, x, dim=1), lhs_begin=2, lhs_end=3,
                                                     rhs_begin=2, rhs_end=4),
    "transpose": lambda x: sym.transpose(x, axes=(0, 2, 3, 1)),
    "padding": lambda x: sym.pad(x, mode="constant", pad_width=(0, 0, 0, 0, 1, 2, 3, 4), constant_value=5),
    "padding with the edge": lambda x: sym.pad(x, mode="edge", pad_width=(0, 0, 0, 0, 0, 1, 2, 0)),
    "mirror": lambda x: sym.reverse(x, axis=3),
    "resize to a size": lambda x: sym.contrib.BilinearResize2D(x, height=5, width=17, mode="size"),
    "resize like another": lambda x: sym.contrib.BilinearResize2D(
        sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max"), x, mode="like"),
    "resize by an odd scale": lambda x: sym.contrib.BilinearResize2D(x, scale_height=0.75, scale_width=1.25,
                                                                     mode="odd_scale"),
    "resize an even side by an odd scale": lambda x: sym.contrib.BilinearResize2D(
        sym.slice(x, begin=(0, 0, 1, 1), end=(None, None, None, None)), scale_height=0.7, scale_width=1.3,
        mode="odd_scale"),
    "arithmetic": lambda x: sym.broadcast_div(sym.broadcast_add(x, x) * x - x / 7 + 3, x + 1),
    "arithmetic with scalars": lambda x: (x - 2) * 3,
    "square root": lambda x: sym.sqrt(x),
    "broadcast": lambda x: sym.broadcast_mul(sym.broadcast_sub(x, mean_of(x)), mean_of(x)),
    "maximum": lambda x: sym.broadcast_maximum(sym.maximum(x, 3 * x - 9), mean_of(x)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_translates_to_the_same_numbers(case):
    rng = np.random.default_rng(7)
    symbol = CASES[case](sym.var("data"))
    params = random_params(symbol, SHAPE, rng)
    images = rng.uniform(0.1, 9, SHAPE).astype(np.float32)
    writer = onnx_export.GraphWriter()
    outputs = onnx_export.add_network(writer, graph_of(symbol), params, "images")
    assert len(outputs) == 1
    want = run_mxnet(symbol, params, images)
    got = run_onnx(writer, outputs[0], images, want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_every_operator_that_is_read_can_be_translated():
    assert set(onnx_export.TRANSLATIONS) | {"null"} == set(OPERATORS)
