"""Prediction from stored features: the live network's logits up to float16, computed below the cut once."""
import mxnet as mx
import numpy as np
import pytest

from cian.data.preparation import prepare
from cian.data.tree import DatasetTree
from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.layers import constant_parts
from cian.symbols.params import configure_training, initialize
from cian.tools.engine.config import PredictConfig, RunConfig
from cian.tools.engine.models.features import Below, View, stored_features
from cian.tools.engine.prediction.predictor import Predictor
from cian.tools.engine.prediction.stored import StoredPredictor

FROZEN = ("conv0_", "stage1_", "stage2_", "stage3_")
SETTINGS = [{"fit": "native", "scales": (1.0,), "add_max": False, "mirror": False},
            {"fit": "tight", "scales": (1.0, 0.75), "mirror": True}, {"fit": "warp", "size_px": 65},
            {"fit": "pad", "size_px": 65, "scales": (1.0, 1.5), "add_max": False}]


@pytest.fixture(scope="module")
def images(make_voc_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    root = make_voc_tree(folder / "voc", images=3, height=53, width=47)
    with prepare(DatasetTree(root, classes=f"{root}/classes.txt"), "train", folder / "records",
                 workers=1).images as records:
        yield records


def live(frozen=FROZEN, seed=3, **settings):
    net = build_model("resnet18_largefov", tiny=True, num_classes=4)
    initialize(net, 3, zero_gamma=False)
    for name, param in net.collect_params().items():
        if not (frozen and name.startswith(FROZEN)) and name.endswith("weight"):
            param.set_data(param.data() + 0.01 * seed)  # what was trained differs
    predictor = Predictor(net.for_prediction(), PredictConfig(**settings))
    predictor.frozen = frozen
    return predictor


@pytest.mark.parametrize("settings", SETTINGS, ids=[settings["fit"] for settings in SETTINGS])
def test_logits_are_those_of_the_live_network_up_to_the_rounding_of_the_features(images, tmp_path, settings,
                                                                                  monkeypatch):
    run, pictures = RunConfig(features_root=str(tmp_path)), []
    image = images.image
    monkeypatch.setattr(images, "image", lambda index: pictures.append(index) or image(index))
    for seed in (3, 4):
        one = live(seed=seed, **settings)
        stored = StoredPredictor(one, images, run)
        for index in (2, 0):
            rgb = np.ascontiguousarray(image(index)[..., ::-1])
            expected = one.start([rgb]).coarse.asnumpy()
            running = stored.start([rgb], [images.names[index]])
            got = running.coarse.asnumpy()
            assert got.shape == expected.shape and running.fits == one.start([rgb]).fits
            assert 0 < np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()
    views = len(one.settings.scales) * (1 + one.settings.mirror)
    assert len(pictures) == 3 * views  # the second network computes nothing below the cut


def test_images_that_stay_as_they_are_share_their_features_with_training(images, tmp_path, monkeypatch):
    run = RunConfig(features_root=str(tmp_path))
    trained = build_model("resnet18_largefov", tiny=True, num_classes=4)
    initialize(trained, 3)
    configure_training(trained, freeze=FROZEN)
    below = Below(trained.backbone, constant_parts(trained.backbone), mx.cpu(), PredictConfig().engine)
    stored_features(below, images, [View(1.0, mirror, 33) for mirror in (False, True)], run, progress=False)
    monkeypatch.setattr(images, "image", None)  # nothing is left to compute
    StoredPredictor(live(fit="native", scales=(1.0,)), images, run)


def test_networks_without_frozen_layers_and_images_outside_of_the_set_are_refused(images, tmp_path):
    run = RunConfig(features_root=str(tmp_path))
    with pytest.raises(InputError, match="features are stored from stride 8 on"):
        StoredPredictor(live(frozen=()), images, run)
    stored = StoredPredictor(live(**SETTINGS[0]), images, run)
    with pytest.raises(InputError, match=r"train\.json: is not among the images: other"):
        stored.start([np.zeros((53, 47, 3), np.uint8)], ["other"])
    with pytest.raises(InputError, match="only checkpoints"):
        StoredPredictor(Predictor(lambda x: [x], PredictConfig(scales=(1.0,))), images, run)
