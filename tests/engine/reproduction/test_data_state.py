"""Stages of a reproduction and the data that they were made from."""
import os

import numpy as np
import pytest

from cian.data.classes import write_label_png
from cian.errors import InputError
from cian.tools.engine.reproduction.data_state import hold_to_data
from cian.tools.engine.reproduction.plan import Place


@pytest.fixture
def place(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "tree", images=3)
    return Place(root, os.path.join(root, "classes.txt"), "train", "train", tmp_path / "out")


def test_the_same_data_is_taken_again_also_with_other_times(place):
    hold_to_data(place)
    os.utime(os.path.join(place.data, "JPEGImages", "image_01.jpg"), (1, 1))
    hold_to_data(place)


@pytest.mark.parametrize("name", ["JPEGImages/image_01.jpg", "Annotations/image_02.xml",
                                  "SegmentationClassAug/image_00.png"])
def test_a_file_of_another_content_is_named(place, name):
    hold_to_data(place)
    path = os.path.join(place.data, name)
    if name.endswith(".png"):  # there was none
        write_label_png(path, np.zeros((5, 7), np.uint8))
    else:
        with open(path, "ab") as stream:
            stream.write(b" ")
    stem = os.path.splitext(os.path.basename(name))[0]
    with pytest.raises(InputError, match=rf"holds stages that were made from other files: \w+ {stem}"):
        hold_to_data(place)
