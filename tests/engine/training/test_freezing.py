"""Frozen layers cost no backward pass, and what still trains takes the same values to the last bit."""
import json

import mxnet as mx
import numpy as np
import pytest

from cian.symbols.cian import build_model
from cian.symbols.layers import constant_parts
from cian.symbols.losses import CIANLoss
from cian.symbols.params import configure_training, initialize
from cian.tools.engine.config import Config
from cian.tools.engine.models.features import Below
from cian.tools.engine.training.step import Trainer

CLASSES, SIDE, MAP = 5, 33, 5
FIRST_STAGES = ("conv0_", "stage1_", "stage2_")
BACKBONE = ("conv0_", "stage")


def batch(seed):
    rng = np.random.RandomState(seed)
    pixels = mx.nd.array(rng.randint(0, 256, (4, 3, SIDE, SIDE)), dtype=np.float32)
    seeds = mx.nd.array(rng.choice([0, 1, 2, 4, 255], (4, MAP, MAP)), dtype=np.float32)
    return [mx.io.DataBatch(data=[pixels], label=[seeds, mx.nd.ones((4, CLASSES))], index=np.arange(4))]


def make_trainer(frozen=(), ignored=(), **options):
    """``frozen`` have no gradients; those of ``ignored`` are computed, and thrown away by a speed of 0."""
    net = build_model("resnet18_largefov", tiny=True, num_classes=CLASSES)
    initialize(net, 3, zero_gamma=False)
    configure_training(net, freeze=frozen)
    for name, param in net.collect_params().items():
        if ignored and name.startswith(ignored):
            param.lr_mult = 0.0
    return Trainer(net, CIANLoss(CLASSES), [mx.cpu()], Config().train, **options)


@pytest.mark.parametrize("frozen", [(*FIRST_STAGES, "stage3_"), BACKBONE], ids=["three stages", "all"])
def test_training_on_features_is_training_on_their_images_bit_for_bit(frozen):
    pixels, features = make_trainer(frozen), make_trainer(frozen, stored=True)
    backbone = make_trainer(frozen).net.backbone
    below = Below(backbone, constant_parts(backbone), mx.cpu())
    for number in range(3):
        part, = batch(number)
        given = mx.io.DataBatch(data=[below.net(part.data[0])], label=part.label, index=part.index)
        assert given.data[0].shape[1:] == (below.channels, MAP, MAP)
        assert features.step([given], 0.01, number) == pixels.step([part], 0.01, number)
    for kind in ("parameters", "moving"):
        for one, other in zip(*([state[kind]] if kind == "parameters" else state[kind]
                                for state in (pixels.state_dict(), features.state_dict()))):
            assert all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("frozen", [FIRST_STAGES, BACKBONE], ids=["the first stages", "the whole backbone"])
def test_training_beside_frozen_layers_is_that_which_ignores_their_gradients_bit_for_bit(frozen):
    cheap, dear = make_trainer(frozen=frozen), make_trainer(ignored=frozen)
    start = {name: param.data().asnumpy() for name, param in cheap.net.collect_params().items()}
    for number in range(3):
        assert cheap.step(batch(number), 0.01, number) == dear.step(batch(number), 0.01, number)
    one, other = cheap.state_dict(), dear.state_dict()
    for kind in ("parameters", "moving"):
        values, expected = (state[kind][0] if kind == "moving" else state[kind] for state in (one, other))
        for name, value in values.items():
            assert value.tobytes() == expected[name].tobytes(), name
    changed = {name for name, value in one["parameters"].items() if not np.array_equal(value, start[name])}
    assert "fc1_weight" in changed and not any(name.startswith(frozen) for name in changed)
    # there was something to ignore
    assert all(np.abs(dear.optimiser.gradients()[name].asnumpy()).max() > 0
               for name in dear.optimiser.gradients() if name.startswith(frozen) and name.endswith("_weight"))


def backward_convolutions(trainer, folder):
    """How many convolutions a step differentiates, by MXNet's profiler."""
    for block in (trainer.net, trainer._branches):
        if block is not None:
            # else they share a name
            block.hybridize(static_alloc=True, static_shape=True, forward_bulk_size=1, backward_bulk_size=1)
    trainer.step(batch(0), 0.01, 0)
    mx.nd.waitall()
    # written as the process ends
    mx.profiler.set_config(profile_all=True, aggregate_stats=True, filename=str(folder / "profile.json"))
    mx.profiler.set_state("run")
    trainer.step(batch(1), 0.01, 1)
    mx.nd.waitall()
    mx.profiler.set_state("stop")
    found = json.loads(mx.profiler.dumps(reset=True, format="json", sort_by="count"))
    return found["Time"]["operator"]["_backward_Convolution"]["Count"]


def test_frozen_layers_have_no_backward_pass(tmp_path):
    weights = [name for name in make_trainer().net.collect_params() if name.endswith("_weight")]
    calls = len(weights) + 1 + 1  # conv_out and fc1 are called for both branches
    for frozen in ((), FIRST_STAGES, BACKBONE):
        left = calls - sum(name.startswith(frozen) for name in weights) if frozen else calls
        assert backward_convolutions(make_trainer(frozen, reordered=False), tmp_path) == left
