"""Prediction by several processes: how many, that results are the same, and what is told when one
of them fails.
"""
import os
import pickle
import signal
import sys

import numpy as np
import pytest

from cian.data.classes import ClassTable
from cian.errors import InputError, MachineError
from cian.symbols.cian import build_model
from cian.symbols.params import initialize, save_params
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.prediction import processes
from cian.tools.engine.prediction.predictor import load_predictors
from cian.tools.engine.prediction.processes import NetworkProcesses, choose_processes

CLASSES = ("background", "cat", "dog")


@pytest.fixture
def left_open(monkeypatch):
    """As in a program that has not loaded MXNet, on two cores, under a user who has said nothing of
    threads.
    """
    monkeypatch.delitem(sys.modules, "mxnet")
    monkeypatch.setattr(processes, "USERS_VALUES", {})
    monkeypatch.setattr(processes, "usable_cores", lambda: 2)
    return monkeypatch


@pytest.mark.parametrize("images, expected",
                         [(0, 1), (1, 1), (7, 1), (8, 2), (9, 1), (49, 1), (50, 2), (51, 2), (1449, 2)])
def test_two_are_chosen_where_an_idle_one_in_the_last_round_costs_less_than_is_won(images, expected,
                                                                                   left_open):
    assert choose_processes(0, ["cpu:0"], images) == expected


def test_one_is_chosen_where_the_user_has_set_the_threads_or_no_second_core_is_there(left_open):
    assert choose_processes(0, ["cpu:0", "cpu:1"], 100) == choose_processes(0, ["gpu:0"], 100) == 1
    with left_open.context() as changed:
        changed.setattr(processes, "USERS_VALUES", {"OMP_NUM_THREADS": "2"})
        assert choose_processes(0, ["cpu:0"], 100) == 1
    for cores in (1, 3):
        with left_open.context() as changed:
            changed.setattr(processes, "usable_cores", lambda cores=cores: cores)
            assert choose_processes(0, ["cpu:0"], 100) == 1


def test_one_is_chosen_once_mxnet_has_its_threads(left_open):
    assert choose_processes(0, ["cpu:0"], 100) == 2
    left_open.setitem(sys.modules, "mxnet", None)
    assert choose_processes(0, ["cpu:0"], 100) == 1


def test_the_users_number_is_kept_up_to_one_an_image():
    assert [choose_processes(3, ["cpu:0"], images) for images in (0, 2, 100)] == [1, 2, 3]
    with pytest.raises(
            InputError,
            match="run.processes: 2 processes need one CPU device, not gpu:0, gpu:1; leave it out"):
        choose_processes(2, ["gpu:0", "gpu:1"], 100)


def test_this_process_is_left_its_share_of_the_cores_before_mxnet_is_loaded(left_open):
    left_open.setenv("OMP_NUM_THREADS", "2")
    with NetworkProcesses(1, {}):
        assert os.environ["OMP_NUM_THREADS"] == "2"
    left_open.setattr(processes.ProcessPoolExecutor, "submit", lambda *_: None)
    with NetworkProcesses(2, {}):
        assert os.environ["OMP_NUM_THREADS"] == "1"
    left_open.setattr(processes, "USERS_VALUES", {"OMP_NUM_THREADS": "5"})
    with NetworkProcesses(2, {}):
        assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What load_predictors takes, for a tiny network."""
    path = tmp_path_factory.mktemp("model") / "resnet18_largefov-0000.params"
    net = build_model("resnet18_largefov", tiny=True, num_classes=len(CLASSES))
    initialize(net, 1)
    save_params(net, path, {"network": net.settings, "classes": list(CLASSES)})
    return {"path": str(path), "settings": PredictConfig(size_px=65), "model": "",
            "classes": ClassTable(CLASSES)}


@pytest.fixture(scope="module")
def images():
    return list(np.random.RandomState(0).randint(0, 256, (2, 50, 40, 3)).astype(np.uint8))


def test_another_process_gives_the_same_logits_to_the_last_bit(opened, images):
    import mxnet as mx

    (own,), model = load_predictors(devices=[mx.cpu()], **opened)
    with NetworkProcesses(2, opened) as beside:
        other, = beside.predictors(own, model)
        expected, found = own.start(images), other.start(images)
        assert found.fits == expected.fits and found.images[1] is images[1] and own.sharers == 2
        np.testing.assert_array_equal(found.coarse.asnumpy(), expected.coarse.asnumpy())


def test_a_model_that_was_replaced_while_it_was_opened_is_refused(opened, images):
    import mxnet as mx

    (own,), model = load_predictors(devices=[mx.cpu()], **opened)
    with NetworkProcesses(2, opened) as beside:
        other, = beside.predictors(own, {**model, "checkpoint": "another"})
        with pytest.raises(
                MachineError,
                match="resnet18_largefov-0000.params was replaced while it was opened; start again"):
            other.start(images)
    with NetworkProcesses(2, {**opened, "path": "missing.params"}) as beside:
        other, = beside.predictors(own, model)
        with pytest.raises(MachineError, match="was replaced"):
            other.start(images)


def test_a_process_that_is_killed_while_it_opens_its_model_is_told(opened, images):
    import mxnet as mx

    (own,), model = load_predictors(devices=[mx.cpu()], **opened)
    with NetworkProcesses(2, opened) as beside:
        for process in beside._pools[0]._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        other, = beside.predictors(own, model)
        with pytest.raises(MachineError, match="died .*run.processes=1"):
            other.start(images)


def test_a_process_that_is_killed_is_told(opened, images):
    import mxnet as mx

    (own,), model = load_predictors(devices=[mx.cpu()], **opened)
    with NetworkProcesses(2, opened) as beside:
        other, = beside.predictors(own, model)
        other.start(images).coarse.asnumpy()
        for process in beside._pools[0]._processes.values():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        with pytest.raises(RuntimeError, match="died .*run.processes=1"):
            other.start(images).coarse.asnumpy()


KILLED = """
import os, pickle, signal, sys

if __name__ == "__main__":
    from cian.tools.engine.prediction.processes import NetworkProcesses

    with open(sys.argv[1], "rb") as stream:
        beside = NetworkProcesses(2, pickle.load(stream))
    beside._opened[0].result()
    print(*beside._pools[0]._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_with_a_run_that_is_killed(opened, tmp_path, outliving):
    (tmp_path / "opened").write_bytes(pickle.dumps(opened))
    assert outliving(KILLED, tmp_path / "opened") == []
