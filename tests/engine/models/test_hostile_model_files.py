"""Thousands of mutated model files, opened in child processes: each is refused by name or runs, and
none takes the process with it.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cian.symbols import build_model, initialize, save_params
from cian.tools.engine.export import write as export
from cian.tools.engine.export.write import Procedure, export_onnx, export_symbol
from cian.tools.engine.models.agreement import generated_images

pytest.importorskip("onnxruntime")
WORKER = Path(__file__).with_name("hostile_worker.py")
# Kind: file, number of mutations, the least number of different problems that they must run into.
MUTATED = {"symbol": ("m-symbol.json", 700, 60), "onnx": ("m.onnx", 1200, 30),
           "params": ("m-0001.params", 800, 8), "metadata": ("m-0001.params.json", 500, 15)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny network as checkpoint, symbol and ONNX; the latter two without checksums, which a
    hostile author would make fit.
    """
    folder = tmp_path_factory.mktemp("hostile")
    net = build_model("resnet18_largefov", tiny=True, num_classes=3)
    initialize(net, zero_gamma=False)
    metadata = {"network": net.settings, "classes": ["background", "cat", "dog"]}
    images = generated_images(33, 1)
    export_symbol(net.for_prediction(), folder / "m", metadata, Procedure(), images)
    (folder / "m-0000.params.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "graph_digest", lambda model: "")
        export_onnx(net.for_prediction(), folder / "m", metadata, Procedure(), images)
    save_params(net, folder / "m-0001.params", metadata)
    return folder


@pytest.mark.parametrize("kind", MUTATED)
def test_mutated_files_are_refused_by_name_or_run(folder, kind):
    name, count, problems = MUTATED[kind]
    path = folder / name
    contents = {file: file.read_bytes() for file in folder.iterdir()}
    try:
        done = subprocess.run([sys.executable, str(WORKER), kind, str(path), "0", str(count)],
                              capture_output=True, text=True, timeout=280,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        seed = path.with_name(path.name + ".seed").read_text()
        assert done.returncode == 0, (f"mutation {seed} of {name} ended the process with "
                                      f"{done.returncode}: {done.stderr[-500:]}")
    finally:
        for file, content in contents.items():
            file.write_bytes(content)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["wrong"] == []
    assert summary["refused"] + summary["ran"] == count
    assert summary["refused"] > count / 2
    assert summary["problems"] >= problems
