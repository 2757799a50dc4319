"""Lists of image names."""
import pytest

from cian.data.lists import check_list, read_list, resolve_list, write_list
from cian.errors import InputError, Problems


def test_names_come_in_the_order_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"2007_000032\r\n 2007_000039 \nsub/2007_000063\n\n\n")
    assert read_list(tmp_path / "a.txt") == ["2007_000032", "2007_000039", "sub/2007_000063"]


def test_all_problems_of_a_list_are_named_with_their_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\none\n\nthree 1\n../four\n/five\ntwo\n")
    names, problems = check_list(path)
    assert names == ["one", "two"]
    assert [problem.field for problem in problems] == ["line 3", "line 4", "line 5", "line 6", "line 7",
                                                       "line 8"]
    assert "'one' is already in line 1" in str(problems[0]) and "one image name a line" in str(problems[2])
    with pytest.raises(Problems, match="6 problems"):
        read_list(path)


@pytest.mark.parametrize(("text", "problem"),
                         [("", "is empty"), ("\n \n", "holds no names"), (None, "does not exist")])
def test_a_list_without_names_is_named(tmp_path, text, problem):
    path = tmp_path / "a.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_list(path)


@pytest.fixture
def tree(tmp_path):
    for name in ("e", "b", "d", "a", "c"):
        (tmp_path / "SegmentationClassAug").mkdir(exist_ok=True)
        (tmp_path / "SegmentationClassAug" / f"{name}.png").write_bytes(b"not a picture: must not be opened")
    write_list(tmp_path / "ImageSets" / "Segmentation" / "val.txt", ["d", "b"])
    return tmp_path


def test_train_aug_is_derived_from_the_names_of_the_masks(tree):
    assert resolve_list(tree, "train_aug") == ["a", "c", "e"]


def test_a_train_aug_file_wins_over_the_derived_list(tree):
    write_list(tree / "ImageSets" / "Segmentation" / "train_aug.txt", ["e", "a"])
    assert resolve_list(tree, "train_aug") == ["e", "a"]


def test_a_file_wins_over_a_name_of_the_tree(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "val", ["z"])
    assert resolve_list(tree, "val") == ["z"]
    assert resolve_list(tree, "val.txt") == ["d", "b"]


def test_a_missing_list_is_named_with_those_that_exist(tree):
    with pytest.raises(InputError, match=r"trial\.txt: does not exist; lists there: val"):
        resolve_list(tree, "trial")
    with pytest.raises(InputError, match="no list was named"):
        resolve_list(tree, "")


def test_suffixes_and_the_two_paths_of_deeplab_mean_the_name(tmp_path):
    (tmp_path / "a.txt").write_text("a.jpg\nb.PNG\n/JPEGImages/2007.jpg /Masks/2007.png \nv1.2\n")
    assert read_list(tmp_path / "a.txt") == ["a", "b", "2007", "v1.2"]
    (tmp_path / "b.txt").write_text("a.jpg\na.png\nx/1.jpg y/2.png\n")
    assert [problem.field for problem in check_list(tmp_path / "b.txt")[1]] == ["line 2", "line 3"]


@pytest.mark.parametrize("name", ["a\u200b", "a\x07", "a\u202e"])
def test_characters_that_cannot_be_seen_are_told(tmp_path, name):
    (tmp_path / "a.txt").write_text(f"{name}\n./b\n", encoding="utf-8")
    names, problems = check_list(tmp_path / "a.txt")
    assert names == ["b"] and "cannot be seen" in str(problems[0])
