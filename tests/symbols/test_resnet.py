"""The pre-activation ResNet."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.resnet import DEPTHS, ResidualUnit, ResNet

RNG = np.random.RandomState(0)


def zoo_names(units, bottleneck):
    """Names of the model zoo's files, without its classifier."""
    norm = ("gamma", "beta", "moving_mean", "moving_var")
    names = {f"{bn}_{kind}" for bn in ("bn_data", "bn0", "bn1") for kind in norm} | {"conv0_weight"}
    for stage, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            prefix = f"stage{stage}_unit{unit}_"
            for i in range(1, 4 if bottleneck else 3):
                names |= {f"{prefix}conv{i}_weight"} | {f"{prefix}bn{i}_{kind}" for kind in norm}
            names |= {f"{prefix}sc_weight"} if unit == 1 else set()
    return names


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_are_those_of_the_model_zoo(depth):
    assert set(ResNet(depth).collect_params()) == zoo_names(DEPTHS[depth][0], DEPTHS[depth][2])


# torchvision's parameters without classifier and batch norms; its depths 18 and 34 do not project
# the first stage's 64 channels.
@pytest.mark.parametrize("depth, weights", [
    (18, 11_689_512 - 513_000 - 9_600 + 64 * 64), (34, 21_797_672 - 513_000 - 17_024 + 64 * 64),
    (50, 25_557_032 - 2_049_000 - 53_120), (101, 44_549_160 - 2_049_000 - 105_344)])
def test_convolutions_hold_as_many_weights_as_published_networks(depth, weights):
    params = ResNet(depth).collect_params()
    assert sum(np.prod(p.shape) for name, p in params.items() if name.endswith("_weight")) == weights


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("stride, dilation, projected", [(2, 1, True), (1, 2, True), (1, 4, False)])
def test_a_unit_agrees_with_numpy(bottleneck, stride, dilation, projected, reference, randomise,
                                  outputs_three_ways):
    c_in, c_out = (5, 8) if projected else (8, 8)
    unit = ResidualUnit(c_in, c_out, stride, dilation, bottleneck, projected, True, "u_")
    values = randomise(unit)
    x = RNG.randn(2, c_in, 11, 13).astype(np.float32)
    out, = outputs_three_ways(unit, x)

    def activated(y, i):
        return np.maximum(reference.normalise(
            y, *(values[f"u_bn{i}_{k}"] for k in ("gamma", "beta", "moving_mean", "moving_var"))), 0)

    table = [(1, 1), (stride, dilation), (1, 1)] if bottleneck else [(stride, dilation), (1, 1)]
    y = activated(x, 1)
    shortcut = reference.convolve(y, values["u_sc_weight"], stride=stride) if projected else x
    for i, (step, rate) in enumerate(table, 1):
        y = reference.convolve(y if i == 1 else activated(y, i), values[f"u_conv{i}_weight"], stride=step,
                               dilation=rate)
    np.testing.assert_allclose(out, y + shortcut, atol=2e-5)


def test_the_network_agrees_with_numpy_on_its_stem_and_end(reference, randomise):
    block = ResNet(18, units=(1, 1, 1, 1), widths=(3, 5, 7, 11, 13))
    values = randomise(block)
    x = RNG.uniform(0, 255, (1, 3, 17, 19)).astype(np.float32)

    def norm(y, name):
        kinds = ("gamma", "beta", "moving_mean", "moving_var")
        return reference.normalise(y, *(values[f"{name}_{k}"] for k in kinds))

    values["bn_data_gamma"] = np.ones(3)
    y = reference.convolve(norm(x, "bn_data"), values["conv0_weight"], stride=2)
    y = mx.nd.array(reference.max_pool(np.maximum(norm(y, "bn0"), 0)))
    expected = np.maximum(norm(block.stages(y).asnumpy(), "bn1"), 0)
    np.testing.assert_allclose(block(mx.nd.array(x)).asnumpy(), expected, rtol=1e-3,
                               atol=1e-3 * expected.max())


def test_dilation_replaces_the_stride_from_the_first_unit_of_a_stage_on():
    block = ResNet(50)
    table = {unit.prefix: unit.convolutions[1]._kwargs for unit in block.stages}
    assert table["stage2_unit1_"]["stride"] == (2, 2) and table["stage3_unit1_"]["stride"] == (1, 1)
    assert [table[f"stage{s}_unit1_"]["dilate"][0] for s in (1, 2, 3, 4)] == [1, 1, 2, 4]
    assert table["stage4_unit3_"]["dilate"] == (4, 4)


def test_an_unknown_depth_is_refused():
    with pytest.raises(InputError, match="depth 49.*18, 34, 50, 101"):
        ResNet(49)
    with pytest.raises(InputError, match="variant v3.*zoo, v2, v1, v1b"):
        ResNet(50, "v3")
