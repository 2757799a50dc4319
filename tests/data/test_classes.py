"""The class table and label maps as PNG."""
import io

import numpy as np
import pytest
from PIL import Image

from cian.data.classes import (
    VOC_CLASSES,
    ClassTable,
    load_classes,
    palette,
    read_label_png,
    require_same,
    write_label_png,
)
from cian.errors import InputError


def test_voc_has_twenty_classes_and_background_first():
    table = load_classes("voc")
    assert table.num_classes == 21 and table.names == VOC_CLASSES
    assert (table.index("background"), table.index("aeroplane"), table.index("person"),
            table.index("tvmonitor")) == (0, 1, 15, 20)
    assert table.foreground == VOC_CLASSES[1:]


def test_an_unknown_class_is_named_with_the_closest_known_one():
    with pytest.raises(InputError, match="unknown class 'aeroplanes'; did you mean 'aeroplane'"):
        load_classes("voc").index("aeroplanes")
    with pytest.raises(InputError, match="known classes: cat, dog"):
        ClassTable(["background", "cat", "dog"]).index("zebra")


@pytest.mark.parametrize(
    ("text", "problem"),
    [("cat\ndog\n", "first class must be 'background'"), ("background\n", "at least one more"),
     ("background\ncat\ncat\n", "'cat' occurs twice"), ("background\n\ncat\n", "line 2"),
     ("background\nbig cat\n", "one word"), ("", "is empty"),
     ("background\n" + "".join(f"c{i}\n" for i in range(255)), "256 classes do not fit")])
def test_a_wrong_class_file_is_named(tmp_path, text, problem):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        load_classes(path)
    assert caught.value.file == str(path)


def test_a_class_file_may_have_windows_line_ends_and_no_last_one(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"background\r\ncat\r\ndog")
    assert load_classes(tmp_path / "classes.txt").names == ("background", "cat", "dog")


def test_the_palette_has_the_colours_that_voc_documents():
    colours = palette()
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert colours[[0, 1, 2, 15, 20, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128],
                                                        [0, 64, 128], [224, 224, 192]]


def test_a_label_map_survives_writing_and_reading(tmp_path):
    labels = np.arange(7 * 37, dtype=np.int64).reshape(7, 37) % 256
    write_label_png(tmp_path / "a.png", labels)
    assert np.array_equal(read_label_png(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P" and picture.getpalette()[3:6] == [128, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_gray_and_palette_files_read_as_their_indices(tmp_path, mode):
    labels = np.array([[0, 3, 255], [1, 2, 0]], np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([9, 9, 9] * 256)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_label_png(tmp_path / "a.png", num_classes=4), labels)


@pytest.mark.parametrize(("array", "problem"),
                         [(np.zeros((3, 4, 3), np.uint8), "colours in place of class indices"),
                          (np.zeros((3, 4), np.uint16), "has 16 bits a pixel in place of 8"),
                          (np.full((3, 4), 7, np.uint8), "value 7, but there are 7 classes")])
def test_files_that_are_no_label_maps_are_named(tmp_path, array, problem):
    Image.fromarray(array).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=problem) as caught:
        read_label_png(tmp_path / "a.png", num_classes=7)
    assert caught.value.file == str(tmp_path / "a.png")


def test_every_flipped_byte_of_a_label_map_is_found_or_harmless(tmp_path):
    labels = np.random.RandomState(0).randint(0, 5, (11, 13)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "png")
    content = stream.getvalue()
    found = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (tmp_path / "a.png").write_bytes(damaged)
        try:
            assert np.array_equal(read_label_png(tmp_path / "a.png"), labels), position
        except InputError:
            found += 1
    assert found > 0.9 * len(content)


@pytest.mark.parametrize("length", [0, 5, 8, 20, 33, 50])
def test_a_truncated_label_map_is_named(tmp_path, length):
    write_label_png(tmp_path / "a.png", np.zeros((40, 50), np.uint8))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:length])
    with pytest.raises(InputError):
        read_label_png(tmp_path / "a.png")


@pytest.mark.parametrize("labels", [np.zeros(3), np.zeros((2, 2)), np.array([[256]]), np.array([[-1]]),
                                    np.zeros((0, 4), np.uint8)])
def test_arrays_that_are_no_label_maps_are_not_written(tmp_path, labels):
    with pytest.raises(ValueError, match="a label map"):
        write_label_png(tmp_path / "a.png", labels)
    assert not (tmp_path / "a.png").exists()


def paletted(path, labels, colours):
    picture = Image.fromarray(np.asarray(labels, np.uint8))
    picture.putpalette(bytes(np.asarray(colours, np.uint8).ravel()))
    picture.save(path)


@pytest.mark.parametrize(("labels", "colours", "problem"), [
    ([[0, 1, 2]], [(0, 0, 0), (0, 128, 0), (128, 0, 0)], "the value 1 the colour .* is that of class 2"),
    ([[1, 1, 1]], [(128, 0, 0), (0, 0, 0)], "the value 1 the colour .* class 0"),
    ([[0, 1, 1]], [(0, 0, 0), (224, 224, 192)], "the value 1 .* class 255")])
def test_a_palette_that_gives_an_index_the_colour_of_another_class_is_refused(tmp_path, labels, colours,
                                                                              problem):
    paletted(tmp_path / "a.png", labels, colours)
    with pytest.raises(InputError, match=f"{problem}.*tools/convert_masks.py"):
        read_label_png(tmp_path / "a.png", num_classes=4)


@pytest.mark.parametrize(("labels", "colours"), [
    ([[0, 1, 2]], [(0, 0, 0), (9, 9, 9), (250, 0, 0)]),  # colours of no class
    ([[0, 1, 255]], [(0, 0, 0), (128, 0, 0), *[(0, 0, 0)] * 254]),  # filled up with black
    ([[0, 1, 1]], [(0, 0, 0), (64, 0, 0), (128, 0, 0)])])  # the colour of class 8, of which there are 4
def test_a_palette_of_other_colours_says_nothing(tmp_path, labels, colours):
    paletted(tmp_path / "a.png", labels, colours)
    assert read_label_png(tmp_path / "a.png", num_classes=4).tolist() == labels


def test_a_label_map_that_exif_says_is_turned_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(InputError, match="label maps have none"):
        read_label_png(tmp_path / "a.png")


def test_the_first_class_at_which_two_tables_differ_is_named():
    require_same(("background", "cat"), "a", ["background", "cat"], "b")
    with pytest.raises(InputError, match="a: classes: has other classes than b: class 2 is 'missing' here"
                                         "|a: classes: .*class 2 is missing here and 'dog' there"):
        require_same(("background", "cat"), "a", ("background", "cat", "dog"), "b")
