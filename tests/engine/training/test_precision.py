"""What can be said of mixed precision without a GPU: who may use it, which types the graph has, and
how the scaled loss is undone.
"""
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from mxnet.contrib.amp import amp

from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.losses import CIANLoss
from cian.symbols.params import configure_training, initialize
from cian.tools.engine.config import Config
from cian.tools.engine.training.round import fit
from cian.tools.engine.training.step import NotFinite, Trainer

CLASSES = 5


def batch(seed, broken=False):
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (4, 3, 33, 33)).astype(np.float32)
    if broken:
        # MXNet's ReLU makes 0 of it, so the loss is finite and the gradient is not
        pixels[1, 2, 3, 4] = np.nan
    seeds = mx.nd.array(rng.choice([0, 1, 2, 4, 255], (4, 5, 5)), dtype=np.float32)
    return [mx.io.DataBatch(data=[mx.nd.array(pixels)], label=[seeds, mx.nd.ones((4, CLASSES))],
                            index=np.arange(4))]


def make_trainer(mixed):
    net = build_model("resnet18_largefov", tiny=True, num_classes=CLASSES)
    initialize(net, 3, zero_gamma=False)
    configure_training(net)
    return Trainer(net, CIANLoss(CLASSES), [mx.cpu()], Config().train, mixed=mixed)


@pytest.fixture
def amp_without_casts(monkeypatch):
    """AMP's scaling of the loss alone: its casts cannot be taken back in a process, and CPUs have
    no float16 convolution.
    """
    monkeypatch.setattr(amp, "_amp_initialized", True)
    monkeypatch.setattr(amp, "_amp_loss_scale_initialized", True)


@pytest.mark.parametrize("run, field",
                         [({"precision": "mixed"}, "run.precision"), ({"pinned": True}, "run.pinned")])
def test_what_is_for_gpus_is_refused_on_cpus_before_anything_is_done(tmp_path, run, field):
    with pytest.raises(InputError, match=rf"{field}: is for GPUs only, and the devices are cpu\(0\)"):
        fit(Config().replace(run={"snapshot": str(tmp_path / "run"), **run}))
    assert not (tmp_path / "run").exists()


def test_the_precision_is_part_of_the_hash_only_where_it_is_not_the_usual_one():
    usual, mixed = Config(), Config().replace(run={"precision": "mixed"})
    assert "run.precision" not in usual.hashed_keys(["run"]) and mixed.hashed_keys(
        ["run"])["run.precision"] == "mixed"
    assert usual.hash() != mixed.hash() and usual.hash() == Config().replace(run={"pinned": True}).hash()


def test_scaling_the_loss_by_a_power_of_two_changes_no_bit(amp_without_casts):
    plain, scaled = make_trainer(False), make_trainer(True)
    for number in range(3):
        assert plain.step(batch(number), 0.01, number) == scaled.step(batch(number), 0.01, number)
    one, other = plain.state_dict(), scaled.state_dict()
    assert all(value.tobytes() == other["parameters"][name].tobytes()
               for name, value in one["parameters"].items())
    ratio = scaled.optimiser.gradients()["fc1_weight"] / plain.optimiser.gradients()["fc1_weight"]
    assert (ratio.asnumpy()[np.isfinite(ratio.asnumpy())] == 2.0 ** 16).all()


def test_a_step_whose_gradients_overflow_is_left_out_at_a_falling_scale_and_not_for_ever(amp_without_casts):
    trainer = make_trainer(True)
    trainer.step(batch(0), 0.01, 0)
    before = trainer.state_dict()["parameters"]
    for number in range(1, 4):
        trainer.step(batch(number, broken=True), 0.01, number)
    after = trainer.state_dict()["parameters"]
    assert all(value.tobytes() == after[name].tobytes() for name, value in before.items())
    assert trainer._scaler._next_loss_scale == 2.0 ** 13
    with pytest.raises(NotFinite, match="not finite in float16"):
        for number in range(4, 40):
            trainer.step(batch(number, broken=True), 0.01, number)


TYPES = """
import cian, mxnet as mx, numpy as np
from mxnet.contrib import amp
amp.init()
from cian.symbols import CIANLoss, build_model, configure_training
net = build_model("resnet18_largefov", tiny=True, num_classes=5)
data, seeds = mx.sym.var("data", dtype="float32"), mx.sym.var("seed_label", dtype="float32")
branches = net(data)
total, counts = CIANLoss(5)(branches, seeds, mx.sym.var("image_labels"))
graph = mx.sym.Group([total, counts, *branches])
inputs, outputs, states = graph.infer_type(data="float32", seed_label="float32")
assert all(kind == np.float32 for kind in inputs + states), "parameters"
assert [np.dtype(kind).name for kind in outputs] == ["float32"] * 2 + ["float16"] * 2, outputs
internals = graph.get_internals()
kinds = dict(zip(internals.list_outputs(), internals.infer_type(data="float32", seed_label="float32")[1]))
products = [name for name in kinds if name.endswith("fwd_output") and "conv" in name]
assert len(products) > 10
assert all(kinds[name] == np.float16 for name in products), {name: kinds[name] for name in products}
softmax = [name for name in kinds if "softmax" in name and name.endswith("output") and "amp" not in name]
assert softmax and all(kinds[name] == np.float32 for name in softmax), softmax
print("types agree")
"""


def test_a_mixed_graph_multiplies_in_float16_and_keeps_parameters_softmax_and_loss_in_float32():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TYPES], capture_output=True, text=True,
                          timeout=120)
    assert done.stdout.strip() == "types agree", done.stderr[-2000:]
