"""Dense CRF against a mean-field iteration by brute force, and its presets."""
import numpy as np
import pytest

from cian.errors import InputError
from cian.tools.engine.prediction.crf import CRF_PRESETS, CRFPreset, crf_preset, dense_crf

HEIGHT, WIDTH = 13, 17


def softmax(energy):
    shifted = np.exp(energy - energy.max(axis=0))
    return shifted / shifted.sum(axis=0)


def brute_force(logits, image, preset):
    """Mean field with every pair of pixels: Potts terms of two Gaussian kernels, each normalised
    symmetrically.
    """
    classes, height, width = logits.shape
    rows, columns = np.mgrid[:height, :width]
    place = np.stack([rows.ravel(), columns.ravel()], 1).astype(float)
    colour = image.reshape(-1, 3).astype(float)

    def kernel(features):
        matrix = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        np.fill_diagonal(matrix, 0)
        scale = 1 / np.sqrt(matrix.sum(1) + 1e-20)
        return scale[:, None] * matrix * scale[None]

    gaussian = kernel(place / preset.gaussian_px)
    bilateral = kernel(np.concatenate([place / preset.bilateral_px, colour / preset.bilateral_rgb], 1))
    unary = logits.reshape(classes, -1)
    belief = softmax(unary)
    for _ in range(preset.iterations):
        message = preset.gaussian_weight * belief @ gaussian + preset.bilateral_weight * belief @ bilateral
        belief = softmax(unary + message)
    return belief.reshape(classes, height, width)


@pytest.fixture
def scene():
    """Two flat halves, and logits that are right on average but noisy."""
    random = np.random.RandomState(7)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, :8], image[:, 8:] = (30, 60, 90), (200, 120, 40)
    truth = np.zeros((HEIGHT, WIDTH), int)
    truth[:, 8:] = 2
    logits = random.normal(0, 1.2, (3, HEIGHT, WIDTH)).astype(np.float32)
    logits += 1.5 * np.eye(3, dtype=np.float32)[truth].transpose(2, 0, 1)
    return logits, image, truth


def test_labels_agree_with_mean_field_over_all_pairs(scene):
    logits, image, truth = scene
    preset = CRFPreset(5, 3, 3, 8, 13, 4)
    got = dense_crf(logits, image, preset)
    expected = brute_force(logits, image, preset)
    np.testing.assert_allclose(got.sum(axis=0), 1, atol=1e-5)
    assert (got.argmax(0) == expected.argmax(0)).mean() > 0.97
    assert (got.argmax(0) == truth).mean() > (logits.argmax(0) == truth).mean()


def test_noise_within_a_flat_region_is_removed(scene):
    logits, image, truth = scene
    assert (logits.argmax(0) != truth).any()
    np.testing.assert_array_equal(dense_crf(logits, image, CRF_PRESETS["test"]).argmax(0), truth)


def test_channels_are_told_apart_so_that_colour_order_matters():
    random = np.random.RandomState(3)
    image = random.randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    logits = random.normal(0, 1, (2, HEIGHT, WIDTH)).astype(np.float32)
    preset = CRF_PRESETS["deeplab"]
    np.testing.assert_array_equal(dense_crf(logits, image, preset), dense_crf(logits, image.copy(), preset))
    flat = image.copy()
    flat[..., 1:] = 0
    assert not np.array_equal(dense_crf(logits, image, preset), dense_crf(logits, flat, preset))


def test_presets_of_test_and_retraining_differ_in_iterations_only():
    test, retrain = CRF_PRESETS["test"], CRF_PRESETS["retrain"]
    assert test == CRFPreset(5, gaussian_px=3, gaussian_weight=3, bilateral_px=80, bilateral_rgb=13,
                             bilateral_weight=10)
    assert (test.iterations, retrain.iterations) == (5, 10)
    assert vars(test).keys() == {name for name in vars(test)
                                 if getattr(test, name) == getattr(retrain, name)} | {"iterations"}
    assert CRF_PRESETS["deeplab"] == CRFPreset(10, 1, 3, 67, 3, 4)


def test_without_iterations_it_is_the_softmax(scene):
    logits, image, _ = scene
    np.testing.assert_allclose(dense_crf(logits, image, CRFPreset(0, 3, 3, 80, 13, 10)), softmax(logits),
                               atol=1e-6)


def test_one_class_needs_no_field():
    assert (dense_crf(np.zeros((1, 3, 5), np.float32), np.zeros((3, 5, 3), np.uint8),
                      CRF_PRESETS["test"]) == 1).all()


def test_logits_that_are_not_finite_are_refused(scene):
    logits, image, _ = scene
    logits[0, 2, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        dense_crf(logits, image, CRF_PRESETS["test"])


def test_an_image_of_another_size_is_refused(scene):
    logits, image, _ = scene
    with pytest.raises(ValueError, match="need uint8"):
        dense_crf(logits, image[:-1], CRF_PRESETS["test"])


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(InputError, match="test, retrain, deeplab"):
        crf_preset("fast")


def test_soft_is_retraining_at_a_margin_of_two_however_sure_the_network_is(scene):
    logits, image, _ = scene
    best = np.sort(logits, axis=0)
    scale = np.float32(2 / (best[-1] - best[-2]).mean())
    found = dense_crf(logits, image, CRF_PRESETS["soft"])
    np.testing.assert_allclose(found, dense_crf(logits * scale, image, CRF_PRESETS["retrain"]), atol=1e-4)
    np.testing.assert_array_equal(found, dense_crf(logits * 8, image, CRF_PRESETS["soft"]))
    assert np.isfinite(dense_crf(np.zeros_like(logits), image, CRF_PRESETS["soft"])).all()
