"""The prediction's command line: lists of a data set, images by themselves, shards, resuming, and
what it refuses.
"""
import hashlib
import json
import subprocess
import sys

import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import read_label_png
from cian.errors import InputError
from cian.symbols.cian import build_model
from cian.symbols.params import save_params
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.images import read_image
from cian.tools.engine.models.snapshot import load_network
from cian.tools.engine.prediction.predictor import Predictor
from cian.tools.engine.shards import merge_folders
from cian.tools.predict import main

CLASSES = ("background", "cat", "dog", "cow")
NAMES = {"train": ("t0", "t1"), "val": ("v0", "v1", "v2")}
XML = "<annotation><object><name>{}</name><difficult>0</difficult></object></annotation>"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A data set of five noisy images, and a snapshot with one checkpoint of a tiny network."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "snapshot"):
        (root / folder).mkdir(parents=True)
    random = np.random.RandomState(0)
    for split, names in NAMES.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for k, name in enumerate(names):
            picture = cv2.resize(random.randint(0, 256, (4, 5, 3), np.uint8), (43 + k, 37),
                                 interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), picture)
            (root / "Annotations" / f"{name}.xml").write_text(XML.format("dog"))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    save_checkpoint(root / "snapshot", seed=1)
    return root


def save_checkpoint(folder, seed):
    mx.random.seed(seed)
    net = build_model("resnet18_largefov", tiny=True, num_classes=len(CLASSES))
    net.initialize(mx.init.Normal(0.3))
    folder.mkdir(exist_ok=True)
    save_params(net, folder / "resnet18_largefov-0004.params",
                {"network": net.settings, "classes": list(CLASSES)})


def arguments(tree, out, *more):
    return ["--data", str(tree), "--classes", str(tree / "classes.txt"), "--train-list", "train",
            "--image-size", "65", "--snapshot", str(tree / "snapshot"), "--out", str(out), "--workers", "1",
            "--quiet", *more]


def settings(**changes):
    return PredictConfig(size_px=65, **changes)


def names_in(folder):
    return sorted(path.stem for path in folder.glob("*.png"))


def test_the_validation_list_gets_label_maps_with_and_without_crf(tree, tmp_path, capsys):
    assert main(arguments(tree, tmp_path)) == 0
    assert "3 predicted" in capsys.readouterr().out
    net, _ = load_network(tree / "snapshot")
    predictor = Predictor(net, settings())
    for name in NAMES["val"]:
        expected = predictor.predict(read_image(str(tree / "JPEGImages" / f"{name}.jpg")))
        np.testing.assert_array_equal(read_label_png(tmp_path / "pred" / f"{name}.png"), expected.labels)
        np.testing.assert_array_equal(read_label_png(tmp_path / "pred_crf" / f"{name}.png"),
                                      expected.labels_crf)
    manifest = json.loads((tmp_path / "pred_crf" / "predictions.json").read_text())
    assert manifest["classes"] == list(CLASSES) and manifest["crf"]["iterations"] == 5
    assert manifest["settings"]["scales"] == [1.0, 0.75, 1.25]
    assert manifest["checkpoint"] == hashlib.sha256(
        (tree / "snapshot" / "resnet18_largefov-0004.params").read_bytes()).hexdigest()


def test_labels_of_the_second_round_are_warped_and_refined_by_ten_iterations(tree, tmp_path):
    assert main(arguments(tree, tmp_path, "--retrain-labels")) == 0
    assert names_in(tmp_path / "train_aug_pred") == names_in(tmp_path / "train_aug_pred_crf") == list(
        NAMES["train"])
    net, _ = load_network(tree / "snapshot")
    image = read_image(str(tree / "JPEGImages" / "t1.jpg"))
    expected = Predictor(net, settings(fit="warp", crf="retrain")).predict(image)
    np.testing.assert_array_equal(read_label_png(tmp_path / "train_aug_pred" / "t1.png"), expected.labels)
    np.testing.assert_array_equal(read_label_png(tmp_path / "train_aug_pred_crf" / "t1.png"),
                                  expected.labels_crf)


def test_what_the_command_line_says_wins_over_the_second_rounds_settings(tree, tmp_path):
    assert main(arguments(tree, tmp_path, "--retrain-labels", "--crf", "none", "predict.fit=pad")) == 0
    manifest = json.loads((tmp_path / "train_aug_pred" / "predictions.json").read_text())
    assert manifest["settings"]["fit"] == "pad" and not (tmp_path / "train_aug_pred_crf").exists()


def test_files_and_keys_decide_how_the_second_rounds_labels_are_made(tree, tmp_path):
    (tmp_path / "labels.yaml").write_text("predict: {retrain_fit: native}\n")
    assert main(arguments(tree, tmp_path, "--retrain-labels", "-c", str(tmp_path / "labels.yaml"),
                          "predict.retrain_crf=none")) == 0
    manifest = json.loads((tmp_path / "train_aug_pred" / "predictions.json").read_text())
    assert manifest["settings"]["fit"] == "native" and not (tmp_path / "train_aug_pred_crf").exists()


def test_labels_of_the_second_round_are_held_to_the_images_classes_where_asked(tree, tmp_path):
    asked = ("--retrain-labels", "--crf", "none", "predict.retrain_filter_labels=true")
    assert main(arguments(tree, tmp_path, *asked)) == 0
    manifest = json.loads((tmp_path / "train_aug_pred" / "predictions.json").read_text())
    assert manifest["settings"]["filter_labels"] is True
    for name in NAMES["train"]:
        assert set(np.unique(read_label_png(tmp_path / "train_aug_pred" / f"{name}.png"))) <= {0, 2}
    assert main(arguments(tree, tmp_path, *asked[1:])) == 0
    manifest = json.loads((tmp_path / "pred" / "predictions.json").read_text())
    assert manifest["settings"]["filter_labels"] is False


def test_two_shards_are_disjoint_and_together_the_list(tree, tmp_path):
    assert main(arguments(tree, tmp_path, "--shard", "0/2", "--crf", "none")) == 0
    assert names_in(tmp_path / "pred") == ["v0", "v2"]
    with pytest.raises(InputError, match="shard 1/2 is missing"):
        merge_folders([tmp_path / "pred"])
    assert main(arguments(tree, tmp_path, "--shard", "1/2", "--crf", "none")) == 0
    assert names_in(tmp_path / "pred") == ["v0", "v1", "v2"]
    assert merge_folders([tmp_path / "pred"]) == 3


def test_two_processes_write_the_files_that_one_writes(tree, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Predictor, "start",
                        lambda self, images, names, start=Predictor.start: seen.append(len(images))
                        or start(self, images))
    for count in ("1", "2"):
        assert main(arguments(tree, tmp_path / count, "--processes", count, "--probabilities", "npy",
                              "--overlay")) == 0
    assert len(seen) == 3 + 2  # the second image went to the other process
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 4 * len(NAMES["val"]) + 8  # and their manifests and ledgers
    assert files == sorted(path.relative_to(tmp_path / "2") for path in (tmp_path / "2").rglob("*.*"))
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_what_is_wrong_with_a_model_is_told_once_whatever_the_processes(tree, tmp_path):
    command = [sys.executable, "-m", "cian.tools.predict",
               *arguments(tree, tmp_path, "--processes", "2", "--checkpoint", "missing.params")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and len(
        run.stderr.splitlines()) == 1 and "missing.params" in run.stderr and not list(tmp_path.iterdir())


def test_the_originals_process_number_is_a_shard_on_its_own_device(tree, tmp_path):
    assert main(arguments(tree, tmp_path, "--crf", "none", "--devices", "cpu:0,cpu:1", "--pid", "1",
                          "--infer", "--no-ms", "--no-mirror", "--annotation-root", str(tree / "Annotations"),
                          "--model", "resnet18_largefov", "--num-epoch", "5")) == 0
    assert names_in(tmp_path / "pred") == ["v1"]
    manifest = json.loads((tmp_path / "pred" / "predictions.json").read_text())["settings"]
    assert (manifest["scales"], manifest["add_max"], manifest["mirror"]) == ([1.0], False, False)


def test_a_second_call_makes_only_what_is_missing(tree, tmp_path, capsys):
    main(arguments(tree, tmp_path, "--crf", "none"))
    kept = tmp_path / "pred" / "v0.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "pred" / "v2.png").unlink()
    assert main(arguments(tree, tmp_path, "--crf", "none")) == 0
    assert "1 predicted, 2 were done before" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before


def test_predictions_of_another_checkpoint_or_setting_are_not_added_to(tree, tmp_path):
    main(arguments(tree, tmp_path, "--crf", "none"))
    with pytest.raises(InputError, match="pred: .*another settings"):
        main(arguments(tree, tmp_path, "--crf", "none", "--no-mirror"))
    save_checkpoint(tmp_path / "other", seed=2)
    with pytest.raises(InputError, match="pred: .*another checkpoint"):
        main(arguments(tree, tmp_path, "--crf", "none", "--checkpoint", str(tmp_path / "other")))


def test_images_are_predicted_without_a_data_set(tree, tmp_path):
    assert main(["--checkpoint", str(tree / "snapshot"), "--out", str(tmp_path), "--images",
                 str(tree / "JPEGImages" / "v*.jpg"), "--quiet", "--image-size", "65", "--workers", "1",
                 "--crf", "none", "--overlay", "--probabilities", "npz"]) == 0
    assert names_in(tmp_path / "pred") == names_in(tmp_path / "overlay") == list(NAMES["val"])
    with np.load(tmp_path / "probabilities" / "v0.npz") as stored:
        assert stored["classes"].tolist() == list(CLASSES)
        np.testing.assert_array_equal(stored["probabilities"].argmax(0) == 1,
                                      read_label_png(tmp_path / "pred" / "v0.png") == 1)


def test_own_images_are_padded_no_more_than_is_needed_unless_a_size_or_a_fit_is_asked_for(tree, tmp_path):
    (tmp_path / "warp.yaml").write_text("predict: {fit: warp, size_px: 33}")
    for number, (asked, fit) in enumerate({
            (): "tight", ("--image-size", "65"): "pad", ("predict.size_px=65",): "pad",
            ("predict.fit=native",): "native", ("-c", str(tmp_path / "warp.yaml")): "warp"}.items()):
        out = tmp_path / str(number)
        assert main(["--checkpoint", str(tree / "snapshot"), "--out", str(out), "--images",
                     str(tree / "JPEGImages" / "v0.jpg"), "--quiet", "--crf", "none", "--no-ms", *asked]) == 0
        assert json.loads((out / "pred" / "predictions.json").read_text())["settings"]["fit"] == fit


def test_a_bad_image_is_named_and_the_others_are_done(tree, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.jpg").write_bytes((tree / "JPEGImages" / "v0.jpg").read_bytes())
    (images / "cut.jpg").write_bytes((tree / "JPEGImages" / "v1.jpg").read_bytes()[:300])
    code = main(["--checkpoint", str(tree / "snapshot"), "--out", str(tmp_path), "--images", str(images),
                 "--image-size", "65", "--quiet", "--workers", "1", "--crf", "none"])
    assert code == 1 and names_in(tmp_path / "pred") == ["good"]
    assert "cut.jpg" in capsys.readouterr().err


def test_predictions_can_be_held_to_the_image_level_labels(tree, tmp_path):
    assert main(arguments(tree, tmp_path, "predict.filter_labels=true", "--crf", "none")) == 0
    for name in NAMES["val"]:
        assert set(np.unique(read_label_png(tmp_path / "pred" / f"{name}.png"))) <= {0, 2}


@pytest.mark.parametrize("wrong, message", [
    (["--checkpoint", "/nowhere"], "nowhere: does not exist"),
    (["--test-list", "tets"], "does not exist; lists there: train, val"),
    (["--shard", "2/2"], "--shard: '2/2' is no shard"),
    (["--images", "/nowhere/*.jpg"], "names no image"),
    (["--images", "x.jpg", "--retrain-labels"], "needs the lists"),
    (["--model", "vgg16_largefov"], "holds no checkpoint of vgg16_largefov"),
    (["--devices", "tpu:0"], "'tpu:0' is not a device"),
    (["--crf", "strong"], "'strong' is not allowed"),
])
def test_wrong_input_is_one_line(tree, tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        main(arguments(tree, tmp_path, *wrong))


def test_a_model_and_a_folder_have_to_be_named(tree):
    with pytest.raises(InputError, match="no model was named"):
        main(["--data", str(tree)])
    with pytest.raises(InputError, match="no folder for the predictions"):
        main(["--data", str(tree), "--checkpoint", str(tree / "snapshot")])


def test_worker_processes_load_neither_mxnet_nor_opencv():
    code = ("import sys, cian.tools.predict, cian.tools.engine.prediction.finishing; "
            "sys.exit(bool({'mxnet', 'cv2'} & sys.modules.keys()))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
