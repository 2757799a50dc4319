import os

import numpy as np
import pytest

from cian.data.classes import read_label_png, write_label_png
from cian.errors import InputError
from cian.symbols.backbones import TINY
from cian.symbols.params_file import read_params
from cian.tools import retrain
from cian.tools.engine.config import Config, load_config, save_config
from cian.tools.engine.models.run_state import read_state
from cian.tools.engine.training import round as training


@pytest.fixture
def first(make_voc_tree, tmp_path):
    """The configuration and the snapshot of a first round."""
    root = make_voc_tree(tmp_path / "data")
    config = load_config(
        overrides=[f"data.root={root}", f"data.classes={root}/classes.txt", "data.train_list=train",
                   f"data.label_root={root}/seeds", f"run.snapshot={tmp_path / 'run'}", "run.workers=1",
                   "network.model=resnet18_largefov", "train.batch_size=4", "train.crop_px=33",
                   "train.epochs=1", "train.lr=0.01", "predict.size_px=65"])
    return config, training.fit(config, backbone_options=TINY["resnet18"])


def test_one_flag_runs_the_second_round_on_labels_that_it_predicts_first(first, tmp_path, capfd):
    config, checkpoint = first
    assert retrain.main(["--snapshot", config.run.snapshot]) == 0
    output = capfd.readouterr().out
    assert ("12 labels of the second round are missing" in output
            and f"second round from {checkpoint}: loaded" in output)
    assert output.splitlines()[-1] == str(tmp_path / "run_retrain" / "resnet18_largefov-0000.params")
    labels = sorted(name
                    for name in os.listdir(tmp_path / "run" / "train_aug_pred_crf") if name.endswith(".png"))
    assert labels == [f"image_{number:02d}.png" for number in range(12)]
    second = load_config([tmp_path / "run_retrain" / "config.yaml"])
    assert second.data.label_root == str(tmp_path / "run"
                                         / "train_aug_pred_crf") and second.train == config.train
    assert second.data.records == str(tmp_path / "run" / "records")
    assert [name for name in os.listdir(tmp_path / "run_retrain" / "records") if name.endswith(".rec")
            and "seeds" not in name] == []
    # the same command again finds everything done
    assert retrain.main(["--snapshot", config.run.snapshot + "/"]) == 0
    output = capfd.readouterr().out
    assert "missing" not in output and "resumed after" in output


def test_given_labels_are_used_and_flags_change_the_first_rounds_settings(first, tmp_path, capfd):
    config, checkpoint = first
    os.rename(tmp_path / "data" / "seeds", tmp_path / "labels")
    assert retrain.main(["--snapshot", config.run.snapshot, "--label-root", str(tmp_path / "labels"), "--lr",
                         "1e-4"]) == 0
    assert "missing" not in capfd.readouterr().out
    second = load_config([tmp_path / "run_retrain" / "config.yaml"])
    assert (second.data.label_root, second.train.lr, second.train.batch_size) == (str(tmp_path / "labels"),
                                                                                  1e-4, 4)
    state = read_state(tmp_path / "run_retrain" / "resnet18_largefov.state")
    assert state["identity"]["start"] == os.path.basename(checkpoint)
    assert not np.array_equal(state["trainer"]["parameters"]["bn_out_gamma"],
                              read_params(checkpoint)[0]["bn_out_gamma"])


def test_the_printed_configuration_is_the_one_that_the_second_round_has(tmp_path, capsys):
    first = str(tmp_path / "run")
    config = Config().replace(train={"epochs": 3, "lr": 0.25, "crop_px": 33}, run={"snapshot": first})
    save_config(config, os.path.join(first, "config.yaml"))
    with pytest.raises(SystemExit):
        retrain.main(["--snapshot", first, "--lr", "0.5", "--print-config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config([tmp_path / "printed.yaml"]) == config.replace(
        train={"lr": 0.5}, run={"snapshot": first + "_retrain"},
        data={"label_root": os.path.join(first, "train_aug_pred_crf")})


def test_labels_that_lost_what_the_seeds_have_are_told_before_the_round(first, tmp_path, capfd):
    config, _ = first
    labels = tmp_path / "labels"
    for number in range(12):  # the middle class is lost, the others are kept
        name = f"image_{number:02d}.png"
        seeds = read_label_png(tmp_path / "data" / "seeds" / name)
        write_label_png(labels / name, np.where(seeds == 2, 0, seeds).astype(np.uint8))
    retrain.main(["--snapshot", config.run.snapshot, "--label-root", str(labels)])
    told = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning:")]
    assert told[-1] == "warning: labels of the second round: dog: 100% of its seeds are lost"
    assert not [line for line in told if "cat" in line or "bird" in line]


def test_the_second_rounds_configuration_is_the_firsts_with_other_labels(tmp_path):
    config = Config().replace(data={"label_root": "seeds", "train_list": "lists/train.txt"},
                              network={"pretrained": "imagenet.params"})
    second = retrain.second_round(config, "runs/a", "seeds")
    assert second.data.label_root == os.path.join("runs/a",
                                                  "train_aug_pred_crf") and second.network.pretrained == ""
    assert second.run.snapshot == "runs/a_retrain" and second.data.records == ""
    assert retrain.second_round(config, "runs/a", "others").data.label_root == "seeds"
    plain = config.replace(predict={"retrain_crf": "none"})
    assert retrain.second_round(plain, "runs/a", "seeds").data.label_root == os.path.join("runs/a",
                                                                                          "train_aug_pred")
    (tmp_path / "a" / "records").mkdir(parents=True)
    (tmp_path / "a" / "records" / "train.json").write_text("{}", encoding="utf-8")
    assert retrain.second_round(config, str(tmp_path / "a"),
                                "").data.records == str(tmp_path / "a" / "records")


def test_a_configuration_file_or_a_preset_replaces_the_first_rounds_settings(first, tmp_path):
    config, _ = first
    save_config(config.replace(train={"lr": 0.002}), tmp_path / "other.yaml")
    os.rename(tmp_path / "data" / "seeds", tmp_path / "labels")
    retrain.main(["-c", str(tmp_path / "other.yaml"), "--snapshot", config.run.snapshot, "--label-root",
                  str(tmp_path / "labels")])
    assert load_config([tmp_path / "run_retrain" / "config.yaml"]).train.lr == 0.002


@pytest.mark.parametrize(
    "argv, message",
    [((), "run.snapshot: no folder of a first round was named"),
     (("--snapshot", "nowhere"), "nowhere: does not exist; name a .params file or the snapshot folder"),
     (("--snapshot", "RUN", "--start", "nowhere.params"), "nowhere.params: does not exist"),
     (("--snapshot", "RUN", "--model", "vgg16_largefov"),
      "holds no checkpoint of vgg16_largefov; it has those of resnet18_largefov"), ((
    "--snapshot", "RUN", "--label-root", "nowhere"), "nowhere: is not a folder; check the path of the seeds"),
     (("--snapshot", "RUN", "--label-root", "DATA/seeds", "--affinity", "none", "loss.completion=false"),
      "does not fit the network"), (("--snapshot", "RUN", "--train-list", "nowhere"), "nowhere")])
def test_wrong_input_gives_one_line(first, tmp_path, argv, message):
    config, _ = first
    given = [text.replace("RUN", config.run.snapshot).replace("DATA", config.data.root) for text in argv]
    os.makedirs(os.path.join(config.run.snapshot, "train_aug_pred_crf"), exist_ok=True)
    with pytest.raises(InputError) as refused:
        retrain.main(given)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_labels_that_cannot_be_predicted_stop_the_round(first, tmp_path, capfd):
    config, _ = first
    os.unlink(tmp_path / "data" / "JPEGImages" / "image_03.jpg")
    with pytest.raises(InputError, match="the labels of the second round could not be predicted, see above"):
        retrain.main(["--snapshot", config.run.snapshot])
    assert "image_03.jpg" in capfd.readouterr().err
