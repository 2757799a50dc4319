import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.backbones import TINY
from cian.symbols.params_file import read_params
from cian.tools.engine.config import load_config
from cian.tools.engine.models import run_state
from cian.tools.engine.models.run_state import read_state
from cian.tools.engine.models.snapshot import find_checkpoints
from cian.tools.engine.training import round as training
from cian.tools.engine.training.run import SECTIONS
from cian.tools.engine.training.step import NotFinite, Trainer

# Trains in a process of its own, which kills itself at a chosen moment: before ('replace') or after
# ('replaced') the n-th file is put in place, in the middle of writing the n-th state ('write'), or
# before the n-th step ('step').
DRIVER = """
import os, signal, sys
from cian.tools.arguments import config_from, make_parser
kind, number, *argv = sys.argv[1:]
config = config_from(make_parser("", ("data", "network", "training", "run")).parse_args(argv))
from cian.symbols.backbones import TINY
from cian.tools.engine.models import run_state
from cian.tools.engine.training.step import Trainer
from cian.tools.engine.training.round import TrainingRun, fit

counts, me = dict(replace=0, replaced=0, write=0, step=0), os.getpid()

def reached(what):
    if os.getpid() == me:  # loader processes do not count
        counts[what] += 1
        if what == kind and counts[what] == int(number):
            os.kill(me, signal.SIGKILL)

def replace(source, target, original=os.replace):
    reached("replace")
    original(source, target)
    reached("replaced")

def write_arrays(stream, arrays, original=run_state.write_arrays):
    if kind == "write":
        original(stream, dict(list(arrays.items())[:len(arrays) // 2]))
        stream.flush()
        reached("write")
        stream.seek(0)
        stream.truncate()
    original(stream, arrays)

def step(*arguments, original=Trainer.step):
    reached("step")
    return original(*arguments)

def run(self, messages, original=TrainingRun.run):  # count from here: the records are packed
    os.replace, run_state.write_arrays = replace, write_arrays
    return original(self, messages)

Trainer.step, TrainingRun.run = step, run
print(fit(config, backbone_options=TINY[config.network.model[:-len("_largefov")]]))
"""


def run_driver(kill, *argv, expect):
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", DRIVER, *map(str, kill), *argv],
                            capture_output=True, text=True, timeout=120,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == expect, (kill, result.returncode, result.stderr[-2000:])
    return result


def flags(root, snapshot, *more):
    return ("--data", root, "--classes", os.path.join(root, "classes.txt"), "--train-list", "train",
            "--label-root", os.path.join(root, "seeds"), "--snapshot", str(snapshot), "--batch-size", "4",
            "--image-size", "33", "--epochs", "3", "--log-frequency", "1", *more)


def outcome(snapshot, model):
    """Every file of parameters, and all of the last state but what runs may differ in."""
    files = {os.path.basename(c.path): Path(c.path).read_bytes()
             for c in find_checkpoints(snapshot)}
    state = read_state(os.path.join(snapshot, f"{model}.state"))
    arrays = {f"{kind}/{name}": value.tobytes() for kind in ("parameters", "momentum")
              for name, value in state["trainer"][kind].items()}
    for device, statistics in enumerate(state["trainer"]["moving"]):
        arrays.update({f"{device}/{name}": value.tobytes() for name, value in statistics.items()})
    return files, arrays, json.dumps(state["iterator"], sort_keys=True), (state["epoch"], state["batch"],
                                                                          state["step"])


# Files that a run puts in place, by number: 1 config.yaml, 2 run.json, 3 the state before the first
# step, then states within the epoch, and .params, .json and state at its end. A resumed run has no
# 3.
STORED = ("train.features=stored", "train.freeze=conv0_,stage1_,stage2_,stage3_")
KILLS = {
    "original": ("resnet50_largefov", ("--save-every", "1"), [("write", 1), ("step", 2), (
        "replaced", 5), ("write", 2), ("replace", 5), ("replaced", 4), ("step", 1)]),
    "original, stored features": (
        "resnet18_largefov", ("--save-every", "1", "--devices", "cpu:0,cpu:1", *STORED),
        [("write", 1), ("step", 2), ("replaced", 5)]),
    "paper": ("vgg16_largefov", ("--save-every", "2", "--devices", "cpu:0,cpu:1"),
              [("step", 3), ("replace", 4), ("replaced", 5), ("write", 2), ("step", 1)])}


@pytest.mark.parametrize("preset", KILLS)
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_is_not(tmp_path, make_voc_tree,
                                                                                  preset):
    model, options, kills = KILLS[preset]
    root = make_voc_tree(tmp_path / "data")

    def arguments(name, workers):
        return flags(root, tmp_path / name, "--preset", preset.split(",")[0], "--model", model,
                     "--workers", str(workers), "--epochs", "4", *options)

    run_driver(("none", 0), *arguments("whole", 1), expect=0)
    for number, kill in enumerate(kills):
        run_driver(kill, *arguments("killed", 1 + number % 3), expect=-9)
    assert "resumed" in run_driver(("none", 0), *arguments("killed", 2), expect=0).stdout
    whole, killed = outcome(tmp_path / "whole", model), outcome(tmp_path / "killed", model)
    assert whole[0].keys() == killed[0].keys() and len(whole[0]) == 4
    assert [name for name in whole[0] if whole[0][name] != killed[0][name]] == []
    assert [name for name in whole[1]
            if whole[1][name] != killed[1].get(name)] == [] and whole[1].keys() == killed[1].keys()
    assert whole[2:] == killed[2:]
    assert not [name for name in os.listdir(tmp_path / "killed") if name.startswith(f".{model}")]  # no litter
    log = (tmp_path / "killed" / f"{model}.log").read_text(encoding="utf-8")
    assert len(re.findall("resumed after", log)) >= len(kills) - 2


@pytest.fixture
def make_config(make_voc_tree, tmp_path):
    """Configurations of a tiny run; ``make_config("train.lr=1", ...)``."""
    root = make_voc_tree(tmp_path / "data")

    def make(*overrides, snapshot="run"):
        return load_config(overrides=[f"data.root={root}", f"data.classes={root}/classes.txt",
                                      "data.train_list=train", f"data.label_root={root}/seeds",
                                      f"run.snapshot={tmp_path / snapshot}", "run.workers=1",
                                      "network.model=resnet18_largefov", "train.batch_size=4",
                                      "train.crop_px=33", "train.epochs=2", "train.log_every=1", *overrides])
    return make


def fit(config, **options):
    return training.fit(config, backbone_options=TINY[config.network.model[:-len("_largefov")]], **options)


def test_a_run_leaves_checkpoints_metadata_settings_and_logs_that_agree(make_config, tmp_path):
    from cian.symbols.metadata import read_metadata
    last = fit(make_config("train.epochs=3", "train.keep=2"))
    run = tmp_path / "run"
    assert last == str(run / "resnet18_largefov-0002.params")
    assert [checkpoint.epoch for checkpoint in find_checkpoints(run)] == [1, 2]
    metadata, config = read_metadata(last), load_config([run / "config.yaml"])
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert metadata["classes"] == settings["classes"] == ["background", "cat", "dog", "bird"]
    assert metadata["config_hash"] == settings["training_hash"] == config.hash(
        SECTIONS) and settings["hash"] == config.hash()
    assert {"cian", "mxnet", "numpy", "python",
            "opencv"} <= settings["versions"].keys() and settings["start"] == "random"
    assert metadata["epoch"] == 2 and metadata["model"] == "resnet18_largefov"
    assert {name.rsplit("_", 2)[0]
            for name in read_params(last)[1] if name.startswith("bn_out")} == {"bn_out"}


def read_scalars(folder):
    """TensorBoard scalars by tag: {tag: {step: value}}, read by the format's own framing."""
    import struct

    from tensorboardX.proto.event_pb2 import Event
    found = {}
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            length = struct.unpack_from("<Q", content)[0]
            event = Event.FromString(content[12:12 + length])
            content = content[16 + length:]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_the_logs_say_what_the_steps_returned(make_config, tmp_path, monkeypatch):
    steps, step = [], Trainer.step

    def recorded(self, parts, rate, number):
        values = step(self, parts, rate, number)
        steps.append((sum(len(part.index) for part in parts), rate, values))
        return values

    monkeypatch.setattr(Trainer, "step", recorded)
    fit(make_config("train.log_every=2", "train.epochs=2"))
    scalars = read_scalars(tmp_path / "run" / "tensorboard")
    images = sum(count for count, _, _ in steps[:2])
    losses = {name: sum(values[name] for _, _, values in steps[:2]) / images
              for name in ("seed_self", "seed_cross", "completion_self", "completion_cross")}
    for name, value in losses.items():
        assert scalars[f"loss/{name}"][2] == pytest.approx(value, rel=1e-6)
    assert scalars["loss/total"][2] == pytest.approx(sum(losses.values()), rel=1e-6)
    pixels = {name: sum(values[name] for _, _, values in steps[:2])
              for name in ("labelled_pixels", "agreeing_pixels", "completion_pixels", "pixels")}
    assert scalars["pixels/labelled"][2] == pytest.approx(pixels["labelled_pixels"] / pixels["pixels"],
                                                          rel=1e-6)
    assert scalars["pixels/agreeing"][2] == pytest.approx(pixels["agreeing_pixels"]
                                                          / pixels["labelled_pixels"], rel=1e-6)
    assert scalars["pixels/completion"][2] == pytest.approx(pixels["completion_pixels"] / pixels["pixels"],
                                                            rel=1e-6)
    assert scalars["learning_rate"][2] == pytest.approx(
        5e-4) and scalars["learning_rate"][len(steps)] == pytest.approx(5e-4 * 0.5 ** 0.9)
    text = (tmp_path / "run" / "resnet18_largefov.log").read_text(encoding="utf-8")
    assert f"step 2: loss {scalars['loss/total'][2]:.4f} (seed_self {losses['seed_self']:.4f}," in text
    assert max(scalars["loss/total"]) == len(steps)


def test_the_baseline_and_the_vanilla_network_log_the_losses_that_they_have(make_config, tmp_path):
    fit(make_config("network.affinity=none", "loss.completion=false", "train.epochs=1"))
    losses = {tag for tag in read_scalars(tmp_path / "run" / "tensorboard") if tag.startswith("loss/")}
    assert losses == {"loss/total", "loss/seed_self"}


def test_a_finished_run_is_not_run_again(make_config):
    config = make_config("train.epochs=1")
    last = fit(config)
    before = os.stat(last).st_mtime_ns
    assert fit(config) == last and os.stat(last).st_mtime_ns == before


def test_a_snapshot_of_another_configuration_is_refused_by_name_until_told_to_start_anew(make_config,
                                                                                         tmp_path):
    last = fit(make_config("train.epochs=1"))
    before = Path(last).read_bytes()
    with pytest.raises(InputError,
                       match=r"run: belongs to a run of another configuration: train\.lr was 0\.0005 and "
                             r"is 0\.001; .*--fresh"):
        fit(make_config("train.epochs=1", "train.lr=0.001"))
    with pytest.raises(InputError, match=r"another configuration: run\.sums was 'fast' and is 'original'; "):
        fit(make_config("train.epochs=1", "run.sums=original"))
    assert Path(last).read_bytes() == before
    assert fit(make_config("train.epochs=1", "train.lr=0.001"), fresh=True) == last
    assert Path(last).read_bytes() != before


def test_what_only_says_where_and_how_fast_may_change_between_stop_and_resume(make_config):
    fit(make_config("train.epochs=1"))
    assert fit(make_config("train.epochs=1", "run.workers=2", "train.keep=9", "train.log_every=3"))


def test_other_seeds_under_the_same_names_are_refused_on_resuming(make_config, tmp_path):
    from cian.data.classes import write_label_png
    fit(make_config("train.epochs=1"))
    write_label_png(tmp_path / "data" / "seeds" / "image_03.png", np.zeros((37, 41), np.uint8))
    with pytest.raises(InputError, match="seeds"):
        fit(make_config("train.epochs=1"))


def test_checkpoints_without_their_state_are_not_overwritten(make_config, tmp_path):
    fit(make_config("train.epochs=1"))
    os.unlink(tmp_path / "run" / "resnet18_largefov.state")
    with pytest.raises(InputError, match=r"holds checkpoints, but no resnet18_largefov\.state to go on from"):
        fit(make_config("train.epochs=1"))


def test_a_damaged_state_is_named_and_nothing_is_trained_on_it(make_config, tmp_path):
    fit(make_config("train.epochs=1"))
    path = tmp_path / "run" / "resnet18_largefov.state"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"resnet18_largefov\.state: is damaged"):
        fit(make_config("train.epochs=1"))


def test_a_first_state_that_cannot_be_written_ends_the_run_and_leaves_nothing(make_config, tmp_path,
                                                                              monkeypatch):
    def full(stream, arrays):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    learn, learnt = training.TrainingRun._learn, []

    def learn_once_it_has_failed(self, parts, rate):
        wait([self.snapshot._begun])
        learnt.append(self.step)
        learn(self, parts, rate)

    monkeypatch.setattr(run_state, "write_arrays", full)
    monkeypatch.setattr(training.TrainingRun, "_learn", learn_once_it_has_failed)
    with pytest.raises(InputError,
                       match=r"resnet18_largefov\.state: cannot be written \(No space left on device\)"):
        fit(make_config("train.epochs=1"))
    assert learnt == [0]  # told after a step, not after the epoch
    assert not [name for name in os.listdir(tmp_path / "run") if "resnet18" in name
                and not name.endswith(".log")]


@pytest.mark.parametrize("sums", ["fast", "original"])
def test_the_order_of_sums_is_that_of_the_configuration(make_config, monkeypatch, sums):
    step, orders = Trainer.step, set()

    def recording(self, *arguments):
        orders.update({self.net.head.reordered, self.net.affinity.reordered})
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", recording)
    fit(make_config("train.epochs=1", f"run.sums={sums}"))
    assert orders == {sums == "fast"}


def test_a_run_goes_on_only_where_it_rounds_alike(make_config, tmp_path):
    fit(make_config("train.epochs=1", "run.sums=original"))
    with pytest.raises(InputError, match="belongs to a run of another configuration: run"):
        fit(make_config("train.epochs=1", "run.sums=fast"))
    assert fit(make_config("train.epochs=1", "run.sums=original"))


def test_a_run_on_stored_features_goes_on_with_the_engine_that_computed_them(make_config, tmp_path):
    stored = ("train.epochs=1", *STORED)
    fit(make_config(*stored, "predict.engine=mxnet"))
    for engine in ("onnx", "auto"):
        with pytest.raises(InputError, match="predict.engine was 'mxnet' and is 'onnxruntime"):
            fit(make_config(*stored, f"predict.engine={engine}"))
    assert fit(make_config(*stored, "predict.engine=mxnet"))


def test_a_loss_that_is_not_finite_names_the_images_and_leaves_the_good_checkpoint(make_config, tmp_path,
                                                                                   monkeypatch):
    step, names = Trainer.step, []

    def failing(self, parts, rate, number):
        if number == 4:
            names.extend(int(index) for part in parts for index in part.index)
            raise NotFinite("the loss is not finite: seed_self is nan")
        return step(self, parts, rate, number)

    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(InputError) as stopped:
        fit(make_config("train.epochs=4"))
    message = str(stopped.value)
    assert ("seed_self is nan, in step 5" in message and "the last good checkpoint is" in message
            and "\n" not in message)
    assert re.findall(r"image_\d\d", message) == [f"image_{index:02d}" for index in names] and len(names) == 4
    good = find_checkpoints(tmp_path / "run")[-1].path
    assert good in message and all(np.isfinite(value).all() for value in read_params(good)[0].values())


def test_a_parameter_that_is_not_finite_is_never_saved(make_config, tmp_path, monkeypatch):
    step = Trainer.step

    def breaking(self, parts, rate, number):
        values = step(self, parts, rate, number)
        if number == 4:
            self.net.collect_params()["bn_out_moving_var"].data()[0] = np.nan
        return values

    monkeypatch.setattr(Trainer, "step", breaking)
    with pytest.raises(InputError, match="a parameter is not finite after step 5"):
        fit(make_config("train.epochs=4", "train.save_every=1"))
    state = read_state(tmp_path / "run" / "resnet18_largefov.state")
    assert state["step"] == 4 and np.isfinite(state["trainer"]["moving"][0]["bn_out_moving_var"]).all()


def test_the_second_round_keeps_what_the_first_learned_and_starts_its_optimiser_anew(make_config, tmp_path,
                                                                                     monkeypatch):
    first = fit(make_config("train.epochs=2", "train.lr=0.01"))
    seen, step = [], Trainer.step

    def recorded(self, parts, rate, number):
        if not seen:
            values = {name: param.data().asnumpy() for name, param in self.net.collect_params().items()}
            seen.append((values, self.optimiser.momentum(), rate))
        return step(self, parts, rate, number)

    monkeypatch.setattr(Trainer, "step", recorded)
    training.fit(make_config("train.epochs=2", "train.lr=0.01", snapshot="run_retrain"), start=first)
    values, momentum, rate = seen[0]
    arguments, statistics = read_params(first)
    assert all(values[name].tobytes() == value.tobytes()
               for name, value in {**arguments, **statistics}.items())
    assert np.abs(values["bn_out_gamma"]).max() > 0 and momentum == {} and rate == 0.01


@pytest.fixture
def starts(monkeypatch):
    """The values of all parameters at the first step of every run."""
    seen, step = [], Trainer.step

    def recorded(self, parts, rate, number):
        if number == 0:
            seen.append({name: param.data().asnumpy() for name, param in self.net.collect_params().items()})
        return step(self, parts, rate, number)

    monkeypatch.setattr(Trainer, "step", recorded)
    return seen


def test_the_first_round_starts_with_a_silent_affinity_module_and_given_weights(make_config, starts):
    weights = fit(make_config("train.epochs=1", "train.lr=0.05", snapshot="other"))
    fit(make_config("train.epochs=1", f"network.pretrained={weights}"))
    given = read_params(weights)[0]
    assert starts[1]["conv0_weight"].tobytes() == given["conv0_weight"].tobytes()
    assert np.abs(given["bn_out_gamma"]).max() > 0 and not starts[1]["bn_out_gamma"].any()


def test_the_affinity_module_can_start_loud_and_sharp(make_config, starts):
    fit(make_config("train.epochs=1", snapshot="usual"))
    fit(make_config("train.epochs=1", "train.gamma_start=0.25", "train.embed_start=5", snapshot="sharp"))
    usual, sharp = starts
    assert (sharp["bn_out_gamma"] == 0.25).all()
    factors = {"conv_embed_q_weight": 5, "conv_embed_k_weight": 5}
    for name in usual.keys() - {"bn_out_gamma"}:
        np.testing.assert_array_equal(sharp[name], factors.get(name, 1) * usual[name], err_msg=name)


def test_a_first_round_with_epochs_left_is_no_start(make_config, tmp_path, monkeypatch):
    step = Trainer.step

    def stopping(self, parts, rate, number):
        if number == 4:
            raise KeyboardInterrupt
        return step(self, parts, rate, number)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(make_config("train.epochs=3"))
    with pytest.raises(InputError, match=r"the first round stopped after epoch 1 of 3; finish it"):
        training.first_round_checkpoint(tmp_path / "run")
    monkeypatch.undo()
    assert training.first_round_checkpoint(fit(make_config("train.epochs=3"))).endswith("-0002.params")


def test_the_masks_are_not_opened_by_training(make_config, tmp_path, make_voc_tree):
    opened = []
    masks = os.path.join(make_config().data.root, "SegmentationClassAug")
    os.makedirs(masks)
    for number in range(12):
        os.mkfifo(os.path.join(masks, f"image_{number:02d}.png"))  # whoever opens one waits for ever
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
    fit(make_config("train.epochs=1"))
    assert opened and not [path for path in opened if "SegmentationClassAug" in str(path)]


@pytest.mark.parametrize(
    "overrides, message",
    [(["train.batch_size=5"],
      "train.batch_size: 5 images do not divide into groups of 2 on 1 device; use a multiple of 2"),
     (["network.group_size=3", "train.batch_size=4"], "use a multiple of 3"),
     (["run.snapshot="], "run.snapshot: no folder for the checkpoints was named"),
     (["network.model=resnet19_largefov"], "there is no model 'resnet19_largefov'"),
     (["network.pretrained=nowhere.params"], "nowhere.params: does not exist"),
     (["network.pretrained=package"], "only efficientnet_lite0 has its ImageNet weights in a package"),
     (["data.label_root="], "data.label_root: no seeds were named"),
     (["data.label_root=nowhere"], "nowhere: is not a folder"), (["data.root=nowhere"], "nowhere"),
     (["data.train_list=tarin"], "tarin"), (["data.classes=two_classes.txt"], "unknown class 'bird'"),
     (["network.affinity=self"], "completion_target"),
     (["train.freeze=stage9_"], "no parameter starts with 'stage9_'"),
     (["run.devices=gpu:0"], "the installed MXNet is the CPU build"),
     (["run.devices=cpu:0,cpu:0"], "named twice"), (
    ["train.batch_size=14"], "12 images do not fill one batch of 14"), (["data.records=nowhere"], "nowhere")])
def test_wrong_input_gives_one_line(make_config, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_classes.txt").write_text("background\ncat\ndog\n", encoding="utf-8")
    config = make_config(*overrides)
    with pytest.raises(InputError) as refused:
        training.fit(config)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_prepared_records_are_used_and_truncated_ones_refused(make_config, tmp_path):
    config = make_config("train.epochs=1")
    fit(config)
    prepared = make_config("train.epochs=1", f"data.records={tmp_path / 'run' / 'records'}", "data.root=",
                           "data.label_root=", snapshot="second")
    last = fit(prepared)
    assert Path(last).read_bytes() == (tmp_path / "run" / "resnet18_largefov-0000.params").read_bytes()
    assert not (tmp_path / "second" / "records").exists()
    record = next(path for path in (tmp_path / "run" / "records").iterdir() if path.suffix == ".rec"
                  and "seeds" not in path.name)
    record.write_bytes(record.read_bytes()[:-40])
    with pytest.raises(InputError, match=re.escape(record.name)):
        fit(replace(prepared, run=replace(prepared.run, snapshot=str(tmp_path / "third"))))


def test_seeds_of_packed_images_are_packed_once(make_config, tmp_path):
    fit(make_config("train.epochs=1"))
    config = make_config("train.epochs=1", f"data.records={tmp_path / 'run' / 'records'}", snapshot="second")
    fit(config)
    packed = [path for path in (tmp_path / "second" / "records").iterdir() if path.suffix == ".rec"]
    assert len(packed) == 1 and "seeds" in packed[0].name
    before = packed[0].stat().st_mtime_ns
    fit(config)
    assert packed[0].stat().st_mtime_ns == before
    os.unlink(tmp_path / "data" / "seeds" / "image_05.png")
    with pytest.raises(InputError, match=r"image_05\.png"):
        fit(config, fresh=True)
