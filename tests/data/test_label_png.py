"""The packed seeds' PNG, which others read too, and the fast reader of label maps: right where it
answers, and silent wherever a general reader has to decide.
"""
import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cian.data.classes import decode_label_png, write_label_png
from cian.data.label_png import decode_index_png, encode_gray_png
from cian.errors import InputError


@pytest.fixture
def labels():
    return np.random.RandomState(0).choice([0, 0, 0, 7, 20, 255], (23, 31)).astype(np.uint8)


def palette_png(labels, tmp_path):
    write_label_png(tmp_path / "map.png", labels)
    return (tmp_path / "map.png").read_bytes()


def saved(picture, **options):
    stream = io.BytesIO()
    picture.save(stream, "png", **options)
    return stream.getvalue()


def test_opencv_reads_a_packed_map_as_we_do(labels):
    content = encode_gray_png(labels)
    assert np.array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), labels)
    assert np.array_equal(decode_index_png(content), labels)


def test_a_file_that_inflates_to_more_than_it_announces_is_left_alone():
    content = bytearray(encode_gray_png(np.zeros((2000, 2000), np.uint8)))
    content[16:24] = (9).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    assert decode_index_png(bytes(content)) is None


def test_palette_maps_and_opencvs_gray_maps_are_read(labels, tmp_path):
    for content in (palette_png(labels, tmp_path), cv2.imencode(".png", labels)[1].tobytes()):
        np.testing.assert_array_equal(decode_index_png(content), labels)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_the_smallest_maps_are_read(tmp_path, size):
    labels = np.full(size, 5, np.uint8)
    np.testing.assert_array_equal(decode_index_png(palette_png(labels, tmp_path)), labels)


def test_differences_wrap_around_at_256():
    labels = np.array([[255, 0, 255, 1]], np.uint8)
    rows = np.array([[1, 255, 1, 255, 2]], np.uint8).tobytes()
    plain = bytearray(saved(Image.fromarray(labels)))
    start = plain.index(b"IDAT")
    body = b"IDAT" + zlib.compress(rows)
    end = start + 4 + int.from_bytes(plain[start - 4:start], "big") + 4
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    content = bytes(plain[:start - 4]) + chunk + bytes(plain[end:])
    np.testing.assert_array_equal(decode_index_png(content), labels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), labels)


def test_other_kinds_are_left_to_a_general_reader(labels):
    few = Image.fromarray(labels % 2).convert("P")
    others = [saved(Image.fromarray(labels).convert("RGB")), saved(few, bits=1),
              saved(Image.fromarray(labels).convert("LA")), b"", b"GIF89a",
              cv2.imencode(".jpg", labels)[1].tobytes(), saved(Image.fromarray(labels.astype(np.uint16)))]
    assert all(decode_index_png(content) is None for content in others)


def test_mixed_filters_are_left_to_a_general_reader_and_read_by_it():
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    content = saved(Image.fromarray(smooth))
    rows = zlib.decompress(content[content.index(b"IDAT") + 4:])
    assert len(set(rows[::51])) > 1 or rows[0] > 1
    assert decode_index_png(content) is None
    np.testing.assert_array_equal(decode_label_png(content, "map.png"), smooth)


@pytest.mark.parametrize("encode", [palette_png, lambda labels, _: encode_gray_png(labels)])
def test_every_damage_is_refused_and_none_is_read_as_something_else(labels, tmp_path, encode):
    content = encode(labels, tmp_path)
    random = np.random.RandomState(1)
    for _ in range(1500):
        damaged = bytearray(content)
        for at in random.randint(0, len(content), random.randint(1, 4)):
            damaged[at] ^= random.randint(1, 256)
        found = decode_index_png(bytes(damaged))
        assert found is None or np.array_equal(found, labels)
    for cut in range(0, len(content), 7):
        assert decode_index_png(content[:cut]) is None
        try:
            # without the end mark alone
            assert np.array_equal(decode_label_png(content[:cut], "map.png"), labels)
            assert cut > len(content) - 12
        except InputError as error:
            assert "map.png" in str(error)
