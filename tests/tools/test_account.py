"""The account of an epoch, from labels alone."""
import json

import numpy as np
import pytest
from PIL import Image

from cian.errors import InputError
from cian.tools.account import main

CLASSES = "background\nant\nbee\ncat\n"
LABELS = "a ant\nb ant\nc ant bee\nd bee\ne bee\nf cat\ng ant\nh bee\n"


@pytest.fixture
def arguments(tmp_path):
    for name, text in (("classes.txt", CLASSES), ("labels.txt", LABELS),
                       ("train.txt", "".join(f"{name}\n" for name in "abcdefgh"))):
        (tmp_path / name).write_text(text)
    return [f"--{flag}={tmp_path / name}"
            for flag, name in (("classes", "classes.txt"), ("labels-file", "labels.txt"),
                               ("train-list", "train.txt"))] + ["train.batch_size=4"]


def test_even_serves_everybody_and_the_lonely_one_with_itself(arguments, tmp_path, capsys):
    assert main([*arguments, "train.pairing=even", "--epochs", "3", "--json", str(tmp_path / "a.json")]) == 0
    account, = json.loads((tmp_path / "a.json").read_text())
    assert account["images"] == 8
    assert account["dropped"] == [0, 0, 0]
    assert account["lonely"] == 1
    assert account["pairs_without_class"] == 0
    assert account["classes"]["cat"]["images"] == 1
    assert account["classes"]["cat"]["pairs"] >= 3
    printed = capsys.readouterr().out
    assert "even: 8 images, 3 epoch(s)" in printed
    assert "8.0 used and 0 to 0 dropped an epoch; 1 without any partner" in printed


def test_pairings_are_compared_in_a_table_and_a_picture(arguments, tmp_path, capsys):
    with pytest.warns(UserWarning, match=r"1 image\(s\) share no class with any other \(f\)"):
        assert main([*arguments, "train.lonely=skip", "--pairings", "common", "random", "--plot",
                     str(tmp_path / "a.png")]) == 0
    rows = {line.split()[0]: line.split()[1:]
            for line in capsys.readouterr().out.splitlines() if line.split()[0] in ("ant", "bee", "cat")}
    assert [row[0] for row in rows.values()] == ["4", "4", "1"]
    assert rows["cat"][1] == "0.0"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1300, 420)
        assert np.asarray(picture).std() > 20


def test_no_epochs_are_refused(arguments):
    with pytest.raises(InputError, match="--epochs: must be at least 1"):
        main([*arguments, "--epochs", "0"])
