"""A checkpoint, a symbol and an ONNX file open alike, and what a file does not carry is asked for by name."""
import json
import shutil

import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import ClassTable
from cian.errors import InputError
from cian.symbols import build_model, initialize, save_params
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.export import write as export
from cian.tools.engine.export.write import Procedure, export_onnx, export_symbol
from cian.tools.engine.models.model_files import open_model
from cian.tools.engine.prediction.predictor import Predictor

pytest.importorskip("onnxruntime")
CLASSES = ("background", "cat", "dog")
TEST_TIME = Procedure(scales=(1.0, 0.75, 1.25), add_max=True, mirror=True)
IMAGE = np.random.RandomState(4).randint(0, 256, (47, 61, 3), np.uint8)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with one network as checkpoint and in exported files of several kinds."""
    folder = tmp_path_factory.mktemp("models")
    net = build_model("resnet50_largefov", tiny=True, num_classes=3)
    initialize(net, seed=2, zero_gamma=False)
    metadata = {"network": net.settings, "classes": list(CLASSES)}
    (folder / "run").mkdir()
    save_params(net, folder / "run" / "resnet50_largefov-0001.params", metadata)
    pixels = [np.random.RandomState(0).uniform(0, 255, (1, 3, 65, 65)).astype(np.float32)]
    for name, procedure in (("once", Procedure()), ("full", TEST_TIME),
                            ("probabilities", Procedure(output="probabilities"))):
        export_symbol(net.for_prediction(), folder / name, metadata, procedure, pixels)
        export_onnx(net.for_prediction(), folder / name, metadata, procedure, pixels)
    export_onnx(net.for_prediction(), folder / "fixed", metadata, Procedure(size_px=65), pixels)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(built, tmp_path / "models")


def predictor(path, **settings):
    opened = open_model(path)
    return Predictor(opened.network, opened.settings(PredictConfig(size_px=65, **settings)))


def close(got, want):
    return got.shape == want.shape and np.abs(got - want).max() <= 1e-4 * np.sqrt((want ** 2).mean())


@pytest.mark.parametrize("name", ["full-symbol.json", "full-0000.params", "full.onnx"])
def test_an_exported_test_procedure_gives_the_checkpoints_logits(built, name):
    want = predictor(built / "run").logits(IMAGE)
    assert want.shape == (3, 47, 61)
    assert close(predictor(built / name).logits(IMAGE), want)


@pytest.mark.parametrize("name", ["once-symbol.json", "once.onnx", "fixed.onnx"])
def test_an_exported_single_pass_keeps_to_it_whatever_the_settings_say(built, name):
    once = predictor(built / "run", scales=(1.0,), add_max=False, mirror=False)
    assert close(predictor(built / name).logits(IMAGE), once.logits(IMAGE))


@pytest.mark.parametrize("name", ["probabilities-symbol.json", "probabilities.onnx"])
def test_exported_probabilities_come_back_as_probabilities(built, name):
    opened = open_model(built / name)
    assert opened.procedure.output == "probabilities"
    want = predictor(built / "once.onnx").predict(IMAGE, crf="none")
    got = predictor(built / name).predict(IMAGE, crf="none")
    np.testing.assert_allclose(got.probabilities, want.probabilities, atol=1e-5)
    assert (got.labels == want.labels).mean() > 0.999


def test_kinds_classes_and_procedure_are_told(built):
    for name, kind in (("run", "checkpoint"), ("full-symbol.json", "symbol"), ("full-0000.params", "symbol"),
                       ("full.onnx", "onnx")):
        opened = open_model(built / name)
        assert (opened.kind, opened.classes.names) == (kind, CLASSES)
        assert opened.procedure == (None if kind == "checkpoint" else TEST_TIME)
    for fit in ("native", "tight"):
        assert open_model(built / "fixed.onnx").settings(PredictConfig(fit=fit)).fit == "pad"


def test_a_file_of_one_size_warps_or_refuses_larger_images_and_takes_batches_apart(built):
    large = np.zeros((70, 20, 3), np.uint8)
    with pytest.raises(InputError,
                       match=r"fixed.onnx: was exported for 1 x 65 x 65 .* not 1 of 70x65; "
                             r".*predict.fit=warp"):
        predictor(built / "fixed.onnx").logits(large)
    assert predictor(built / "fixed.onnx", fit="warp").logits(large).shape == (3, 70, 20)
    running = predictor(built / "fixed.onnx").start([IMAGE, IMAGE])
    assert running.coarse.shape == (2, 3, 65, 65)


def test_a_file_without_metadata_asks_for_what_it_lacks_by_flag(folder):
    (folder / "run" / "resnet50_largefov-0001.params.json").unlink()
    (folder / "once-0000.params.json").unlink()
    checkpoint = folder / "run" / "resnet50_largefov-0001.params"
    with pytest.raises(InputError,
                       match=r"0001\.params: has no metadata .*give --model and --classes \(in Python: "
                             r"model=, classes=\)"):
        open_model(checkpoint)
    with pytest.raises(InputError, match="give --model "):
        open_model(checkpoint, classes=ClassTable(CLASSES))
    for name in ("once-symbol.json", "once-0000.params"):
        with pytest.raises(InputError, match=r"once-0000\.params: carries no class names; give --classes"):
            open_model(folder / name)
        assert open_model(folder / name, classes=ClassTable(CLASSES)).kind == "symbol"


def test_a_file_of_the_original_opens_by_model_and_classes(tmp_path):
    net = build_model("resnet18_largefov", num_classes=3, affinity="cross")
    initialize(net)
    save_params(net, tmp_path / "resnet18_largefov-0019.params")
    opened = open_model(tmp_path / "resnet18_largefov-0019.params", model="resnet18_largefov",
                        classes=ClassTable(CLASSES))
    x = mx.nd.array(np.random.RandomState(0).uniform(0, 255, (1, 3, 33, 41)))
    np.testing.assert_array_equal(opened.network(x)[0].asnumpy(), net.for_prediction()(x)[0].asnumpy())
    with pytest.raises(InputError, match="fc1_weight"):
        open_model(tmp_path / "resnet18_largefov-0019.params", model="resnet18_largefov",
                   classes=ClassTable([*CLASSES, "horse"]))
    vanilla = build_model("resnet18_largefov", num_classes=3, affinity="none")
    initialize(vanilla)
    save_params(vanilla, tmp_path / "vanilla-0019.params")
    assert open_model(tmp_path / "vanilla-0019.params", model="resnet18_largefov",
                      classes=ClassTable(CLASSES)).network(x)


def test_classes_that_contradict_the_file_are_refused(built):
    for name in ("run", "full-symbol.json", "full.onnx"):
        with pytest.raises(InputError, match="has other classes than the list that was given: class"):
            open_model(built / name, classes=ClassTable(("background", "dog", "cat")))


def test_onnx_without_metadata_asks_for_classes_and_checks_their_number(built, tmp_path):
    import onnx
    model = onnx.load(built / "once.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(InputError, match=r"bare\.onnx: carries no class names; give --classes"):
        open_model(tmp_path / "bare.onnx")
    with pytest.raises(InputError, match="has 3 classes, and 2 are named"):
        open_model(tmp_path / "bare.onnx", classes=ClassTable(CLASSES[:2]))
    assert open_model(tmp_path / "bare.onnx", classes=ClassTable(CLASSES)).metadata == {}


@pytest.mark.parametrize("name", ["run/resnet50_largefov-0001.params", "once-0000.params", "once-symbol.json",
                                  "once.onnx"])
def test_a_changed_byte_of_the_weights_is_noticed(folder, name):
    content = bytearray((folder / name).read_bytes())
    at = content.rindex(b"float") if name.endswith(".json") and b"float" in content else len(content) * 3 // 5
    content[at] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(InputError, match=name.split("/")[-1].split("-0")[0]):
        open_model(folder / name)


def test_symbol_and_parameters_of_different_exports_are_not_mixed(folder):
    shutil.copy(folder / "full-symbol.json", folder / "once-symbol.json")
    with pytest.raises(InputError,
                       match=r"once-symbol\.json: symbol_sha256: is not the symbol that was exported with "
                             r"these parameters"):
        open_model(folder / "once-0000.params")


def test_metadata_of_absurd_size_builds_nothing(folder):
    path = folder / "run" / "resnet50_largefov-0001.params.json"
    content = json.loads(path.read_text())
    for options, message in (({"units": [10 ** 9, 1, 1, 1]},
                              r"network.backbone_options.units: 1000000000 is an absurd size"),
                             ({"widths": [1] * 99}, "widths: .* is an absurd size")):
        path.write_text(
            json.dumps({**content, "network": {**content["network"], "backbone_options": options}}))
        with pytest.raises(InputError, match=message):
            open_model(folder / "run")
    path.write_text(json.dumps({**content, "network": {**content["network"], "colour": "red"}}))
    with pytest.raises(InputError, match="does not describe a segmentation network"):
        open_model(folder / "run")


def test_onnx_runs_on_the_cpu_only_and_says_what_to_install(built, monkeypatch):
    with pytest.raises(InputError, match="ONNX files run on the CPU only"):
        open_model(built / "once.onnx", ctx=mx.gpu(0))
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError,
                       match=r"need the packages onnx and onnxruntime .*pip install 'cian\[export\]'"):
        open_model(built / "once.onnx")
    with pytest.raises(InputError, match=r"pip install 'cian\[export\]'"):
        export.export_onnx(build_model("resnet50_largefov", tiny=True), built / "x", {}, Procedure(), [])


def test_weights_outside_of_an_onnx_file_are_never_read(built, tmp_path):
    import onnx
    model = onnx.load(built / "once.onnx")
    tensor = model.graph.initializer[0]
    (tmp_path / "secret").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location="secret")
    tensor.ClearField("raw_data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="keeps its values in another file, which is not read"):
        open_model(tmp_path / "m.onnx")
