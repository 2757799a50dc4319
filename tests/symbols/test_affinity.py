"""The affinity module, Eq. 1-5."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import CrossImageAffinity
from cian.symbols.layers import reorder_sums

CHANNELS, EMBED, HEIGHT, WIDTH = 7, 5, 3, 11
NORM = ("gamma", "beta", "moving_mean", "moving_var")


def features(count, seed=0):
    return np.random.RandomState(seed).randn(count, CHANNELS, HEIGHT, WIDTH).astype(np.float32)


def expected(values, feat, group_size, merge_type, merge_self, reference, training=False):
    """Residuals [self, cross] by Eq. 1-5, pixel by pixel, in float64."""
    query = reference.convolve(feat, values["conv_embed_q_weight"])
    key = reference.max_pool(reference.convolve(feat, values["conv_embed_k_weight"]))
    value = reference.max_pool(reference.convolve(feat, values["conv_embed_v_weight"]))
    count = len(feat)

    def message(i, j):
        """m_i of every pixel of image i from image j, (E, H, W)."""
        scores = np.einsum("ehw,ekl->hwkl", query[i], key[j])
        scores = scores.reshape((*scores.shape[:2], -1))
        return np.einsum("hwk,ek->ehw", reference.softmax(scores, axis=-1), value[j].reshape((EMBED, -1)))

    own = np.array([message(i, i) for i in range(count)])
    merged = []
    for i in range(count):
        heard = [message(i, (i + shift * count // group_size) % count)
                 for shift in range(1, group_size)] + [own[i]] * merge_self
        merged.append(np.max(heard, axis=0) if merge_type == "max" else np.mean(heard, axis=0))

    def out(messages):
        y = reference.convolve(messages, values["conv_out_weight"])
        statistics = (y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3))) if training else (
            values["bn_out_moving_mean"], values["bn_out_moving_var"])
        return reference.normalise(y, values["bn_out_gamma"], values["bn_out_beta"], *statistics)

    return [out(own)] if group_size == 1 else [out(own), out(np.array(merged))]


SETTINGS = [(1, "max", True), (2, "max", True), (2, "avg", True), (2, "max", False), (3, "max", True),
            (3, "avg", False), (3, "avg", True)]


@pytest.mark.parametrize("group_size, merge_type, merge_self", SETTINGS)
@pytest.mark.parametrize("reordered", [False, True])
def test_residuals_agree_with_numpy_in_three_ways(group_size, merge_type, merge_self, reordered, reference,
                                                  randomise, outputs_three_ways):
    block = CrossImageAffinity(CHANNELS, EMBED, group_size, merge_type, merge_self)
    reorder_sums(block, reordered)
    assert block.reordered == reordered
    values = randomise(block)
    feat = features(2 * group_size)
    found = outputs_three_ways(block, feat)
    wanted = expected(values, feat, group_size, merge_type, merge_self, reference)
    assert len(found) == len(wanted) == (1 if group_size == 1 else 2)
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_row_of_three_pixels_by_hand():
    """Query, value and out weigh 1, 1 and 2, the key log 3; pooling takes (f0, f1) and (f1, f2)."""
    block = CrossImageAffinity(1, 1, group_size=2)
    block.initialize()
    for layer, weight in ((block.query, 1), (block.key, np.log(3)), (block.value, 1), (block.out, 2)):
        layer.weight.set_data(mx.nd.full((1, 1, 1, 1), weight))
    feat = mx.nd.array([[0, 0, 1], [2, 0, 0]]).reshape((2, 1, 1, 3))
    own, cross = (residual.asnumpy().reshape(2, 3) for residual in block(feat))
    # Keys of image 0 are (0, log 3): a query of 1 weighs its values (0, 1) as 1 : 3, one of 0 as 1
    # : 1. Image 1: 2 log 3 and 0.
    np.testing.assert_allclose(own, 2 * np.array([[1 / 2, 1 / 2, 3 / 4], [2 * 81 / 82, 1, 1]]), rtol=1e-4)
    np.testing.assert_allclose(cross, 2 * np.array([[1, 1, 2 * 9 / 10], [2 * 81 / 82, 1, 1]]), rtol=1e-4)
    averaged = CrossImageAffinity(1, 1, group_size=2, merge_type="avg", shared=block)
    mean = averaged(feat)[1].asnumpy().reshape(2, 3)
    np.testing.assert_allclose(mean, [[1.5, 1.5, 3 / 4 + 9 / 5], [81 / 41 + 9 / 10, 1.5, 1.5]], rtol=1e-4)


@pytest.mark.parametrize("merge_type", ["max", "avg"])
@pytest.mark.parametrize("group_size", [2, 3])
def test_self_pair_equals_self_affinity(group_size, merge_type, randomise):
    block = CrossImageAffinity(CHANNELS, EMBED, group_size, merge_type)
    randomise(block)
    own, cross = block(mx.nd.array(np.concatenate([features(2)] * group_size)))
    np.testing.assert_allclose(own.asnumpy(), cross.asnumpy(), atol=1e-6)


def test_affinity_of_every_query_pixel_sums_to_one_over_the_reference(randomise):
    block = CrossImageAffinity(CHANNELS, EMBED)
    randomise(block)
    found = block.compare(mx.nd.array(features(1)),
                          mx.nd.array(np.random.RandomState(3).randn(1, CHANNELS, 5, 13)))
    assert found["affinity_self"].shape == (2 * 6, 33) and found["affinity_cross"].shape == (3 * 7, 33)
    for name in ("affinity_self", "affinity_cross"):
        affinity = found[name].asnumpy()
        assert affinity.min() >= 0
        np.testing.assert_allclose(affinity.sum(axis=0), 1, rtol=1e-5)


def test_comparing_two_images_gives_the_residuals_of_the_pair(randomise):
    block = CrossImageAffinity(CHANNELS, EMBED)
    randomise(block)
    feat = mx.nd.array(features(2))
    own, cross = block(feat)
    found = block.compare(feat[:1], feat[1:])
    np.testing.assert_allclose(found["residual_self"].asnumpy()[0], own.asnumpy()[0], atol=1e-6)
    np.testing.assert_allclose(found["residual_cross"].asnumpy()[0], cross.asnumpy()[0], atol=1e-6)


@pytest.mark.parametrize("group_size, merge_type, merge_self",
                         [(1, "max", True), (2, "max", True), (3, "avg", True), (2, "max", False)])
@pytest.mark.parametrize("reordered", [False, True])
def test_gradients_agree_with_differences_of_the_numpy_reference(group_size, merge_type, merge_self,
                                                                 reordered, reference, randomise):
    block = CrossImageAffinity(CHANNELS, EMBED, group_size, merge_type, merge_self)
    reorder_sums(block, reordered)
    values = {name: value.astype(np.float64) for name, value in randomise(block).items()}
    feat = features(group_size, seed=1)
    rng = np.random.RandomState(2)
    weights = [rng.randn(group_size, CHANNELS, HEIGHT, WIDTH) for _ in range(min(group_size, 2))]

    def total(changed):
        found = expected(changed, feat, group_size, merge_type, merge_self, reference, training=True)
        return sum((w * y).sum() for w, y in zip(weights, found))

    with mx.autograd.record():
        loss = sum((mx.nd.array(w) * y).sum() for w, y in zip(weights, block(mx.nd.array(feat))))
    loss.backward()
    for name, param in block.collect_params().items():
        if param.grad_req == "null":
            continue
        direction = rng.randn(*param.shape)
        slope = (total({**values, name: values[name] + 1e-6 * direction})
                 - total({**values, name: values[name] - 1e-6 * direction})) / 2e-6
        found = float((param.grad().asnumpy() * direction).sum())
        scale = np.linalg.norm(param.grad().asnumpy()) * np.linalg.norm(direction)
        assert scale > 0 and abs(found - slope) <= 1e-4 * scale, name


@pytest.mark.parametrize("hybrid",
                         [{}, {"active": True}, {"active": True, "static_alloc": True, "static_shape": True}])
def test_output_norm_takes_both_branches_into_its_statistics(hybrid, reference, randomise):
    """Cross first, for the backward pass updates them: m <- .81 m + .09 cross + .1 self, with the
    biased variance.
    """
    block = CrossImageAffinity(CHANNELS, EMBED)
    before = randomise(block)
    block.hybridize(**(hybrid or {"active": False}))
    feat = features(4)
    raw = dict(before, bn_out_gamma=np.ones(CHANNELS), bn_out_beta=np.zeros(CHANNELS),
               bn_out_moving_mean=np.zeros(CHANNELS), bn_out_moving_var=np.full(CHANNELS, 1 - 1e-5))
    own, cross = expected(raw, feat, 2, "max", True, reference)  # identity norm: what enters bn_out
    with mx.autograd.record():
        outputs = block(mx.nd.array(feat))
        loss = sum((y * y * (i + 1)).sum() for i, y in enumerate(outputs))
    loss.backward()
    mx.nd.waitall()
    for kind, statistic in (("mean", np.mean), ("var", np.var)):
        wanted = 0.81 * before[f"bn_out_moving_{kind}"] + 0.09 * statistic(
            cross, axis=(0, 2, 3)) + 0.1 * statistic(own, axis=(0, 2, 3))
        np.testing.assert_allclose(block.collect_params()[f"bn_out_moving_{kind}"].data().asnumpy(), wanted,
                                   rtol=1e-4, atol=1e-6)


def test_half_of_the_channels_are_embedded_by_default():
    assert CrossImageAffinity(14).query.weight.shape == (7, 14, 1, 1)


@pytest.mark.parametrize("options, message",
                         [({"merge_type": "sum"}, "'sum'.*max, avg"), ({"group_size": 0}, "at least 1")])
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CrossImageAffinity(8, **options)
