"""A graph beside its checkpoint is used without MXNet while it is right, and made again when it is not."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cian import InputError, load_model
from cian.data.classes import ClassTable
from cian.symbols import build_model, initialize, save_params
from cian.tools.engine.models import graph_cache
from cian.tools.engine.models.graph_cache import GraphCache
from cian.tools.engine.models.model_files import ModelFile, open_model
from cian.tools.engine.models.snapshot import Snapshot

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CLASSES = ("background", "cat", "dog")
IMAGE = np.random.RandomState(4).randint(0, 256, (47, 61, 3), np.uint8)
PREDICT = """
import sys
import numpy as np
from cian import load_model
from cian.data.classes import ClassTable
np.save(sys.argv[2], load_model(sys.argv[1]).logits(np.load(sys.argv[3])))
print("mxnet" in sys.modules)
"""


def save(path, seed):
    net = build_model("resnet18_largefov", tiny=True, num_classes=3, embed_channels=40)
    initialize(net, seed, zero_gamma=False)
    save_params(net, path, {"network": net.settings, "classes": list(CLASSES)})
    return net


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "resnet18_largefov-0001.params"
    save(path, 1)
    return path


def graph_of(checkpoint):
    return Path(f"{checkpoint}.graph")


def opened(checkpoint) -> ModelFile:
    return open_model(checkpoint, engine="onnx")


def test_the_second_start_needs_no_mxnet_and_gives_the_same_logits(checkpoint, tmp_path):
    np.save(tmp_path / "image.npy", IMAGE)
    runs = [[sys.executable, "-c", PREDICT, str(checkpoint), str(tmp_path / f"{run}.npy"),
             str(tmp_path / "image.npy")] for run in range(4)]
    started = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for run in runs[:3]]  # at once
    assert [process.communicate()[0] for process in started] == ["True\n"] * 3
    before = graph_of(checkpoint).read_bytes()
    assert subprocess.run(runs[3], capture_output=True, text=True, check=True).stdout == "False\n"
    assert graph_of(checkpoint).read_bytes() == before and not list(tmp_path.glob(".*.tmp"))
    first, *others = (np.load(tmp_path / f"{run}.npy") for run in range(4))
    assert first.std() > 0.01
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_kept_graph_says_all_that_the_network_does(checkpoint):
    live = opened(checkpoint)
    load_model(checkpoint)
    kept = opened(checkpoint)
    assert isinstance(kept.network, graph_cache.Graph) and kept.network.num_classes == 3
    assert kept.network.network == live.metadata["network"]
    assert (kept.classes.names, kept.metadata) == (live.classes.names, live.metadata)
    assert not isinstance(open_model(checkpoint).network, graph_cache.Graph)  # that is for mxnet


def test_a_file_without_metadata_keeps_a_graph_for_what_it_is_said_to_be(tmp_path):
    path = tmp_path / "original-0001.params"
    net = build_model("resnet18_largefov", num_classes=3)
    initialize(net, 0)
    save_params(net, path)
    given = {"model": "resnet18_largefov", "classes": CLASSES}
    want = load_model(path, **given).logits(IMAGE)
    np.testing.assert_array_equal(load_model(path, **given).logits(IMAGE), want)
    kept = open_model(path, model=given["model"], classes=ClassTable(CLASSES), engine="onnx")
    live = open_model(path, model=given["model"], classes=ClassTable(CLASSES))
    assert isinstance(kept.network, graph_cache.Graph) and kept.metadata == live.metadata


@pytest.mark.parametrize("change", ["weights", "code", "version", "byte of the logits", "byte of the graph",
                                    "half of it", "empty"])
def test_a_graph_that_is_stale_or_damaged_is_made_again(checkpoint, monkeypatch, change):
    load_model(checkpoint)
    content = graph_of(checkpoint).read_bytes()
    if change == "weights":
        save(checkpoint, 2)
    elif change in ("code", "version"):
        monkeypatch.setattr(graph_cache, {"code": "_code_digest", "version": "onnxruntime_version"}[change],
                            lambda: "another")
    else:
        at = {"byte of the logits": content.index(b"\n", 65) + 40}.get(change, len(content) // 2)
        kept = {"half of it": content[:at], "empty": b""}.get(change)
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]
        graph_of(checkpoint).write_bytes(changed if kept is None else kept)
    assert not isinstance(opened(checkpoint).network, graph_cache.Graph)
    got = load_model(checkpoint).logits(IMAGE)
    assert isinstance(opened(checkpoint).network, graph_cache.Graph)
    monkeypatch.undo()
    graph_of(checkpoint).unlink()
    np.testing.assert_array_equal(got, load_model(checkpoint).logits(IMAGE))


def test_a_graph_of_other_values_than_the_live_networks_is_not_used(checkpoint):
    load_model(checkpoint)
    cache = opened(checkpoint)
    content = graph_of(checkpoint).read_bytes()
    logits = np.zeros((1, 3, 9, 11), np.float32)
    begin = content.index(b"\n", 65) + 1 + logits.nbytes
    made = {"checkpoint": cache.metadata["sha256"], "network": cache.metadata["network"]}
    GraphCache(checkpoint, made).write(content[begin:], logits)
    assert GraphCache(checkpoint, made).read() is None
    load_model(checkpoint)
    assert GraphCache(checkpoint, made).read() is not None


def test_a_graph_that_the_export_does_not_write_never_reaches_native_code(checkpoint, monkeypatch):
    load_model(checkpoint)
    cache = opened(checkpoint)
    content = graph_of(checkpoint).read_bytes()
    begin = content.index(b"\n", 65) + 1
    logits = np.frombuffer(content[begin:begin + 4 * 3 * 9 * 11], np.float32).reshape(1, 3, 9, 11)
    model = onnx.load_model_from_string(content[begin + logits.nbytes:])
    model.functions.add()
    made = {"checkpoint": cache.metadata["sha256"], "network": cache.metadata["network"]}
    GraphCache(checkpoint, made).write(model.SerializeToString(), logits)
    started = []
    monkeypatch.setattr(graph_cache, "start_session", lambda *given: started.append(given))
    assert GraphCache(checkpoint, made).read() is None and not started


def test_a_checkpoint_of_another_time_is_held_against_its_digest_again(checkpoint, monkeypatch):
    load_model(checkpoint)
    monkeypatch.setattr(graph_cache, "sha256_of", lambda path: pytest.fail("was read again"))
    assert isinstance(opened(checkpoint).network, graph_cache.Graph)
    monkeypatch.undo()
    os.utime(checkpoint, (1, 1))
    assert isinstance(opened(checkpoint).network, graph_cache.Graph)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="other bytes than the model file holds"):
        load_model(checkpoint)


def test_where_no_graph_can_be_kept_predictions_are_the_same(checkpoint):
    want = load_model(checkpoint).logits(IMAGE)
    graph_of(checkpoint).unlink()
    graph_of(checkpoint).mkdir()  # the superuser may write to any folder, but not replace one by a file
    np.testing.assert_array_equal(load_model(checkpoint).logits(IMAGE), want)


def test_a_checkpoint_that_is_removed_takes_its_graph_along(tmp_path):
    with Snapshot(tmp_path, "resnet18_largefov") as snapshot:
        save(snapshot.epoch_path(0), 1)
        load_model(snapshot.epoch_path(0))
        assert graph_of(snapshot.epoch_path(0)).is_file()
        snapshot.clear()
    assert not graph_of(snapshot.epoch_path(0)).exists()
