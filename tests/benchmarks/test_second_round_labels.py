"""Ways to make a second round's labels: what a way does, what is counted, and the picture."""
import cv2
import numpy as np
import pytest
from second_round_labels import Way, chart, label_map, way_scores


def test_a_way_leaves_out_other_classes_and_weighs_the_logits_against_the_crf():
    logits = np.zeros((4, 11, 13), np.float32)
    logits[2], logits[3, 5, 6], logits[1] = 0.5, 0.9, -1  # one pixel of class 3 in a field of class 2
    image = np.full((11, 13, 3), 97, np.uint8)
    allowed = np.array([0, 3])
    plain = label_map(logits, image, Way("native"), allowed)
    assert plain[5, 6] == 3 and (plain == 2).sum() == 11 * 13 - 1
    filtered = label_map(logits, image, Way("native", filtered=True), allowed)
    assert filtered[5, 6] == 3 and (filtered == 0).sum() == 11 * 13 - 1
    assert (label_map(logits, image, Way("native", "retrain"), allowed) == 2).all()
    assert label_map(logits, image, Way("native", "retrain", 1000.0), allowed)[5, 6] == 3


def test_figures_of_a_way_are_those_counted_by_hand():
    by_seed, by_truth = np.zeros((2, 256, 256), np.int64)
    by_seed[[0, 0, 1, 1, 1, 2, 255], [0, 1, 1, 2, 0, 2, 0]] = 3, 1, 5, 2, 1, 2, 6
    found = way_scores(by_seed, by_truth, ("background", "cat", "dog"))
    assert found == pytest.approx({"objects": 10 / 20, "foreground": 9 / 10, "kept": 7 / 10,
                                   "background": 3 / 4})
    by_truth[[0, 0, 1, 2, 255], [0, 1, 1, 2, 0]] = 4, 2, 4, 1, 9
    assert way_scores(by_seed, by_truth, ("background", "cat", "dog"))["mIoU"] == pytest.approx(
        (4 / 6 + 4 / 6 + 1) / 3)


def test_the_picture_has_a_chain_of_generations():
    def run(objects, miou):
        ways = {f"native, {crf}": {"objects": objects, "mIoU": miou} for crf in ("none", "retrain")}
        return {"seeds": {"objects": 0.5}, "ways": ways, "truth": 0.3}
    picture = chart({"0.10": run(0.4, 0.5), "0.10/2": run(0.35, 0.45), "0.20": run(0.2, 0.3)})
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape[2] == 3
