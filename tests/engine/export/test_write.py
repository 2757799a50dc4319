"""Exported files compute what the live network computes, in MXNet, its Module and onnxruntime, and
say what they are.
"""
import json
import os
import subprocess
import sys

import mxnet as mx
import numpy as np
import onnx
import pytest
from mxnet.gluon import SymbolBlock

from cian.errors import InputError
from cian.symbols import (
    CIANLoss,
    build_model,
    configure_training,
    initialize,
    read_metadata,
    read_params,
    save_params,
)
from cian.symbols.layers import reorder_sums
from cian.tools.engine.config import LossConfig
from cian.tools.engine.export import write as export
from cian.tools.engine.export.write import (
    Procedure,
    export_network,
    export_onnx,
    export_symbol,
    export_training,
)
from cian.tools.engine.models.agreement import Agreement, ExportError, compare, fitted
from cian.tools.engine.models.onnx_model import OnnxNetwork

CLASSES = ("background", "cat", "dog", "horse", "zebra")
TEST_TIME = Procedure(scales=(1.0, 0.75, 1.25), add_max=True, mirror=True)
IMAGE = (1, 3, 53, 71)


def network(model="resnet50_largefov", affinity="cross", **settings):
    net = build_model(model, tiny=True, num_classes=len(CLASSES), affinity=affinity, **settings)
    initialize(net, seed=5, zero_gamma=False)
    for name, param in net.collect_params().items():
        if name.startswith("bn_out_moving"):  # as after training: not the identity
            param.set_data(mx.nd.random.uniform(0.2, 1.5, param.shape))
    return net


@pytest.fixture(scope="module")
def net():
    mx.random.seed(11)
    return network()


def metadata(net, **more):
    return {"network": net.settings, "classes": list(CLASSES), "config_hash": "0123456789ab", **more}


def pixels(seed=3, shape=IMAGE):
    return np.random.RandomState(seed).uniform(0, 255, shape).astype(np.float32)


@pytest.mark.parametrize("procedure",
                         [Procedure(), TEST_TIME, Procedure(resolution="stride8", output="probabilities")],
                         ids=["one pass", "test time", "probabilities at stride 8"])
def test_a_symbol_gives_the_live_outputs_for_any_size_and_batch(net, tmp_path, procedure):
    agreement = export_symbol(net.for_prediction(), tmp_path / "m", metadata(net), procedure, [pixels()])
    assert agreement.relative_error <= 1e-5 and agreement.label_agreement == 1
    block = SymbolBlock.imports(str(tmp_path / "m-symbol.json"), ["data"], str(tmp_path / "m-0000.params"))
    live = procedure.network(net.for_prediction())
    for shape in (IMAGE, (3, 3, 40, 97)):
        images = mx.nd.array(pixels(shape=shape))
        got = block(images).asnumpy()
        size = shape[2:] if procedure.resolution == "input" else tuple((side - 1) // 8 + 1
                                                                       for side in shape[2:])
        assert got.shape == (shape[0], len(CLASSES), *size)
        np.testing.assert_allclose(got, live(images).asnumpy(), rtol=1e-4, atol=1e-5)
    if procedure.output == "probabilities":
        np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)


def test_a_symbol_loads_in_module_under_the_names_of_the_checkpoint(net, tmp_path):
    save_params(net, tmp_path / "checkpoint.params")
    export_symbol(net.for_prediction(), tmp_path / "m", metadata(net), Procedure(), [pixels()])
    symbol, arg_params, aux_params = mx.model.load_checkpoint(str(tmp_path / "m"), 0)
    module = mx.mod.Module(symbol, data_names=["data"], label_names=None)
    module.bind([("data", IMAGE)], for_training=False)
    module.set_params(arg_params, aux_params, allow_missing=False, allow_extra=False)
    module.forward(mx.io.DataBatch([mx.nd.array(pixels())]), is_train=False)
    live = Procedure().network(net.for_prediction())(mx.nd.array(pixels()))
    np.testing.assert_allclose(module.get_outputs()[0].asnumpy(), live.asnumpy(), rtol=1e-4, atol=1e-5)
    assert module.output_names == ["logits_output"]
    arguments, states = read_params(tmp_path / "checkpoint.params")
    assert set(arg_params) == set(arguments) and set(aux_params) == set(states)


def test_a_network_that_a_trainer_has_reordered_is_exported_as_it_is_written(net, tmp_path):
    def operators(reordered):
        found = []
        for export_one, name, more in ((export_symbol, "a-symbol.json", Procedure()),
                                       (export_onnx, "a.onnx", Procedure()),
                                       (export_training, "a-train-symbol.json", LossConfig())):
            exported = net if export_one is export_training else net.for_prediction()
            reorder_sums(exported, reordered)
            export_one(exported, tmp_path / "a", metadata(net), more, [pixels()])
            path = tmp_path / name
            nodes = onnx.load(path).graph.node if name.endswith(".onnx") else json.loads(
                path.read_text())["nodes"]
            found.append([getattr(node, "op_type", None) or node["op"] for node in nodes])
        return found

    assert operators(True) == operators(False)


@pytest.mark.parametrize("labels", ["seed", "image"])
def test_the_training_symbol_has_the_losses_gradients_in_module(net, tmp_path, labels):
    configure_training(net)
    export_training(net, tmp_path / "m", metadata(net), LossConfig(completion_labels=labels), [pixels()])
    symbol, arg_params, aux_params = mx.model.load_checkpoint(str(tmp_path / "m-train"), 0)
    rng = np.random.RandomState(1)
    data, seeds = mx.nd.array(pixels(shape=(4, 3, 49, 41))), mx.nd.array(rng.randint(0, 6, (4, 7, 6)))
    image_labels = mx.nd.array(rng.randint(0, 2, (4, 5)))
    inputs = {"seed_label": seeds, **({"image_labels": image_labels} if labels == "image" else {})}
    module = mx.mod.Module(symbol, data_names=["data"], label_names=list(inputs))
    module.bind([("data", data.shape)], [(name, array.shape) for name, array in inputs.items()],
                for_training=True)
    module.set_params(arg_params, aux_params)
    module.forward(mx.io.DataBatch([data], list(inputs.values())), is_train=True)
    loss, logits_self, logits_cross = module.get_outputs()
    module.backward()
    with mx.autograd.record():
        outputs = net(data)
        total, _ = CIANLoss(len(CLASSES), completion_labels=labels)(outputs, seeds, image_labels)
    total.backward()
    np.testing.assert_allclose(loss.asnumpy(), total.asnumpy(), rtol=1e-5)
    for got, want in zip((logits_self, logits_cross), outputs):
        np.testing.assert_allclose(got.asnumpy(), want.asnumpy(), rtol=1e-3, atol=1e-4)
    gradients = dict(zip(module._exec_group.param_names,
                         (arrays[0] for arrays in module._exec_group.grad_arrays)))
    for name, param in net.collect_params().items():
        if param.grad_req != "null":
            want = param.grad().asnumpy()
            assert np.abs(gradients[name].asnumpy() - want).max() <= 1e-4 * max(np.abs(want).max(),
                                                                                1e-6), name
    assert sorted(name for name, param in net.collect_params().items() if param.grad_req == "null"
                  and param._differentiable) == read_metadata(
        tmp_path / "m-train-0000.params")["export"]["fixed_param_names"]
    multipliers = symbol.attr_dict()
    assert float(multipliers["fc1_weight"]["__lr_mult__"]) == 10 and float(
        multipliers["bn_out_beta"]["__wd_mult__"]) == 0


def test_the_training_symbol_takes_its_loss_from_the_checkpoint(net, tmp_path):
    described = metadata(net, config={"loss.completion": True, "loss.completion_target": "own",
                                      "loss.completion_labels": "image", "train.lr_mult_new": 7.0,
                                      "train.freeze": ["conv0_"]})
    export_network("training", net, tmp_path / "m", described, Procedure(),
                   loss=LossConfig(normalise="image"))
    recorded = read_metadata(tmp_path / "m-train-0000.params")["export"]
    assert "conv0_weight" in recorded["fixed_param_names"]
    assert mx.sym.load(
        str(tmp_path / "m-train-symbol.json")).attr_dict()["fc1_weight"]["__lr_mult__"] == "7.0"
    assert recorded["loss"] == {"completion": True, "completion_target": "own", "completion_labels": "image",
                                "normalise": "image"}


@pytest.mark.parametrize("affinity", ["self", "none"])
def test_networks_of_one_branch_export_their_training_symbol(tmp_path, affinity):
    net = network(affinity=affinity)
    export_training(net, tmp_path / "m", metadata(net), LossConfig(completion=False), [pixels()])
    assert mx.sym.load(str(tmp_path / "m-train-symbol.json")).list_outputs() == ["loss_output",
                                                                                 "logits_output"]


@pytest.mark.parametrize("model", ["resnet50_largefov", "resnet101_largefov", "vgg16_largefov",
                                   "efficientnet_lite0_largefov"])
def test_onnx_of_every_backbone_agrees_for_any_size(tmp_path, model):
    pytest.importorskip("onnxruntime")
    net = network(model)
    agreement = export_onnx(net.for_prediction(), tmp_path / "m", metadata(net), TEST_TIME, [pixels()])
    assert agreement.relative_error <= 1e-4 and agreement.label_agreement >= 0.9999
    exported, live = OnnxNetwork(tmp_path / "m.onnx"), TEST_TIME.network(net.for_prediction())
    for shape in (IMAGE, (2, 3, 64, 33)):
        want = live(mx.nd.array(pixels(shape=shape))).asnumpy()
        assert np.abs(exported(pixels(shape=shape)) - want).max() <= 1e-4 * np.sqrt((want ** 2).mean())


def test_onnx_of_a_fixed_size_says_so_and_takes_no_other(net, tmp_path):
    pytest.importorskip("onnxruntime")
    export_network("onnx", net, tmp_path / "m", metadata(net), Procedure(size_px=57, resolution="stride8"))
    exported = OnnxNetwork(tmp_path / "m.onnx")
    assert exported.image_shape == (1, 57, 57) and exported.metadata["export"]["size_px"] == 57
    assert exported(pixels(shape=(1, 3, 57, 57))).shape == (1, 5, 8, 8)
    with pytest.raises(InputError, match=r"m\.onnx: was exported for 1 x 57 x 57 .*not 1 of 49x57"):
        exported(pixels(shape=(1, 3, 49, 57)))


def test_files_carry_classes_preprocessing_hash_versions_and_procedure(net, tmp_path):
    onnx = pytest.importorskip("onnx")
    export_symbol(net.for_prediction(), tmp_path / "m", metadata(net), TEST_TIME, [pixels()])
    export_onnx(net.for_prediction(), tmp_path / "m", metadata(net), TEST_TIME, [pixels()])
    model = onnx.load(tmp_path / "m.onnx")
    in_onnx = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    for found in (read_metadata(tmp_path / "m-0000.params"), in_onnx):
        assert found["classes"] == list(CLASSES)
        assert found["preprocessing"] == {"channels": "RGB", "range": [0, 255], "layout": "NCHW",
                                          "normalisation": "inside the network"}
        assert found["config_hash"] == "0123456789ab" and found["versions"]["mxnet"] == mx.__version__
        assert (found["export"]["scales"], found["export"]["output"],
                found["export"]["mirror"]) == ([1.0, 0.75, 1.25], "logits", True)
    assert in_onnx["export"]["opset"] == model.opset_import[0].version == 13


def test_what_differs_from_the_live_network_is_not_written(net, tmp_path, monkeypatch):
    wrong = {}

    def disturbed(block, **images):
        run = original(block)
        wrong.setdefault("calls", []).append(block)
        return (lambda x: run(x) * 1.001) if len(wrong["calls"]) == 2 else run
    original = export.as_numpy
    monkeypatch.setattr(export, "as_numpy", disturbed)
    with pytest.raises(ExportError, match="differs from the live one, and is not used"):
        export_symbol(net.for_prediction(), tmp_path / "m", metadata(net), Procedure(), [pixels()])
    assert os.listdir(tmp_path) == []


def test_agreement_counts_errors_and_labels():
    want = np.zeros((1, 2, 100, 100), np.float32)
    want[:, 0] = 1
    near = want + np.float32(2e-5)
    assert compare(lambda x: want, lambda x: near,
                   [None]) == Agreement(1, pytest.approx(2e-5 / np.sqrt(0.5), rel=0.01), 1.0)
    tied = np.full_like(want, 1) + np.arange(2, dtype=np.float32)[None, ::-1, None, None] * 1e-6
    flipped = tied.copy()
    flipped[0, 1, 0, :2] += 2e-6
    with pytest.raises(ExportError, match=r"99\.9800 % of labels"):
        compare(lambda x: tied, lambda x: flipped, [None])
    with pytest.raises(ExportError, match="shape"):
        compare(lambda x: want, lambda x: want[..., :50], [None])
    with pytest.raises(ExportError, match="nan"):
        compare(lambda x: want, lambda x: want * np.nan, [None])


def test_pictures_are_compared_as_they_are_or_warped_to_a_fixed_size():
    picture = np.random.RandomState(0).randint(0, 256, (20, 30, 3), np.uint8)
    assert (fitted(picture, 0)[0].transpose(1, 2, 0) == picture).all()
    assert fitted(picture, 17).shape == (1, 3, 17, 17)


def test_an_export_never_overwrites_a_checkpoint_but_itself(net, tmp_path):
    save_params(net, tmp_path / "m-0000.params", metadata(net))
    before = (tmp_path / "m-0000.params").read_bytes()
    with pytest.raises(InputError, match="is no exported file, and would be overwritten"):
        export_symbol(net.for_prediction(), tmp_path / "m", metadata(net), Procedure(), [pixels()])
    assert (tmp_path / "m-0000.params").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    for _ in range(2):
        export_symbol(net.for_prediction(), tmp_path / "other", metadata(net), Procedure(), [pixels()])


def test_unknown_formats_and_settings_are_named(net, tmp_path):
    with pytest.raises(InputError, match="no format 'tflite'.*symbol, onnx, training"):
        export_network("tflite", net, tmp_path / "m", metadata(net), Procedure())
    with pytest.raises(InputError, match="resolution: 'half' is not allowed"):
        export_network("symbol", net, tmp_path / "m", metadata(net), Procedure(resolution="half"))


ORIGINAL = """
import sys, cian, mxnet as mx, numpy as np
sys.path.insert(0, sys.argv[1])
from lib.models.cian_models import resnet50_largefov_SA
from lib.utils.mxnet_tools import loadParams
symbol = resnet50_largefov_SA(mx.sym.var('data'), 5, use_global_stats_backbone=True)
module = mx.mod.Module(symbol, data_names=['data'], label_names=None)
pixels = np.load('pixels.npy')
module.bind([('data', pixels.shape)], for_training=False)
module.init_params(None, *loadParams(sys.argv[2]), allow_missing=False, allow_extra=False)
module.forward(mx.io.DataBatch([mx.nd.array(pixels)]), is_train=False)
np.save('logits.npy', module.get_outputs()[0].asnumpy())
"""


@pytest.mark.original
@pytest.mark.skipif(not os.environ.get("CIAN_ORIGINAL"),
                    reason="CIAN_ORIGINAL does not name a checkout of the original code")
@pytest.mark.parametrize("name", ["m-0000.params", "m-train-0000.params"])
def test_the_originals_module_loads_the_exported_parameters_and_gives_the_same_logits(tmp_path, name):
    net = build_model("resnet50_largefov", num_classes=len(CLASSES))
    initialize(net, zero_gamma=False)
    procedure = Procedure(resolution="stride8")
    for kind in ("symbol", "training"):
        export_network(kind, net, tmp_path / "m", metadata(net), procedure,
                       pictures=[np.zeros((41, 33, 3), np.uint8)])
    np.save(tmp_path / "pixels.npy", pixels())
    done = subprocess.run([sys.executable, "-c", ORIGINAL, os.environ["CIAN_ORIGINAL"], name], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    want = procedure.network(net.for_prediction())(mx.nd.array(pixels())).asnumpy()
    assert np.abs(np.load(tmp_path / "logits.npy") - want).max() <= 1e-4 * np.sqrt((want ** 2).mean())
