"""The losses, Eq. 6-9."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import IGNORE, CIANLoss, CompletionLoss, SeedLoss

N, C, H, W = 3, 5, 7, 11
PARTS = CIANLoss.PARTS


def sample(seed=0):
    """Logits of two branches, seeds (about half ignored, not all classes), image labels with the
    background.
    """
    rng = np.random.RandomState(seed)
    logits, other = rng.randn(2, N, C, H, W).astype(np.float32)
    seeds = rng.randint(0, C - 1, (N, H, W)).astype(np.float32)
    seeds[rng.rand(N, H, W) < 0.5] = IGNORE
    seeds[1][seeds[1] == 2] = IGNORE  # a class that the second image does not show in its seed
    image_labels = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 1], [1, 0, 0, 1, 0]], np.float32)
    return logits, other, seeds, image_labels


def one_hot(labels):
    return np.moveaxis(np.arange(C) == labels[..., None], -1, 1).astype(np.float64)


def cross_entropy(logits, target, normalise):
    """Value and gradient by the formulas of the original code: (p - y) mask / pixels."""
    logits = logits.astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mask = target.sum(axis=1, keepdims=True)
    pixels = mask.sum(axis=(1, 2, 3), keepdims=True)
    if normalise == "device":
        pixels = pixels.mean(keepdims=True)
    pixels = np.maximum(pixels, 1e-5)
    return (-(np.log(p) * target) / pixels).sum(), (p - target) * mask / pixels


def completion_target(target_logits, seeds, image_labels, labels):
    allowed = one_hot(seeds).max(axis=(2, 3)) if labels == "seed" else image_labels
    return one_hot(target_logits.argmax(axis=1)) * allowed[:, :, None, None]


def value_and_gradients(loss, *inputs):
    """Loss and its gradients by each input."""
    arrays = [mx.nd.array(x) for x in inputs]
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        value = loss(*arrays)
    value.backward()
    return value.asnumpy(), [array.grad.asnumpy() for array in arrays]


def test_seed_loss_of_two_pixels_by_hand():
    logits = mx.nd.log(mx.nd.array([[[[1, 1]], [[3, 1]]]]))  # probabilities 1/4, 3/4 and 1/2, 1/2
    loss = SeedLoss(2)
    assert loss(logits, mx.nd.array([[[1, IGNORE]]])).asscalar() == pytest.approx(np.log(4 / 3))
    assert loss(logits, mx.nd.array([[[1, 0]]])).asscalar() == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("normalise", ["device", "image"])
def test_seed_loss_has_the_originals_gradient(normalise, hybrid):
    logits, _, seeds, _ = sample()
    loss = SeedLoss(C, normalise)
    loss.hybridize(hybrid)
    value, (gradient, _) = value_and_gradients(loss, logits, seeds)
    wanted, slope = cross_entropy(logits, one_hot(seeds), normalise)
    assert value.shape == (1,) and value[0] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The 2-th input to HybridBlock")  # with image labels no seed is read
@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("labels", ["seed", "image"])
@pytest.mark.parametrize("normalise", ["device", "image"])
def test_completion_loss_has_the_originals_gradient_and_none_through_its_target(normalise, labels, hybrid):
    logits, other, seeds, image_labels = sample()
    loss = CompletionLoss(C, labels, normalise)
    loss.hybridize(hybrid)
    inputs = (logits, other, seeds) + ((image_labels,) if labels == "image" else ())
    value, found = value_and_gradients(loss, *inputs)
    wanted, slope = cross_entropy(logits, completion_target(other, seeds, image_labels, labels), normalise)
    assert value[0] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(found[0], slope, atol=1e-7)
    assert not np.abs(found[1]).any()


@pytest.mark.parametrize("make", [lambda: SeedLoss(C), lambda: CompletionLoss(C),
                                  lambda: CompletionLoss(C, "image", "image")])
def test_gradients_are_the_slopes_of_the_values(make):
    logits, other, seeds, image_labels = sample(1)
    loss = make()
    rest = (seeds,) if isinstance(loss, SeedLoss) else (other, seeds, image_labels)
    _, (gradient, *_) = value_and_gradients(loss, logits, *rest)
    rng = np.random.RandomState(2)
    for _ in range(3):
        step = (0.01 * rng.randn(*logits.shape)).astype(np.float32)
        ends = [loss(*(mx.nd.array(x) for x in (logits + sign * step, *rest))).asscalar() for sign in (1, -1)]
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-3, abs=1e-5)


def test_labels_out_of_range_take_no_part():
    logits, _, seeds, _ = sample()
    strange = seeds.copy()
    strange[seeds == IGNORE] = np.resize([C, 17, 254, -1], (seeds == IGNORE).sum())
    assert SeedLoss(C)(mx.nd.array(logits), mx.nd.array(strange)).asscalar() == pytest.approx(
        SeedLoss(C)(mx.nd.array(logits), mx.nd.array(seeds)).asscalar())


def test_labels_of_another_size_are_resized_as_maps_of_classes(reference):
    rng = np.random.RandomState(3)
    logits = rng.randn(N, C, H, W).astype(np.float32)
    seeds = rng.choice([0, 1, 3, IGNORE], (N, 13, 17)).astype(np.float32)
    maps = reference.resize(one_hot(seeds), H, W)
    target = one_hot(maps.argmax(axis=1)) * (maps.max(axis=1, keepdims=True) > 0.5)
    kept = target.sum() / (N * H * W)
    assert 0.1 < kept < 0.9  # both sides of the threshold occur
    value, (gradient, _) = value_and_gradients(SeedLoss(C), logits, seeds)
    wanted, slope = cross_entropy(logits, target, "device")
    assert value[0] == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-7)


@pytest.mark.parametrize("normalise", ["device", "image"])
def test_a_loss_without_pixels_is_zero_with_zero_gradient(normalise):
    """The original's completion loss divides by zero here and puts NaN into every parameter."""
    logits, other, seeds, image_labels = sample()
    nothing = np.full_like(seeds, IGNORE)
    for loss, inputs in ((SeedLoss(C, normalise), (logits, nothing)),
                         (CompletionLoss(C, "seed", normalise), (logits, other, nothing)),
                         (CompletionLoss(C, "image", normalise), (logits, other, seeds, 0 * image_labels))):
        value, found = value_and_gradients(loss, *inputs)
        assert value[0] == 0 and not np.abs(found[0]).any()


def test_image_normalisation_weighs_images_alike_and_device_normalisation_pixels():
    logits, _, seeds, _ = sample()
    seeds[0].flat[1:] = IGNORE
    seeds[0].flat[0] = 1
    _, (by_device, _) = value_and_gradients(SeedLoss(C, "device"), logits, seeds)
    _, (by_image, _) = value_and_gradients(SeedLoss(C, "image"), logits, seeds)
    pixels = one_hot(seeds).sum(axis=(1, 2, 3))
    assert pixels[0] == 1
    for i in range(N):
        np.testing.assert_allclose(by_image[i] * pixels[i], by_device[i] * pixels.mean(), atol=1e-6)


def test_completion_labels_of_the_image_let_classes_through_that_the_seed_lacks():
    logits, other, seeds, image_labels = sample()
    # the second image is predicted as class 2, which its labels hold and its seed does not
    other[1, 2] += 100
    by_seed = value_and_gradients(CompletionLoss(C, "seed"), logits, other, seeds)[1][0]
    by_image = value_and_gradients(CompletionLoss(C, "image"), logits, other, seeds, image_labels)[1][0]
    assert not np.abs(by_seed[1]).any() and np.abs(by_image[1]).all()


def overall(affinity="cross", **settings):
    logits, other, seeds, image_labels = sample()
    outputs = [logits, other] if affinity == "cross" else [logits]
    loss = CIANLoss(C, affinity, **settings)
    arrays = [mx.nd.array(x) for x in outputs]
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        total, parts = loss(arrays, mx.nd.array(seeds), mx.nd.array(image_labels))
    total.backward()
    return total.asscalar(), dict(zip(PARTS, parts.asnumpy())), [array.grad.asnumpy() for array in arrays]


def test_the_overall_loss_sums_four_losses_of_weight_one():
    logits, other, seeds, image_labels = sample()
    total, parts, found = overall()
    target = completion_target(other, seeds, image_labels, "seed")
    for branch, (y, gradient) in enumerate(zip((logits, other), found)):
        seed_value, seed_slope = cross_entropy(y, one_hot(seeds), "device")
        completion_value, completion_slope = cross_entropy(y, target, "device")
        np.testing.assert_allclose(gradient, seed_slope + completion_slope, atol=1e-7)
        assert parts[PARTS[branch]] == pytest.approx(seed_value, rel=1e-5)
        assert parts[PARTS[2 + branch]] == pytest.approx(completion_value, rel=1e-5)
    assert total == pytest.approx(sum(parts[name] for name in PARTS[:4]), rel=1e-6)


def test_the_overall_loss_counts_pixels():
    _, other, seeds, image_labels = sample()
    _, parts, _ = overall()
    assert parts["labelled_pixels"] == (seeds != IGNORE).sum()
    assert parts["agreeing_pixels"] == (other.argmax(axis=1) == seeds).sum()
    assert parts["completion_pixels"] == completion_target(other, seeds, image_labels, "seed").sum()
    assert parts["pixels"] == N * H * W


def test_an_own_target_teaches_each_branch_by_itself():
    logits, other, seeds, image_labels = sample()
    _, shared, _ = overall(completion_target="cross")
    _, own, _ = overall(completion_target="own")
    wanted, _ = cross_entropy(logits, completion_target(logits, seeds, image_labels, "seed"), "device")
    assert own["completion_self"] == pytest.approx(
        wanted, rel=1e-5) and shared["completion_self"] != pytest.approx(wanted, rel=1e-2)
    assert own["completion_cross"] == shared["completion_cross"]


def test_image_labels_reach_the_overall_loss():
    logits, other, seeds, image_labels = sample()
    _, by_image, _ = overall(completion_labels="image", normalise="image")
    wanted, _ = cross_entropy(logits, completion_target(other, seeds, image_labels, "image"), "image")
    assert by_image["completion_self"] == pytest.approx(wanted, rel=1e-5)
    assert by_image["completion_pixels"] == completion_target(other, seeds, image_labels, "image").sum()


@pytest.mark.parametrize("affinity", ["none", "self"])
def test_one_branch_has_one_seed_loss_and_may_complete_itself(affinity):
    total, parts, _ = overall(affinity, completion=False)
    assert total == parts["seed_self"] > 0
    assert parts["seed_cross"] == parts["completion_self"] == parts["completion_cross"] == 0
    total, parts, _ = overall(affinity, completion_target="own")
    assert total == pytest.approx(parts["seed_self"]
                                  + parts["completion_self"]) and parts["completion_self"] > 0
    with pytest.raises(InputError, match="no cross branch"):
        CIANLoss(C, affinity)


def test_without_completion_only_the_seeds_teach():
    logits, other, seeds, _ = sample()
    _, parts, found = overall(completion=False)
    assert parts["completion_self"] == parts["completion_cross"] == 0
    np.testing.assert_allclose(found[1], cross_entropy(other, one_hot(seeds), "device")[1], atol=1e-7)


@pytest.mark.parametrize(
    "settings", [{}, {"completion_labels": "image", "completion_target": "own", "normalise": "image"}])
def test_the_overall_loss_is_the_same_hybridized(settings):
    logits, other, seeds, image_labels = (mx.nd.array(x) for x in sample())
    loss = CIANLoss(C, **settings)
    plain = [y.asnumpy() for y in loss([logits, other], seeds, image_labels)]
    loss.hybridize(static_alloc=True, static_shape=True)
    for a, b in zip(plain, loss([logits, other], seeds, image_labels)):
        np.testing.assert_allclose(a, b.asnumpy(), rtol=1e-6)
    assert plain[1].shape == (len(PARTS),)


@pytest.mark.parametrize("settings, message", [
    ({"normalise": "batch"}, "'batch'.*device, image"), ({"completion_labels": "all"}, "seed, image"),
    ({"completion_target": "self"}, "cross, own"), ({"affinity": "both"}, "none, self, cross")])
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        CIANLoss(C, **settings)
