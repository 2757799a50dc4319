"""What a reproduction needs is told before it starts."""
from dataclasses import replace
from pathlib import Path

import pytest

from cian.errors import InputError
from cian.tools.engine.config import load_config
from cian.tools.engine.reproduction.needs import needs
from cian.tools.engine.reproduction.plan import Place
from cian.tools.engine.reproduction.voc import write_train_aug


@pytest.fixture
def place(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "data", images=4)
    return Place(root, str(tmp_path / "data" / "classes.txt"), "train", "train", tmp_path / "out")


def test_all_that_is_missing_is_told_at_once(place, tmp_path):
    (tmp_path / "w.params").write_bytes(b"<html>")
    config = load_config(overrides=["seeds.saliency=images", "network.model=resnet18_largefov",
                                    f"network.pretrained={tmp_path / 'w.params'}", "cam.pretrained=none.pth"])
    told = "\n".join(map(str, needs(place, [config, config], voc=False)))
    for part in ("w.params: is no file of weights, but a web page", "none.pth: does not exist",
                 "--saliency-root: no folder was named", "Aug: masks to measure with: is no folder"):
        assert told.count(part) == 1, (part, told)
    saliency = tmp_path / "saliency"
    saliency.mkdir()
    (saliency / "image_01.png").write_bytes(b"")
    told = "\n".join(map(str, needs(replace(place, saliency_root=str(saliency)), [config], voc=True)))
    assert "saliency: --saliency-root: 3 of 4 are missing, first image_00.png" in told


def test_nothing_is_missing_where_all_is_there(place):
    (Path(place.data) / "seeds").rename(Path(place.data) / "SegmentationClassAug")
    assert needs(place, [load_config(overrides=["seeds.saliency=builtin"])], voc=False) == []


def test_train_aug_is_vocs_trainval_and_sbd_without_val(tmp_path):
    folder, sbd = tmp_path / "ImageSets" / "Segmentation", tmp_path / "sbd"
    for path, names in ((folder / "trainval.txt", "a b c"), (folder / "val.txt", "c"),
                        (sbd / "train.txt", "d a"), (sbd / "val.txt", "e c")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(names.replace(" ", "\n"), encoding="utf-8")
    with open(write_train_aug(tmp_path, sbd), encoding="utf-8") as stream:
        assert stream.read().split() == ["a", "b", "d", "e"]
    (sbd / "val.txt").unlink()
    with pytest.raises(InputError, match="val.txt"):
        write_train_aug(tmp_path, sbd)
