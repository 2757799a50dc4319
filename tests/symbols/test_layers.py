"""The layers that differ from Gluon's own."""
import mxnet as mx
import numpy as np
import pytest

from cian.symbols.layers import (
    BatchNorm,
    DepthwiseConvolution,
    TapConvolution,
    block_depthwise,
    convolution,
    reorder_sums,
)

X = np.random.RandomState(0).randn(3, 2, 5, 7).astype(np.float32)


def test_batch_norm_has_the_names_of_mxnets_symbols():
    assert list(BatchNorm(2, "bn0_").collect_params()) == ["bn0_gamma", "bn0_beta", "bn0_moving_mean",
                                                           "bn0_moving_var"]


def test_batch_norm_computes_by_hand():
    block = BatchNorm(1, "bn_", eps=0.25)
    block.initialize()
    for param, value in zip((block.gamma, block.beta, block.moving_mean, block.moving_var), (3, 1, 2, 2)):
        param.set_data(mx.nd.array([value]))
    # sqrt(2 + 0.25) = 1.5
    assert block(mx.nd.array([[[[5.0]]]])).asscalar() == pytest.approx((5 - 2) / 1.5 * 3 + 1)


def test_batch_norm_uses_moving_statistics_outside_of_training(reference, randomise, outputs_three_ways):
    block = BatchNorm(2, "bn_")
    values = randomise(block)
    out, = outputs_three_ways(block, X)
    expected = reference.normalise(X, *(values[f"bn_{kind}"]
                                        for kind in ("gamma", "beta", "moving_mean", "moving_var")))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_moves_its_statistics_only_without_global_ones(frozen, reference, randomise, gradients):
    block = BatchNorm(2, "bn_", use_global_stats=frozen)
    before = randomise(block)
    found = gradients(block, X)
    mean, variance = X.mean(axis=(0, 2, 3)), X.var(axis=(0, 2, 3))
    for kind, batch in (("mean", mean), ("var", variance)):
        old = before[f"bn_moving_{kind}"]
        now = block.collect_params()[f"bn_moving_{kind}"].data().asnumpy()
        np.testing.assert_allclose(now, old if frozen else 0.9 * old + 0.1 * batch, rtol=1e-5)
    assert set(found) == {"bn_gamma", "bn_beta"} and all(np.abs(g).max() > 0 for g in found.values())


@pytest.mark.parametrize("mode", [{"active": False}, {}, {"static_alloc": True, "static_shape": True}])
def test_a_fixed_gamma_keeps_the_number_of_its_file(mode, randomise, gradients):
    block = BatchNorm(2, "bn_", fix_gamma=True, use_global_stats=True)
    before = randomise(block)["bn_gamma"]
    block.hybridize(**{"active": True, **mode})
    block(mx.nd.array(X))
    gradients(block, X)
    np.testing.assert_array_equal(block.gamma.data().asnumpy(), before)


def test_fixed_gamma_is_one(randomise):
    block = BatchNorm(2, "bn_", fix_gamma=True)
    randomise(block)
    block.moving_mean.set_data(mx.nd.zeros(2))
    block.moving_var.set_data(mx.nd.ones(2))
    block.beta.set_data(mx.nd.zeros(2))
    np.testing.assert_allclose(block(mx.nd.array(X)).asnumpy(), X, rtol=1e-4)


@pytest.mark.parametrize("kernel, stride, dilation", [(1, 1, 1), (3, 1, 4), (3, 2, 1), (5, 2, 1), (7, 2, 1)])
def test_convolution_agrees_with_numpy_and_keeps_the_size_rule(kernel, stride, dilation, reference, randomise,
                                                               outputs_three_ways):
    block = convolution(4, 2, kernel, "conv_", stride=stride, dilation=dilation, use_bias=True)
    values = randomise(block)
    for side in (11, 13, 16):
        x = np.random.RandomState(side).randn(2, 2, side, side + 3).astype(np.float32)
        out, = outputs_three_ways(block, x)
        assert out.shape[2:] == ((side - 1) // stride + 1, (side + 2) // stride + 1)
        np.testing.assert_allclose(out, reference.convolve(x, values["conv_weight"], values["conv_bias"],
                                                           stride, dilation), atol=1e-5)


@pytest.mark.parametrize("kernel, stride, dilation, blocked",
                         [(3, 2, 1, False), (5, 1, 2, False), (5, 1, 2, True), (3, 1, 4, True)])
def test_depthwise_convolution_agrees_with_numpy_in_blocks_and_without(
        kernel, stride, dilation, blocked, reference, randomise, outputs_three_ways):
    block = DepthwiseConvolution(32, kernel, "conv_", stride=stride, dilation=dilation)
    if blocked:
        block_depthwise(block)
    values = randomise(block)
    assert block.blocked == blocked and values["conv_weight"].shape == (32, 1, kernel, kernel)
    x = np.random.RandomState(1).randn(2, 32, 11, 14).astype(np.float32)
    out, = outputs_three_ways(block, x)
    np.testing.assert_allclose(out, reference.convolve(x, values["conv_weight"], None, stride, dilation, 32),
                               atol=1e-5)


def test_blocks_leave_gradients_as_they_are(randomise, gradients):
    x = np.random.RandomState(1).randn(2, 32, 9, 12).astype(np.float32)
    found = []
    for blocked in (False, True):
        net = mx.gluon.nn.HybridSequential(prefix="")
        # the first sees the data's gradient
        net.add(convolution(32, 32, 1, "first_"), DepthwiseConvolution(32, 5, "conv_", dilation=2))
        if blocked:
            block_depthwise(net)
        net.hybridize()
        randomise(net)
        found.append(gradients(net, x))
    for name, plain in found[0].items():
        assert np.linalg.norm(found[1][name] - plain) <= 1e-5 * np.linalg.norm(plain), name


@pytest.mark.parametrize("channels, dilation", [(32, 1), (24, 2)])
def test_blocks_are_for_dilated_convolutions_of_whole_blocks(channels, dilation):
    layer = DepthwiseConvolution(channels, 3, "conv_", dilation=dilation)
    block_depthwise(layer)
    assert not layer.blocked


@pytest.mark.parametrize("kernel, dilation, use_bias",
                         [(1, 1, True), (3, 1, False), (3, 12, True), (5, 2, False)])
@pytest.mark.parametrize("taps", [False, True])
def test_a_convolution_by_its_taps_agrees_with_numpy(kernel, dilation, use_bias, taps, reference, randomise,
                                                     outputs_three_ways):
    block = TapConvolution(3, 4, kernel, "fc1_", dilation=dilation, use_bias=use_bias)
    reorder_sums(block, taps)
    values = randomise(block)
    assert block.reordered == taps and values["fc1_weight"].shape == (3, 4, kernel, kernel)
    for side in (9, 14):
        x = np.random.RandomState(side).randn(2, 4, side, side + 2).astype(np.float32)
        out, = outputs_three_ways(block, x)
        np.testing.assert_allclose(out, reference.convolve(x, values["fc1_weight"], values.get("fc1_bias"), 1,
                                                           dilation), atol=1e-5)


def test_taps_leave_gradients_as_they_are(randomise, gradients):
    x = np.random.RandomState(1).randn(2, 6, 9, 12).astype(np.float32)
    found = []
    for taps in (False, True):
        net = mx.gluon.nn.HybridSequential(prefix="")
        net.add(convolution(8, 6, 1, "first_"), TapConvolution(3, 8, 3, "fc1_", dilation=4, use_bias=True))
        reorder_sums(net, taps)
        net.hybridize()
        randomise(net)
        found.append(gradients(net, x))
    assert set(found[0]) == {"first_weight", "fc1_weight", "fc1_bias"}
    for name, plain in found[0].items():
        assert np.linalg.norm(found[1][name] - plain) <= 1e-6 * np.linalg.norm(plain), name
