"""The way of an image to the network's size and of its logits back."""
import cv2
import numpy as np
import pytest

from cian.errors import InputError
from cian.tools.engine.fitting import Fit, resize_matrix


def test_corners_and_straight_lines_stay_where_they_are():
    line = np.linspace(-3, 8, 7)
    enlarged = resize_matrix(7, 31) @ line
    np.testing.assert_allclose(enlarged, np.linspace(-3, 8, 31), atol=1e-5)


def test_one_pixel_becomes_constant_and_any_length_shrinks_to_its_first_pixel():
    assert (resize_matrix(1, 5) == 1).all()
    np.testing.assert_array_equal(resize_matrix(5, 1), [[1, 0, 0, 0, 0]])


@pytest.mark.parametrize("source, target", [(5, 37), (37, 5), (13, 13), (65, 513)])
def test_the_matrix_is_what_mxnet_computes(source, target):
    import mxnet as mx

    grid = np.random.RandomState(source).normal(0, 5, (2, 3, source, source + 2)).astype(np.float32)
    expected = mx.nd.contrib.BilinearResize2D(mx.nd.array(grid), height=target, width=target + 2).asnumpy()
    got = resize_matrix(source, target) @ grid @ resize_matrix(source + 2, target + 2).T
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_padding_puts_zeros_below_and_right_of_images_that_are_smaller():
    image = np.random.RandomState(0).randint(1, 256, (11, 17, 3), np.uint8)
    fit = Fit.of((11, 17), "pad", 23)
    padded = fit.apply(image)
    assert padded.shape == (23, 23, 3)
    np.testing.assert_array_equal(padded[:11, :17], image)
    assert not padded[11:].any() and not padded[:, 17:].any()


def test_padding_leaves_the_sides_that_are_longer():
    fit = Fit.of((31, 17), "pad", 23)
    assert fit.network_size == (31, 23)
    image = np.zeros((31, 17, 3), np.uint8)
    assert fit.apply(image).shape == (31, 23, 3)
    assert fit.enlarge(np.zeros((2, 4, 3), np.float32)).shape == (2, 31, 17)


@pytest.mark.parametrize("side, padded",
                         [(1, 33), (33, 33), (34, 65), (375, 385), (500, 513), (513, 513), (514, 545)])
def test_tight_pads_to_sides_that_every_usual_scale_keeps_whole_strides_apart(side, padded):
    fit = Fit.of((side, 17), "tight", 23)
    assert fit.network_size == (padded, 33)
    assert all(int((padded - 1) * scale) % 8 == 0 for scale in (0.5, 0.75, 1, 1.25, 1.5))
    image = np.random.RandomState(0).randint(1, 256, (side, 17, 3), np.uint8)
    np.testing.assert_array_equal(fit.apply(image)[:side, :17], image)
    assert not fit.apply(image)[side:].any() and not fit.apply(image)[:, 17:].any()


def test_native_changes_nothing():
    image = np.random.RandomState(0).randint(0, 256, (11, 17, 3), np.uint8)
    assert Fit.of((11, 17), "native", 23).apply(image) is image


def test_warping_resizes_as_opencv_and_its_logits_return_by_two_resizings():
    image = np.random.RandomState(0).randint(0, 256, (11, 17, 3), np.uint8)
    fit = Fit.of((11, 17), "warp", 25)
    np.testing.assert_array_equal(fit.apply(image), cv2.resize(image, (25, 25)))
    coarse = np.random.RandomState(1).normal(size=(2, 4, 4)).astype(np.float32)
    square = resize_matrix(4, 25) @ coarse @ resize_matrix(4, 25).T
    expected = resize_matrix(25, 11) @ square @ resize_matrix(25, 17).T
    np.testing.assert_allclose(fit.enlarge(coarse), expected, atol=1e-5)


def test_padded_logits_are_enlarged_to_the_square_and_then_cut():
    coarse = np.random.RandomState(1).normal(size=(2, 4, 4)).astype(np.float32)
    square = resize_matrix(4, 25) @ coarse @ resize_matrix(4, 25).T
    np.testing.assert_allclose(Fit.of((11, 17), "pad", 25).enlarge(coarse), square[:, :11, :17], atol=1e-6)


def test_an_unknown_fit_is_refused_with_the_good_names():
    with pytest.raises(InputError, match="pad, warp, tight, native"):
        Fit.of((3, 5), "stretch")
