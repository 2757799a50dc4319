"""Every backbone of the registry, at a tiny size."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import BACKBONES, MODELS, build_backbone
from cian.symbols.backbones import TINY


def images(count, height, width):
    return np.random.RandomState(0).uniform(0, 255, (count, 3, height, width)).astype(np.float32)


def test_every_backbone_has_a_tiny_form_and_a_model():
    assert set(TINY) == set(BACKBONES) and [f"{name}_largefov" for name in BACKBONES] == list(MODELS)


@pytest.mark.parametrize("name", BACKBONES)
def test_outputs_are_the_same_imperatively_hybridized_and_exported(name, randomise, outputs_three_ways):
    block = build_backbone(name, tiny=True)
    randomise(block)
    out, = outputs_three_ways(block, images(2, 23, 31))
    assert out.shape == (2, block.out_channels, 3, 4) and np.abs(out).max() > 0


@pytest.mark.parametrize("name", BACKBONES)
def test_one_graph_takes_any_size_at_output_stride_8(name, randomise):
    block = build_backbone(name, tiny=True)
    randomise(block)
    block.hybridize()
    for height, width in ((17, 25), (16, 24), (40, 19), (9, 33)):
        shape = block(mx.nd.array(images(1, height, width))).shape
        assert shape == (1, block.out_channels, (height - 1) // 8 + 1, (width - 1) // 8 + 1)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient(name, randomise, gradients):
    block = build_backbone(name, tiny=True)
    randomise(block)
    found = gradients(block, images(2, 41, 43))
    fixed = {"bn_data_gamma"}  # held at 1
    assert len(found) > 20 and {k for k, g in found.items() if not np.abs(g).max() > 0} <= fixed


@pytest.mark.parametrize("name", BACKBONES)
def test_a_batch_gives_what_its_images_give_alone(name, randomise):
    block = build_backbone(name, tiny=True)
    randomise(block)
    x = images(3, 19, 29)
    together = block(mx.nd.array(x)).asnumpy()
    for i in range(3):
        alone = block(mx.nd.array(x[i:i + 1])).asnumpy()[0]
        assert np.abs(together[i] - alone).max() <= 1e-5 * np.abs(alone).max()


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'resnet5'.*resnet50.*efficientnet_lite0"):
        build_backbone("resnet5")
    with pytest.raises(TypeError, match="depths"):
        build_backbone("vgg16", depths=3)


@pytest.mark.parametrize("name, options", [("resnet18", {"widths": (1, 2)}), ("vgg16", {"widths": (1,)}),
                                           ("efficientnet_lite0", {"repeats": (1, 2)})])
def test_tables_of_a_wrong_length_are_refused(name, options):
    with pytest.raises(InputError, match="needs"):
        build_backbone(name, **options)
