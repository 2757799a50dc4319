"""The demonstration: its plan, its table and its page, on results that other stages would have left."""
import importlib
import json
import re

import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import read_label_png, write_label_png
from cian.data.tree import DatasetTree
from cian.errors import InputError
from cian.symbols.cam import CAMClassifier
from cian.symbols.cian import build_model
from cian.symbols.params import save_params
from cian.tools import demo as tool
from cian.tools.engine.reproduction import demonstration as demo
from cian.tools.engine.reproduction.stages import DONE


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "IMAGES", {"train": 7, "val": 6})
    return tmp_path / "demo"


def test_every_stage_is_a_command_line_that_its_tool_accepts(out, capsys):
    plan = demo.stages(out, demo.configure(out))
    for stage in plan:
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"cian.tools.{stage.tool}").main([*stage.arguments, "--print-config"])
        assert ended.value.code == 0, stage.arguments
    assert [stage.tool for stage in plan].count("evaluate") == 7
    assert "hash" in capsys.readouterr().out


def test_images_of_another_seed_are_not_taken_for_those_asked_for(out):
    demo.configure(out)
    with pytest.raises(InputError, match="data: --seed: holds the images of seed 0, not of 1; name another"):
        demo.configure(out, seed=1)


def test_each_stage_depends_on_those_before_it(out):
    config = demo.configure(out)
    plan, other = demo.stages(out, config), demo.stages(out, config.replace(train={"epochs": 3}))
    assert len({stage.folder for stage in plan}) == len({stage.key for stage in plan}) == len(plan)
    assert all(one.key != two.key for one, two in zip(plan, other))
    assert [stage.after for stage in plan[1:]] == [(stage,) for stage in plan[:-1]]


def fake_results(out, config):
    """What the stages leave, from networks that were never trained, and labels that are the truth."""
    tree = DatasetTree(config.data.root, classes=config.data.classes)
    mx.random.seed(1)
    classifier = CAMClassifier("resnet18", len(tree.classes) - 1,
                               backbone_options={"units": (1, 1, 1, 1), "widths": (4, 8, 8, 8, 8)})
    net = build_model("resnet18_largefov", tiny=True, num_classes=len(tree.classes))
    for one, folder, metadata in ((classifier, "cam",
                                   {"kind": "cam", "classes": list(tree.classes.foreground)}),
                                  (net, "first_retrain", {"classes": list(tree.classes.names)})):
        one.initialize(mx.init.Normal(0.3))
        (out / folder).mkdir()
        save_params(one, out / folder / f"{folder}-0000.params", {"network": one.settings, **metadata})
    for split, folders in (("train", ("seeds", "first/train_aug_pred", "first/train_aug_pred_crf")), (
            "val", ("baseline/pred", "baseline/pred_crf", "first/pred", "first/pred_crf",
                    "first_retrain/pred", "first_retrain/pred_crf"))):
        for folder in folders:
            for name in tree.names(split):
                mask = read_label_png(tree.mask_path(name))
                write_label_png(out / folder / f"{name}.png", np.zeros_like(mask))
    for rank, name in enumerate(("first/train_aug_pred", "first/train_aug_pred_crf", "baseline/pred",
                                 "baseline/pred_crf", "first/pred", "first/pred_crf", "first_retrain/pred",
                                 "first_retrain/pred_crf")):
        (out / f"{name}.json").write_text(json.dumps({"mean_iou": 0.5 + rank / 100}))
    (out / "seeds" / "quality.json").write_text(
        json.dumps({"mean_iou": 0.4, "mean_iou_labelled": 0.6, "cam": {"mean_iou": 0.3}}))


def test_done_stages_are_told_and_the_table_and_page_are_made_of_their_results(out, capsys):
    config = demo.configure(out)
    fake_results(out, config)
    for stage in demo.stages(out, config):
        stage.folder.mkdir(parents=True)
        (stage.folder / DONE).write_text(json.dumps({"key": stage.key, "seconds": 2.0}))
    assert tool.main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("was done before") == 17
    for row in ("CAM above its threshold              train    30.0",
                "baseline: no pairs                     val    52.0        53.0",
                "first round                            val    54.0        55.0",
                "second round                           val    56.0        57.0"):
        assert row in printed
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 3 + 6 * 6 + 6 * 6 + demo.SHOWN_PAIRS
    gains = [float(text) for text in re.findall(r"class_gain of this pair: ([0-9.]+)\.", page)]
    mean = float(re.search(r"chance\): ([0-9.]+) on average", page).group(1))
    assert len(gains) == demo.SHOWN_PAIRS and gains == sorted(gains, reverse=True) and gains[-1] >= mean
    assert "cian.tools.train_cam" in page and ">57.0<" in page


def test_a_stage_that_fails_ends_the_demonstration_and_names_its_log(out):
    demo.configure(out)
    (out / "data" / "JPEGImages" / "train_00003.jpg").unlink()
    with pytest.raises(InputError, match="01-prepare.*stage.log: the stage .* ended with code 2"):
        tool.main(["--out", str(out)])
    assert "train_00003.jpg: does not exist" in (out / "stages" / "01-prepare" / "stage.log").read_text()
