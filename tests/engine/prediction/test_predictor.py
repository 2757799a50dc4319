"""Test-time prediction against the original's procedure, map by map, at the image's size."""
import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.layers import reorder_sums
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.fitting import Fit
from cian.tools.engine.prediction import predictor as predictor_module
from cian.tools.engine.prediction.crf import CRF_PRESETS, dense_crf
from cian.tools.engine.prediction.predictor import Predictor, affinity_bytes

CLASSES = 5


@pytest.fixture(scope="module")
def net():
    mx.random.seed(3)
    net = build_model("resnet50_largefov", tiny=True, num_classes=CLASSES, affinity="cross")
    net.initialize(mx.init.Normal(0.2))
    return net.for_prediction()


def resized(maps, height, width):
    return mx.nd.contrib.BilinearResize2D(maps, height=height, width=width)


def by_the_original(net, image, fit, scales=(1.0, 0.75, 1.25), add_max=True, mirror=True):
    """Each map enlarged to the padded image, averaged, then averaged with the mirrored image's,
    then brought to the image.
    """
    reorder_sums(net, False)
    height, width = fit.network_size
    x = mx.nd.array(fit.apply(image).transpose(2, 0, 1)[None].astype(np.float32))

    def averaged(x):
        maps = [net(x)[0]]
        for scale in scales[1:]:
            logits = net(resized(x, int((height - 1) * scale) + 1, int((width - 1) * scale) + 1))[0]
            maps.append(resized(logits, *maps[0].shape[2:]))
        if add_max:
            maps.append(mx.nd.array(np.max([one.asnumpy() for one in maps], axis=0)))
        return sum(resized(one, height, width).asnumpy() for one in maps) / len(maps)

    logits = averaged(x)
    if mirror:
        logits = (logits + averaged(x[:, :, :, ::-1])[..., ::-1]) / 2
    rows, columns = image.shape[:2]
    if fit.how == "warp":
        return resized(mx.nd.array(logits), rows, columns).asnumpy()[0]
    return logits[0, :, :rows, :columns]


@pytest.mark.parametrize("engine", ["mxnet", "onnx"])
@pytest.mark.parametrize("fit", ["pad", "warp", "tight", "native"])
@pytest.mark.parametrize("size", [(37, 53), (61, 44), (80, 33)])
def test_logits_are_those_of_the_originals_procedure(net, fit, size, engine):
    image = np.random.RandomState(1).randint(0, 256, (*size, 3), np.uint8)
    expected = by_the_original(net, image, Fit.of(size, fit, 65))
    got = Predictor(net, PredictConfig(fit=fit, size_px=65, engine=engine)).logits(image)
    assert net.head.reordered == net.affinity.reordered == (engine == "mxnet")
    assert got.shape == (CLASSES, *size)
    assert np.abs(got - expected).max() < 2e-5 * np.sqrt((expected ** 2).mean())


@pytest.mark.parametrize("changes", [{"scales": (1.0,), "add_max": False, "mirror": False},
                                     {"scales": (1.0, 1.5), "mirror": False, "engine": "mxnet"},
                                     {"scales": (1.0, 1.5), "mirror": False}, {"add_max": False}])
def test_scales_maximum_and_mirror_can_be_left_out(net, changes):
    image = np.random.RandomState(2).randint(0, 256, (41, 47, 3), np.uint8)
    settings = PredictConfig(size_px=65, **changes)
    kept = {key: getattr(settings, key) for key in ("scales", "add_max", "mirror")}
    expected = by_the_original(net, image, Fit.of((41, 47), "pad", 65), **kept)
    np.testing.assert_allclose(Predictor(net, settings).logits(image), expected,
                               atol=2e-5 * np.abs(expected).max())
    assert not np.allclose(Predictor(net, PredictConfig(size_px=65)).logits(image), expected,
                           atol=1e-3 * np.abs(expected).max())


def test_with_mirroring_a_mirrored_image_gives_mirrored_logits(net):
    image = np.random.RandomState(2).randint(0, 256, (65, 65, 3), np.uint8)
    predictor = Predictor(net, PredictConfig(size_px=65))
    logits = predictor.logits(image)
    np.testing.assert_allclose(predictor.logits(image[:, ::-1])[..., ::-1], logits,
                               atol=2e-5 * np.abs(logits).max())


def test_a_batch_gives_what_its_images_give_alone(net):
    random = np.random.RandomState(4)
    images = [random.randint(0, 256, (*size, 3), np.uint8) for size in ((37, 53), (61, 44), (65, 65))]
    predictor = Predictor(net, PredictConfig(size_px=65))
    running = predictor.start(images)
    for image, fit, coarse in zip(images, running.fits, running.coarse.asnumpy()):
        alone = predictor.logits(image)
        np.testing.assert_allclose(fit.enlarge(coarse), alone, atol=2e-5 * np.abs(alone).max())


def test_images_of_different_network_sizes_do_not_share_a_pass(net):
    with pytest.raises(ValueError, match="one size"):
        Predictor(net, PredictConfig(size_px=33)).start([np.zeros((40, 33, 3), np.uint8),
                                                         np.zeros((33, 33, 3), np.uint8)])


def test_a_tiny_and_a_long_image_work(net):
    predictor = Predictor(net, PredictConfig(fit="native"))
    for size in ((1, 1), (2, 90), (90, 3)):
        assert predictor.logits(np.zeros((*size, 3), np.uint8)).shape == (CLASSES, *size)


def test_an_image_whose_affinity_cannot_fit_is_refused_before_the_network_runs(net, monkeypatch):
    assert affinity_bytes((513, 513), 1.25, 2) == 2 * 4 * 2 * 81 ** 2 * 41 ** 2
    monkeypatch.setattr(predictor_module, "usable_memory", lambda: 2 ** 22)
    with pytest.raises(InputError, match="400x300 pixels needs .* GiB.*predict.fit=warp"):
        Predictor(net, PredictConfig(fit="native")).start([np.zeros((300, 400, 3), np.uint8)])


def test_predict_gives_labels_refined_labels_and_probabilities(net):
    image = np.random.RandomState(5).randint(0, 256, (33, 41, 3), np.uint8)
    predictor = Predictor(net, PredictConfig(size_px=65, crf="retrain"))
    result = predictor.predict(image)
    refined = dense_crf(predictor.logits(image), image, CRF_PRESETS["retrain"])
    np.testing.assert_array_equal(result.labels, predictor.logits(image).argmax(0))
    np.testing.assert_array_equal(result.labels_crf, refined.argmax(0))
    np.testing.assert_allclose(result.probabilities, refined, atol=1e-4)
    assert predictor.predict(image, crf="none").labels_crf is None
    assert set(np.unique(predictor.predict(image, allowed=(0, 3)).best)) <= {0, 3}
