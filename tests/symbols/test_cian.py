"""The segmentation network and its settings."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import CIAN, MODELS, build_model, configure_training, initialize

RNG = np.random.RandomState(0)
CLASSES = 7


def images(count, height=23, width=31):
    return RNG.uniform(0, 255, (count, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("affinity, count", [("none", 1), ("self", 1), ("cross", 2)])
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_the_same_imperatively_hybridized_and_exported(model, affinity, count, outputs_three_ways):
    net = build_model(model, tiny=True, num_classes=CLASSES, affinity=affinity)
    initialize(net, zero_gamma=False)
    outputs = outputs_three_ways(net, images(2))
    assert [y.shape for y in outputs] == [(2, CLASSES, 3, 4)] * count


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_that_should_train_gets_a_gradient(model, randomise, gradients):
    net = build_model(model, tiny=True, num_classes=CLASSES, group_size=3, merge_type="avg")
    randomise(net)
    configure_training(net)
    found = gradients(net, images(3, 41, 43))
    assert {"conv_embed_q_weight", "conv_embed_k_weight", "conv_embed_v_weight", "conv_out_weight",
            "bn_out_gamma"} <= set(found)
    assert not [name for name, gradient in found.items() if not np.abs(gradient).max() > 0]


@pytest.mark.parametrize("affinity", ["none", "self", "cross"])
def test_the_prediction_network_shares_its_parameters(affinity, randomise):
    net = build_model("resnet50_largefov", tiny=True, num_classes=CLASSES, affinity=affinity)
    randomise(net)
    predicting = net.for_prediction()
    assert all(net.collect_params()[name] is param for name, param in predicting.collect_params().items())
    x = mx.nd.array(images(2))
    predicting.hybridize()
    outputs = predicting(x)
    assert len(outputs) == 1
    np.testing.assert_array_equal(outputs[0].asnumpy(), net(x)[0].asnumpy())
    head = net.head.weight
    head.set_data(head.data() * 2)
    np.testing.assert_allclose(predicting(x)[0].asnumpy(), 2 * outputs[0].asnumpy(), rtol=1e-5)


def test_the_prediction_network_takes_single_images():
    net = build_model("resnet18_largefov", tiny=True, num_classes=CLASSES)
    initialize(net)
    x = mx.nd.array(images(3))
    with pytest.raises(InputError, match="3 images does not split into groups of 2"):
        net(x)
    assert net.for_prediction()(x)[0].shape[0] == 3


def test_a_network_starts_as_vanilla_deeplab_when_its_output_norm_starts_at_zero():
    net = build_model("resnet50_largefov", tiny=True, num_classes=CLASSES)
    plain = build_model("resnet50_largefov", tiny=True, num_classes=CLASSES, affinity="none")
    initialize(net, seed=3)
    initialize(plain, seed=3)
    x = mx.nd.array(images(2))
    for logits in net(x):
        np.testing.assert_array_equal(logits.asnumpy(), plain(x)[0].asnumpy())
    initialize(net, seed=3, zero_gamma=False)
    assert np.abs((net(x)[1] - plain(x)[0]).asnumpy()).max() > 0


def test_settings_build_the_same_network_again():
    net = build_model("vgg16_largefov", tiny=True, num_classes=CLASSES, group_size=3, merge_type="avg",
                      merge_self=False, embed_channels=11)
    again = CIAN(**net.settings)
    assert again.settings == net.settings
    assert [(n, p.shape) for n, p in again.collect_params().items()] == [(
        n, p.shape) for n, p in net.collect_params().items()]


def test_vgg_ends_in_the_originals_fc8_and_resnet_in_its_fc1():
    vgg = build_model("vgg16_largefov", num_classes=21).collect_params()
    assert vgg["fc8_weight"].shape == (21, 1024, 1, 1) and vgg["fc8_bias"].shape == (21,)
    assert vgg["conv_embed_q_weight"].shape == (512, 1024, 1, 1)
    net = build_model("resnet101_largefov", num_classes=21)
    resnet = net.collect_params()
    assert resnet["fc1_weight"].shape == (21, 2048, 3, 3) and "fc1_bias" not in resnet
    assert net.head._kwargs["dilate"] == (12, 12)
    assert [resnet[f"conv_embed_{part}_weight"].shape for part in "qkv"] == [(1024, 2048, 1, 1)] * 3
    assert resnet["conv_out_weight"].shape == (2048, 1024, 1, 1)


def test_pictures_of_a_pair_are_of_the_same_numbers_as_the_logits(randomise):
    net = build_model("resnet50_largefov", tiny=True, num_classes=CLASSES)
    randomise(net)
    query, reference = mx.nd.array(images(1, 23, 31)), mx.nd.array(images(1, 23, 31))
    shown = net.visual(query, reference)
    own, cross = net(mx.nd.concat(query, reference, dim=0))
    np.testing.assert_allclose(shown["augmented_self"].asnumpy(), own[0].asnumpy(), atol=1e-5)
    np.testing.assert_allclose(shown["augmented_cross"].asnumpy(), cross[0].asnumpy(), atol=1e-5)
    for branch in ("self", "cross"):
        total = shown["raw"] + shown[f"residual_{branch}"]  # the head is linear
        np.testing.assert_allclose(total.asnumpy(), shown[f"augmented_{branch}"].asnumpy(), atol=1e-5)
        assert shown[f"affinity_{branch}"].shape == (2, 2, 3 * 4)


def test_pictures_take_a_reference_of_another_size(randomise):
    net = build_model("resnet50_largefov", tiny=True, num_classes=CLASSES)
    randomise(net)
    shown = net.visual(mx.nd.array(images(1, 23, 31)), mx.nd.array(images(1, 57, 41)))
    assert shown["affinity_cross"].shape == (4, 3, 12) and shown["augmented_cross"].shape == (CLASSES, 3, 4)
    plain = build_model("resnet50_largefov", tiny=True, affinity="none")
    with pytest.raises(InputError, match="no affinity maps"):
        plain.visual(mx.nd.array(images(1)), mx.nd.array(images(1)))


@pytest.mark.parametrize("settings, message",
                         [({"model": "resnet50"}, "'resnet50'.*resnet50_largefov"), (
    {"affinity": "both"}, "'both'.*none, self, cross"), ({"group_size": 1}, "at least 2"),
                          ({"num_classes": 1}, "at least one class"), ({"merge_type": "min"}, "max, avg")])
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        CIAN(**{"model": "resnet18_largefov", **settings})


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="groupsize"):
        build_model("resnet18_largefov", groupsize=3)
