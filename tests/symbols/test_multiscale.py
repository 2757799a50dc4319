"""Logits at several scales."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import MultiScale, build_model, initialize
from cian.tools.engine.fitting import scaled_side

RNG = np.random.RandomState(0)


@pytest.fixture(scope="module")
def net():
    made = build_model("resnet18_largefov", tiny=True, num_classes=5).for_prediction()
    initialize(made, seed=1, zero_gamma=False)
    return made


def images(height, width, count=1):
    return RNG.uniform(0, 255, (count, 3, height, width)).astype(np.float32)


def expected(net, x, scales, add_max, mirror, reference):
    def maps(x):
        first = net(mx.nd.array(x))[0].asnumpy()
        found = [first]
        for scale in scales[1:]:
            scaled = reference.resize(x, *(int((side - 1) * scale) + 1 for side in x.shape[2:]))
            found.append(reference.resize(net(mx.nd.array(scaled))[0].asnumpy(), *first.shape[2:]))
        return found + [np.max(found, axis=0)] if add_max else found
    plain = maps(x)
    return [(a + b[..., ::-1]) / 2 for a, b in zip(plain, maps(x[..., ::-1]))] if mirror else plain


@pytest.mark.parametrize("scales, add_max, mirror", [((1,), False, False), ((1, 0.75, 1.25), True, False),
                                                     ((1, 0.75, 1.25), True, True), ((1, 0.5), False, True)])
@pytest.mark.parametrize("height, width", [(33, 41), (32, 46), (39, 24)])
def test_maps_agree_with_numpy(net, scales, add_max, mirror, height, width, reference):
    x = images(height, width, 2)
    found = MultiScale(net, scales, add_max, mirror)(mx.nd.array(x))
    wanted = expected(net, x, scales, add_max, mirror, reference)
    assert len(found) == len(wanted) == len(scales) + add_max
    for a, b in zip(found, wanted):
        assert a.shape == (2, 5, (height - 1) // 8 + 1, (width - 1) // 8 + 1)
        np.testing.assert_allclose(a.asnumpy(), b, atol=1e-4 * np.abs(b).max())


def test_maps_are_the_same_imperatively_hybridized_and_exported(net, outputs_three_ways):
    assert len(outputs_three_ways(MultiScale(net, mirror=True), images(23, 31))) == 4


def test_one_graph_takes_any_size(net):
    free, again = MultiScale(net), MultiScale(net)
    free.hybridize()
    for height, width in ((33, 41), (40, 26), (17, 19)):
        x = mx.nd.array(images(height, width))
        for a, b in zip(free(x), again(x)):
            np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5, 1.75, 2.0])
def test_free_sizes_follow_the_originals_rule(net, scale):
    block = MultiScale(net, (1, scale))
    for side in (*range(9, 40), 320, 321, 499, 500, 513):
        resized = block._resize(mx.nd, mx.nd.zeros((1, 1, side, 11)), scale)
        assert resized.shape[2:] == (scaled_side(side, scale), scaled_side(11, scale)) == (
            int((side - 1) * scale) + 1, int(10 * scale) + 1)


@pytest.mark.parametrize("scales", [(), (0.75, 1), (1, 0), (1, 1), (1, -2)])
def test_wrong_scales_are_refused(net, scales):
    with pytest.raises(InputError, match="1 first"):
        MultiScale(net, scales)
