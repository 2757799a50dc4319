import os
import subprocess
import sys
from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest

from cian.symbols.cian import build_model
from cian.symbols.losses import CIANLoss
from cian.symbols.params import configure_training, initialize
from cian.tools.engine.config import Config, load_config
from cian.tools.engine.training.step import NotFinite, Trainer, all_finite, learning_rate, step_seed

CLASSES, SIDE, MAP = 5, 33, 5
SETTINGS = Config().train


def make_trainer(model="resnet18_largefov", seed=3, zero_gamma=False, settings=SETTINGS, reordered=True,
                 **options):
    net = build_model(model, tiny=True, num_classes=CLASSES)
    initialize(net, seed, zero_gamma=zero_gamma)
    configure_training(net, **options)
    return Trainer(net, CIANLoss(CLASSES), [mx.cpu()], settings, reordered=reordered)


def make_batch(images=4, seed=0, side=SIDE, cells=MAP):
    rng = np.random.RandomState(seed)
    pixels = mx.nd.array(rng.randint(0, 256, (images, 3, side, side)), dtype=np.float32)
    seeds = mx.nd.array(rng.choice([0, 1, 2, 4, 255], (images, cells, cells)), dtype=np.float32)
    return [mx.io.DataBatch(data=[pixels], label=[seeds, mx.nd.ones((images, CLASSES))],
                            index=np.arange(images))]


def values(trainer):
    return {name: param.data().asnumpy() for name, param in trainer.net.collect_params().items()}


def same(left, right):
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def expected_factors(name):
    """(learning-rate multiplier, weight-decay multiplier) of the original's optimiser, None for
    what does not train.
    """
    new = name.startswith(("conv_embed_", "conv_out_", "bn_out_", "fc1_"))
    if "moving" in name or (name.endswith(("_gamma", "_beta")) and not name.startswith("bn_out_")):
        return None
    return (10.0 if new else 1.0), (0.0 if name.endswith("_beta") else 1.0)


@pytest.mark.parametrize("model", ["resnet18_largefov", "vgg16_largefov"])
def test_the_order_of_sums_leaves_what_is_learnt_as_it_is(model):
    # the classifier's dilation, 12, is within the map
    batch, gradients, losses, moving = make_batch(side=129, cells=17), {}, {}, {}
    for reordered in (True, False):
        trainer = make_trainer(model, reordered=reordered)
        losses[reordered] = trainer.step(batch, 0.01, 0)
        gradients[reordered] = {name: gradient.asnumpy()
                                for name, gradient in trainer.optimiser.gradients().items()}
        moving[reordered] = trainer.state_dict()["moving"][0]
        assert trainer.net.head.reordered == trainer.net.affinity.reordered == reordered
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)
    assert model != "resnet18_largefov" or np.abs(gradients[False]["fc1_weight"][:, :, 0, 2]).max() > 0
    for name, expected in gradients[False].items():
        # the norm's own gradients cancel: as it is written they are 1e-5 of their size off float64's
        limit = 1e-3 if name.startswith(("bn_out_", "conv_out_", "conv_embed_v_")) else 1e-4
        assert np.linalg.norm(gradients[True][name] - expected) <= limit * np.linalg.norm(expected), name
    for name, expected in moving[False].items():
        assert np.linalg.norm(moving[True][name] - expected) <= 1e-5 * np.linalg.norm(expected), name


@pytest.mark.parametrize("images, folds", [(2, False), (4, True)])
def test_residuals_are_folded_only_where_a_batch_has_pixels_enough(images, folds):
    trainer = make_trainer()
    assert trainer.net.affinity.out._in_channels == 10
    trainer.step(make_batch(images=images), 0.01, 0)  # 25 pixels an image
    graph = trainer.net._cached_graph[1].get_internals().list_outputs()
    assert any(name.startswith("one_hot") for name in graph) == folds


def test_three_steps_are_sgd_with_momentum_decay_and_speed_by_parameter():
    trainer, batch, momentum = make_trainer(), make_batch(images=4), {}
    for number, rate in enumerate((0.013, 0.011, 0.007)):
        before = values(trainer)
        trainer.step(batch, rate, number)
        gradients, after = trainer.optimiser.gradients(), values(trainer)
        for name, old in before.items():
            factors = expected_factors(name)
            if factors is None:
                assert name not in gradients
                if not name.startswith("bn_out_moving"):
                    np.testing.assert_array_equal(after[name], old, err_msg=name)
                continue
            step = gradients[name].asnumpy() / 4 + SETTINGS.weight_decay * factors[1] * old
            momentum[name] = SETTINGS.momentum * momentum.get(name, 0) - rate * factors[0] * step
            np.testing.assert_allclose(after[name], old + momentum[name], rtol=1e-5, atol=1e-7, err_msg=name)
            np.testing.assert_allclose(trainer.optimiser.momentum()[name], momentum[name], rtol=1e-4,
                                       atol=1e-7, err_msg=name)
    assert trainer.optimiser.momentum().keys() == momentum.keys()


def test_the_options_of_speed_decay_and_freezing_are_obeyed():
    trainer = make_trainer(lr_mult_new=3.0, decay_beta=True, freeze=("stage1_", "conv0_"))
    before = values(trainer)
    trainer.step(make_batch(), 0.01, 0)
    after, gradients = values(trainer), trainer.optimiser.gradients()
    assert not any(name.startswith(("stage1_", "conv0_")) for name in gradients)
    np.testing.assert_array_equal(before["stage1_unit1_conv1_weight"], after["stage1_unit1_conv1_weight"])
    for name, speed in (("fc1_weight", 3.0), ("bn_out_beta", 3.0), ("stage2_unit1_conv1_weight", 1.0)):
        step = gradients[name].asnumpy() / 4 + SETTINGS.weight_decay * before[name]
        np.testing.assert_allclose(after[name], before[name] - 0.01 * speed * step, rtol=1e-5, atol=1e-8,
                                   err_msg=name)


def test_statistics_of_the_output_batch_norm_move_twice_a_step_and_are_there_after_a_step():
    trainer = make_trainer()
    before = values(trainer)["bn_out_moving_var"]
    trainer.step(make_batch(), 0.0, 0)
    after = trainer.state_dict()["moving"][0]["bn_out_moving_var"]
    # 0.81 old + 0.09 cross + 0.1 self, both at least 0
    assert (after < before).all() and (after >= 0.81 * before * (1 - 1e-6)).all()


def test_a_step_returns_the_losses_value_and_counts_of_pixels():
    trainer, batch = make_trainer(zero_gamma=True), make_batch()
    found = trainer.step(batch, 0.0, 0)
    labels = batch[0].label[0].asnumpy()
    assert found["pixels"] == labels.size and found["labelled_pixels"] == (labels != 255).sum()
    assert found["seed_self"] == pytest.approx(found["seed_cross"], rel=1e-5)  # the module adds nothing yet
    logits = trainer.net(batch[0].data[0])[0].asnumpy().astype(np.float64)
    logp = logits - logits.max(1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    mask = labels != 255
    picked = np.take_along_axis(logp, np.where(mask, labels, 0).astype(int)[:, None], 1)[:, 0]
    assert found["seed_self"] == pytest.approx(-(picked * mask).sum() / (mask.sum() / len(labels)), rel=1e-4)


@pytest.mark.parametrize("where, message", [("loss", "seed_self is nan"), (
    "pixel", "the gradient of conv0_weight is not finite"), ("gradient", "the gradient of .* is not finite")])
def test_what_is_not_finite_stops_the_step_and_changes_no_parameter(where, message):
    trainer, batch = make_trainer(), make_batch()
    trainer.step(batch, 0.001, 0)
    if where == "loss":
        trainer.net.collect_params()["fc1_weight"].data()[0, 0, 1, 1] = np.nan
    elif where == "pixel":
        batch[0].data[0][1, 2, 3, 4] = np.nan  # MXNet's ReLU makes 0 of it, so the loss is finite
    else:
        trainer.loss = _SteepLoss()
    before = values(trainer)
    with pytest.raises(NotFinite, match=message):
        trainer.step(batch, 0.001, 1)
    after = trainer.state_dict()["parameters"]
    assert all(after[name].tobytes() == before[name].tobytes() for name in after)


class _SteepLoss(mx.gluon.HybridBlock):
    """Finite, with a gradient that is not: the square root of 0."""

    def hybrid_forward(self, F, outputs, *_):
        return F.sqrt(F.sum(outputs[0]) * 0), F.zeros((8,))


def test_finiteness_is_asked_of_every_value():
    good, bad = mx.nd.ones((2, 3)), mx.nd.array([[1, np.inf]])
    assert all_finite([good, good]) and not all_finite([good,
                                                        bad]) and not all_finite([mx.nd.array([np.nan])])
    trainer = make_trainer()
    assert trainer.parameters_finite()
    trainer.net.collect_params()["bn_out_moving_mean"].data()[1] = np.nan
    assert not trainer.parameters_finite()


def test_a_trainer_goes_on_from_its_state_bit_for_bit():
    one = make_trainer()
    for number in range(3):
        one.step(make_batch(seed=number), 0.01, number)
    state = one.state_dict()
    two = make_trainer(seed=99)
    two.load_state_dict(state)
    for number in range(3, 5):
        assert one.step(make_batch(seed=number), 0.01, number) == two.step(make_batch(seed=number), 0.01,
                                                                           number)
    one_end, two_end = one.state_dict(), two.state_dict()
    assert all(same(one_end[key], two_end[key])
               for key in ("parameters", "momentum")) and same(one_end["moving"][0], two_end["moving"][0])


def test_dropout_depends_on_seed_and_step_alone():
    def losses(seed, numbers):
        trainer = make_trainer("vgg16_largefov", settings=replace(SETTINGS, seed=seed))
        return [trainer.step(make_batch(), 0.0, number)["seed_self"] for number in numbers]

    first = losses(0, (7, 8, 7))
    assert first[0] == first[2] != first[1]
    assert losses(0, (7,)) == first[:1]
    assert losses(1, (7,)) != first[:1]
    assert step_seed(0, 1) != step_seed(1, 0)


def test_the_learning_rate_decays_by_epochs_as_the_original_or_by_iterations():
    by_epoch = load_config(overrides=["train.epochs=20", "train.lr=5e-4"]).train
    for epoch in (0, 7, 19):
        assert learning_rate(by_epoch, epoch, 3, 11) == learning_rate(by_epoch, epoch, 0,
                                                                      11) == 5e-4 * (1 - epoch / 20) ** 0.9
    by_iteration = replace(by_epoch, lr_decay="iteration")
    assert learning_rate(by_iteration, 7, 0, 11) == learning_rate(by_epoch, 7, 0, 11)
    assert learning_rate(by_iteration, 7, 5, 11) == pytest.approx(5e-4 * (1 - (7 + 5 / 11) / 20) ** 0.9,
                                                                  rel=1e-12)


TWO_DEVICES = """
from cian.tools.engine.devices import parse_devices
contexts = parse_devices(("cpu:0", "cpu:1"))
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, mxnet as mx
from cian.symbols.params import named_values
from cian.tools.engine.training.step import network_values
from test_step import *

def two(number):
    return [mx.io.DataBatch(data=[a.as_in_context(c) for a in b.data],
                            label=[a.as_in_context(c) for a in b.label], index=b.index)
            for c, b in zip(contexts, (make_batch(seed=2 * number)[0], make_batch(seed=2 * number + 1)[0]))]

def trainer_on(contexts):
    net = build_model("resnet18_largefov", tiny=True, num_classes=CLASSES)
    initialize(net, 3, zero_gamma=False, ctx=contexts)
    configure_training(net)
    return Trainer(net, CIANLoss(CLASSES), contexts, SETTINGS)

both, alone = trainer_on(contexts), make_trainer()
found = both.step(two(0), 0.0, 0)
parts, sums = [], {}
for seed in (0, 1):
    parts.append(alone.step(make_batch(seed=seed), 0.0, 0))
    for name, gradient in alone.optimiser.gradients().items():
        sums[name] = sums.get(name, 0) + gradient.asnumpy()
for name in found:
    assert abs(found[name] - parts[0][name] - parts[1][name]) < 1e-4, name
for name, gradient in both.optimiser.gradients().items():
    np.testing.assert_allclose(gradient.asnumpy(), sums[name], rtol=1e-4, atol=1e-5, err_msg=name)
again = trainer_on(contexts)
for number in range(1, 4):
    both.step(two(number), 0.01, number)
again.load_state_dict(both.state_dict())
for number in range(4, 6):
    assert both.step(two(number), 0.01, number) == again.step(two(number), 0.01, number)
one, other = both.state_dict(), again.state_dict()
assert same(one["parameters"], other["parameters"]) and same(one["momentum"], other["momentum"])
assert all(same(a, b) for a, b in zip(one["moving"], other["moving"]))
assert not same(one["moving"][0], one["moving"][1])  # each device has its own
assert same(network_values(one), named_values(both.net))
for name, param in both.net.collect_params().items():
    if "moving" not in name:
        first, second = (copy.asnumpy() for copy in param.list_data())
        assert first.tobytes() == second.tobytes(), name
print("two devices agree")
"""


def test_two_devices_add_up_gradients_keep_equal_copies_and_go_on_from_their_state():
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", TWO_DEVICES, os.path.dirname(__file__)],
                            capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "two devices agree", result.stderr
