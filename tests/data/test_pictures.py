"""Images as pixels: orientation, depth and the warnings of JPEG."""
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cian.data.pictures import decode_jpeg, decode_picture, jpeg_orientation, jpeg_pixels, pil_rgb
from cian.errors import InputError

SCENE = cv2.resize(np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8), (29, 23))


def encoded(form, orientation=1, **options):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    extra = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif}
    Image.fromarray(SCENE).save(stream, form, **extra, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_of_every_format_and_of_pillow_are_those_that_a_viewer_shows(form, orientation):
    content = encoded(form, orientation)
    picture = decode_picture(content, "x")
    with Image.open(io.BytesIO(content)) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(pil_rgb(image), shown)
    assert picture.orientation == orientation and np.array_equal(picture.pixels[..., ::-1], shown)
    if form == "JPEG":
        assert np.array_equal(jpeg_pixels(content), picture.pixels)
        assert np.array_equal(jpeg_pixels(content), cv2.imdecode(np.frombuffer(content, np.uint8), 1))


def test_a_damaged_exif_block_says_nothing():
    content = encoded("JPEG", 6)
    at = content.index(b"Exif\0\0") + 6
    for end in (at + 2, at + 8, at + 14):
        assert jpeg_orientation(content[:at] + b"\xff" * (end - at) + content[end:]) in range(1, 9)
    assert jpeg_orientation(content[:at]) == jpeg_orientation(b"\xff\xd8") == 1
    assert jpeg_orientation(content[:2] + b"\xff" + content[2:]) == 6  # a byte that fills


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_pictures_whose_samples_use_the_lower_bits_alone_are_refused(tmp_path, bits):
    samples = np.linspace(0, 2 ** bits - 1, 23 * 29).reshape(23, 29).astype(np.uint16)
    content = cv2.imencode(".png", samples)[1].tobytes()
    with pytest.raises(InputError, match=r"x\.png: has 16 bits .* read as \(nearly\) black; scale"):
        decode_picture(content, "x.png")
    with pytest.raises(InputError, match="16 bits"):
        pil_rgb(Image.open(io.BytesIO(content)))


def test_full_sixteen_bits_are_read_by_their_upper_half():
    samples = np.random.RandomState(0).randint(0, 65536, (23, 29, 3)).astype(np.uint16)
    content = cv2.imencode(".png", samples)[1].tobytes()
    assert np.array_equal(decode_picture(content, "x").pixels, samples >> 8)
    gray = samples[..., 0]
    assert np.array_equal(pil_rgb(Image.fromarray(gray))[..., 1], gray >> 8)


def test_floating_point_pictures_are_refused():
    content = cv2.imencode(".tiff", np.linspace(0, 1, 99, dtype=np.float32).reshape(9, 11))[1].tobytes()
    with pytest.raises(InputError, match="float32|cannot be read"):
        decode_picture(content, "x")
    with pytest.raises(InputError, match="float32"):
        pil_rgb(Image.open(io.BytesIO(content)))


def flawed(kind):
    good = encoded("JPEG", quality=92)
    scan = good.rfind(b"\xff\xda")
    end = scan + 2 + int.from_bytes(good[scan + 2:scan + 4], "big")
    version = good.index(b"JFIF\0") + 5 if b"JFIF\0" in good else 0
    return {"scan header": good[:end - 2] + b"\0" + good[end - 1:], "no end": good[:-2],
            "padding": good[:-2] + bytes(200) + good[-2:],
            "version": good[:version] + b"\2" + good[version + 1:],
            "both": good[:end - 2] + b"\0" + good[end - 1:-2] + b"\xff" * 50 + good[-2:],
            "data left": good[:-2] + b"\x11\x22" * 100 + good[-2:],
            "hole": good[:end + 100] + bytes(100) + good[end + 200:], "cut": good[:-60]}[kind]


@pytest.mark.parametrize("kind", ["scan header", "no end", "padding", "version", "both"])
def test_a_warning_that_costs_no_pixel_is_taken_and_kept(kind):
    picture = decode_jpeg(flawed(kind), "x")
    assert not decode_jpeg(picture.content, "x", "refuse").warning
    assert picture.warning and np.array_equal(picture.pixels, decode_jpeg(encoded("JPEG", quality=92),
                                                                          "x").pixels)
    with pytest.raises(InputError, match=r"is a damaged JPEG.*data\.jpeg_warnings=accept"):
        decode_jpeg(flawed(kind), "x", "refuse")


@pytest.mark.parametrize("kind", ["data left", "hole", "cut"])
def test_a_warning_that_may_cost_pixels_is_refused_unless_all_are_accepted(kind):
    with pytest.raises(InputError, match="is a damaged JPEG"):
        decode_jpeg(flawed(kind), "x")
    assert decode_jpeg(flawed(kind), "x", "accept").warning


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_picture_that_announces_too_many_pixels_is_refused_before_it_is_decoded(form, monkeypatch):
    content = encoded(form)
    if form == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content = content[:at] + struct.pack(">HH", 20000, 20000) + content[at + 4:]
    else:
        header = b"IHDR" + struct.pack(">II", 20000, 20000) + content[24:29]
        content = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(InputError, match="bomb: .*pixels.*make it smaller"):
        decode_picture(content, "bomb")
