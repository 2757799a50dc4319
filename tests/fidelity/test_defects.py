"""Defects of the original code that this project does not have.

Each test states in NumPy what the original does, shows that it goes wrong, and that ours does not;
where both are defined they agree.
Where a checkout is named, the statements on losses and evaluation are held against it.
"""
import os
import re
import subprocess
import sys

import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import write_label_png
from cian.errors import Problems
from cian.symbols.backbones import TINY
from cian.symbols.cian import build_model
from cian.symbols.losses import CIANLoss, CompletionLoss
from cian.symbols.params import configure_training, initialize, save_params
from cian.symbols.params_file import read_params
from cian.tools.engine.config import Config, PredictConfig, load_config
from cian.tools.engine.fidelity.process import Original
from cian.tools.engine.metrics import evaluate
from cian.tools.engine.prediction.predictor import Predictor
from cian.tools.engine.training import round as training
from cian.tools.engine.training.step import Trainer

ORIGINAL = os.environ.get("CIAN_ORIGINAL", "")
needs_original = pytest.mark.skipif(not ORIGINAL,
                                    reason="CIAN_ORIGINAL names no checkout of github js-fan/CIAN")
MODEL = "resnet18_largefov"
CLASSES = 5


def tiny_network(seed=3, zero_gamma=False):
    net = build_model(MODEL, tiny=True, num_classes=CLASSES)
    initialize(net, seed, zero_gamma=zero_gamma)
    return net


def tiny_batch(labels, seed=0):
    """One device's block of four images with the given seeds everywhere."""
    pixels = np.random.RandomState(seed).randint(0, 256, (4, 3, 33, 33)).astype(np.float32)
    return [mx.io.DataBatch(data=[mx.nd.array(pixels)], label=[mx.nd.array(labels), mx.nd.ones((4, CLASSES))],
                            index=np.arange(4))]


# -- no agreeing pixel -----------------------------------------------------------------------------


def original_completion_gradient(logits, target, seeds):
    """(p - y) over the mean number of agreeing pixels an image, without a floor."""
    classes = logits.shape[1]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    y = np.eye(classes)[target.argmax(1)].transpose(0, 3, 1, 2)
    present = np.stack([[float((image == label).any()) for label in range(classes)] for image in seeds])
    y = y * present[:, :, None, None]
    mask = y.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (p - y) * mask / (mask.sum() / len(logits))


def our_completion_gradient(logits, target, seeds):
    variable = mx.nd.array(logits)
    variable.attach_grad()
    with mx.autograd.record():
        loss = CompletionLoss(logits.shape[1])(variable, mx.nd.array(target), mx.nd.array(seeds),
                                               mx.nd.ones(logits.shape[:2]))
    loss.backward()
    return variable.grad.asnumpy()


def test_a_batch_without_an_agreeing_pixel_has_no_gradient_in_place_of_nan():
    logits, target = np.random.RandomState(0).normal(0, 2, (2, 3, CLASSES, 5, 7)).astype(np.float32)
    seeds = np.random.RandomState(1).choice([0, 1, 2, 255], (3, 5, 7)).astype(np.float32)
    expected = original_completion_gradient(logits, target, seeds)
    np.testing.assert_allclose(our_completion_gradient(logits, target, seeds), expected, atol=1e-6)
    target[:, 3] = 50  # a class that no seed holds
    assert np.isnan(original_completion_gradient(logits, target, seeds)).all()
    np.testing.assert_array_equal(our_completion_gradient(logits, target, seeds), 0)


@pytest.mark.original
@needs_original
def test_the_original_itself_has_no_number_where_no_pixel_agrees(tmp_path):
    logits, target = np.random.RandomState(0).normal(0, 2, (2, 3, CLASSES, 5, 7)).astype(np.float32)
    seeds = np.random.RandomState(1).choice([0, 1, 2, 255], (3, 5, 7)).astype(np.float32)
    lost = target.copy()
    lost[:, 3] = 50
    inputs = {f"{kind}/{name}": array for name, cross in (("some", target), ("none", lost))
              for kind, array in (("self", logits), ("cross", cross), ("label", seeds))}
    found = Original(ORIGINAL, tmp_path).run("losses", {"kind": "losses"}, inputs).arrays
    np.testing.assert_allclose(found["completion_self/some"],
                               original_completion_gradient(logits, target, seeds), atol=1e-6)
    assert np.isnan(found["completion_self/none"]).all()


def test_a_step_without_any_label_leaves_the_parameters_finite():
    net = tiny_network()
    configure_training(net)
    trainer = Trainer(net, CIANLoss(CLASSES), [mx.cpu()], Config().train)
    values = trainer.step(tiny_batch(np.full((4, 5, 5), 255, np.float32)), 0.01, 0)
    assert values["completion_pixels"] == values["labelled_pixels"] == 0
    assert trainer.parameters_finite()


# -- predictions dropped in evaluation -------------------------------------------------------------


def original_confusion(names, prediction_root, mask_root, num_classes, processes=16):
    """Sixteen parts of the list; a part that meets a prediction of another size or none dies, and
    its counts are lost.
    """
    total = np.zeros((num_classes, num_classes), np.float32)
    for part in np.array_split(np.array(names), processes):
        counts = np.zeros_like(total)
        for name in part:
            truth = cv2.imread(os.path.join(mask_root, f"{name}.png"), cv2.IMREAD_GRAYSCALE)
            prediction = cv2.imread(os.path.join(prediction_root, f"{name}.png"), cv2.IMREAD_GRAYSCALE)
            if prediction is None or truth.shape != prediction.shape:
                break
            valid = truth < num_classes
            counts += np.bincount(truth[valid].astype(int) * num_classes + prediction[valid],
                                  minlength=num_classes ** 2).reshape(num_classes, -1)
        else:
            total += counts
    return total


@pytest.fixture
def scored_folders(tmp_path):
    """Predictions and truth of 48 images, three for each of the original's processes; the truth is
    gray as its reader needs it.
    """
    random, names = np.random.RandomState(2), [f"image_{number:02d}" for number in range(48)]
    for folder in ("pred", "truth"):
        (tmp_path / folder).mkdir()
        for name in names:
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"),
                        random.randint(0, CLASSES, (6, 7)).astype(np.uint8))
    return names, str(tmp_path / "pred"), str(tmp_path / "truth")


@pytest.mark.parametrize("damage", ["missing", "of another size"])
def test_a_prediction_that_cannot_be_scored_stops_the_evaluation_in_place_of_shrinking_it(scored_folders,
                                                                                          damage):
    names, predictions, truth = scored_folders
    table = [f"class{label}" for label in range(CLASSES)]
    whole = evaluate(names, predictions, truth, table).confusion
    np.testing.assert_array_equal(original_confusion(names, predictions, truth, CLASSES), whole)
    broken = os.path.join(predictions, f"{names[4]}.png")
    os.remove(broken)
    if damage != "missing":
        write_label_png(broken, np.zeros((5, 7), np.uint8))
    # a sixteenth is gone, without a word
    assert original_confusion(names, predictions, truth, CLASSES).sum() == whole.sum() - 3 * 42
    with pytest.raises(Problems, match=names[4]):
        evaluate(names, predictions, truth, table)


@pytest.mark.original
@needs_original
def test_the_original_itself_scores_fifteen_sixteenths_without_failing(scored_folders, tmp_path):
    names, predictions, truth = scored_folders
    os.remove(os.path.join(predictions, f"{names[4]}.png"))
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    command = [sys.executable, "scripts/eval_segment.py", "--data-list", str(tmp_path / "list.txt"),
               "--prediction-root", predictions, "--groundtruth-root", truth, "--num-cls", str(CLASSES)]
    cores = os.sched_getaffinity(0)
    # its processes add to shared counts without a lock; on one core they do not meet there
    os.sched_setaffinity(0, {min(cores)})
    try:
        done = subprocess.run(command, cwd=ORIGINAL, capture_output=True, text=True, timeout=60,
                              env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    finally:
        os.sched_setaffinity(0, cores)
    counts = original_confusion(names, predictions, truth, CLASSES)
    iou = np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts))
    assert done.returncode == 0
    assert float(re.search(r"mIOU: (\S+)", done.stdout).group(1)) == pytest.approx(iou.mean(), rel=1e-5)


def test_counts_do_not_stop_growing_where_float32_does():
    pixels = np.float32(2 ** 24)
    assert pixels + np.float32(1) == pixels
    total = np.array([[2 ** 24]], np.int64)
    from cian.tools.engine.metrics import Evaluation, confusion_matrix

    total += confusion_matrix(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), 1)
    assert Evaluation(("background",), total, 2).confusion[0, 0] == 2 ** 24 + 1


# -- runs: the logged loss, resuming ---------------------------------------------------------------


@pytest.fixture
def run_tiny(make_voc_tree, tmp_path, monkeypatch):
    """``run_tiny(snapshot, *overrides, stop_at=None)`` trains two epochs; returns final parameters,
    and what each step got and gave.
    """
    root = make_voc_tree(tmp_path / "data")
    step = Trainer.step

    def run(snapshot, *overrides, stop_at=None):
        steps = []

        def record(trainer, parts, rate, number):
            if number == stop_at:
                raise KeyboardInterrupt
            steps.append((parts, rate, number, step(trainer, parts, rate, number)))
            return steps[-1][-1]

        monkeypatch.setattr(Trainer, "step", record)
        config = load_config(overrides=[f"data.root={root}", f"data.classes={root}/classes.txt",
                                        "data.train_list=train", f"data.label_root={root}/seeds",
                                        f"run.snapshot={tmp_path / snapshot}", "run.workers=1",
                                        f"network.model={MODEL}", "train.batch_size=4", "train.crop_px=33",
                                        "train.epochs=2", "train.lr=0.01", *overrides])
        last = training.fit(config, backbone_options=TINY[MODEL[:-len("_largefov")]])
        return read_params(last)[0], steps
    return run


def test_the_logged_loss_is_that_of_all_steps_since_the_last_line(run_tiny, tmp_path):
    every = 3
    _, steps = run_tiny("run", f"train.log_every={every}")
    batches = [sum(values[name] for name in CIANLoss.PARTS[:4]) / 4 for *_, values in steps[:every]]
    line = re.search(r"loss (\S+) \(", (tmp_path / "run" / f"{MODEL}.log").read_text(encoding="utf-8"))
    assert float(line.group(1)) == pytest.approx(np.mean(batches), abs=1e-4)
    # the original's running mean divides with rounding down, so that the last batch alone remains
    shown, step = 0.0, every
    shown = (float(step) - every) // step * shown + (1 - (float(step) - every) // step) * batches[-1]
    assert shown == batches[-1] != pytest.approx(np.mean(batches), abs=1e-3)


def test_a_run_that_is_resumed_continues_and_does_not_begin_again(run_tiny):
    whole, steps = run_tiny("whole")
    # where the second epoch begins
    half = next(number for number, (_, rate, *_) in enumerate(steps) if rate != steps[0][1])
    with pytest.raises(KeyboardInterrupt):
        run_tiny("stopped", stop_at=half)
    resumed, rest = run_tiny("stopped")
    assert [number for _, _, number, _ in rest] == list(range(half, len(steps)))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    # the original's --begin-epoch 1: the initial weights, at the later rate
    again = build_model(MODEL, tiny=True, num_classes=4)
    initialize(again, 0)
    configure_training(again)
    trainer = Trainer(again, CIANLoss(4), [mx.cpu()], Config().train)
    for parts, rate, number, _ in steps[half:]:
        trainer.step(parts, rate, number)
    begun = trainer.state_dict()["parameters"]["fc1_weight"]
    assert np.abs(begun - whole["fc1_weight"]).max() > 1e-3


# -- images larger than the crop -------------------------------------------------------------------


def test_an_image_larger_than_the_square_is_predicted_whole():
    net = tiny_network().for_prediction()
    image = np.random.RandomState(3).randint(0, 256, (49, 73, 3)).astype(np.uint8)
    side = 41
    top, left = (49 - side) // 2, (73 - side) // 2
    # the original's crop: its CRF then fails on the sizes
    assert image[top:top + side, left:left + side].shape[:2] != image.shape[:2]
    logits = Predictor(net, PredictConfig(size_px=side)).logits(image)
    assert logits.shape == (CLASSES, 49, 73)
    np.testing.assert_array_equal(logits, Predictor(net, PredictConfig(fit="native")).logits(image))


# -- statistics of a saved network -----------------------------------------------------------------


def test_a_checkpoint_written_right_after_a_step_holds_that_steps_statistics(tmp_path):
    net = tiny_network()
    configure_training(net)
    trainer = Trainer(net, CIANLoss(CLASSES), [mx.cpu()], Config().train)
    batch = tiny_batch(np.random.RandomState(4).choice([0, 1, 255], (4, 5, 5)).astype(np.float32))
    before = trainer.state_dict()["moving"][0]
    inputs = []
    net.hybridize(False)
    hook = net.affinity.norm.register_forward_pre_hook(
        lambda _, arrays: inputs.append(arrays[0].asnumpy().astype(np.float64)))
    with mx.autograd.train_mode():
        net(batch[0].data[0])
    hook.detach()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer.step(batch, 0.01, 0)
    save_params(net, tmp_path / "net.params")
    saved = read_params(tmp_path / "net.params")[1]
    for name, statistic in (("bn_out_moving_mean", np.mean), ("bn_out_moving_var", np.var)):
        own, cross = (statistic(array, axis=(0, 2, 3)) for array in inputs)
        np.testing.assert_allclose(saved[name], 0.81 * before[name] + 0.09 * cross + 0.1 * own, rtol=1e-4,
                                   atol=1e-7, err_msg=name)
        assert not np.allclose(saved[name], before[name], rtol=1e-3)  # what is read without waiting
