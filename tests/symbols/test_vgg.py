"""VGG16 at output stride 8."""
import mxnet as mx
import numpy as np
import pytest

from cian.symbols.vgg import BLOCKS, PIXEL_MEAN, VGG16

WIDTHS = (2, 3, 5, 7, 11)
X = np.random.RandomState(0).uniform(0, 255, (2, 3, 17, 19)).astype(np.float32)


def expected(values, x, reference, top):
    y = x - np.reshape(PIXEL_MEAN, (1, 3, 1, 1))
    for block, (count, dilation, stride) in enumerate(BLOCKS, 1):
        for i in range(1, count + 1):
            name = f"conv{block}_{i}"
            y = np.maximum(reference.convolve(y, values[f"{name}_weight"], values[f"{name}_bias"],
                                              dilation=dilation), 0)
        y = reference.max_pool(y, stride)
    if top:
        padded = np.pad(y, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = sum(padded[:, :, i:i + y.shape[2], j:j + y.shape[3]] for i in range(3) for j in range(3)) / 9
        y = np.maximum(reference.convolve(y, values["fc6_weight"], values["fc6_bias"], dilation=12), 0)
        y = np.maximum(reference.convolve(y, values["fc7_weight"], values["fc7_bias"]), 0)
    return y


@pytest.mark.parametrize("top", [False, True])
def test_features_agree_with_numpy(top, reference, randomise, outputs_three_ways):
    block = VGG16(top=top, widths=WIDTHS, top_channels=13)
    values = randomise(block)
    out, = outputs_three_ways(block, X)
    wanted = expected(values, X, reference, top)
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(out, wanted, atol=2e-5 * np.abs(wanted).max())


def test_names_and_shapes_are_those_of_the_original_code():
    shapes = {name: p.shape for name, p in VGG16().collect_params().items()}
    counts = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
    layers = [f"conv{block}_{i}" for block, count in counts.items() for i in range(1, count + 1)] + ["fc6",
                                                                                                     "fc7"]
    assert set(shapes) == {f"{layer}_{kind}" for layer in layers for kind in ("weight", "bias")}
    assert shapes["conv5_3_weight"] == (512, 512, 3, 3) and shapes["fc6_weight"] == (1024, 512, 3, 3)
    assert shapes["fc7_weight"] == (1024, 1024, 1, 1)


def test_dropout_acts_in_training_only(randomise):
    block = VGG16(widths=WIDTHS, top_channels=31)
    randomise(block)
    x = mx.nd.array(X)
    with mx.autograd.train_mode():
        trained = [block(x).asnumpy() for _ in range(2)]
    assert np.abs(trained[0] - trained[1]).max() > 0
    assert np.array_equal(block(x).asnumpy(), block(x).asnumpy())
