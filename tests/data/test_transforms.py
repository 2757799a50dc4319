"""The training crop against a plain restatement, its random draws, and the quirks that are options."""
from itertools import product

import cv2
import numpy as np
import pytest

from cian.data.transforms import CropTransform, Draw, scaled_size
from cian.errors import InputError

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


def picture(seed, height, width, channels=3):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.RandomState(seed).randint(0, 256, shape, np.uint8)


def whole_then_cut(array, draw, crop_px, interpolation, padding):
    """Mirror, scale and pad the whole picture, then cut: the definition."""
    array = np.ascontiguousarray(array[:, ::-1]) if draw.mirror else array
    if draw.scale != 1:
        height, width = scaled_size(*array.shape[:2], draw.scale)
        array = cv2.resize(array, (width, height), interpolation=interpolation)
    large = np.full((max(crop_px, array.shape[0]), max(crop_px, array.shape[1]), *array.shape[2:]), padding,
                    np.uint8)
    large[:array.shape[0], :array.shape[1]] = array
    return large[draw.top:draw.top + crop_px, draw.left:draw.left + crop_px]


CASES = [(size, scale, mirror) for size, scale, mirror in product([(37, 53), (61, 131), (113, 59), (47, 47)],
                                                                  SCALES, (False, True))]


@pytest.mark.parametrize("size, scale, mirror", CASES)
def test_image_and_label_equal_the_whole_picture_cut(size, scale, mirror):
    transform = CropTransform(crop_px=47, scales=SCALES)
    rng = np.random.RandomState(0)
    image, label = picture(1, *size), picture(2, *size, channels=0)
    out, reduced = np.full((3, 47, 47), 99, np.uint8), np.full((6, 6), 99, np.uint8)
    for _ in range(3):
        rows, columns = (max(side - 47, 0) + 1 for side in scaled_size(*size, scale))
        draw = Draw(scale, mirror, int(rng.randint(rows)), int(rng.randint(columns)))
        transform.image(image, draw, out)
        assert np.array_equal(out, whole_then_cut(image, draw, 47, cv2.INTER_LINEAR,
                                                  0)[:, :, ::-1].transpose(2, 0, 1))
        transform.label(label, draw, reduced)
        assert np.array_equal(reduced,
                              cv2.resize(whole_then_cut(label, draw, 47, cv2.INTER_NEAREST, 0), (6, 6)))


def test_nearest_takes_the_label_below_each_logit():
    label = picture(3, 41, 43, 0)
    out = np.zeros((6, 6), np.uint8)
    CropTransform(crop_px=41, label_resize="nearest").label(label, Draw(1.0, False, 0, 2), out)
    assert np.array_equal(out, label[0:41:8, 2:43:8])


def test_bilinear_labels_make_classes_between_as_in_the_original():
    label = np.zeros((321, 321), np.uint8)
    label[:, 4:] = 15  # the first of 41 pixels lies at column 3.41
    out = np.zeros((41, 41), np.uint8)
    CropTransform().label(label, Draw(1.0, False, 0, 0), out)
    assert (out == [6] + [15] * 40).all()
    CropTransform(label_resize="nearest").label(label, Draw(1.0, False, 0, 0), out)
    assert (out == [0] + [15] * 40).all()


@pytest.mark.parametrize("padding, value", [("background", 0), ("ignore", 255)])
def test_padding_of_labels_is_an_option_and_that_of_images_is_black(padding, value):
    transform = CropTransform(crop_px=17, label_resize="nearest", label_padding=padding)
    out, image = np.full((3, 3), 9, np.uint8), np.full((3, 17, 17), 9, np.uint8)
    transform.label(np.full((9, 13), 4, np.uint8), Draw(1.0, True, 0, 0), out)
    assert out.tolist() == [[4, 4, value], [4, 4, value], [value] * 3]
    transform.image(np.full((9, 13, 3), 4, np.uint8), Draw(1.0, True, 0, 0), image)
    assert image[:, :9, :13].min() == 4
    assert image[:, 9:].max() == image[:, :, 13:].max() == 0


def test_draws_in_order_take_from_the_stream_what_the_original_takes():
    transform, rng, twin = CropTransform(crop_px=47,
                                         scales=SCALES), np.random.RandomState(4), np.random.RandomState(4)
    for size in [(37, 53), (61, 131), (113, 59)] * 20:
        scale = twin.choice(list(SCALES))
        mirror = twin.rand() > 0.5
        height, width = (max(int(side * scale + 0.5), 47) for side in size)
        expected = (scale, mirror, twin.randint(0, height - 47 + 1), twin.randint(0, width - 47 + 1))
        assert transform.draw_in_order(rng, size) == expected
    assert rng.randint(1 << 30) == twin.randint(1 << 30)


def test_without_mirror_or_scales_nothing_is_drawn_for_them():
    rng, twin = np.random.RandomState(4), np.random.RandomState(4)
    draw = CropTransform(crop_px=47, scales=(), mirror=False).draw_in_order(rng, (61, 131))
    assert draw == (1.0, False, twin.randint(0, 15), twin.randint(0, 85))


def test_counted_draws_are_pinned():
    """From Philox-4x64 itself, so that no release of NumPy may change them."""
    transform = CropTransform(crop_px=47, scales=SCALES)
    words = np.random.Generator(np.random.Philox(key=[7, 3],
                                                 counter=[0, 11, 1, 1])).bit_generator.random_raw(4)
    top, left = (int(int(word) * count >> 64) for word, count in zip(words[2:], (200 - 47 + 1, 300 - 47 + 1)))
    draw = transform.draw_by_counter(7, 3, 11, 1, (200, 300))
    assert CropTransform(crop_px=47, scales=()).draw_by_counter(7, 3, 11, 1, (200, 300))[2:] == (top, left)
    assert draw == (1.5, True, 87, 336)


def test_counted_draws_differ_in_every_argument_and_cover_their_range_evenly():
    transform = CropTransform(crop_px=47, scales=SCALES)
    base = transform.draw_by_counter(1, 2, 3, 0, (1047, 1047))
    for other in [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1), (2, 1, 3, 0)]:
        assert transform.draw_by_counter(*other, (1047, 1047)) != base
    draws = [CropTransform(crop_px=47, scales=SCALES).draw_by_counter(0, 0, index, 0, (50, 200))
             for index in range(4000)]
    counts = [sum(draw.scale == scale for draw in draws) for scale in SCALES]
    assert all(abs(count - 800) < 5 * 800 ** 0.5 for count in counts)
    assert abs(sum(draw.mirror for draw in draws) - 2000) < 5 * 1000 ** 0.5
    unscaled = [draw for draw in draws if draw.scale == 1]
    assert {draw.top for draw in unscaled} == set(range(4))
    assert min(draw.left for draw in unscaled) < 5 < 148 < max(draw.left for draw in unscaled) <= 153


@pytest.mark.parametrize(
    "options, message",
    [({"label_resize": "area"}, "label_resize: 'area' is not allowed; use one of: bilinear, nearest"),
     ({"label_padding": "x"}, "label_padding: 'x' is not allowed"),
     ({"crop_px": 0}, "crop_px: must be at least 1, not 0"), ({"stride": 0}, "stride: must be at least 1"),
     ({"scales": (1.0, 0.0)}, "scales: must be above 0")])
def test_wrong_options_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        CropTransform(**options)
