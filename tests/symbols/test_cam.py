"""The CAM classifier."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import BACKBONES, CAMClassifier, configure_training, initialize
from cian.symbols.backbones import TINY

X = np.random.RandomState(0).uniform(0, 255, (2, 3, 23, 31)).astype(np.float32)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_are_the_means_of_the_maps(backbone, outputs_three_ways):
    net = CAMClassifier(backbone, 5, TINY[backbone])
    initialize(net)
    logits, = outputs_three_ways(net, X)
    maps = net.maps()(mx.nd.array(X)).asnumpy()
    assert logits.shape == (2, 5) and maps.shape == (2, 5, 3, 4)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), logits, atol=1e-5 * np.abs(maps).max())


def test_maps_are_the_features_weighted_by_the_classifier(reference, randomise):
    net = CAMClassifier("resnet18", 5, TINY["resnet18"])
    values = randomise(net)
    feat = net.backbone(mx.nd.array(X)).asnumpy()
    np.testing.assert_allclose(net.maps()(mx.nd.array(X)).asnumpy(),
                               reference.convolve(feat, values["fc_cam_weight"]),
                               atol=1e-5 * np.abs(feat).max())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_that_should_train_gets_a_gradient(backbone, randomise, gradients):
    net = CAMClassifier(backbone, 5, TINY[backbone])
    randomise(net)
    configure_training(net)
    found = gradients(net, X)
    assert found and not [name for name, gradient in found.items() if not np.abs(gradient).max() > 0]
    params = net.collect_params()
    assert params["fc_cam_weight"].lr_mult == 10
    assert not [name for name in found if name.endswith(("_gamma", "_beta"))]


def test_vgg16_classifies_by_its_convolutions_alone():
    net = CAMClassifier("vgg16", 20)
    assert net.classifier.weight.shape == (20, 512, 1, 1) and not [name for name in net.collect_params()
                                                                   if name.startswith("fc6")]


def test_settings_build_the_same_network_again():
    net = CAMClassifier("vgg16", 3, TINY["vgg16"])
    again = CAMClassifier(**net.settings)
    assert [(n, p.shape) for n, p in again.collect_params().items()] == [(
        n, p.shape) for n, p in net.collect_params().items()]


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="num_foreground"):
        CAMClassifier("vgg16", 0)
    with pytest.raises(InputError, match="'vgg19'.*vgg16"):
        CAMClassifier("vgg19")
