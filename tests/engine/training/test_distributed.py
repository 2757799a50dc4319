"""Jobs of several processes on loopback, as tools/launch.py starts them."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cian.errors import InputError
from cian.tools.engine.config import RunConfig
from cian.tools.engine.models.run_state import read_state
from cian.tools.engine.models.snapshot import find_checkpoints
from cian.tools.engine.training.distributed import Workers, slow_worker
from cian.tools.engine.training.launching import _free_pair

MODEL = "resnet50_largefov"
# Trains a tiny network; SLOW in the environment makes each of its steps take longer.
DRIVER = """
import os, sys, time
from cian.errors import run_tool
from cian.tools.arguments import config_from, make_parser

def main():
    config = config_from(make_parser("", ("data", "network", "training", "run")).parse_args(sys.argv[1:]))
    from cian.tools.engine.training.watch import join
    member = join(config.run)
    from cian.symbols.backbones import TINY
    from cian.tools.engine.training import step
    from cian.tools.engine.training.round import fit

    if "CLASSIFIER" in os.environ:
        from cian.tools.engine.seeds.classifier import train_classifier
        from cian.tools.engine.training.sources import open_images

        with open_images(config, "train") as images:
            train_classifier(config, images, member=member, backbone_options=TINY["resnet18"])
        return

    def slow(self, *arguments, original=step.Trainer.step):
        time.sleep(float(os.environ["SLOW"]))
        return original(self, *arguments)

    if "SLOW" in os.environ:
        step.Trainer.step = slow
    fit(config, member=member, backbone_options=TINY["resnet50"])

run_tool(main)
"""


def start(role, flags, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"DMLC_ROLE": role} if role else {}), **variables}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", DRIVER, *flags], env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def start_job():
    """Starts a scheduler, a server and two workers; the second one's flags and variables may differ.
    What is left of them in the end is killed.
    """
    started = []

    def start_all(*flags, second=(), kvstore="dist_sync", **of_second):
        port = str(_free_pair("127.0.0.1"))
        common = {"DMLC_NUM_WORKER": "2", "DMLC_NUM_SERVER": "1", "DMLC_PS_ROOT_URI": "127.0.0.1",
                  "DMLC_PS_ROOT_PORT": port}
        flags = [*flags, f"run.kvstore={kvstore}"]
        job = [start(role, flags, **common) for role in ("scheduler", "server", "worker")]
        job.append(start("worker", [*flags, *second], **{**common, **of_second}))
        started.extend(job)
        return job

    yield start_all
    for process in started:
        process.kill()
        process.communicate()


def ends(job, seconds=60):
    """(exit code, standard error) of each process, all of which end within some seconds."""
    until = time.monotonic() + seconds
    return [(process.wait(max(0.1, until - time.monotonic())), process.stderr.read()) for process in job]


def run_alone(flags):
    """Run to its end what is no job."""
    one = start("", flags)
    error = one.communicate(timeout=90)[1]
    assert one.returncode == 0, error


def wait_for(path, text, seconds=90):
    until = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < until, f"no {text!r} in {path}"
        time.sleep(0.02)


@pytest.fixture
def flags(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "data")

    def make(snapshot, *more):
        return ("--data", root, "--classes", f"{root}/classes.txt", "--train-list", "train",
                "--label-root", f"{root}/seeds", "--snapshot", str(tmp_path / snapshot), "--batch-size", "4",
                "--image-size", "33", "--epochs", "3", "--log-frequency", "1", "--save-every", "1",
                "--model", MODEL, "--workers", "1", *more)
    return make


@pytest.mark.parametrize("preset, victim", [("original", 0), ("paper", 3)])
def test_two_workers_end_bit_for_bit_as_one_with_two_devices_though_one_was_killed(
        tmp_path, flags, start_job, preset, victim):
    run_alone(flags("one", "--preset", preset, "--devices", "cpu:0,cpu:1"))
    job = start_job(*flags("two", "--preset", preset), SLOW="0.3")
    wait_for(tmp_path / "two" / f"{MODEL}.log", "step 2:")
    job[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    results = ends(job)
    assert time.monotonic() - killed < 10
    assert results.pop(victim)[0] == -signal.SIGKILL
    who = "the scheduler" if victim == 0 else r"worker \d \(.*\)"
    for code, error in results:
        assert code == 1
        assert re.fullmatch(f"error: {who} has ended before the work was done; the same command goes on "
                            "from the last checkpoint\n", error)
    results = ends(start_job(*flags("two", "--preset", preset)))
    assert [code for code, _ in results] == [0] * 4, results
    log = (tmp_path / "two" / f"{MODEL}.log").read_text()
    assert "resumed after" in log and re.search(r"step 7: .* worker 0 waited \d+.\d\d s a step", log)
    for number, checkpoint in enumerate(find_checkpoints(tmp_path / "one")):
        for suffix in ("", ".json"):
            ours = tmp_path / "two" / f"{MODEL}-{number:04d}.params{suffix}"
            assert ours.read_bytes() == Path(checkpoint.path + suffix).read_bytes()
    states = [(tmp_path / name / f"{MODEL}.state").read_bytes() for name in ("one", "two")]
    assert states[0] == states[1]  # momentum, each device's statistics, the sampler, the meters
    assert (tmp_path / "two" / f"{MODEL}.worker1.log").exists()


def listening(job):
    """The addresses at which the processes of a job listen, as /proc/net/tcp has them."""
    sockets = {os.readlink(entry) for process in job for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_two_workers_on_stored_features_end_as_one_with_two_devices_and_listen_on_loopback_alone(
        tmp_path, flags, start_job):
    stored = ("train.features=stored", "train.freeze=conv0_,stage1_,stage2_,stage3_", "train.scales=1.0",
              "--epochs", "2")
    job = start_job(*flags("two", *stored), kvstore="dist_device_sync", SLOW="0.2")
    wait_for(tmp_path / "two" / f"{MODEL}.log", "step 2:")
    assert listening(job) == ["0100007F"] * 5  # each process of the store, and the watch
    run_alone(flags("one", *stored, "--devices", "cpu:0,cpu:1"))
    assert [code for code, _ in ends(job)] == [0] * 4
    states = [(tmp_path / name / f"{MODEL}.state").read_bytes() for name in ("one", "two")]
    assert states[0] == states[1]


def test_two_workers_train_the_classifier_up_to_rounding_as_one_does(tmp_path, flags, start_job, monkeypatch):
    monkeypatch.setenv("CLASSIFIER", "1")
    cam = ("cam.model=resnet18", "cam.epochs=2", "cam.batch_size=4", "cam.crop_px=33", "cam.lr=0.01")
    run_alone(flags("one", *cam))
    job = start_job(*flags("two", *cam, "--records", str(tmp_path / "one" / "records")))
    assert [code for code, _ in ends(job)] == [0] * 4
    alone, several = (read_state(tmp_path / name / "resnet18_cam.state") for name in ("one", "two"))
    assert several["step"] == alone["step"] == 6 and several["batches"] == alone["batches"]
    for kind in ("parameters", "momentum"):
        for name, value in alone[kind].items():
            np.testing.assert_allclose(several[kind][name], value, atol=1e-5 * abs(value).max(), err_msg=name)
    assert (tmp_path / "two" / "resnet18_cam-0001.map.json").exists()


def test_a_worker_of_another_configuration_is_refused_by_name_before_the_first_step(tmp_path, flags,
                                                                                    start_job):
    results = ends(start_job(*flags("run"), second=("train.lr=0.25", "loss.completion=false")))
    assert [code != 0 for code, _ in results] == [True] * 4
    for _, error in results:
        assert "worker 1 has another loss.completion, train.lr than worker 0" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run" / f"{MODEL}.log").exists()


@pytest.mark.parametrize("own, text", [
    ([1.0, 2.5, 1.1], "; worker 1 is slow: 2.50 s a step of its own, where the others take 1.05 s"),
    ([1.0, 1.19, 1.1], ""), ([1.0], "")])
def test_the_slow_worker_is_named_with_what_the_others_take(own, text):
    assert slow_worker(np.array(own)) == text


def test_a_process_alone_gathers_what_it_has_and_has_nothing_to_report():
    workers = Workers()
    values = np.array([[1.5, -2]], np.float32)
    assert workers.gather("any", values).tolist() == [[[1.5, -2]]]
    assert workers.share_losses(values).tolist() == [[1.5, -2]] and workers.report() == ""
    workers.refuse_others({"version": 1})


def test_a_store_of_several_needs_a_job():
    with pytest.raises(InputError, match="^run.kvstore: is dist_sync, but this process has joined no job;"):
        Workers(RunConfig(kvstore="dist_sync"))
