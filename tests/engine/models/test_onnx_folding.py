"""Folded graphs compute what MXNet computes, borders too, without the operations that were folded."""
import mxnet as mx
import numpy as np
import pytest

from cian.symbols.cian import build_model
from cian.symbols.params import initialize
from cian.tools.engine.models import engine

pytest.importorskip("onnxruntime")
IMAGES = np.random.RandomState(0).uniform(0, 255, (2, 3, 57, 71)).astype(np.float32)


@pytest.mark.parametrize("model, embed, folded", [
    ("resnet18_largefov", 40, True), ("vgg16_largefov", 40, True), ("resnet18_largefov", 20, False)])
def test_messages_are_folded_where_that_is_less_work(monkeypatch, model, embed, folded):
    net = build_model(model, num_classes=3, affinity="self", embed_channels=embed, tiny=True)
    initialize(net, 0)
    random = np.random.RandomState(0)
    for param in net.affinity.norm.collect_params().values():
        param.set_data(mx.nd.array(random.uniform(0.5, 2, param.shape)))
    graphs = []
    make = engine.make_onnx
    monkeypatch.setattr(engine, "make_onnx", lambda *args, **kwargs: graphs.append(make(*args, **kwargs)) or
                        graphs[-1])
    (_, by_mxnet), (_, by_onnx) = (engine.start_engine(net, wanted, mx.cpu()) for wanted in ("mxnet", "onnx"))
    want, got = by_mxnet(IMAGES), by_onnx(IMAGES)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.sqrt((want ** 2).mean()))
    made = graphs[0].graph
    assert folded != any(node.name == "conv_out_fwd" for node in made.node)
    used = {name for node in made.node for name in node.input}
    assert {tensor.name for tensor in made.initializer} <= used
    assert used <= {"images", "", *(tensor.name for tensor in made.initializer),
                    *(name for node in made.node for name in node.output)}
