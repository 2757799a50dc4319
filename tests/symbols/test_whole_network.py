"""A whole training step in NumPy, from pixels to the gradient of every parameter, independent of MXNet: what
tools/compare_original.py compares with the original code, for those who have no checkout of it."""
import mxnet as mx
import numpy as np
import pytest

from cian.symbols import IGNORE, CIANLoss, build_model, configure_training

CLASSES, SIDE = 5, 19
UNITS = (1, 2, 1, 1)
STRIDES, DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)


class Network:
    """Logits of both branches in training, in float64, from a dict of parameters by the original's names."""

    def __init__(self, reference, group_size, merge_type):
        self.reference, self.group_size, self.merge = reference, group_size, {"max": np.max,
                                                                              "avg": np.mean}[merge_type]

    def norm(self, x, values, name):
        return self.reference.normalise(x, *(
            values[f"{name}_{kind}"] for kind in ("gamma", "beta", "moving_mean", "moving_var")), eps=1e-5)

    def feature(self, values, images):
        x = self.norm(images, {**values, "bn_data_gamma": np.ones(3)}, "bn_data")
        x = np.maximum(self.norm(self.reference.convolve(x, values["conv0_weight"], stride=2), values, "bn0"),
                       0)
        x = self.reference.max_pool(x)
        for stage, (units, stride, dilation) in enumerate(zip(UNITS, STRIDES, DILATIONS), 1):
            for unit in range(1, units + 1):
                name = f"stage{stage}_unit{unit}"
                step = stride if unit == 1 else 1
                y = np.maximum(self.norm(x, values, f"{name}_bn1"), 0)
                shortcut = self.reference.convolve(y, values[f"{name}_sc_weight"],
                                                   stride=step) if unit == 1 else x
                y = self.reference.convolve(y, values[f"{name}_conv1_weight"])
                y = np.maximum(self.norm(y, values, f"{name}_bn2"), 0)
                y = self.reference.convolve(y, values[f"{name}_conv2_weight"], stride=step, dilation=dilation)
                y = np.maximum(self.norm(y, values, f"{name}_bn3"), 0)
                x = self.reference.convolve(y, values[f"{name}_conv3_weight"]) + shortcut
        return np.maximum(self.norm(x, values, "bn1"), 0)

    def messages(self, values, x):
        """Of the image itself, and merged with those of its group; both (N, E, H, W)."""
        count, _, height, width = x.shape
        query, key, value = (self.reference.convolve(x, values[f"conv_embed_{kind}_weight"])
                             for kind in "qkv")
        key, value = (self.reference.max_pool(array).reshape(count, array.shape[1], -1)
                      for array in (key, value))
        def message(shift):
            partner = (np.arange(count) + shift * count // self.group_size) % count
            scores = np.einsum("nek,neq->nkq", key[partner], query.reshape(count, query.shape[1], -1))
            return np.einsum("nek,nkq->neq", value[partner],
                             self.reference.softmax(scores, axis=1)).reshape(count, -1, height, width)
        every = [message(shift) for shift in range(self.group_size)]
        return every[0], self.merge(every, axis=0)

    def logits(self, values, images):
        """[self, cross], each (N, C, h, w)."""
        x, outputs = self.feature(values, images), []
        for message in self.messages(values, x):
            y = self.reference.convolve(message, values["conv_out_weight"])
            y = self.reference.normalise(y, values["bn_out_gamma"], values["bn_out_beta"],
                                         y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3)))
            outputs.append(self.reference.convolve(x + y, values["fc1_weight"], dilation=12))
        return outputs


def total_loss(logits, target, seeds):
    """Eq. 9 as the original computes it: each of four sums over a mean number of pixels an image;
    ``target`` is constant.
    """
    one_hot = np.moveaxis(np.arange(CLASSES) == seeds[..., None], -1, 1).astype(float)
    completion = np.moveaxis(np.arange(CLASSES) == target[..., None], -1, 1) * one_hot.max(axis=(2, 3),
                                                                                           keepdims=True)
    value = 0.0
    for branch in logits:
        shifted = branch - branch.max(axis=1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        for label in (one_hot, completion):
            value -= (logp * label).sum() / (label.sum() / len(label))
    return value


@pytest.mark.parametrize("group_size, merge_type", [(2, "max"), (3, "avg")])
def test_logits_and_every_gradient_of_a_training_step_agree_with_numpy(group_size, merge_type, reference,
                                                                       randomise):
    net = build_model("resnet50_largefov", num_classes=CLASSES, group_size=group_size, merge_type=merge_type,
                      backbone_options={"units": UNITS, "widths": (4, 8, 8, 12, 12)})
    values = {name: array.astype(np.float64) for name, array in randomise(net, 4).items()}
    configure_training(net)
    random = np.random.RandomState(1)
    images = random.randint(0, 256, (group_size * 2, 3, SIDE, SIDE)).astype(np.float32)
    seeds = random.choice([0, 1, 2, 3, IGNORE], (len(images), 3, 3)).astype(np.float32)
    numpy_net = Network(reference, group_size, merge_type)
    expected = numpy_net.logits(values, images)
    with mx.autograd.record():
        outputs = net(mx.nd.array(images))
        loss, _ = CIANLoss(CLASSES)(outputs, mx.nd.array(seeds), mx.nd.ones((len(images), CLASSES)))
    loss.backward()
    for found, wanted in zip(outputs, expected):
        np.testing.assert_allclose(found.asnumpy(), wanted, atol=1e-4 * np.abs(wanted).max())
    target = expected[1].argmax(axis=1)
    assert loss.asscalar() == pytest.approx(total_loss(expected, target, seeds), rel=1e-4)
    trained = {name: parameter
               for name, parameter in net.collect_params().items() if parameter.grad_req != "null"}
    assert len(trained) == 27
    for name, parameter in trained.items():
        gradient = parameter.grad().asnumpy().astype(np.float64)
        step = 1e-7 * np.linalg.norm(values[name]) * gradient / np.linalg.norm(gradient)
        ahead, behind = (total_loss(numpy_net.logits({**values, name: values[name] + sign * step}, images),
                                    target, seeds) for sign in (1, -1))
        assert (ahead - behind) / 2 == pytest.approx(np.vdot(gradient, step), rel=1e-3), name
