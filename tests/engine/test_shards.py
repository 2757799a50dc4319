"""Shards of a stage, and the merge that refuses what is not whole."""
import json
import shutil

import numpy as np
import pytest

from cian.errors import InputError
from cian.tools import merge
from cian.tools.engine.metrics import Evaluation
from cian.tools.engine.shards import Shard, merge_folders

NAMES = [f"image_{number}" for number in range(5)]


def test_shards_are_disjoint_and_together_all():
    parts = [Shard.parse(f"{k}/3").of(range(7)) for k in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "0/0", ""])
def test_a_shard_that_does_not_exist_is_refused(text):
    with pytest.raises(InputError, match="--shard"):
        Shard.parse(text)


@pytest.fixture
def write_parts(tmp_path):
    """Writes the folders of two shards, with as many bytes in a file as its name's number."""
    def write(shared=False, names=NAMES, count=2):
        folders = [tmp_path / ("shared" if shared else f"part{index}") for index in range(count)]
        for index, folder in enumerate(folders):
            folder.mkdir(exist_ok=True)
            (folder / "seeds.json").write_text('{"hash": "abc"}')
            for name in Shard(index, count).of(names):
                (folder / f"{name}.png").write_bytes(b"x" * int(name[-1]))
            Shard(index, count).record(folder, names)
        return folders
    return write


def test_folders_of_all_shards_become_one(write_parts, tmp_path, capsys):
    folders = write_parts()
    assert merge.main(["--out", str(tmp_path / "out"), *map(str, folders)]) == 0
    assert "5 images, nothing missing and nothing twice" in capsys.readouterr().out
    assert [(tmp_path / "out" / f"{name}.png").stat().st_size for name in NAMES] == list(range(5))
    assert merge_folders([tmp_path / "out"]) == 5  # as a folder that shards have shared
    with pytest.raises(InputError, match="out: exists already"):
        merge_folders(folders, tmp_path / "out")


def test_a_shared_folder_is_checked_where_it_is(write_parts):
    folder = write_parts(shared=True)[0]
    assert merge_folders([folder]) == 5


def damage(folders, kind):
    first, second = folders
    if kind == "gap":
        (second / "shard-1-of-2.json").unlink()
        shutil.rmtree(second)
        return [first]
    if kind == "double":
        shutil.copytree(first, first.parent / "copy")
        return [first, second, first.parent / "copy"]
    if kind == "missing file":
        (second / "image_3.png").unlink()
    if kind == "foreign file":
        (second / "image_2.png").write_bytes(b"xx")
    if kind == "other settings":
        (second / "seeds.json").write_text('{"hash": "abd"}')
    if kind in ("other list", "overlap"):
        record = json.loads((second / "shard-1-of-2.json").read_text())
        changed = {"of": "0"} if kind == "other list" else {"names": ["image_1", "image_3", "image_0"]}
        (second / "shard-1-of-2.json").write_text(json.dumps({**record, **changed}))
        if kind == "overlap":
            (second / "image_0.png").write_bytes(b"")
    if kind == "unfinished":
        (second / "shard-1-of-2.json").unlink()
    return folders


@pytest.mark.parametrize("kind, message", [
    ("gap", "part0/shard-0-of-2.json: shard 1/2 is missing"),
    ("double", "copy/shard-0-of-2.json: shard 0/2 is in .*part0/shard-0-of-2.json too"),
    ("missing file", "part1: image_3: is missing, which its shard has done"),
    ("foreign file", "part1: image_2: is there, and of none of its shards"),
    ("other settings", "part1: was made with other settings than .*part0"),
    ("other list", "part1/shard-1-of-2.json: is a shard of another list or number than .*part0"),
    ("overlap", "part1/shard-1-of-2.json: image_0 is in .*part0/shard-0-of-2.json too"),
    ("unfinished", "part1: holds no shard that is done")])
def test_what_is_not_whole_is_refused_by_name_and_nothing_is_written(write_parts, tmp_path, kind, message):
    with pytest.raises(InputError, match=message):
        merge_folders(damage(write_parts(), kind), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".merge-*"))


@pytest.fixture
def scores(tmp_path):
    """Files of the scores of two shards of NAMES."""
    paths = []
    for index in range(2):
        names = Shard(index, 2).of(NAMES)
        one = Evaluation(("background", "cat"), np.array([[index, 2], [3, 2 ** 53]]), len(names))
        paths.append(tmp_path / f"part{index}.json")
        paths[-1].write_text(json.dumps({"list": "val.txt", "made_by": None, **one.to_dict(),
                                         **Shard(index, 2).describe(NAMES)}))
    return paths


def test_scores_of_all_shards_add_up_exactly(scores, tmp_path, capsys):
    assert merge.main(["--out", str(tmp_path / "all.json"), *map(str, scores)]) == 0
    whole = json.loads((tmp_path / "all.json").read_text())
    assert whole["confusion"] == [[1, 4], [6, 2 ** 54]] and whole["images"] == 5 and "shard" not in whole
    assert "5 images of val.txt" in capsys.readouterr().out


def test_scores_with_a_gap_or_of_the_whole_are_refused(scores, tmp_path):
    with pytest.raises(InputError, match="part1.json: shard 0/2 is missing"):
        merge.main(["--out", str(tmp_path / "all.json"), str(scores[1])])
    scores[0].write_text(json.dumps({**json.loads(scores[0].read_text()), "made_by": {"checkpoint": "abc"}}))
    with pytest.raises(InputError, match="part1.json: is of other predictions than .*part0.json"):
        merge.main(["--out", str(tmp_path / "all.json"), *map(str, scores)])
    scores[0].write_text(json.dumps(Evaluation(("cat",), np.zeros((1, 1)), 1).to_dict()))
    with pytest.raises(InputError, match="part0.json: is not the score of a shard"):
        merge.main(["--out", str(tmp_path / "all.json"), *map(str, scores)])
