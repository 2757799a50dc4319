"""Masks in colours to index maps."""
import numpy as np
import pytest
from PIL import Image

from cian.data.classes import ClassTable, palette, read_label_png
from cian.data.masks import convert_masks, read_colours, voc_colours
from cian.errors import InputError, Problems

CLASSES = ClassTable(["background", "disc", "bar"])
LABELS = np.random.RandomState(1).choice(np.array([0, 1, 2, 255], np.uint8), (11, 13))


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "adaptive palette", "voc palette"])
def test_masks_in_colours_become_the_indices_of_their_classes(tmp_path, kind):
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(palette()[LABELS])
    if kind == "RGBA":
        picture = picture.convert("RGBA")
    if kind == "adaptive palette":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    if kind == "voc palette":
        picture = Image.fromarray(LABELS)
        picture.putpalette(palette().tobytes())
    picture.save(tmp_path / "in" / "a.png")
    assert convert_masks(tmp_path / "in", tmp_path / "out", CLASSES, voc_colours(CLASSES)) == 1
    assert np.array_equal(read_label_png(tmp_path / "out" / "a.png", 3), LABELS)


@pytest.mark.parametrize("text",
                         ["# labelmap of CVAT\nbackground:0,0,0::\nbar:9,8,7::\ndisc:1,2,3::\nvoid:5,5,5::\n",
                                  "background 0 0 0\nbar 9 8 7\ndisc 1 2 3\nignore 5,5,5\n"])
def test_the_colours_of_the_classes_may_come_from_a_file(tmp_path, text):
    (tmp_path / "colours.txt").write_text(text)
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2, 255]] = [1, 2, 3], [9, 8, 7], [5, 5, 5]
    (tmp_path / "in").mkdir()
    Image.fromarray(colours[LABELS]).save(tmp_path / "in" / "a.png")
    convert_masks(tmp_path / "in", tmp_path / "out", CLASSES, read_colours(tmp_path / "colours.txt", CLASSES))
    assert np.array_equal(read_label_png(tmp_path / "out" / "a.png", 3), LABELS)


def test_a_strange_colour_anywhere_leaves_nothing_written(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(palette()[LABELS]).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.full((5, 7, 3), 77, np.uint8)).save(tmp_path / "in" / "b.png")
    Image.fromarray(LABELS).save(tmp_path / "in" / "c.png")
    with pytest.raises(Problems,
                       match=r"b.png: holds 1 colours that no class has: \(77, 77, 77\) in 35 pixels.*"
                                       "c.png: holds no colours"):
        convert_masks(tmp_path / "in", tmp_path / "out", CLASSES, voc_colours(CLASSES))
    assert not (tmp_path / "out").exists()


def test_by_index_the_values_stay_and_get_the_usual_colours(tmp_path):
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(np.minimum(LABELS, 2))
    picture.putpalette([0, 0, 0, 0, 128, 0, 128, 0, 0])
    picture.save(tmp_path / "in" / "a.png")
    with pytest.raises(InputError, match="ordered its palette anew"):
        read_label_png(tmp_path / "in" / "a.png", 3)
    convert_masks(tmp_path / "in", tmp_path / "out", CLASSES, None)
    assert np.array_equal(read_label_png(tmp_path / "out" / "a.png", 3), np.minimum(LABELS, 2))


@pytest.mark.parametrize(("text", "problem"), [
    ("background 0 0 0\ndisc 1 2 3\n", "has no colour for bar"), ("disc 1 2\n", "is no class with a colour"),
    ("background 0 0 0\ndisc 0 0 0\n", "occurs twice"), ("dsc 1 2 3\n", "did you mean 'disc'"),
    ("disc 1 2 300\n", "is no class with a colour")])
def test_a_wrong_file_of_colours_is_named(tmp_path, text, problem):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_colours(tmp_path / "c.txt", CLASSES)
