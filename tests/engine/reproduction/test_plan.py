"""Rows become stages that share what they have in common, and stages' results become the report."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from cian import environment
from cian.errors import InputError
from cian.files import atomic_write_bytes
from cian.tools import reproduce
from cian.tools.engine.reproduction import report as reproduction_report
from cian.tools.engine.reproduction import run as scheduler
from cian.tools.engine.reproduction import stages
from cian.tools.engine.reproduction.experiments import find_experiments, load_experiment
from cian.tools.engine.reproduction.plan import Place, plan
from cian.tools.engine.reproduction.report import finished_rounds, looked_cells, write_report
from cian.tools.engine.reproduction.rows import paired_cells, rows_of
from cian.tools.engine.reproduction.stages import Stage, estimate, in_order, run_stage, stage_key
from cian.tools.engine.reproduction.voc import check_voc, write_submission
from cian.tools.engine.training.logs import RunLog

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"


@pytest.fixture
def place(tmp_path):
    lists = tmp_path / "tree" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\n", encoding="utf-8")
    (lists / "val.txt").write_text("d\ne\n", encoding="utf-8")
    masks = tmp_path / "tree" / "SegmentationClassAug"
    masks.mkdir()
    for name in "abcde":
        (masks / f"{name}.png").touch()
    classes = tmp_path / "classes.txt"
    classes.write_text("background\ncow\n", encoding="utf-8")
    return Place(str(tmp_path / "tree"), str(classes), "train", "val", tmp_path / "out")


def row(name, table=2):
    return next(row for row in find_experiments(EXPERIMENTS, "voc6", table) if row.path.stem == name)


def finish(stage, content=None):
    stage.folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"key": stage.key, "seconds": 6.0, "images": stage.images,
                         "finished": f"2026-01-0{len(stage.kind)}T00:00:00+00:00"})
    # whole or absent, as run_stage writes it: others may look meanwhile
    atomic_write_bytes(stage.folder / "done.json", record.encode())
    if content is not None:
        on = {"truth": "a/tree/SegmentationClassAug", "list": f"a/{stage.config.data.val_list}.txt"}
        (stage.folder / "score.json").write_text(json.dumps({**on, **content}), encoding="utf-8")


def test_rows_of_one_configuration_share_all_stages(place):
    first, second = plan(row("cp"), place, 0), plan(row("cp-common", 3), place, 0)
    assert [stage.folder for stage in in_order(first.scores.values())] == [stage.folder for stage in in_order(
        second.scores.values())]


def test_second_round_starts_from_the_rows_first_round(place):
    first, second = plan(row("cp"), place, 0), plan(row("rt"), place, 0)
    assert second.rounds[0].folder == first.rounds[0].folder
    assert [stage.kind for stage in in_order(second.scores.values())] == [
        "records", "cam", "seeds", "round1", "labels", "round2", "records", "val", "score", "score"]


def test_second_rounds_that_differ_in_their_labels_share_the_first_and_nothing_after_it(place):
    usual, warped, plain = (plan(load_experiment(row("rt").path, changes), place, 0) for changes in (
        [], ["predict.retrain_fit=warp"], ["predict.retrain_fit=warp", "predict.retrain_crf=none"]))
    assert usual.rounds[0].folder == warped.rounds[0].folder == plain.rounds[0].folder
    assert len({stage.folder for one in (usual, warped, plain)
                for stage in (one.rounds[1], one.rounds[1].after[0])}) == 6
    for one, folder in ((usual, "train_aug_pred_crf"), (warped, "train_aug_pred_crf"),
                        (plain, "train_aug_pred")):
        assert one.rounds[1].config.data.label_root == str(one.rounds[1].after[0].folder / folder)
        assert one.rounds[1].arguments[2:] == ("--start", str(one.rounds[0].folder))


def test_what_makes_second_labels_leaves_predictions_of_a_first_round_as_they_are(place):
    folders = {plan(load_experiment(row("cp").path, changes), place, 0).scores["val"].folder
               for changes in ([], ["predict.retrain_crf=none"], ["predict.retrain_agreed=true"])}
    assert len(folders) == 1


def test_another_seed_setting_or_list_never_shares_a_training_folder(place, tmp_path):
    folders = {plan(row("cp"), place, seed).rounds[0].folder for seed in (0, 1)}
    folders.add(plan(row("baseline"), place, 0).rounds[0].folder)
    (tmp_path / "tree" / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\n", encoding="utf-8")
    folders.add(plan(row("cp"), place, 0).rounds[0].folder)
    assert len(folders) == 4


def test_strong_seeds_are_a_stage_of_their_own_and_only_they_see_masks(place):
    weak, strong = plan(row("ours-00", 4), place, 0), plan(row("ours-10", 4), place, 0)
    assert weak.seeds.folder != strong.seeds.folder and weak.seeds.after[0].folder == strong.seeds.after[
        0].folder
    assert "--strong-masks" in strong.seeds.arguments and "--strong-masks" not in weak.seeds.arguments


def test_done_stage_of_another_key_is_refused(place):
    stage = plan(row("cp"), place, 0).rounds[0]
    finish(stage)
    (stage.folder / "done.json").write_text(json.dumps({"key": "0" * 10}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        _ = stage.done
    assert str(caught.value) == (f"{stage.folder / 'done.json'}: belongs to the stage 0000000000, not "
                                 f"{stage.key}; use another --out")


def test_failed_stage_names_its_log_and_last_line_and_is_not_done(tmp_path):
    stage = Stage("score", "k", tmp_path / "score-k", "evaluate",
                  ("--prediction-root", str(tmp_path / "nowhere"), "--data", str(tmp_path)))
    with pytest.raises(InputError, match=r"stage.log: the stage score ended with code \d: error"):
        run_stage(stage)
    assert stage.done is None


@pytest.mark.parametrize("users, threads, expected",
                         [({}, 0, None), ({"OMP_NUM_THREADS": "3"}, 0, "3"), ({}, 1, "1")])
def test_a_stage_has_the_users_threads_unless_it_is_given_some(users, threads, expected, tmp_path,
                                                               monkeypatch):
    seen = []
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as importing cian sets it
    monkeypatch.setattr(environment, "USERS_VALUES", users)
    monkeypatch.setattr(stages.subprocess, "run",
                        lambda *_, env, **__: seen.append(env) or subprocess.CompletedProcess([], 0))
    run_stage(Stage("score", "k", tmp_path / "score-k", "evaluate", ()), threads)
    assert seen[0].get("OMP_NUM_THREADS") == expected and seen[0]["PATH"] == os.environ["PATH"]


def test_jobs_run_side_by_side_and_after_what_they_need(place, monkeypatch):
    """Two stages wait for each other to start, which they could not one by one; the third comes
    after both.
    """
    both, log = threading.Barrier(2, timeout=20), []

    def run(stage, threads):
        log.append(stage.key)
        if stage.key != "c":
            both.wait()
        finish(stage)

    monkeypatch.setattr(scheduler, "run_stage", run)
    first, second = (Stage("cam", key, place.out / key, "train_cam", ()) for key in "ab")
    third = Stage("seeds", "c", place.out / "c", "make_seeds", (), (first, second))
    scheduler.run_all([first, second, third], [first, second, third], jobs=2)
    assert sorted(log[:2]) == ["a", "b"] and log[2:] == ["c"]


def test_failure_of_one_job_is_reported_when_the_others_have_ended(place, monkeypatch):
    def run(stage, threads):
        if stage.key == "a":
            raise InputError("broken off")
        finish(stage)

    monkeypatch.setattr(scheduler, "run_stage", run)
    stages = [Stage("cam", key, place.out / key, "train_cam", ()) for key in "ab"]
    with pytest.raises(InputError, match="broken off"):
        scheduler.run_all(stages, stages, jobs=2)
    assert stages[1].done and not stages[0].done


def test_time_left_comes_from_done_stages_of_the_kind(tmp_path):
    done = Stage("val", "a", tmp_path / "val-a", "predict", (), images=3)
    finish(done)
    waiting = Stage("val", "b", tmp_path / "val-b", "predict", (), images=90)
    assert estimate([done, waiting], [waiting]) == "3 min"
    other = Stage("cam", "c", tmp_path / "cam-c", "train_cam", (), images=5)
    assert estimate([done, waiting, other], [waiting, other]) == "3 min and what is not measured yet (cam)"
    assert estimate([other], [other]) == "not measured yet"


def scored(place, values):
    """Measurements of Table 2 of which those in ``values``, (row, seed) -> mIoU, are done."""
    measurements = [plan(row(name), place, seed) for name in ("baseline", "ce", "cp") for seed in (0, 1, 2)]
    for measurement in measurements:
        key = (measurement.experiment.path.stem, measurement.seed)
        for stage in measurement.scores.values() if key in values else ():
            finish(stage, {"mean_iou": values[key], "iou": {"cow": values[key]}})
    return measurements


def test_rows_have_mean_spread_and_gains_seed_by_seed(place):
    found = rows_of(scored(place, {("baseline", 0): 0.5, ("baseline", 1): 0.52, ("ce", 0): 0.51,
                                   ("ce", 1): 0.55, ("ce", 2): 0.9}))
    first, ce, cp = found[1], found[3], found[5]  # the figures with CRF
    assert first.cells(first)[:8] == ["baseline", "val, CRF", "(58.3)", "51.00 ± 1.41", "0: 50.00, 1: 52.00",
                                      "-", "", ""]
    assert ce.cells(first)[3:8] == ["65.33 ± 21.46", "0: 51.00, 1: 55.00, 2: 90.00", "-", "+2.00 ± 1.41",
                                    "+0.8"]
    assert cp.cells(first)[3:8] == ["not measured", "-", "-", "-", "+4.2"]


def test_rows_are_paired_by_seed_with_the_standard_error(place):
    first, second = {0: 0.50, 1: 0.52, 2: 0.54}, {0: 0.51, 1: 0.55, 2: 0.56}
    found = paired_cells(rows_of(scored(place, {**{("baseline", s): v for s, v in first.items()},
                                                **{("cp", s): v for s, v in second.items()}})))
    assert found[1::2] == [["+ CE less baseline", "val, CRF", "not measured", "-", "-", "0", "+0.8"],
                           ["+ CP less baseline", "val, CRF", "+2.00", "0.58", "+3.5", "3", "+4.2"]]
    assert paired_cells(rows_of([plan(row("cp"), place, 0)])) == []  # without the row that it is over
    common, chance = plan(row("cp-common", 3), place, 0), plan(row("cp-random", 3), place, 0)
    assert [cells[0] for cells in paired_cells(rows_of([common, chance]))] == [
        "+ CP, common-class less + CP, random-class"] * 2


def test_another_list_or_tree_scores_the_same_networks(place, tmp_path):
    usual = plan(row("rt"), place, 0)
    other = shutil.copytree(place.data, tmp_path / "other")
    both = replace(place, score_list="train", score_root=str(other))
    ways = [usual, *(plan(row("rt"), there, 0) for there in (
        replace(place, score_list="train"), replace(both, score_list=""), both))]
    assert len({way.rounds for way in ways}) == 1
    assert len({stage.folder for way in ways for stage in way.scores.values()}) == 8
    stage = ways[3].scores["val"].after[0]
    assert (stage.config.data.root, stage.config.data.val_list, stage.images) == (str(other), "train", 3)
    (other / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n", encoding="utf-8")
    assert plan(row("rt"), both, 0).scores["val"].folder != ways[3].scores["val"].folder


def test_the_report_tells_every_look_at_masks_even_of_earlier_settings(place):
    value = {"mean_iou": 0.5, "iou": {}}
    settling = plan(load_experiment(row("cp").path, ["train.lr=1"]), replace(place, score_list="train"), 0)
    settled = [plan(row("cp"), place, seed) for seed in (0, 1)]
    for measurement in (settling, *settled):
        for stage in measurement.scores.values():
            finish(stage, value)
    when = "2026-01-05T00:00:00+00:00"
    assert looked_cells(settled) == [["tree/train", "not of this report", "2", when, when],
                                     ["tree/val", "table2/cp", "4", when, when]]


def test_figures_of_the_papers_own_data_set_are_compared(place):
    measurement = plan(next(row for row in find_experiments(EXPERIMENTS, "voc", 2)
                            if row.path.stem == "baseline"), place, 0)
    finish(measurement.scores["val"], {"mean_iou": 0.5})
    finish(measurement.scores["val_crf"], {"mean_iou": 0.6})
    found = {row.figure: row for row in rows_of([measurement])}
    assert found["val_crf"].cells(found["val_crf"])[2:6] == ["58.3", "60.00", "0: 60.00", "+1.70"]


def test_report_has_tables_plots_training_and_every_figure(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduction_report, "add_pictures",
                        lambda page, measurements, folder: page.heading("pictures"))
    measurements = scored(place, {("baseline", 0): 0.5})
    trained = measurements[0].rounds[0]
    finish(trained)
    assert finished_rounds(measurements) == []
    assert f"note: {trained.folder} has TensorBoard's events alone" in capsys.readouterr().err
    with RunLog(trained.folder, "net", total=8) as log:
        log.scalars({"loss/total": 2.0, "loss/seed_self": 1.5, "pixels/agreeing": 0.25,
                     "pixels/completion": 0.75}, 4)
        log.scalars({"loss/total": 1.0, "loss/seed_self": 0.5, "pixels/agreeing": 0.5,
                     "pixels/completion": 0.875}, 8)
    write_report([("Table 2", measurements)], "python tools/reproduce.py", {"mxnet": "1.9.1"},
                 tmp_path / "report")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| baseline | 0 | 1 | 8 | 0.500 | 50.0% | 87.5% | 0.1 |" in text
    assert "50.00" in text and "image-level labels only" in text and "mxnet 1.9.1" in text
    for name in ("scores", "training"):
        assert f"(report-1-{name}.png)" in text and cv2.imread(
            str(tmp_path / f"report-1-{name}.png")) is not None
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 and "pictures" in page
    first = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["tables"][0]["measurements"][0]
    assert (first["row"], first["seed"], first["figures"]["val"]["iou"]) == ("baseline", 0, {"cow": 0.5})


def test_dry_run_prints_every_command_and_runs_nothing(place, capsys):
    assert reproduce.main(["--table", "2", "--dataset", "voc6", "--data", place.data, "--classes",
                           place.classes, "--train-list", "train", "--out", str(place.out), "--seeds", "0,1",
                           "--rows", "cp", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("cian.tools.train ") == 2 and shown.count(
        "cian.tools.train_cam") == 1 and "not measured yet" in shown
    assert not place.out.exists() and "random weights" not in shown
    (Path(place.data) / "SegmentationClassAug" / "d.png").unlink()
    assert reproduce.main(["--table", "2", "--dataset", "voc6", "--data", place.data, "--classes",
                           place.classes, "--train-list", "train", "--out", str(place.out), "--dry-run"]) == 2
    shown = capsys.readouterr().out
    assert "missing: " in shown and "1 of 2 are missing, first d.png" in shown and "tools.train " in shown


def test_another_list_changes_prediction_and_scores_alone(place, capsys):
    common = ["--table", "2", "--dataset", "voc6", "--data", place.data, "--classes", place.classes,
              "--train-list", "train", "--out", str(place.out), "--dry-run"]
    shown = []
    for more in ([], ["--score-list", "train"]):
        assert reproduce.main([*common, *more]) == 0
        shown.append(set(capsys.readouterr().out.splitlines()[1:]))
    changed = {line.split("cian.tools.")[1].split()[0] for line in shown[0] ^ shown[1]}
    assert changed == {"prepare", "predict", "evaluate"}  # packed, for its features are stored


def test_rows_that_start_from_random_weights_say_so(place, capsys):
    assert reproduce.main(["--table", "2", "--dataset", "voc6", "--data", place.data, "--classes",
                           place.classes, "--train-list", "train", "--out", str(place.out), "--dry-run",
                           "--set", "network.pretrained="]) == 0
    shown = capsys.readouterr().out
    assert "network.pretrained is empty" in shown and "cam.pretrained is empty" not in shown


@pytest.mark.parametrize("change, message",
                         [(["--rows", "nope"], "there are: baseline, ce, cp, rt"),
                          (["--seeds", "x"], "--seeds: 'x'"), (["--jobs", "0"], "--jobs: must be"),
                          (["--dataset", "coco"], "no rows for table 2 on coco")])
def test_wrong_rows_seeds_and_data_sets_are_named(place, change, message):
    arguments = ["--table", "2", "--dataset", "voc6", "--data", place.data, "--classes", place.classes,
                 "--train-list", "train", "--out", str(place.out), *change]
    with pytest.raises(InputError, match=message):
        reproduce.main(arguments)


def test_incomplete_voc_says_what_to_download(tmp_path):
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("x\n", encoding="utf-8")
    with pytest.raises(InputError,
                       match=r"(?s)has 1 names, not 1449.*JPEGImages.*VOCtrainval_11-May-2012.tar"):
        check_voc(tmp_path, "val")


def test_submission_holds_the_servers_paths_and_refuses_gaps(place, tmp_path):
    predictions = tmp_path / "pred_crf"
    predictions.mkdir()
    (predictions / "d.png").write_bytes(b"1")
    with pytest.raises(InputError, match="1 of 2 predictions are missing, first e.png"):
        write_submission(predictions, place.data, "val", tmp_path / "a.tgz")
    (predictions / "e.png").write_bytes(b"2")
    with tarfile.open(write_submission(predictions, place.data, "val", tmp_path / "a.tgz")) as archive:
        assert sorted(archive.getnames()) == [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png"
                                              for name in "de"]


def test_keys_depend_on_every_part():
    assert len({stage_key("a", 1), stage_key("a", 2), stage_key("b", 1), stage_key("a")}) == 4
