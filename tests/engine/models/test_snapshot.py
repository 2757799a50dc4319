import json
import os
import subprocess
import sys
import time
from concurrent.futures import wait

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.params import initialize, named_values, save_params
from cian.tools.engine.config import load_config
from cian.tools.engine.models.snapshot import (
    Snapshot,
    build_network,
    find_checkpoints,
    load_network,
    resolve_checkpoint,
)

CLASSES = ("background", "cat", "dog")
MODEL = "resnet18_largefov"


def make_net(model=MODEL, affinity="cross", seed=5):
    net = build_model(model, tiny=True, num_classes=len(CLASSES), affinity=affinity)
    initialize(net, seed, zero_gamma=False)
    return net


def save(folder, epoch, model=MODEL, net=None):
    net = net or make_net(model)
    with Snapshot(folder, model) as snapshot:
        return snapshot.save_epoch(epoch, named_values(net),
                                   {"network": net.settings, "classes": list(CLASSES)})


def image(side=33):
    return mx.nd.array(np.random.RandomState(0).randint(0, 256, (2, 3, side, side)), dtype=np.float32)


def test_checkpoints_are_found_by_epoch_and_other_files_are_not_among_them(tmp_path):
    for name in ("m-0010.params", "m-0002.params", "m-0002.params.json", "m.state", "m-2.params",
                 "m-0003.params.tmp", "n-x-0001.params"):
        (tmp_path / name).write_bytes(b"")
    assert [(c.model, c.epoch) for c in find_checkpoints(tmp_path)] == [("n-x", 1), ("m", 2), ("m", 10)]
    assert [c.epoch for c in find_checkpoints(tmp_path, "m")] == [2, 10]
    assert find_checkpoints(tmp_path / "nowhere") == []
    assert resolve_checkpoint(tmp_path, "m") == str(tmp_path / "m-0010.params")
    assert resolve_checkpoint(tmp_path / "m-0002.params") == str(tmp_path / "m-0002.params")


def test_what_names_no_checkpoint_is_refused(tmp_path):
    for name, message in (("nowhere", "does not exist; name a .params file"),
                          (".", "holds no checkpoint; train first")):
        with pytest.raises(InputError) as refused:
            resolve_checkpoint(tmp_path / name)
        assert message in str(refused.value)
    for name in ("m-0001.params", "n-0001.params"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="holds checkpoints of several models: m, n; name one with --model"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(InputError, match="holds no checkpoint of k; it has those of m, n"):
        resolve_checkpoint(tmp_path, "k")


@pytest.mark.parametrize("affinity", ["cross", "self", "none"])
def test_a_network_comes_back_from_its_file_and_metadata_alone(tmp_path, affinity):
    net = make_net(affinity=affinity)
    path = save(tmp_path, 3, net=net)
    again, metadata = load_network(tmp_path, for_prediction=False)
    assert metadata["classes"] == list(CLASSES)
    assert json.dumps(again.settings) == json.dumps(net.settings)
    for ours, theirs in zip(net(image()), again(image())):
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())
    predictor, _ = load_network(path)
    assert len(predictor(image())) == 1
    np.testing.assert_array_equal(predictor(image())[0].asnumpy(), net(image())[0].asnumpy())


def test_a_file_without_metadata_needs_to_be_told_what_it_is(tmp_path):
    net = make_net("resnet18_largefov")
    path = str(tmp_path / "resnet18_largefov-0019.params")
    save_params(net, path)
    with pytest.raises(InputError,
                       match=r"0019\.params\.json: cannot be read .*give the model name and the classes "
                             r"yourself"):
        load_network(path)
    # this one is no tiny one
    with pytest.raises(InputError, match="resnet18_largefov-0019.params: does not fit the network"):
        load_network(path, network=load_config(overrides=["network.model=resnet18_largefov"]).network,
                     classes=CLASSES)


@pytest.mark.parametrize(
    "damage, message",
    [({"network": {"model": "resnet18_largefov", "depth": 7, "num_classes": 3}},
      "does not describe a segmentation network"),
     ({"network": {"model": "resnet19_largefov", "num_classes": 3}}, "there is no model 'resnet19_largefov'"),
     ({"classes": ["background"]}, "holds 1 names, and the network has 3 classes"),
     ({"sha256": "0" * 64}, "was written for other bytes"), ({"preprocessing": None}, "preprocessing")])
def test_wrong_metadata_is_named(tmp_path, damage, message):
    path = save(tmp_path, 0)
    with open(path + ".json", encoding="utf-8") as stream:
        content = json.load(stream)
    with open(path + ".json", "w", encoding="utf-8") as stream:
        json.dump({**content, **damage}, stream)
    with pytest.raises(InputError) as refused:
        load_network(path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    path = save(tmp_path, 0, net=make_net(affinity="none"))
    other = make_net(affinity="cross")
    from cian.symbols.params import load_params
    with pytest.raises(InputError, match="missing: conv_embed_q_weight"):
        load_params(other, path)


def test_the_network_of_a_configuration_has_its_settings():
    config = load_config(overrides=["network.model=resnet18_largefov", "network.group_size=3",
                                    "network.merge_type=avg", "network.embed_channels=7"])
    net = build_network(config.network, 5, {"widths": (4, 8, 12, 16, 20)})
    assert {**net.settings, "backbone_options": None} == {"model": "resnet18_largefov", "num_classes": 5,
                                                          "affinity": "cross", "group_size": 3,
                                                          "merge_type": "avg", "merge_self": True,
                                                          "embed_channels": 7, "backbone_options": None}


def test_only_one_process_trains_in_a_snapshot(tmp_path):
    code = ("import sys\nfrom cian.tools.engine.models.snapshot import Snapshot\n"
            "with Snapshot(sys.argv[1], 'm'):\n    print('entered')")
    with Snapshot(tmp_path, "m"):
        result = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
                                capture_output=True, text=True)
    assert (result.returncode != 0
            and f"this snapshot is being written by process {os.getpid()}" in result.stderr)
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True,
                          text=True).stdout == "entered\n"


def test_what_a_killed_run_left_half_written_is_cleared_away_and_nothing_else(tmp_path):
    for name in (".99999999.1.tmp", "m-0003.params", ".other", "notes.txt"):
        (tmp_path / name).write_bytes(b"half")
    with Snapshot(tmp_path, "m"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".other", "m-0003.params", "notes.txt"]


def test_old_checkpoints_go_only_after_a_new_state_is_safe(tmp_path):
    net = make_net()
    with Snapshot(tmp_path, MODEL, keep=2) as snapshot:
        for epoch in range(4):
            snapshot.save_epoch(epoch, named_values(net), {"network": net.settings, "classes": list(CLASSES)})
        assert len(find_checkpoints(tmp_path)) == 4
        snapshot.save_state({"epoch": 4})
        assert [c.epoch for c in find_checkpoints(tmp_path)] == [2, 3]
        assert snapshot.load_state()["epoch"] == 4
        snapshot.clear()
        assert os.listdir(tmp_path) == [".lock"]
        assert snapshot.load_state() is None


def test_a_state_takes_its_place_only_after_the_network_that_was_saved_with_it(tmp_path, monkeypatch):
    net, replaced = make_net(), []
    metadata, values = {"network": net.settings, "classes": list(CLASSES)}, named_values(net)

    def replace(source, target, original=os.replace):
        time.sleep(0.2 if target.endswith(".params") else 0)  # the state is ready long before
        replaced.append(os.path.basename(target))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with Snapshot(tmp_path, MODEL) as snapshot:
        path = snapshot.save_epoch(0, values, metadata, {"epoch": 1})
        assert replaced == [f"{MODEL}-0000.params", f"{MODEL}-0000.params.json", f"{MODEL}.state"]
        assert snapshot.load_state()["epoch"] == 1 and load_network(path)[1]["classes"] == list(CLASSES)
        with pytest.raises(InputError, match=r"-0001\.params\.json: classes: must be different names"):
            snapshot.save_epoch(1, values, {**metadata, "classes": ["one", "one"]}, {"epoch": 2})
        assert snapshot.load_state()["epoch"] == 1


def test_a_state_that_is_not_waited_for_is_written_and_its_failure_told_at_the_next_call(tmp_path):
    with Snapshot(tmp_path, "m") as snapshot:
        snapshot.save_state({"step": 0, "values": np.arange(3)}, wait=False)
    with Snapshot(tmp_path, "m") as snapshot:
        assert snapshot.load_state()["step"] == 0
        snapshot.save_state({"step": {1}}, wait=False)
        with pytest.raises(TypeError, match="step: a set cannot be saved"):
            snapshot.save_state({"step": 2})
        snapshot.save_state({"step": {1}}, wait=False)
        wait([snapshot._begun])
        with pytest.raises(TypeError, match="step: a set cannot be saved"):
            snapshot.poll()
        snapshot.poll()
        assert snapshot.load_state()["step"] == 0
        snapshot.save_state({"step": 3})
        assert snapshot.load_state()["step"] == 3
    # on leaving it
    with pytest.raises(TypeError, match="step: a set cannot be saved"), Snapshot(tmp_path, "m") as snapshot:
        snapshot.save_state({"step": {4}}, wait=False)
    with pytest.raises(TypeError, match="step: a set cannot be saved"), Snapshot(tmp_path, "m") as snapshot:
        snapshot.save_state({"step": {5}}, wait=False)
        raise OSError("another file that did not fit on the disk either")


def test_a_network_for_prediction_has_no_memory_for_gradients(tmp_path):
    path = save(tmp_path, 0)
    for for_prediction in (True, False):
        net, _ = load_network(path, for_prediction=for_prediction)
        trains = {name: param.grad_req != "null"
                  for name, param in net.collect_params().items() if name.endswith("_weight")}
        assert set(trains.values()) == {not for_prediction}


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    with Snapshot(tmp_path, "m") as snapshot:
        monkeypatch.setattr("cian.tools.engine.models.snapshot.STATE_VERSION", 99)
        snapshot.save_state({})
        monkeypatch.undo()
        with pytest.raises(InputError,
                           match=r"m\.state: has version 99, and this code reads 1; start anew with --fresh"):
            snapshot.load_state()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"file/run: cannot be written"), Snapshot(
            tmp_path / "file" / "run", "m"):
        pass
