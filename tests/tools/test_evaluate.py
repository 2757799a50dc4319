"""The evaluation's command line."""
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cian.data.classes import write_label_png
from cian.errors import InputError
from cian.tools import merge
from cian.tools.evaluate import main


@pytest.fixture
def tree(tmp_path):
    """A tree of three 2-pixel images, two right and one half right, and a class list of three with
    one absent.
    """
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\nb\nc\n")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    for name, truth, prediction in (("a", [0, 1], [0, 1]), ("b", [1, 255], [1, 0]), ("c", [0, 1], [0, 0])):
        write_label_png(tmp_path / "SegmentationClassAug" / f"{name}.png", np.array([truth], np.uint8))
        write_label_png(tmp_path / "snapshot" / "pred_crf" / f"{name}.png", np.array([prediction], np.uint8))
    return tmp_path


def arguments(tree, *more):
    return ["--data", str(tree), "--classes", str(tree / "classes.txt"), "--snapshot", str(tree / "snapshot"),
            *more]


def test_the_table_and_the_json_tell_the_same(tree, capsys):
    assert main(arguments(tree)) == 0
    printed = capsys.readouterr().out
    content = json.loads((tree / "snapshot" / "pred_crf.json").read_text())
    assert content["confusion"] == [[2, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert content["iou"] == {"background": pytest.approx(2 / 3), "cat": pytest.approx(2 / 3), "dog": None}
    assert content["mean_iou"] == pytest.approx(4 / 9) and content["mean_iou_present"] == pytest.approx(2 / 3)
    assert content["list"].endswith("val.txt") and content["images"] == 3
    for figure in ("66.67", "44.44", "absent", "80.00"):
        assert figure in printed


def test_scoring_needs_no_opencv_for_palette_and_gray_maps(tree):
    program = "import sys; from cian.tools.evaluate import main; main(); assert 'cv2' not in sys.modules"
    write_label_png(tree / "SegmentationClassAug" / "a.png", np.array([[0, 1]], np.uint8))
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tree / "snapshot" / "pred_crf" / "a.png")
    assert subprocess.run([sys.executable, "-c", program, *arguments(tree)], timeout=120).returncode == 0


def test_shards_of_a_shared_folder_together_give_the_score_of_the_whole(tree):
    assert main(arguments(tree)) == 0
    whole, parts = json.loads((tree / "snapshot" / "pred_crf.json").read_text()), []
    for index in range(2):
        assert main(arguments(tree, "--shard", f"{index}/2")) == 0
        parts.append(str(tree / "snapshot" / f"pred_crf-{index}-of-2.json"))
    assert merge.main(["--out", str(tree / "merged.json"), *parts]) == 0
    assert json.loads((tree / "merged.json").read_text()) == whole


def test_the_flags_of_the_original_work(tree):
    assert main(["--num-cls", "3", "--data-list", str(tree / "ImageSets/Segmentation/val.txt"), "--classes",
                 str(tree / "classes.txt"), "--prediction-root", str(tree / "snapshot/pred_crf"),
                 "--groundtruth-root", str(tree / "SegmentationClassAug"), "--json",
                 str(tree / "figures.json")]) == 0
    assert json.loads((tree / "figures.json").read_text())["images"] == 3


def test_what_made_the_predictions_goes_into_the_json(tree):
    (tree / "snapshot" / "pred_crf" / "predictions.json").write_text('{"checkpoint": "abc"}')
    assert main(arguments(tree)) == 0
    assert json.loads((tree / "snapshot" / "pred_crf.json").read_text())["made_by"] == {"checkpoint": "abc"}


def test_problems_are_all_printed_and_nothing_is_written(tree, capsys):
    (tree / "snapshot" / "pred_crf" / "a.png").unlink()
    write_label_png(tree / "snapshot" / "pred_crf" / "b.png", np.zeros((2, 2), np.uint8))
    assert main(arguments(tree)) == 1
    errors = capsys.readouterr().err
    assert ("a: has no prediction" in errors and "b: prediction is 2x2 pixels" in errors
            and "2 problems" in errors)
    assert not (tree / "snapshot" / "pred_crf.json").exists()


def test_a_subset_is_scored_on_request(tree, capsys):
    (tree / "snapshot" / "pred_crf" / "a.png").unlink()
    assert main(arguments(tree, "--subset")) == 0
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize("wrong, message", [
    (["--prediction-root", "/nowhere"], "nowhere: is not a folder"),
    (["--groundtruth-root", "/nowhere"], "nowhere: is not a folder"),
    (["--data-list", "tets"], "does not exist; lists there: val"),
    (["--num-cls", "21"], "21 classes were announced"),
])
def test_wrong_input_is_one_line(tree, wrong, message):
    with pytest.raises(InputError, match=message):
        main(arguments(tree, *wrong))


def test_predictions_or_truth_that_were_not_named_are_asked_for(tree):
    with pytest.raises(InputError, match="--prediction-root"):
        main(["--data", str(tree)])
    with pytest.raises(InputError, match="--groundtruth-root"):
        main(["--prediction-root", str(tree)])


@pytest.mark.parametrize("folder", ["snapshot/pred_crf", "SegmentationClassAug"])
def test_predictions_and_truth_of_other_classes_are_refused(tree, folder):
    (tree / folder / "predictions.json").write_text('{"classes": ["background", "dog", "cat"]}')
    with pytest.raises(InputError,
                       match="has other classes than .*classes.txt: class 1 is 'dog' here and 'cat'"):
        main(arguments(tree))
    with pytest.raises(InputError, match="has other classes than VOC's class list"):
        main([argument for argument in arguments(tree)
              if "classes" not in argument] if folder.startswith("snapshot") else arguments(tree)[:2]
             + arguments(tree)[4:])


def test_the_table_is_printed_also_where_its_file_cannot_be_written(tree, capsys):
    with pytest.raises(InputError, match="cannot be written"):
        main(arguments(tree, "--json", str(tree / "classes.txt" / "figures.json")))
    assert "mean IoU" in capsys.readouterr().out


def test_a_palette_in_another_order_is_not_scored(tree, capsys):
    path = tree / "SegmentationClassAug" / "a.png"
    picture = Image.fromarray(np.array([[1, 0]], np.uint8))
    picture.putpalette([128, 0, 0, 0, 0, 0])
    picture.save(path)
    assert main(arguments(tree)) == 1
    printed = capsys.readouterr().err
    assert "another program has ordered its palette anew" in printed
    assert "predict the whole list" not in printed
