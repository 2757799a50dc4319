"""The PNG of packed seeds: what others read in it, what is left to others, and damage."""
import cv2
import numpy as np
import pytest

from cian.data.gray_png import decode_gray_png, encode_gray_png


@pytest.fixture
def label():
    return np.random.RandomState(0).choice(np.array([0, 7, 255], np.uint8), (37, 53))


def test_opencv_reads_the_same_map(label):
    content = encode_gray_png(label)
    assert np.array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), label)
    assert np.array_equal(decode_gray_png(content), label)


def test_files_of_other_kinds_are_left_to_others(label):
    colour = np.repeat(label[:, :, None], 3, axis=2)
    filtered = cv2.imencode(".png", np.cumsum(label, axis=1).astype(np.uint8))[1].tobytes()
    for content in (b"", b"GIF89a", filtered, cv2.imencode(".png", colour)[1].tobytes(),
                    cv2.imencode(".jpg", label)[1].tobytes(),
                    cv2.imencode(".png", label.astype(np.uint16))[1].tobytes()):
        assert decode_gray_png(content) is None


def test_damage_never_gives_a_map_of_another_size(label):
    content, rng = encode_gray_png(label), np.random.RandomState(1)
    for _ in range(3000):
        damaged = bytearray(content[:rng.randint(len(content) + 1)] if rng.randint(3) == 0 else content)
        for _ in range(rng.randint(1, 4)):
            if damaged:
                damaged[rng.randint(len(damaged))] = rng.randint(256)
        decoded = decode_gray_png(bytes(damaged))
        assert decoded is None or decoded.shape[0] * (decoded.shape[1] + 1) == 37 * 54


def test_a_file_that_inflates_to_more_than_it_announces_is_left_alone(label):
    content = bytearray(encode_gray_png(np.zeros((2000, 2000), np.uint8)))
    content[16:24] = bytes([0, 0, 0, 9, 0, 0, 0, 9])
    assert decode_gray_png(bytes(content)) is None
