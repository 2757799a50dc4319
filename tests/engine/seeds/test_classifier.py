"""Training of the CAM classifier: the loss by hand, what trains, learning, and going on exactly
where it stopped.
"""
import json
import os
from dataclasses import asdict, replace

import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import ClassTable
from cian.data.packing import pack_images
from cian.errors import InputError
from cian.symbols.backbones import TINY
from cian.symbols.params import read_params
from cian.tools.engine.config import CamConfig, Config
from cian.tools.engine.models.engine import start_engine
from cian.tools.engine.seeds import classifier as cam_trainer
from cian.tools.engine.seeds.classifier import train_classifier
from cian.tools.engine.seeds.run import build_classifier, sigmoid_loss

CLASSES = ClassTable(("background", "red", "green", "blue"))
OPTIONS = TINY["resnet18"]


@pytest.fixture
def images(tmp_path):
    """Eleven images of 33x41 pixels; each class is a patch of its colour on a gray texture."""
    random = np.random.RandomState(0)
    names, paths, labels = [], [], np.zeros((11, 4), np.uint8)
    labels[:, 0] = 1
    for k in range(11):
        picture = random.randint(90, 150, (33, 41, 1)).repeat(3, axis=2).astype(np.uint8)
        for value in {1 + k % 3, 1 + (k // 3) % 3}:
            top, left = random.randint(0, 15), random.randint(0, 23)
            picture[top:top + 17, left:left + 17] = 30
            picture[top:top + 17, left:left + 17, 3 - value] = 230  # BGR
            labels[k, value] = 1
        names.append(f"image_{k:02d}")
        paths.append(str(tmp_path / f"{names[-1]}.jpg"))
        cv2.imwrite(paths[-1], picture)
    with pack_images(tmp_path / "records", "train", names, paths, labels, CLASSES, workers=1) as records:
        yield records


def settings(snapshot, **cam):
    options = {"model": "resnet18", "epochs": 3, "batch_size": 4, "crop_px": 33, **cam}
    return Config().replace(cam=options, run={"snapshot": os.fspath(snapshot), "workers": 1})


def values(path):
    arg_params, aux_params = read_params(path)
    return {name: np.array(value) for name, value in {**arg_params, **aux_params}.items()}


def test_loss_is_the_cross_entropy_summed_over_classes():
    logits = mx.nd.array([[0.0, 2.0, -1.0], [3.0, -4.0, 0.5]])
    labels = mx.nd.array([[1, 0, 0], [1, 1, 0]])
    probability = 1 / (1 + np.exp(-logits.asnumpy()))
    expected = -np.where(labels.asnumpy() == 1, np.log(probability), np.log(1 - probability)).sum(axis=1)
    logits.attach_grad()
    with mx.autograd.record():
        loss = sigmoid_loss(logits, labels)
    loss.backward()
    np.testing.assert_allclose(loss.asnumpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(logits.grad.asnumpy(), probability - labels.asnumpy(), rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_frozen_keeps_its_values(images, tmp_path, frozen):
    config = settings(tmp_path / "cam", freeze_backbone=frozen, lr=1e-2)
    before = {name: param.data().asnumpy()
              for name, param in build_classifier(config.cam, 3, mx.cpu(), OPTIONS).collect_params().items()}
    after = values(train_classifier(config, images, backbone_options=OPTIONS))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert "fc_cam_weight" in changed
    if frozen:
        assert changed == {"fc_cam_weight"}
    else:
        assert changed == {name for name in before if name.endswith("_weight")}


@pytest.mark.parametrize("frozen", [False, True])
def test_first_step_is_sgd_of_the_mean_gradient_with_decay(images, tmp_path, frozen):
    config = settings(tmp_path / "cam", freeze_backbone=frozen, epochs=1, batch_size=11, lr=1e-3,
                      weight_decay=0.1)
    net = build_classifier(config.cam, 3, mx.cpu(), OPTIONS)
    seen = []
    learn = cam_trainer.CamRun._learn
    def watch(run, batch, rate):
        seen.append((batch.data[0].copy(), batch.label[0].copy(), rate))
        learn(run, batch, rate)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam_trainer.CamRun, "_learn", watch)
        after = values(train_classifier(config, images, backbone_options=OPTIONS))["fc_cam_weight"][..., 0, 0]
    (data, labels, rate), = seen
    features = (data if frozen else net.backbone(data).mean(axis=(2, 3))).asnumpy().reshape(11, -1)
    weight = net.classifier.weight.data().asnumpy()[..., 0, 0]
    gradient = (1 / (1 + np.exp(-features @ weight.T)) - labels.asnumpy()).T @ features / 11
    assert rate == 1e-3
    np.testing.assert_allclose(after, weight - 10 * rate * (gradient + 0.1 * weight), rtol=1e-4, atol=1e-6)


class Recomputed:
    """Pooled features that are computed anew whenever rows of them are read."""

    def __init__(self, network, images):
        self.network, self.images, self.reads = network, images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        self.reads += 1
        rows = []
        for row, view in zip(*place):
            picture = self.images.image(int(row))[:, ::-1 if view else 1, ::-1]
            pixels = picture.transpose(2, 0, 1)[None].astype(np.float32)
            rows.append(self.network(pixels).mean(axis=(2, 3))[0])
        return np.stack(rows)


def test_stored_features_train_what_computing_them_for_every_batch_trains_bit_for_bit(images, tmp_path):
    stored = values(train_classifier(settings(tmp_path / "stored", freeze_backbone=True), images,
                                     backbone_options=OPTIONS))
    tables, original = [], cam_trainer.CamRun.features
    def features(run, images):
        if tables:
            return original(run, images)  # for the report
        tables.append(Recomputed(start_engine(run.net.backbone, "auto", run.device)[1], images))
        return tables[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam_trainer.CamRun, "features", features)
        again = values(train_classifier(settings(tmp_path / "again", freeze_backbone=True), images,
                                        backbone_options=OPTIONS))
    assert tables[0].reads == 9  # three epochs of three batches
    assert all(value.tobytes() == again[name].tobytes() for name, value in stored.items())


def test_rate_falls_by_the_poly_schedule_of_epochs(images, tmp_path):
    rates = []
    learn = cam_trainer.CamRun._learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam_trainer.CamRun, "_learn",
                      lambda run, batch, rate: (rates.append(rate), learn(run, batch, rate)))
        train_classifier(settings(tmp_path / "cam", freeze_backbone=True), images, backbone_options=OPTIONS)
    np.testing.assert_allclose(rates, np.repeat([1e-3 * (1 - epoch / 3) ** 0.9 for epoch in range(3)], 3))


def test_frozen_classifier_learns_the_labels(images, tmp_path):
    config = settings(tmp_path / "cam", freeze_backbone=True, epochs=150, lr=1e-1)
    path = train_classifier(config, images, score={"again": images}, backbone_options=OPTIONS)
    report = json.loads((tmp_path / "cam" / "resnet18_cam-0149.map.json").read_text())
    assert path.endswith("resnet18_cam-0149.params")
    assert report["sets"]["train"]["mean_average_precision"] > 0.9
    assert report["sets"]["again"]["mean_average_precision"] == report["sets"]["train"][
        "mean_average_precision"]
    assert set(report["sets"]["train"]["average_precision"]) == {"red", "green", "blue"}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_stopped_training_goes_on_to_the_same_values(images, tmp_path, frozen, stop):
    whole = values(train_classifier(settings(tmp_path / "whole", freeze_backbone=frozen), images,
                                    backbone_options=OPTIONS))
    learn = cam_trainer.CamRun._learn
    def stopping(run, batch, rate):
        if run.step == stop:
            raise KeyboardInterrupt
        learn(run, batch, rate)
    config = settings(tmp_path / "stopped", freeze_backbone=frozen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam_trainer.CamRun, "_learn", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(config, images, backbone_options=OPTIONS)
    resumed = values(train_classifier(config, images, backbone_options=OPTIONS))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_finished_training_is_not_repeated(images, tmp_path):
    config = settings(tmp_path / "cam", freeze_backbone=True)
    path = train_classifier(config, images, backbone_options=OPTIONS)
    with open(path, "rb") as stream:
        content = stream.read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam_trainer.CamRun, "_learn", lambda *_: pytest.fail("trained again"))
        assert train_classifier(config, images, backbone_options=OPTIONS) == path
    with open(path, "rb") as stream:
        assert stream.read() == content


def test_snapshot_of_other_settings_is_refused_until_fresh(images, tmp_path):
    train_classifier(settings(tmp_path / "cam", freeze_backbone=True), images, backbone_options=OPTIONS)
    other = settings(tmp_path / "cam", freeze_backbone=True, lr=2e-3)
    with pytest.raises(InputError, match="other settings: cam.lr.*--fresh"):
        train_classifier(other, images, backbone_options=OPTIONS)
    train_classifier(other, images, fresh=True, backbone_options=OPTIONS)


def test_loss_that_is_not_finite_names_the_images(images, tmp_path):
    config = settings(tmp_path / "cam")
    beyond = replace(config, cam=replace(config.cam, lr=1e30))  # which no file or flag can ask for
    with pytest.raises(InputError, match="not finite, in step .* with the images image_.*lower cam.lr"):
        train_classifier(beyond, images, backbone_options=OPTIONS)


def test_pretrained_weights_of_another_backbone_are_refused(images, tmp_path):
    with pytest.raises(InputError, match="efficientnet_lite0"):
        train_classifier(settings(tmp_path / "cam", pretrained="package"), images, backbone_options=OPTIONS)


def test_defaults_are_those_of_the_paper():
    assert asdict(CamConfig())["model"] == "vgg16" and CamConfig().lr == 1e-3


def test_the_last_layer_alone_is_not_for_several_workers(images, tmp_path):
    config = settings(tmp_path / "cam", freeze_backbone=True).replace(run={"kvstore": "dist_sync"})
    with pytest.raises(InputError, match="^cam.freeze_backbone: the last layer alone trains in one process"):
        train_classifier(config, images, backbone_options=OPTIONS)
