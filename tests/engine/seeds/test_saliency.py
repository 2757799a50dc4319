"""Saliency: the built-in map against hand-computed barriers and simple pictures, and the refusal of
maps that do not fit.
"""
import cv2
import numpy as np
import pytest

from cian.errors import InputError
from cian.tools.engine.seeds.saliency import (
    barrier_distance,
    barrier_saliency,
    border_contrast,
    read_saliency,
)


def raster_barrier(values):
    """The greedy barrier distance by a raster scan over single pixels until nothing changes
    (another order of the same updates).
    """
    height, width = values.shape
    paths = {(y, x): (0.0, values[y, x], values[y, x]) for y in range(height) for x in range(width)
             if y in (0, height - 1) or x in (0, width - 1)}
    changed = True
    while changed:
        changed = False
        for y in range(height):
            for x in range(width):
                for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    if neighbour not in paths:
                        continue
                    _, high, low = paths[neighbour]
                    high, low = max(high, values[y, x]), min(low, values[y, x])
                    if (y, x) not in paths or high - low < paths[y, x][0]:
                        paths[y, x], changed = (high - low, high, low), True
    return np.array([[paths[y, x][0] for x in range(width)] for y in range(height)])


def test_barrier_is_the_smallest_rise_to_the_border():
    values = np.array([[1, 1, 1, 1, 1],
                       [1, 9, 9, 9, 1],
                       [1, 9, 4, 9, 1],
                       [1, 9, 9, 6, 1],
                       [2, 1, 1, 1, 1]], np.float32)
    expected = np.array([[0, 0, 0, 0, 0],
                         [0, 8, 8, 8, 0],
                         [0, 8, 8, 8, 0],
                         [0, 8, 8, 5, 0],
                         [0, 0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(barrier_distance(values[..., None])[..., 0], expected)


def test_barrier_path_may_turn_through_a_winding_gap():
    values = np.full((11, 13), 7.0, np.float32)
    for y, x in [(0, 2), (1, 2), (2, 2), (3, 2), (3, 3), (3, 4), (2, 4), (1, 4), (1, 5), (1, 6), (2, 6),
                 (3, 6), (4, 6), (5, 6), (5, 5)]:
        values[y, x] = 3.0
    assert barrier_distance(values[..., None])[5, 5, 0] == 0


def test_barrier_is_near_a_raster_scan_to_convergence():
    values = cv2.GaussianBlur(np.random.RandomState(3).rand(19, 23).astype(np.float32), (5, 5), 0)
    ours, scanned = barrier_distance(values[..., None])[..., 0], raster_barrier(values)
    assert np.abs(ours - scanned).mean() < 0.02 * scanned.max()
    assert np.corrcoef(ours.ravel(), scanned.ravel())[0, 1] > 0.99


def test_channels_do_not_mix():
    values = np.random.RandomState(4).rand(11, 13, 3).astype(np.float32)
    together = barrier_distance(values)
    for channel in range(3):
        np.testing.assert_array_equal(together[..., channel:channel + 1],
                                      barrier_distance(values[..., channel:channel + 1]))


def test_border_contrast_leaves_out_the_band_that_holds_the_object():
    lab = np.zeros((40, 60, 3), np.float32)
    lab[20:, 20:40] = (60, 20, -30)  # stands on the lower border
    contrast = border_contrast(lab)
    assert contrast[30, 30] > 1.5 and contrast[5, 5] < 0.1


@pytest.mark.parametrize("size", [(150, 211), (420, 310)])
def test_object_is_salient_and_textured_background_is_not(size):
    random = np.random.RandomState(5)
    image = np.clip(random.normal((60, 140, 60), 8, (*size, 3)), 0, 255).astype(np.uint8)
    inside = np.zeros(size, bool)
    inside[size[0] // 3:2 * size[0] // 3, size[1] // 3:2 * size[1] // 3] = True
    image[inside] = (200, 40, 40)
    saliency = barrier_saliency(image)
    assert saliency.shape == size and saliency.dtype == np.float32
    assert saliency.min() == 0 and saliency.max() == 1
    assert saliency[inside].mean() > 0.9
    assert saliency[:size[0] // 4].mean() < 0.15


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (2, 3), (5, 400)])
def test_an_image_of_one_colour_or_a_few_pixels_has_no_saliency(size):
    assert not barrier_saliency(np.full((*size, 3), 90, np.uint8)).any()


def test_read_saliency_scales_bytes_to_one(tmp_path):
    values = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    cv2.imwrite(str(tmp_path / "a.png"), values)
    np.testing.assert_allclose(read_saliency(tmp_path, "a", (5, 7)), values / 255, rtol=1e-6)


@pytest.mark.parametrize(("content", "problem"), [
    (np.zeros((5, 6), np.uint8), "6x5 pixels, its image 7x5"),
    (np.zeros((5, 7, 3), np.uint8), "8-bit gray"),
    (np.zeros((5, 7), np.uint16), "uint16"),
    (b"\x89PNG\r\n\x1a\nbroken", "not a readable image"),
    (b"", "is empty"),
    (None, "does not exist"),
])
def test_saliency_map_that_does_not_fit_is_named(tmp_path, content, problem):
    if isinstance(content, bytes):
        (tmp_path / "a.png").write_bytes(content)
    elif content is not None:
        cv2.imwrite(str(tmp_path / "a.png"), content)
    with pytest.raises(InputError, match=problem) as caught:
        read_saliency(tmp_path, "a", (5, 7))
    assert "a.png" in str(caught.value)


def test_a_map_of_another_size_is_refused_before_memory_for_it_is_taken(tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((7, 11), np.uint8))
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(InputError, match="is 11x7 pixels, its image 5x7"):
        read_saliency(tmp_path, "a", (7, 5))
