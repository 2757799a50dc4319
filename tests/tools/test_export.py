"""The export's command line, and the examples of docs/export.md as they stand there."""
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import build_model, initialize, save_params
from cian.tools import export, predict

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("background", "cat", "dog")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshot")
    net = build_model("resnet50_largefov", tiny=True, num_classes=3)
    initialize(net, seed=1, zero_gamma=False)
    save_params(net, folder / "resnet50_largefov-0007.params",
                {"network": net.settings, "classes": list(CLASSES)})
    image = np.random.RandomState(0).randint(0, 256, (39, 47, 3), np.uint8)
    cv2.imwrite(str(folder / "image.png"), image[..., ::-1])
    np.save(folder / "image.npy", image)
    return folder


@pytest.fixture(scope="module")
def exported(snapshot, tmp_path_factory):
    """All formats as the command line writes them, under the names of the documentation."""
    folder = tmp_path_factory.mktemp("exported")
    assert export.main(["--snapshot", str(snapshot), "--out", str(folder / "cian"), "--format",
                        "symbol,onnx,training", "--images", str(snapshot / "image.png")]) == 0
    for name in ("image.png", "image.npy"):
        (folder / name).write_bytes((snapshot / name).read_bytes())
    return folder


def test_the_command_writes_what_was_asked_for_and_says_how_it_agrees(snapshot, tmp_path, capsys):
    assert export.main(["--checkpoint", str(snapshot / "resnet50_largefov-0007.params"), "--out",
                        str(tmp_path / "x"), "--format", "onnx", "--size", "41", "--output", "probabilities",
                        "--test-time", "predict.mirror=false"]) == 0
    assert os.listdir(tmp_path) == ["x.onnx"]
    assert re.search(r"x\.onnx: 3 images, largest error \d\.\de-0\d of the rms, 100\.0000 % of labels agree",
                     capsys.readouterr().out)


def test_names_default_to_the_snapshots_export_folder(snapshot, capsys):
    assert export.main(["--snapshot", str(snapshot), "--format", "symbol"]) == 0
    assert sorted(os.listdir(snapshot / "export")) == [f"resnet50_largefov{end}" for end in (
        "-0000.params", "-0000.params.json", "-symbol.json")]


def test_a_difference_is_reported_and_ends_with_one(snapshot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cian.tools.engine.models.agreement.MAX_RELATIVE_ERROR", -1.0)
    assert export.main(["--snapshot", str(snapshot), "--out", str(tmp_path / "x")]) == 1
    error = capsys.readouterr().err
    assert ("error: symbol: the exported network differs" in error
            and "error: onnx: the exported network differs" in error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "no network was named; give it, or --snapshot"),
    (["--checkpoint", "{}", "--format", "tflite"], "there is no format 'tflite'"),
    (["--checkpoint", "{}", "--size", "3"], "--size: 3 pixels is not a size"),
    (["--checkpoint", "{}/none.params"], "none.params: does not exist"),
    (["--checkpoint", "{}", "--test-time", "predict.scales=[0.5]"], "scales: .* 1 first"),
])
def test_wrong_calls_are_named(snapshot, arguments, message):
    with pytest.raises(InputError, match=message):
        export.main([argument.format(snapshot) for argument in arguments])


@pytest.mark.parametrize("name", ["cian.onnx", "cian-symbol.json"])
def test_predict_takes_exported_files_and_goes_on_after_a_bad_image(exported, tmp_path, name, capsys):
    (tmp_path / "in").mkdir()
    for picture in ("a.png", "b.png"):
        (tmp_path / "in" / picture).write_bytes((exported / "image.png").read_bytes())
    (tmp_path / "in" / "c.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert predict.main(["--checkpoint", str(exported / name), "--images", str(tmp_path / "in"), "--out",
                         str(out), "--crf", "none", "--fit", "native", "--workers", "1", "--quiet",
                         "--overlay", "--probabilities", "npy"]) == 1
    assert "c.jpg" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*.png")) == ["a.png", "a.png", "b.png", "b.png"]
    np.testing.assert_allclose(np.load(out / "probabilities" / "a.npy").sum(axis=0), 1, rtol=1e-5)


def test_parameters_of_the_training_symbol_predict_as_the_checkpoint_and_the_symbol_says_so(snapshot,
                                                                                            exported):
    from cian import load_model
    image, chosen = exported / "image.png", {"size_px": 49, "scales": [1]}
    want = load_model(snapshot / "resnet50_largefov-0007.params", **chosen).logits(image)
    np.testing.assert_array_equal(load_model(exported / "cian-train-0000.params", **chosen).logits(image),
                                  want)
    with pytest.raises(InputError,
                       match=r"is a training symbol, which predicts nothing; open cian-train-0000\.params"):
        load_model(exported / "cian-train-symbol.json")


def examples():
    """Code blocks of the documentation by their first line."""
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    return {block.splitlines()[0]: block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)}


def run_example(code, folder, *blocked):
    hidden = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    # of MXNet 1.9.1, see cian.environment
    numpy_alias = "import numpy\nif 'bool' not in numpy.__dict__: numpy.bool = bool\n"
    program = hidden + numpy_alias + code + "\nnumpy.save('labels.npy', labels)\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "labels.npy"), done.stdout


def test_the_documented_examples_agree_on_the_labels(exported):
    from cian import load_model
    found = examples()
    want = load_model(exported / "cian-symbol.json", fit="native").predict(exported / "image.png")
    in_three_lines, _ = run_example(found["from cian import load_model"], exported)
    by_onnx, printed = run_example(found["import json"], exported, "mxnet", "cian", "cv2", "PIL", "onnx")
    by_module, _ = run_example(found["import mxnet as mx"], exported, "cian", "onnx", "onnxruntime")
    assert want.shape == (39, 47)
    for labels in (by_onnx, by_module):
        assert (labels == want).mean() >= 0.999
    assert in_three_lines.shape == want.shape
    counts = {CLASSES[value]: int((by_onnx == value).sum()) for value in np.unique(by_onnx)}
    assert printed.strip() == str(counts)
    assert len(found["import json"].splitlines()) == 10 and len(
        found["from cian import load_model"].splitlines()) == 3
