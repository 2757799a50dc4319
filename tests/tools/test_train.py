import os
import subprocess
import sys
from functools import partial

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import backbones
from cian.symbols.cian import CIAN
from cian.symbols.params import initialize
from cian.symbols.params_file import read_params
from cian.tools import predict, retrain, train
from cian.tools.engine.config import load_config
from cian.tools.engine.models.run_state import read_state

SCRIPT = os.path.join(os.path.dirname(__file__), "..", "..", "tools", "train.py")


@pytest.fixture
def tiny(monkeypatch):
    """Every backbone of this process small enough for a test."""
    for name, build in dict(backbones.BACKBONES).items():
        monkeypatch.setitem(backbones.BACKBONES, name, partial(build, **backbones.TINY[name]))


@pytest.fixture
def flags(make_voc_tree, tmp_path):
    """The command line of the original's script, and the few things that a small data set needs."""
    root = make_voc_tree(tmp_path / "data")
    return ["--image-root", f"{root}/JPEGImages", "--annotation-root", f"{root}/Annotations", "--label-root",
            f"{root}/seeds", "--train-list", f"{root}/ImageSets/Segmentation/train.txt", "--snapshot",
            str(tmp_path / "run"), "--classes", f"{root}/classes.txt", "--batch-size", "4", "--image-size",
            "33", "--num-epoch", "1", "--workers", "1"]


def model_zoo_file(path, model):
    """A file as the model zoo has it: the backbone's names, a classifier of 7 classes, and no new layer."""
    net = CIAN(model, 4)
    initialize(net, 11)
    values = {name: param.data()
              for name, param in net.collect_params().items() if not name.startswith(tuple(net.new_layers))}
    arrays = {("aux:" if "_moving_" in name else "arg:") + name: value for name, value in values.items()}
    mx.nd.save(str(path),
               {**arrays, "arg:fc1_weight": mx.nd.ones((7, 20)), "arg:fc1_bias": mx.nd.zeros((7,))})
    return str(path)


@pytest.mark.parametrize("model", ["resnet50_largefov", "resnet101_largefov"])
def test_the_originals_command_line_trains_from_a_model_zoo_file(tiny, flags, tmp_path, capsys, model):
    weights = model_zoo_file(tmp_path / "zoo-0000.params", model)
    assert train.main([*flags, "--model", model, "--pretrained", weights, "--group_size", "2", "--merge-type",
                       "max", "--num-cls", "4", "--lr", "5e-4", "--log-frequency", "50", "--num-save", "5",
                       "--devices", "cpu:0"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == str(tmp_path / "run" / f"{model}-0000.params")
    trained, _ = read_params(last)
    given, _ = read_params(weights)
    frozen = [name for name in given if name.endswith("_gamma") and name in trained]
    assert frozen and all(trained[name].tobytes() == given[name].tobytes() for name in frozen)
    assert not np.array_equal(trained["stage1_unit1_conv1_weight"], given["stage1_unit1_conv1_weight"])
    np.testing.assert_allclose(trained["stage1_unit1_conv1_weight"], given["stage1_unit1_conv1_weight"],
                               atol=0.1)


@pytest.mark.parametrize("model", ["resnet34_largefov", "vgg16_largefov", "efficientnet_lite0_largefov"])
@pytest.mark.parametrize("preset", ["original", "paper"])
def test_every_backbone_trains_from_random_weights_with_either_preset(tiny, flags, capsys, model, preset):
    assert train.main([*flags, "--model", model, "--preset", preset, "train.lr=1e-5"]) == 0
    values = read_params(capsys.readouterr().out.splitlines()[-1])[0]
    assert all(np.isfinite(value).all() for value in values.values())


@pytest.mark.parametrize("overrides", [("network.affinity=none", "loss.completion=false"),
                                       ("network.affinity=self", "loss.completion_target=own"),
                                       ("network.group_size=4", "network.merge_type=avg")])
def test_the_rows_of_the_ablation_train(tiny, flags, overrides):
    assert train.main([*flags, "--model", "resnet18_largefov", *overrides]) == 0


def test_the_same_command_goes_on_and_fresh_starts_anew(tiny, flags, tmp_path, capsys):
    argv = [*flags, "--model", "resnet18_largefov"]
    assert train.main(argv) == 0
    assert train.main(argv) == 0 and "resumed after" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"train\.epochs was 1 and is 2"):
        train.main([*argv, "train.epochs=2"])
    assert train.main([*argv, "train.epochs=2", "--fresh"]) == 0
    assert read_state(tmp_path / "run" / "resnet18_largefov.state")["epoch"] == 2
    assert load_config([tmp_path / "run" / "config.yaml"]).train.epochs == 2


def test_infer_and_retrain_are_handed_to_their_tools(monkeypatch):
    calls = []
    monkeypatch.setattr(predict, "main", lambda argv: calls.append(("predict", argv)) or 0)
    monkeypatch.setattr(retrain, "main", lambda argv: calls.append(("retrain", argv)) or 0)
    train.main(["--snapshot", "s", "--infer", "--pid", "1"])
    train.main(["--snapshot", "s", "--retrain", "--lr", "1"])
    train.main(["--snapshot", "s", "--retrain", "--infer"])
    assert [call[0] for call in calls] == ["predict", "retrain", "predict"]
    assert calls[1][1] == ["--snapshot", "s", "--lr", "1"]
    assert "--retrain" in calls[2][1] and "--pid" in calls[0][1]


@pytest.mark.parametrize("argv, message", [(
    ("--lr", "fast"), "error: command line: argument --lr: invalid float value: 'fast'; see train.py --help"),
                                           (("--snapshot", "run", "--data", "nowhere", "--label-root",
                                             "nowhere"), "error: nowhere: is not a folder; check the path")])
def test_wrong_input_ends_with_one_line_and_code_2(tmp_path, argv, message):
    result = subprocess.run([sys.executable, "-W", "ignore", os.path.abspath(SCRIPT), *argv],
                            capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.splitlines() == [result.stderr.strip()]
    assert result.stderr.startswith(message)


def test_a_record_that_was_damaged_is_named(tiny, flags, tmp_path):
    argv = [*flags, "--model", "resnet18_largefov"]
    train.main(argv)
    record = next(path for path in (tmp_path / "run" / "records").iterdir() if path.suffix == ".rec"
                  and "seeds" not in path.name)
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"{record.name}.*record [0-9]+ .image_"):
        train.main([*argv, "--records", str(tmp_path / "run" / "records"), "--snapshot",
                    str(tmp_path / "second")])


def test_help_needs_no_mxnet_and_names_what_is_written():
    code = ("import sys\nfrom cian.tools import train\ntry:\n    train.main(['--help'])\n"
            "except SystemExit:\n    print('mxnet' in sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
    for part in ("MODEL-EPOCH.params", "--fresh", "--group-size N, --group_size N", "default 0.0005"):
        assert part in result.stdout
