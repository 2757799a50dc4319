"""Class activation maps against hand-made scores, their alignment, and average precision against a loop."""
import json

import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import ClassTable
from cian.errors import InputError
from cian.symbols.backbones import TINY
from cian.symbols.cam import CAMClassifier
from cian.symbols.params import initialize, save_params
from cian.tools.engine.seeds.maps import CamMaps, average_precisions, load_classifier, mean_of_present

CLASSES = ClassTable(("background", "red", "green", "blue"))


class Sampling:
    """In place of a classifier: the map of class k + 1 is every eighth pixel of channel k, less
    ``offset``.
    """

    def __init__(self, offset=0.0):
        self.offset, self.shapes = offset, []

    def cam(self, x):
        self.shapes.append(x.shape)
        return x[:, :, ::8, ::8] - self.offset


def picture(height, width, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(17, 25), (19, 30), (7, 8), (1, 1)])
def test_map_position_i_lies_on_pixel_8i(size):
    image = picture(*size)
    scores = CamMaps(Sampling(100).cam).scores(image, (3, 1))
    assert scores.shape == (2, *size)
    np.testing.assert_allclose(scores[:, ::8, ::8], image.transpose(2, 0, 1)[[2, 0], ::8, ::8] - 100.0,
                               atol=1e-4)


def test_between_positions_the_map_is_bilinear():
    image = np.zeros((17, 17, 3), np.uint8)
    image[8, 8] = 80
    scores = CamMaps(Sampling().cam).scores(image, (2,))[0]
    expected = 80 * np.outer(*[np.maximum(0, 1 - np.abs(np.arange(17) - 8) / 8)] * 2)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_network_sees_sides_of_8n_plus_1():
    net = Sampling()
    CamMaps(net.cam, scales=(1.0, 0.5))(picture(20, 33), (1,))
    assert net.shapes == [(1, 3, 25, 33), (1, 3, 17, 17)]  # 0.5: int(19 * 0.5) + 1 = 10 and 17


def test_maps_are_rectified_and_reach_one():
    image = picture(17, 25)
    maps = CamMaps(Sampling(100).cam)(image, (1, 2, 3))
    scores = image[::8, ::8].transpose(2, 0, 1) - 100.0
    expected = np.maximum(scores, 0) / np.maximum(scores, 0).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps[:, ::8, ::8], expected, atol=1e-5)
    assert maps.dtype == np.float32 and maps.min() >= 0 and maps.max() == 1


def test_class_without_a_positive_score_has_an_empty_map():
    maps = CamMaps(Sampling(256).cam)(picture(17, 25), (1, 3))
    assert maps.shape == (2, 17, 25) and not maps.any()


def test_image_without_classes_has_no_map():
    net = Sampling()
    assert CamMaps(net.cam)(picture(17, 25), ()).shape == (0, 17, 25)
    assert net.shapes == []


@pytest.mark.parametrize("size", [(17, 25), (19, 30)])
def test_mirrored_maps_fall_on_the_straight_ones(size):
    image = picture(*size)
    np.testing.assert_allclose(CamMaps(Sampling().cam, mirror=True).scores(image, (1, 2)),
                               2 * CamMaps(Sampling().cam).scores(image, (1, 2)), rtol=1e-5, atol=1e-4)


def test_mirrored_maps_are_those_of_the_mirrored_image():
    class LeftToRight(Sampling):
        def cam(self, x):
            return super().cam(x) * np.arange(x.shape[3] // 8 + 1)
    image = picture(17, 25)
    both = CamMaps(LeftToRight().cam, mirror=True).scores(image, (1,))
    apart = CamMaps(LeftToRight().cam).scores(image, (1,)) + CamMaps(LeftToRight().cam).scores(image[:, ::-1],
                                                                                       (1,))[:, :, ::-1]
    np.testing.assert_allclose(both, apart, rtol=1e-5, atol=1e-3)


def test_scales_of_a_linear_ramp_agree():
    # all scaled sides are 8n+1
    ramp = np.broadcast_to((np.arange(49) * 5)[None, :, None], (33, 49, 3)).astype(np.uint8)
    one, three = (CamMaps(Sampling().cam, scales=scales)(ramp, (1,)) for scales in ((1.0,), (1.0, 0.5, 1.5)))
    np.testing.assert_allclose(three, one, atol=0.01)


def test_scales_below_zero_are_refused():
    with pytest.raises(InputError, match="seeds.scales"):
        CamMaps(Sampling().cam, scales=(1.0, 0.0))


def test_average_precision_is_that_of_a_loop_over_ranks():
    random = np.random.RandomState(1)
    scores, labels = random.rand(23, 5), random.rand(23, 5) < 0.3
    for k, value in enumerate(average_precisions(scores, labels)):
        ranked = labels[np.argsort(-scores[:, k]), k]
        precisions = [ranked[:rank].mean() for rank in range(1, 24) if ranked[rank - 1]]
        assert value == pytest.approx(np.mean(precisions))


def test_average_precision_by_hand_with_ties_and_absent_classes():
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [0.7, 0.5, 0.3]])
    labels = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    precisions = average_precisions(scores, labels)
    np.testing.assert_allclose(precisions, [(1 + 2 / 3) / 2, 1 / 3, np.nan])
    assert mean_of_present(precisions) == pytest.approx((5 / 6 + 1 / 3) / 2)
    assert mean_of_present(precisions[2:]) is None


@pytest.fixture
def classifier(tmp_path):
    net = CAMClassifier("resnet18", 3, TINY["resnet18"])
    initialize(net, 3)
    path = str(tmp_path / "resnet18_cam-0000.params")
    save_params(net, path, {"kind": "cam", "network": net.settings, "classes": list(CLASSES.foreground)})
    return net, path


def test_classifier_is_loaded_with_its_values_and_digest(classifier):
    net, path = classifier
    loaded, digest = load_classifier(path, CLASSES)
    x = mx.nd.array(picture(17, 25).transpose(2, 0, 1)[None], dtype=np.float32)
    np.testing.assert_array_equal(loaded(x).asnumpy(), net(x).asnumpy())
    with open(f"{path}.json", encoding="utf-8") as stream:
        assert json.load(stream)["sha256"] == digest


def test_classifier_of_other_classes_is_refused(classifier):
    with pytest.raises(InputError, match="class 2 is .green. here and .blue. there"):
        load_classifier(classifier[1], ClassTable(("background", "red", "blue", "green")))


def test_segmentation_network_is_no_classifier(classifier):
    net, path = classifier
    save_params(net, path, {"network": net.settings, "classes": list(CLASSES.foreground)})
    with pytest.raises(InputError, match="is not a CAM classifier"):
        load_classifier(path, CLASSES)


@pytest.mark.parametrize("changed", [
    {"backbone": 3}, {"backbone": "resnet19"}, {"num_foreground": "three"}, {"another": 1},
    {"backbone_options": {"units": [1, 1], "widths": [4]}},
    {"backbone_options": {"widths": [8, "a", 8, 8, 8]}}])
def test_a_classifier_that_its_metadata_do_not_describe_is_refused_by_name(classifier, changed):
    net, path = classifier
    save_params(net, path, {"kind": "cam", "network": {**net.settings, **changed},
                            "classes": list(CLASSES.foreground)})
    with pytest.raises(InputError, match=r"resnet18_cam-0000\.params\.json: network"):
        load_classifier(path, CLASSES)
