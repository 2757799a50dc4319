"""The entry point of the first stage."""
import os

import numpy as np
import pytest

from cian.data.classes import write_label_png
from cian.data.lists import write_list
from cian.data.records import RecordSet
from cian.errors import InputError
from cian.tools.prepare import main


@pytest.fixture
def root(make_voc_tree, tmp_path):
    return make_voc_tree(tmp_path / "tree", images=8)


def arguments(root, out, *more):
    return ["--root", root, "--classes", os.path.join(root, "classes.txt"), "--out", str(out), "--workers",
            "1", *more]


def test_lists_and_seeds_become_record_sets(root, tmp_path, capsys):
    out = tmp_path / "records"
    write_list(os.path.join(root, "ImageSets", "Segmentation", "val.txt"), ["image_03", "image_01"])
    command = arguments(root, out, "--list", "train", "--list", "val", "--seeds", os.path.join(root, "seeds"))
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out / name}.json: {count} {kind}, packed"
                                                    for name, count, kind in (("train", 8, "images"), (
        "train_seeds", 8, "labels"), ("val", 2, "images"), ("val_seeds", 2, "labels"))]
    assert list(RecordSet.open(out, "val").names) == ["image_03", "image_01"]
    assert main(command) == 0
    assert capsys.readouterr().out.count("unchanged") == 4


def test_problems_of_all_lists_are_printed_and_no_list_is_packed(root, tmp_path, capsys):
    write_list(os.path.join(root, "ImageSets", "Segmentation", "val.txt"), ["image_03", "image_77"])
    os.truncate(os.path.join(root, "JPEGImages", "image_05.jpg"), 100)
    write_label_png(os.path.join(root, "seeds", "image_02.png"), np.zeros((2, 2), np.uint8))
    assert main(arguments(root, tmp_path / "records", "--list", "val", "--list", "train", "--seeds",
                          os.path.join(root, "seeds"))) == 2
    lines = capsys.readouterr().err.splitlines()
    for name in ("image_77.xml", "image_77.jpg", "image_77.png", "image_05.jpg", "image_02.png"):
        assert sum(name in line for line in lines) == 1, name
    assert lines[-1] == "5 problems; nothing was written"
    assert not (tmp_path / "records").exists()


def test_verify_names_the_damaged_record(root, tmp_path, capsys):
    out = tmp_path / "records"
    main(arguments(root, out, "--list", "train"))
    assert main(["--verify", "--out", str(out)]) == 0
    assert "train: 8 records are as they were packed" in capsys.readouterr().out
    records = RecordSet.open(out, "train")
    path = records.files()[0][0]
    with open(path, "r+b") as stream:
        stream.seek(int(records.rows()["offset"][3]) + 300)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 4]))
    assert main(["--verify", "--out", str(out), "--list", "train"]) == 2
    error = capsys.readouterr().err
    assert f"{path}: does not match its checksum in the manifest" in error
    assert f"{path}: record 3 (image_03): does not match its checksum; run tools/prepare.py again" in error
    assert error.splitlines()[-1] == "2 problems; pack the set again"
    os.unlink(path)
    assert main(["--verify", "--out", str(out)]) == 2
    assert "cannot be opened" in capsys.readouterr().err


def test_an_index_that_does_not_match_its_records_is_named(root, tmp_path, capsys):
    out = tmp_path / "records"
    main(arguments(root, out, "--list", "train"))
    path = RecordSet.open(out, "train").files()[0][1]
    with open(path, "a", encoding="utf-8") as stream:
        stream.write("8\t0\n")
    assert main(["--verify", "--out", str(out)]) == 2
    assert f"{path}: does not match its checksum in the manifest" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "problem"),
                         [(["--root", "absent", "--out", "out"], "absent: is not a folder"), (
    ["--out", "out"], "no data set was named"), (["--root", "."], "no folder for the record sets"),
                          (["--verify", "--out", "absent"], "absent: holds no record set"),
                          (["--verify", "--out", "."], "holds no record set"),
                          (["--nonsense"], "unrecognized arguments: --nonsense")])
def test_wrong_flags_end_in_one_clear_line(tmp_path, monkeypatch, command, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=problem) as caught:
        main(command)
    assert "\n" not in str(caught.value)


def test_a_missing_list_and_wrong_classes_are_named(root, tmp_path, capsys):
    with pytest.raises(InputError, match=r"trial\.txt: does not exist; lists there: train"):
        main(arguments(root, tmp_path / "records", "--list", "trial"))
    assert main(["--root", root, "--list", "train", "--out", str(tmp_path / "records"), "train.seed=1",
                 "data.labels_file="]) == 0
    assert main(["--root", root, "--list", "train", "--out", str(tmp_path / "records"), "--classes",
                 _without_bird(tmp_path)]) == 2
    assert "unknown class 'bird'" in capsys.readouterr().err


def _without_bird(folder):
    write_list(folder / "classes.txt", ["background", "cat", "dog"])
    return str(folder / "classes.txt")


def test_two_lists_of_one_name_are_refused(root, tmp_path):
    write_list(tmp_path / "train.txt", ["image_01"])
    with pytest.raises(InputError, match="two lists have the same name"):
        main(arguments(root, tmp_path / "records", "--list", "train", "--list", str(tmp_path / "train.txt")))
