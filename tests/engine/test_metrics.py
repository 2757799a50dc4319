"""Evaluation: exact counts, both means, and every misfit named."""
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cian.data.classes import read_label_png, write_label_png
from cian.errors import InputError, Problems
from cian.tools.engine.ledger import Ledger
from cian.tools.engine.metrics import Evaluation, confusion_matrix, evaluate, pair_counts, score_rows

CLASSES = ("background", "cat", "dog", "cow")


def loop_confusion(truth, prediction, num_classes):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel()):
        if t != 255:
            matrix[t, p] += 1
    return matrix


@pytest.fixture
def folders(tmp_path):
    """Five images of various sizes with truth and prediction; class 3 (cow) occurs nowhere."""
    random = np.random.RandomState(5)
    expected = np.zeros((4, 4), np.int64)
    names = [f"image_{k}" for k in range(5)]
    for k, name in enumerate(names):
        truth = random.randint(0, 3, (7 + k, 11), np.uint8)
        truth[0, :5] = 255
        prediction = random.randint(0, 3, truth.shape, np.uint8)
        write_label_png(tmp_path / "truth" / f"{name}.png", truth)
        write_label_png(tmp_path / "pred" / f"{name}.png", prediction)
        expected += loop_confusion(truth, prediction, 4)
    return names, tmp_path / "pred", tmp_path / "truth", expected


def test_one_image_counts_as_a_loop_over_its_pixels():
    random = np.random.RandomState(0)
    truth = random.choice([0, 1, 2, 3, 255], (23, 29)).astype(np.uint8)
    prediction = random.randint(0, 4, (23, 29), np.uint8)
    matrix = confusion_matrix(truth, prediction, 4)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, loop_confusion(truth, prediction, 4))


def test_pairs_are_counted_over_all_values_and_exactly_where_float32_no_longer_could():
    random = np.random.RandomState(1)
    truth, prediction = random.randint(0, 256, (2, 31, 37), np.uint8)
    expected = np.zeros((256, 256), np.int64)
    np.add.at(expected, (truth, prediction), 1)
    np.testing.assert_array_equal(pair_counts(truth, prediction), expected)
    shape = (4099, 4099)  # 2^24 + 25,000 pixels; float32 stops counting at 2^24
    assert pair_counts(np.zeros(shape, np.uint8), np.ones(shape, np.uint8))[0, 1] == 4099 ** 2


def test_one_pixel_is_one_count():
    np.testing.assert_array_equal(confusion_matrix(np.ones((1, 1), np.uint8), np.zeros((1, 1), np.uint8), 2),
                                  [[0, 0], [1, 0]])


def test_a_folder_sums_its_images(folders):
    names, pred, truth, expected = folders
    evaluation = evaluate(names, pred, truth, CLASSES, workers=3)
    np.testing.assert_array_equal(evaluation.confusion, expected)
    assert evaluation.images == 5 and evaluation.unscored == ()


def test_iou_by_hand_and_absent_classes_in_both_means():
    evaluation = Evaluation(CLASSES, np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]), 1)
    np.testing.assert_allclose(evaluation.iou[:2], [6 / 9, 3 / 6])
    assert np.isnan(evaluation.iou[2:]).all()
    assert evaluation.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 4)
    assert evaluation.mean_iou_present == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert evaluation.pixel_accuracy == pytest.approx(9 / 12)
    rows = dict(score_rows(evaluation))
    assert rows["cow"] == "absent" and rows["mean IoU"] == "29.17" and rows[
        "mean IoU without the 2 absent"] == "58.33"
    assert evaluation.to_dict()["iou"]["cow"] is None
    assert evaluation.to_dict()["confusion"][0] == [6, 2, 0, 0]


def test_a_class_predicted_but_never_true_counts_as_zero_in_both_means():
    evaluation = Evaluation(("background", "cat"), np.array([[4, 1], [0, 0]]), 1)
    assert evaluation.mean_iou == evaluation.mean_iou_present == pytest.approx(0.4)
    assert len(score_rows(evaluation)) == 4


def test_every_misfit_is_named_in_one_report(folders):
    names, pred, truth, _ = folders
    (pred / "image_0.png").unlink()
    write_label_png(pred / "image_1.png", np.zeros((3, 4), np.uint8))
    write_label_png(pred / "image_2.png", np.full((9, 11), 4, np.uint8))
    write_label_png(pred / "image_3.png", np.full((10, 11), 255, np.uint8))
    (pred / "image_4.png").write_bytes((pred / "image_4.png").read_bytes()[:-30])
    write_label_png(pred / "stranger.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(Problems) as caught:
        evaluate(names, pred, truth, CLASSES)
    report = "\n".join(map(str, caught.value.problems))
    for line in ("image_0: has no prediction", "stranger: has a prediction and is not in the list",
                 "image_1: prediction is 4x3 pixels, the truth 11x8",
                 "image_2: prediction holds 4, but the classes are 0 to 3", "image_3: prediction holds 255",
                 "image_4.png: is damaged"):
        assert line in report
    assert len(caught.value.problems) == 6


def test_a_truth_with_a_value_that_is_no_class_is_refused(folders):
    names, pred, truth, _ = folders
    write_label_png(truth / "image_2.png", np.full((9, 11), 7, np.uint8))
    with pytest.raises(Problems, match="image_2: truth holds 7"):
        evaluate(names, pred, truth, CLASSES)


def test_a_subset_is_scored_on_request_and_says_what_it_left_out(folders):
    names, pred, truth, _ = folders
    (pred / "image_0.png").unlink()
    write_label_png(pred / "stranger.png", np.zeros((3, 4), np.uint8))
    evaluation = evaluate(names, pred, truth, CLASSES, subset=True)
    assert evaluation.images == 4 and evaluation.unscored == ("image_0",)


def test_a_folder_without_any_of_the_list_is_refused_even_as_a_subset(folders, tmp_path):
    names, pred, truth, _ = folders
    with pytest.raises(InputError, match="no image of the list"):
        evaluate(["other"], pred, truth, CLASSES, subset=True)
    with pytest.raises(InputError, match="is not a folder"):
        evaluate(names, tmp_path / "nowhere", truth, CLASSES)


def test_processes_count_as_threads_do(folders):
    names, predictions, truth, _ = folders
    for number in range(40):
        for folder in (predictions, truth):
            (folder / f"copy_{number}.png").write_bytes((folder / "image_0.png").read_bytes())
    names = [*names, *(f"copy_{number}" for number in range(40))]
    by_threads = evaluate(names, predictions, truth, CLASSES, workers=1)
    program = (
        "import json, sys; from cian.tools.engine import metrics; pool = metrics._pool; used = []\n"
        "metrics._pool = lambda *sizes: used.append(type(pool(*sizes)).__name__) or pool(*sizes)\n"
        "names, *folders, classes = json.loads(sys.argv[1])\n"
        "print(json.dumps([used, metrics.evaluate(names, *folders, classes, workers=2).confusion.tolist()]))")
    arguments = json.dumps([names, str(predictions), str(truth), CLASSES])
    done = subprocess.run([sys.executable, "-c", program, arguments], capture_output=True, text=True,
                          check=True)
    used, confusion = json.loads(done.stdout)
    assert used == ["ProcessPoolExecutor"]
    np.testing.assert_array_equal(confusion, by_threads.confusion)


def test_what_is_wrong_with_the_truth_is_not_blamed_on_the_predictions(folders):
    names, pred, truth, _ = folders
    for name in names:
        Image.fromarray(np.zeros((8, 11, 3), np.uint8)).save(truth / f"{name}.png")
    with pytest.raises(Problems) as caught:
        evaluate(names, pred, truth, CLASSES)
    assert caught.value.file == str(truth) and caught.value.remedy == "mend the truth"
    assert all("convert_masks" in problem.remedy for problem in caught.value.problems)


@pytest.mark.parametrize("value", [0, 255])
def test_a_truth_without_any_class_is_no_measure(folders, value):
    names, pred, truth, _ = folders
    for name in names:
        shape = read_label_png(truth / f"{name}.png").shape
        write_label_png(truth / f"{name}.png", np.full(shape, value))
    with pytest.raises(InputError, match="not one pixel of the truth has a class"):
        evaluate(names, pred, truth, CLASSES)


def test_a_prediction_of_a_turned_image_is_not_scored(folders):
    names, pred, truth, _ = folders
    Ledger(pred).add(names[0], {}, {"orientation": 6})
    with pytest.raises(Problems, match=rf"{names[0]}: was made from an image that EXIF says is to be turned"):
        evaluate(names, pred, truth, CLASSES)
