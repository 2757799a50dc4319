import os
import subprocess
import sys

import pytest

from cian.errors import InputError
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.config import Config, load_config
from cian.tools.flags import FLAGS

TRAIN = ("data", "network", "training", "run")


@pytest.fixture(autouse=True)
def keep_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def parse(*argv, groups=TRAIN):
    return config_from(make_parser("A tool.", groups).parse_args(argv))


def test_the_flags_that_users_of_the_original_know_set_their_keys():
    config = parse("--image-root", "i", "--label-root", "l", "--annotation-root", "a", "--train-list", "t",
                   "--test-list", "v", "--snapshot", "s", "--model", "resnet50_largefov", "--pretrained", "p",
                   "--gpus", "0, 3", "--group_size", "3", "--merge-type", "avg", "--num-epoch", "7",
                   "--batch-size", "12", "--image-size", "161", "--lr", "1e-3", "--log-frequency", "11",
                   "--num-save", "2", "--num-cls", "21")
    assert (config.data.image_root, config.data.label_root, config.data.annotation_root) == ("i", "l", "a")
    assert (config.data.train_list, config.data.val_list, config.run.snapshot) == ("t", "v", "s")
    assert (config.network.model, config.network.pretrained, config.run.devices) == ("resnet50_largefov", "p",
                                                                                     ("gpu:0", "gpu:3"))
    assert (config.network.group_size, config.network.merge_type, config.train.epochs,
            config.train.batch_size) == (3, "avg", 7, 12)
    assert (config.train.crop_px, config.train.lr, config.train.log_every, config.train.keep) == (161, 1e-3,
                                                                                                  11, 2)


def test_without_flags_the_configuration_is_the_default():
    for name in FLAGS:
        assert parse(groups=(name,)) == Config()


def test_prediction_flags_set_prediction_keys():
    config = parse("--image-size", "257", "--no-ms", "--no-mirror", "--data-list", "some.txt",
                   groups=("data", "prediction", "run"))
    assert (config.predict.size_px, config.predict.scales, config.predict.add_max,
            config.predict.mirror) == (257, (1.0,), False, False)
    assert config.data.val_list == "some.txt" and config.train == Config().train


def test_overrides_stand_anywhere_and_win_over_flags_which_win_over_files(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 2, batch_size: 4, crop_px: 33}\n", encoding="utf-8")
    config = parse("train.seed=5", "-c", str(tmp_path / "a.yaml"), "--batch-size", "6", "train.crop_px=41",
                   "--image-size", "37", "loss.completion=false")
    assert (config.train.seed, config.train.epochs, config.train.batch_size, config.train.crop_px) == (5, 2,
                                                                                                       6, 41)
    assert not config.loss.completion


def test_a_path_that_looks_like_yaml_stays_a_path():
    assert parse("--image-root", "a: [b", "--snapshot", "2012").run.snapshot == "2012"
    assert parse("--image-root", "a: [b").data.image_root == "a: [b"


@pytest.mark.parametrize("argv, message", [
    (("--lr", "fast"), "argument --lr: invalid float value: 'fast'; see"),
    (("--group-size", "1"), "network.group_size: 1 is below 2"),
    (("--merge-type", "sum"), "network.merge_type: 'sum' is not allowed; use one of: max, avg"),
    (("--image-rot", "x"), "unrecognized arguments: --image-rot"),
    (("--batch", "3"), "unrecognized arguments: --batch"),
    (("--lr",), "argument --lr: expected one argument"),
    (("--preset", "best"), "argument --preset: invalid choice: 'best'"),
    (("-c", "nowhere.yaml"), "nowhere.yaml: does not exist"),
    (("epochs=3",), "not of the form section.key=value"),
    (("--num-cls", "20"), "20 classes were announced, but the class list 'voc' has 21 with background"),
    (("--classes", "nowhere.txt", "--num-cls", "3"), "nowhere.txt: does not exist"),
    (("train.lr=1", "train.lr=2"), "train.lr: is given twice, as '1' and as '2'"),
    (("--devices", "tpu:0"), "'tpu:0' is not a device"),
    (("--gpus", "0,x"), "'gpu:x' is not a device"),
    (("--devices", "cpu:0,cpu:0"), "'cpu:0' is named twice"),
])
def test_a_wrong_argument_gives_one_line(argv, message):
    with pytest.raises(InputError) as refused:
        parse(*argv)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_printed_configuration_is_a_file_that_gives_it_again(tmp_path, capsys):
    argv = ("--preset", "paper", "--lr", "3e-5", "--devices", "cpu:0", "train.freeze=stage1,stage2", "--data",
            "odd: name #1")
    with pytest.raises(SystemExit) as ended:
        parse(*argv, "--print-config")
    assert ended.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config([tmp_path / "printed.yaml"]) == parse(*argv)


def test_help_shows_groups_keys_and_both_presets_defaults(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for part in ("configuration: -c FILE", "data: --data FOLDER", "network: --model NAME",
                 "--group-size N, --group_size N", "[train.lr; default 0.0005]", "section.key=value any key"):
        assert part in text, part


def test_two_cpu_devices_give_mxnet_one_thread_before_it_is_loaded():
    code = ("from cian.tools.arguments import make_parser, config_from\n"
            "config_from(make_parser('', ('run',)).parse_args(['--devices', 'cpu:0,cpu:1']))\n"
            "import os, sys; print('mxnet' in sys.modules, os.environ['OMP_NUM_THREADS'])")
    result = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "2"},
                            capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "1"]
