"""From coarse logits to files: restriction to labels, CRF, and a folder that does not mix."""
import dataclasses
import json
import os

import cv2
import numpy as np
import pytest

from cian.data.classes import palette, read_label_png
from cian.errors import InputError
from cian.tools.engine.fitting import Fit
from cian.tools.engine.images import Sample
from cian.tools.engine.ledger import mark
from cian.tools.engine.prediction.crf import CRF_PRESETS, dense_crf
from cian.tools.engine.prediction.finishing import Finished, Task, finish, softmax
from cian.tools.engine.prediction.outputs import MANIFEST, Outputs, overlay, read_manifest

CLASSES = ("background", "cat", "dog", "cow")
PHOTO = Sample("photo", "photo.jpg")
IDENTITY = {"checkpoint": "abc", "settings": {"scales": [1.0]}}


@pytest.fixture
def task():
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (11, 17, 3), np.uint8)
    return Task("photo", image, random.normal(0, 3, (4, 3, 4)).astype(np.float32),
                Fit.of((11, 17), "pad", 23))


def with_(task, **changes):
    return Task(**{**vars(task), **changes})


def test_labels_are_the_argmax_of_the_enlarged_logits(task):
    result = finish(task)
    np.testing.assert_array_equal(result.labels, task.fit.enlarge(task.coarse).argmax(0))
    assert result.labels.dtype == np.uint8 and result.labels_crf is None and result.probabilities is None
    assert result.best is result.labels


def test_the_crf_sees_the_enlarged_logits_and_the_image(task):
    result = finish(with_(task, crf=CRF_PRESETS["test"]))
    expected = dense_crf(task.fit.enlarge(task.coarse), task.image, CRF_PRESETS["test"]).argmax(0)
    np.testing.assert_array_equal(result.labels_crf, expected)
    assert result.best is result.labels_crf


def test_labels_that_the_crf_changes_are_left_out_where_both_have_to_agree(task):
    preset = CRF_PRESETS["test"]
    both = finish(with_(task, crf=preset))
    kept = both.labels == both.labels_crf
    assert 0 < kept.mean() < 1
    found = finish(with_(task, crf=dataclasses.replace(preset, agreed=True))).labels_crf
    np.testing.assert_array_equal(found, np.where(kept, both.labels, 255))


def test_classes_that_are_not_allowed_never_occur_and_have_probability_zero(task):
    assert set(np.unique(finish(task).labels)) > {0, 2}
    result = finish(with_(task, allowed=(0, 2), crf=CRF_PRESETS["test"], probabilities=True))
    assert set(np.unique(result.labels)) | set(np.unique(result.labels_crf)) <= {0, 2}
    assert result.probabilities.shape == (4, 11, 17) and not result.probabilities[[1, 3]].any()
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)


def test_without_crf_the_probabilities_are_the_softmax(task):
    np.testing.assert_allclose(finish(with_(task, probabilities=True)).probabilities,
                               softmax(task.fit.enlarge(task.coarse)), atol=1e-6)


def test_logits_that_are_not_finite_name_the_image(task):
    task.coarse[1] = np.inf
    with pytest.raises(InputError, match="photo: .*not finite"):
        finish(task)


def test_the_overlay_leaves_the_background_and_draws_the_border():
    image = np.full((9, 9, 3), 100, np.uint8)
    labels = np.zeros((9, 9), np.uint8)
    labels[:, 5:] = 2
    picture = overlay(image, labels, opacity=0.5)
    assert (picture[:, :4] == 100).all() and (picture[:, 4:6] == 255).all()
    np.testing.assert_array_equal(picture[0, 7], (100 + palette()[2].astype(int)) // 2)


def test_every_file_that_was_asked_for_is_written_and_reads_back(task, tmp_path):
    outputs = Outputs(tmp_path, IDENTITY, CLASSES, crf=CRF_PRESETS["test"], overlays=True,
                      probabilities="npz")
    result = finish(with_(task, crf=CRF_PRESETS["test"], probabilities=True))
    assert not outputs.done(PHOTO)
    outputs.write(result, PHOTO, [])
    assert outputs.done(PHOTO)
    np.testing.assert_array_equal(read_label_png(tmp_path / "pred" / "photo.png"), result.labels)
    np.testing.assert_array_equal(read_label_png(tmp_path / "pred_crf" / "photo.png"), result.labels_crf)
    picture = cv2.imread(str(tmp_path / "overlay" / "photo.png"))[..., ::-1]
    np.testing.assert_array_equal(picture, overlay(task.image, result.labels_crf))
    with np.load(tmp_path / "probabilities" / "photo.npz") as stored:
        assert stored["classes"].tolist() == list(CLASSES) and stored["probabilities"].dtype == np.float16
        np.testing.assert_allclose(stored["probabilities"], result.probabilities, atol=1e-3)


def test_npy_probabilities_are_exact(task, tmp_path):
    outputs = Outputs(tmp_path, IDENTITY, CLASSES, probabilities="npy")
    result = finish(with_(task, probabilities=True))
    outputs.write(result, PHOTO, [])
    np.testing.assert_array_equal(np.load(tmp_path / "probabilities" / "photo.npy"), result.probabilities)


def test_an_image_is_done_when_all_its_files_are_there(task, tmp_path):
    outputs = Outputs(tmp_path, IDENTITY, CLASSES, crf=CRF_PRESETS["test"])
    outputs.write(finish(with_(task, crf=CRF_PRESETS["test"])), PHOTO, [])
    (tmp_path / "pred_crf" / "photo.png").unlink()
    assert not outputs.done(PHOTO)


def test_the_same_run_finds_its_folder_again(tmp_path):
    first = Outputs(tmp_path, IDENTITY, CLASSES, crf=CRF_PRESETS["test"])
    first.write(Finished("a", np.zeros((3, 5, 3), np.uint8), np.zeros((3, 5), np.uint8),
                         np.zeros((3, 5), np.uint8)), Sample("a", "a.jpg"), [])
    assert Outputs(tmp_path, IDENTITY, CLASSES, crf=CRF_PRESETS["test"]).done(Sample("a", "a.jpg"))


def test_a_prediction_of_another_image_or_of_other_classes_is_not_done(tmp_path):
    image, empty = tmp_path / "a.jpg", np.zeros((3, 5), np.uint8)
    image.write_bytes(b"monday")
    sample, outputs = Sample("a", str(image), (0, 2)), Outputs(tmp_path, IDENTITY, CLASSES)
    outputs.write(Finished("a", np.zeros((3, 5, 3), np.uint8), empty), sample, mark(image))
    again = Outputs(tmp_path, IDENTITY, CLASSES)
    assert again.done(sample) and not again.done(Sample("a", str(image), (0, 1)))
    os.utime(image, (1, 1))  # copied again, the same content
    assert again.done(sample)
    image.write_bytes(b"sunday")
    assert not again.done(sample)
    with open(tmp_path / "pred" / "made_from.jsonl", "ab") as stream:
        stream.write(b'{"name": "a", "fil')  # of a killed process
    assert not Outputs(tmp_path, IDENTITY, CLASSES).done(sample)
    again.remove("a")
    assert not os.path.exists(again.path("pred", "a"))


@pytest.mark.parametrize("identity, classes, crf, named", [
    ({**IDENTITY, "checkpoint": "other"}, CLASSES, "test", "pred: .*another checkpoint"),
    ({**IDENTITY, "settings": {"scales": [1.0, 0.5]}}, CLASSES, "test", "pred: .*another settings"),
    (IDENTITY, CLASSES[:3], "test", "pred: .*another classes"),
    (IDENTITY, CLASSES, "retrain", "pred_crf: .*another crf"),
])
def test_predictions_of_another_origin_are_not_mixed(tmp_path, identity, classes, crf, named):
    Outputs(tmp_path, IDENTITY, CLASSES, crf=CRF_PRESETS["test"])
    with pytest.raises(InputError, match=named):
        Outputs(tmp_path, identity, classes, crf=CRF_PRESETS[crf])


def test_a_crf_can_be_added_to_predictions_without_one(tmp_path):
    Outputs(tmp_path, IDENTITY, CLASSES)
    Outputs(tmp_path, IDENTITY, CLASSES, crf=CRF_PRESETS["test"])
    assert read_manifest(tmp_path / "pred")["crf"] is None and read_manifest(
        tmp_path / "pred_crf")["crf"]["iterations"] == 5


def test_a_folder_with_files_of_unknown_origin_is_refused(tmp_path):
    (tmp_path / "pred").mkdir()
    (tmp_path / "pred" / "old.png").write_bytes(b"")
    with pytest.raises(InputError, match="pred: holds files but no predictions.json"):
        Outputs(tmp_path, IDENTITY, CLASSES)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_manifest_is_refused_by_name(tmp_path, content):
    (tmp_path / "pred").mkdir()
    (tmp_path / "pred" / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=MANIFEST):
        Outputs(tmp_path, IDENTITY, CLASSES)


def test_the_manifest_says_what_made_the_predictions(tmp_path):
    Outputs(tmp_path, IDENTITY, CLASSES)
    assert json.loads((tmp_path / "pred" / MANIFEST).read_text()) == {**IDENTITY, "classes": list(CLASSES),
                                                                      "crf": None}
    assert read_manifest(tmp_path) is None


def test_an_unknown_kind_of_probabilities_is_refused(tmp_path):
    with pytest.raises(InputError, match="npy, npz"):
        Outputs(tmp_path, IDENTITY, CLASSES, probabilities="mat")
