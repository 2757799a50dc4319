"""tools/make_seeds.py: from a classifier to seeds, with the ground truth left alone unless it is
asked for.
"""
import json
import os
import shutil

import numpy as np
import pytest

from cian.data.classes import read_label_png
from cian.errors import InputError
from cian.tools import make_seeds
from cian.tools.engine.seeds import thresholds
from cian.tools.engine.shards import merge_folders

IMAGES = 7


def masks_of(flags):
    return os.path.join(flags[1], "SegmentationClassAug")


def test_seeds_hold_the_image_level_labels_and_no_look_at_the_ground_truth(labelled_data, cam_snapshot,
                                                                           tmp_path, capsys, opened_files):
    assert make_seeds.main([*labelled_data, "--snapshot", cam_snapshot, "--out",
                            str(tmp_path / "seeds")]) == 0
    assert any("image_00.png" in name for name in opened_files)
    assert not [name for name in opened_files if "SegmentationClassAug" in name]
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'seeds'}: 7 seeds written, 0 were there"
    for number in range(IMAGES):
        allowed = {0, 255, 1 + number % 3, 1 + (number // 3) % 3}
        seeds = read_label_png(tmp_path / "seeds" / f"image_{number:02d}.png")
        assert seeds.shape == (37, 41) and set(np.unique(seeds)) <= allowed
    assert not (tmp_path / "seeds" / "quality.json").exists()
    balance = json.loads((tmp_path / "seeds" / "balance.json").read_text())
    assert balance["images"] == IMAGES and [row["images"] for row in balance["classes"].values()] == [5, 4, 3]


def test_chosen_thresholds_are_told_used_and_recorded(labelled_data, cam_snapshot, tmp_path, capsys,
                                                  monkeypatch):
    monkeypatch.setattr(thresholds, "LEAST", -1.0)  # the images are noise
    command = [*labelled_data, "--snapshot", cam_snapshot, "--out", str(tmp_path / "seeds"),
               "seeds.thresholds=auto"]
    for written in (IMAGES, 0):
        assert make_seeds.main(command) == 0
        told = capsys.readouterr().out
        assert f"{written} seeds written" in told
    found = json.loads((tmp_path / "seeds" / "seeds.json").read_text())["seeds"]
    chosen = {key: found[key] for key in ("foreground_threshold", "background_threshold")}
    assert found["thresholds"] == "auto" and list(chosen.values()) != [0.3, 0.06]
    assert all(f"seeds.{key}={value:g}" in told for key, value in chosen.items())
    make_seeds.main([*command[:-3], "--out", str(tmp_path / "given"),
                     *(f"seeds.{key}={value}" for key, value in chosen.items())])
    for number in range(IMAGES):
        name = f"image_{number:02d}.png"
        assert (tmp_path / "seeds" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


def test_measuring_changes_no_seed_and_reports_the_quality(labelled_data, cam_snapshot, tmp_path, capsys):
    common = [*labelled_data, "--snapshot", cam_snapshot]
    make_seeds.main([*common, "--out", str(tmp_path / "plain")])
    make_seeds.main([*common, "--out", str(tmp_path / "measured"), "--measure", masks_of(labelled_data)])
    for name in sorted(os.listdir(tmp_path / "plain")):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "measured" / name).read_bytes()
    report = json.loads((tmp_path / "measured" / "quality.json").read_text())
    assert report["images"] == report["cam"]["images"] == IMAGES
    assert 0 < report["coverage"] < 1 and report["classes"]["cat"]["coverage"] is None
    table = capsys.readouterr().out
    assert "coverage" in table and "all pixels / mean" in table
    make_seeds.main([*common, "--out", str(tmp_path / "plain"), "--measure", masks_of(labelled_data)])
    assert json.loads((tmp_path / "plain" / "quality.json").read_text()) == report


def test_shards_in_folders_of_their_own_merge_into_the_seeds_of_the_whole(labelled_data, cam_snapshot,
                                                                          tmp_path):
    common = [*labelled_data, "--snapshot", cam_snapshot]
    make_seeds.main([*common, "--out", str(tmp_path / "whole")])
    for index in range(2):
        make_seeds.main([*common, "--out", str(tmp_path / f"part{index}"), "--shard", f"{index}/2"])
    assert merge_folders([tmp_path / "part0", tmp_path / "part1"], tmp_path / "merged") == IMAGES
    make_seeds.main([*common, "--out", str(tmp_path / "merged")])  # makes none, and tells their balance
    for name in {*os.listdir(tmp_path / "whole")} - {"made_from.jsonl"}:  # whose lines have times
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(InputError, match="--measure: needs all seeds"):
        make_seeds.main([*common, "--out", str(tmp_path / "x"), "--shard", "0/2", "--measure", "masks"])


def test_table_4_replaces_a_recorded_portion_of_the_seeds(labelled_data, cam_snapshot, tmp_path):
    make_seeds.main([*labelled_data, "--snapshot", cam_snapshot, "--out", str(tmp_path / "seeds"),
                     "--strong-masks", masks_of(labelled_data), "seeds.strong_ratio=0.3"])
    strong = json.loads((tmp_path / "seeds" / "seeds.json").read_text())["strong"]["names"]
    assert len(strong) == 2
    for number in range(IMAGES):
        name = f"image_{number:02d}"
        assert (read_label_png(tmp_path / "seeds" / f"{name}.png") == 3).all() == (name in strong)


def test_classifier_may_be_named_by_its_file(labelled_data, cam_snapshot, tmp_path):
    path = os.path.join(cam_snapshot, "efficientnet_lite0_cam-0001.params")
    records = os.path.join(cam_snapshot, "records")
    assert make_seeds.main([*labelled_data, "--records", records, "--classifier", path, "--out",
                            str(tmp_path / "seeds")]) == 0


@pytest.mark.parametrize(("change", "problem"), [
    (["--classifier", "nowhere"], "nowhere: does not exist"),
    (["--saliency", "images"], "seeds.saliency_root: is no folder of saliency maps"),
    (["--saliency", "spectral"], "seeds.saliency: 'spectral' is not allowed"),
    (["--strong-masks", "."], "--strong-masks: is not read with seeds.strong_ratio=0"),
    (["seeds.strong_ratio=0.5"], "name the folder of NAME.png with --strong-masks"),
    (["--measure", "nowhere"], "nowhere/image_00.png: does not exist"),
    (["--train-list", "val"], "val"),
    (["--devices", "gpu:0"], "gpu:0"),
])
def test_wrong_seed_options_end_in_one_line(labelled_data, cam_snapshot, tmp_path, change, problem):
    with pytest.raises(InputError) as caught:
        make_seeds.main([*labelled_data, "--snapshot", cam_snapshot, "--out", str(tmp_path / "seeds"),
                         *change])
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_missing_classifier_is_asked_for(labelled_data, tmp_path):
    with pytest.raises(InputError, match="no classifier was named; name what tools/train_cam.py wrote"):
        make_seeds.main([*labelled_data, "--out", str(tmp_path / "seeds")])


def test_damaged_classifier_is_named(labelled_data, cam_snapshot, tmp_path):
    damaged = shutil.copytree(cam_snapshot, tmp_path / "damaged")
    with open(damaged / "efficientnet_lite0_cam-0001.params", "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(InputError, match="efficientnet_lite0_cam-0001.params"):
        make_seeds.main([*labelled_data, "--snapshot", str(damaged), "--out", str(tmp_path / "seeds")])
