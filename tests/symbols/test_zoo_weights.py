"""Weights of Gluon's zoo against Gluon's own networks, with random values and statistics."""
import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import get_model
from gluoncv.model_zoo.resnetv1b import BottleneckV1b, ResNetV1b
from mxnet.gluon.model_zoo import vision

from cian.choices import PIXEL_MEAN
from cian.symbols import CIAN, load_pretrained
from cian.symbols.pretrained import GLUON, read_pretrained
from cian.symbols.zoo_weights import MEAN, STD, find_layout, our_names

UNITS, WIDTHS, BASIC = (2, 1, 1, 1), (4, 16, 12, 16, 20), (8, 8, 12, 16, 20)
# backbone: the zoo's network in few channels, and options of ours
SMALL = {
    "resnet50": (lambda: vision.ResNetV2(vision.BottleneckV2, UNITS, WIDTHS), WIDTHS),
    "resnet18_v2": (lambda: vision.ResNetV2(vision.BasicBlockV2, UNITS, BASIC), BASIC),
    "resnet101_v1": (lambda: vision.ResNetV1(vision.BottleneckV1, UNITS, WIDTHS), WIDTHS),
    "resnet50_v1b": (lambda: ResNetV1b(BottleneckV1b, UNITS), (64, 256, 512, 1024, 2048)),
}
VGG_WIDTHS = (4, 5, 6, 7, 8)
X = np.random.RandomState(1).uniform(0, 255, (1, 3, 33, 65)).astype(np.float32)
NORMALISED = mx.nd.array((X / 255 - MEAN.reshape((1, 3, 1, 1))) / STD.reshape((1, 3, 1, 1)))


def randomised(zoo, image=NORMALISED):
    """A network of the zoo whose parameters are all random, its unused ones too."""
    zoo.initialize()
    zoo(image)
    random = np.random.RandomState(0)
    for name, param in zoo._collect_params_with_prefix().items():
        value = random.uniform(-0.3, 0.3, param.shape)
        if name.endswith(("gamma", "running_var")):
            value = random.uniform(0.5, 1.5, param.shape)
        elif len(param.shape) > 1:
            value = random.standard_normal(param.shape) * np.sqrt(2 / np.prod(param.shape[1:]))
        param.set_data(mx.nd.array(value))
    return zoo


def chain(layers):
    def run(x):
        for layer in layers:
            x = layer(x)
        return x
    return run


def zoo_parts(zoo):
    """Stem, units and end of one of the zoo's ResNets."""
    if hasattr(zoo, "layer1"):
        units = [unit for stage in (zoo.layer1, zoo.layer2, zoo.layer3, zoo.layer4) for unit in stage]
        return [chain([zoo.conv1, zoo.bn1, zoo.relu, zoo.maxpool]), *units]
    blocks = list(zoo.features)
    stages = [i for i, block in enumerate(blocks) if isinstance(block, mx.gluon.nn.HybridSequential)]
    pooled = next(i for i, block in enumerate(blocks) if isinstance(block, mx.gluon.nn.GlobalAvgPool2D))
    return [chain(blocks[:stages[0]]), *(unit for i in stages for unit in blocks[i]),
            *([chain(blocks[stages[-1] + 1:pooled])] if pooled > stages[-1] + 1 else [])]


def loaded(backbone, zoo, tmp_path, **options):
    zoo.save_parameters(str(tmp_path / "zoo.params"))
    net = CIAN(f"{backbone}_largefov", affinity="none", backbone_options=options)
    report = load_pretrained(net, tmp_path / "zoo.params")
    assert not any(name.startswith(("conv", "bn", "stage")) for name in (*report.missing, *report.extra))
    return net.backbone


def error(found, expected):
    return np.abs(found - expected).max() / np.sqrt(np.mean(expected ** 2))


@pytest.mark.parametrize("backbone", SMALL)
def test_every_layer_computes_what_the_zoos_does(backbone, tmp_path):
    build, widths = SMALL[backbone]
    zoo = randomised(build())
    net = loaded(backbone, zoo, tmp_path, units=UNITS, widths=widths, output_stride=32)
    theirs, ours = zoo_parts(zoo), net.parts()
    assert len(theirs) == len(ours) >= 6
    x, raw = NORMALISED, mx.nd.array(X)
    for number, (layer, our_layer) in enumerate(zip(theirs, ours)):
        expected = layer(x)
        assert error(our_layer(raw if number == 0 else x).asnumpy(), expected.asnumpy()) <= 1e-5, number
        x = expected
    assert error(net(raw).asnumpy(), x.asnumpy()) <= 2e-5  # rounding of all layers on both sides


def test_v1b_at_stride_8_is_gluoncvs_dilated_network(tmp_path):
    zoo = randomised(ResNetV1b(BottleneckV1b, UNITS, dilated=True))
    net = loaded("resnet50_v1b", zoo, tmp_path, units=UNITS, widths=SMALL["resnet50_v1b"][1])
    found = net(mx.nd.array(X)).asnumpy()
    assert found.shape[2:] == (5, 9) and error(found, chain(zoo_parts(zoo))(NORMALISED).asnumpy()) <= 2e-5


def test_v1_at_stride_8_holds_its_stride_32_features(tmp_path):
    zoo = randomised(SMALL["resnet101_v1"][0]())
    net = loaded("resnet101_v1", zoo, tmp_path, units=UNITS, widths=WIDTHS)
    assert error(net(mx.nd.array(X)).asnumpy()[:, :, ::4, ::4],
                 chain(zoo_parts(zoo))(NORMALISED).asnumpy()) <= 1e-5


def test_vgg16_differs_at_the_border_of_its_first_convolution_alone_and_by_its_padding(tmp_path):
    zoo = vision.VGG((2, 2, 3, 3, 3), VGG_WIDTHS, classes=2)
    for place in list(zoo.features._children)[31:]:  # its fully connected layers are large
        del zoo.features._children[place]
    randomised(zoo)
    net = loaded("vgg16", zoo, tmp_path, widths=VGG_WIDTHS, top=False, output_stride=32)
    raw = mx.nd.array(X - np.reshape(PIXEL_MEAN, (1, 3, 1, 1)))
    theirs, ours = zoo.features[0](NORMALISED).asnumpy(), net.convolutions[0](raw).asnumpy()
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert error(ours[inside], theirs[inside]) <= 1e-5
    assert 1e-4 < error(ours, theirs) < 0.02
    # the zoo's network on our padding: raw PIXEL_MEAN around the image, and no padding of its own
    mean = (np.array(PIXEL_MEAN) / 255 - MEAN) / STD
    padded = np.stack([np.pad(NORMALISED.asnumpy()[:, c], ((0, 0), (1, 1), (1, 1)), constant_values=mean[c])
                       for c in range(3)], axis=1)
    assert error(ours, zoo.features[0](mx.nd.array(padded)).asnumpy()[inside]) <= 1e-5
    x = zoo.features[0](NORMALISED)
    convolutions = iter(net.convolutions)
    next(convolutions)
    for layer in list(zoo.features)[1:31]:  # all that follows computes the same
        if isinstance(layer, mx.gluon.nn.Conv2D):
            assert error(next(convolutions)(x).asnumpy(), layer(x).asnumpy()) <= 1e-5
        x = layer(x)
    assert next(convolutions, None) is None


@pytest.mark.parametrize("backbone", GLUON)
def test_every_name_of_the_zoos_whole_network_has_a_place(backbone):
    zoo = get_model(GLUON[backbone])
    arrays = {name: np.zeros((1, 1, 1, 1)) for name in zoo._collect_params_with_prefix()}
    found = our_names(arrays, find_layout(arrays))
    assert len(found) == len(arrays)
    net = CIAN(f"{backbone}_largefov", affinity="none")
    new = tuple(net.new_layers)
    biases = {name for name in found if name.startswith("stage") and name.endswith("_bias")}  # go into norms
    ours = {name for name in net.collect_params() if not name.startswith(("bn_data_", *new))}
    assert {name for name in found if not name.startswith(("bn_data_", *new))} - biases == ours
    assert not biases or backbone == "resnet101_v1"


def test_the_zoos_older_names_are_its_newer_ones(tmp_path, monkeypatch):
    zoo = randomised(SMALL["resnet50"][0]())
    monkeypatch.setattr("gluoncv.model_zoo.get_model", lambda name: zoo)
    net = CIAN("resnet50_largefov", affinity="none", backbone_options={"units": UNITS, "widths": WIDTHS})
    zoo.save_parameters(str(tmp_path / "new.params"))
    zoo.collect_params().save(str(tmp_path / "old.params"), strip_prefix=zoo.prefix)
    new, old = (read_pretrained(net, tmp_path / f"{age}.params").values for age in ("new", "old"))
    assert set(new) == set(old) and all(np.array_equal(new[name], old[name]) for name in new)
