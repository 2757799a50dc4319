"""The package's own interface: light to import, three lines to predict, typed, and clear about
wrong input.
"""
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import cian
from cian import InputError, load_model
from cian.model import as_rgb
from cian.symbols import build_model, initialize, save_params
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.models.snapshot import load_network
from cian.tools.engine.prediction.crf import CRF_PRESETS, dense_crf
from cian.tools.engine.prediction.predictor import Predictor

CLASSES = ("background", "cat", "dog")
IMAGE = np.random.RandomState(5).randint(0, 256, (35, 43, 3), np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    net = build_model("resnet50_largefov", tiny=True, num_classes=3)
    initialize(net, seed=1, zero_gamma=False)
    save_params(net, folder / "resnet50_largefov-0001.params",
                {"network": net.settings, "classes": list(CLASSES)})
    return folder / "resnet50_largefov-0001.params"


def test_importing_the_package_loads_no_mxnet():
    program = ("import sys, cian; dir(cian); assert not {'mxnet', 'cv2', 'gluoncv'} & set(sys.modules); "
               "cian.load_model; assert 'PIL' in sys.modules and not {'mxnet', 'cv2'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_public_names_are_listed_and_others_are_missing():
    assert set(cian.__all__) <= set(dir(cian))
    with pytest.raises(AttributeError, match="'cian' has no attribute 'load_modl'"):
        cian.load_modl  # noqa: B018


def test_a_checkpoint_predicts_by_the_originals_procedure(checkpoint):
    model = load_model(checkpoint, size_px=49)
    net, _ = load_network(checkpoint)
    want = Predictor(net, PredictConfig(size_px=49)).logits(IMAGE)
    np.testing.assert_allclose(model.logits(IMAGE), want, rtol=1e-5, atol=1e-6)
    assert model.classes == CLASSES and model.kind == "checkpoint" and model.metadata["classes"] == list(
        CLASSES)
    labels = model.predict(IMAGE)
    assert labels.dtype == np.uint8 and (labels == want.argmax(axis=0)).all()
    np.testing.assert_allclose(model.probabilities(IMAGE).sum(axis=0), 1, rtol=1e-5)
    refined = dense_crf(want, IMAGE, CRF_PRESETS["test"])
    assert (model.predict(IMAGE, crf="test") == refined.argmax(axis=0)).all()
    assert model.colours.shape == (256, 3)


def test_images_are_padded_no_more_than_is_needed_unless_a_size_is_given(checkpoint):
    assert [load_model(checkpoint, **given).settings.fit
            for given in ({}, {"size_px": 49}, {"fit": "warp"}, {"fit": "warp", "size_px": 49})] == [
        "tight", "pad", "warp", "warp"]


def test_scales_mirror_and_fit_can_be_chosen(checkpoint):
    model = load_model(checkpoint, scales=[1], mirror=False, add_max=False, fit="native")
    net, _ = load_network(checkpoint)
    want = Predictor(net,
                     PredictConfig(scales=(1.0,), mirror=False, add_max=False, fit="native")).logits(IMAGE)
    np.testing.assert_allclose(model.logits(IMAGE), want, rtol=1e-5, atol=1e-6)


def test_images_are_paths_pil_images_or_arrays(tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), IMAGE[..., ::-1])
    for image in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(IMAGE), IMAGE):
        np.testing.assert_array_equal(as_rgb(image), IMAGE)
    gray = Image.fromarray(IMAGE[..., 0])
    assert as_rgb(gray).shape == IMAGE.shape


@pytest.mark.parametrize("image", [IMAGE[..., 0], IMAGE.astype(np.float32), IMAGE[:0], [1, 2]],
                         ids=["gray", "float", "empty", "list"])
def test_other_images_are_refused_with_their_shape(image):
    with pytest.raises(InputError,
                       match=r"image: an image must be \(height, width, 3\) uint8 in RGB, not \("):
        as_rgb(image)


@pytest.mark.parametrize(("given", "message"), [
    ({"fit": "stretch"}, "predict.fit: 'stretch' is not allowed; use one of: pad, warp, tight, native"),
    ({"size_px": 2}, "predict.size_px: 2 is below 9"),
    ({"scales": [0.5]}, "scales: .* 1 first"),
    ({"device": "tpu:0"}, "'tpu:0' is not a device"),
    ({"classes": ["background", "dog", "cat"]}, "has other classes than the list that was given"),
])
def test_wrong_settings_are_named(checkpoint, given, message):
    with pytest.raises(InputError, match=message):
        load_model(checkpoint, **given)


def test_an_exported_file_keeps_its_own_procedure(checkpoint, tmp_path):
    from cian.tools.engine.export.write import Procedure, export_symbol
    net, metadata = load_network(checkpoint)
    export_symbol(net, tmp_path / "m", metadata, Procedure(), [np.zeros((1, 3, 33, 33), np.float32)])
    assert load_model(tmp_path / "m-symbol.json", fit="native").settings.scales == (1.0,)
    with pytest.raises(InputError, match="has scales and mirror inside it, and they cannot be changed"):
        load_model(tmp_path / "m-symbol.json", mirror=True)
