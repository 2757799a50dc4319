"""onnxruntime computes what MXNet computes, and MXNet takes its place only for a reason that is told."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.params import initialize
from cian.tools.engine.models import engine

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
IMAGES = np.random.RandomState(0).uniform(0, 255, (2, 3, 57, 71)).astype(np.float32)


@pytest.fixture()
def net():
    net = build_model("resnet18_largefov", num_classes=3, affinity="self", tiny=True)
    initialize(net, 0)
    net.affinity.norm.gamma.set_data(mx.nd.ones(net.affinity.norm.gamma.shape))
    return net


@pytest.fixture(autouse=True)
def told_anew():
    engine._tell.cache_clear()


def test_both_engines_give_the_same_logits_of_any_size_and_number(net, capsys):
    name, by_mxnet = engine.start_engine(net, "mxnet", mx.cpu())
    assert name == "mxnet"
    for wanted in ("onnx", "auto"):
        name, by_onnx = engine.start_engine(net, wanted, mx.cpu())
        assert name == f"onnxruntime {ort.__version__}"
        for images in (IMAGES, IMAGES[:1, :, :40]):
            want = by_mxnet(images)
            assert want.std() > 0.01
            np.testing.assert_allclose(by_onnx(images), want, rtol=0, atol=1e-4 * np.sqrt((want ** 2).mean()))
    assert capsys.readouterr().err == ""


def broken(*_):
    raise InputError("the operator ceil has no translation to ONNX")


@pytest.mark.parametrize("place, replacement, device, reason", [
    ("import_onnx", broken, mx.cpu(), "no translation"), ("add_network", broken, mx.cpu(), "no translation"),
    ("run_session", lambda session, images, file: np.zeros((1, 3, 9, 11), np.float32), mx.cpu(),
     "differs from the live one"), ("import_onnx", engine.import_onnx, mx.gpu(1), r"the device is gpu\(1\)")])
def test_auto_falls_back_for_a_reason_told_once_and_onnx_refuses(net, monkeypatch, capsys, place, replacement,
                                                                 device, reason):
    monkeypatch.setattr(engine, place, replacement)
    for _ in range(2):
        name, network = engine.start_engine(net, "auto", device)
        assert name == "mxnet"
    if device == mx.cpu():
        assert network(IMAGES).shape == (2, 3, 8, 9)
    told, = capsys.readouterr().err.splitlines()
    assert told.startswith("predict.engine=auto takes mxnet: ")
    with pytest.raises(InputError, match=f"predict.engine: onnx cannot be used: .*{reason}.*use mxnet"):
        engine.start_engine(net, "onnx", device)
