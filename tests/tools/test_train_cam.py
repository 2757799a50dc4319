"""tools/train_cam.py: what it leaves behind, that it reads no ground truth, and how it refuses."""
import pytest

from cian.errors import InputError
from cian.tools import train_cam


def test_classifier_is_trained_without_a_look_at_the_ground_truth(labelled_data, cam_flags, tmp_path, capsys,
                                                                  opened_files):
    assert train_cam.main([*labelled_data, *cam_flags, "--snapshot", str(tmp_path / "cam"), "--score",
                           "train"]) == 0
    assert any("image_00.jpg" in name for name in opened_files)
    assert not [name for name in opened_files if "SegmentationClassAug" in name]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "cam" / "efficientnet_lite0_cam-0001.params")
    assert any(line.startswith("train: mean average precision 0.") for line in lines)
    written = {path.name for path in (tmp_path / "cam").iterdir()}
    assert {"efficientnet_lite0_cam-0001.params", "efficientnet_lite0_cam-0001.params.json",
            "efficientnet_lite0_cam-0001.map.json", "efficientnet_lite0_cam.state",
            "efficientnet_lite0_cam.log", "config.yaml", "tensorboard"} <= written


@pytest.mark.parametrize(("change", "problem"), [
    (["--snapshot", ""], "--snapshot"),
    (["--model", "vgg19"], "vgg19"),
    (["--pretrained", "nowhere.params"], "nowhere.params"),
    (["--classes", "nowhere.txt"], "nowhere.txt"),
    (["--train-list", "nowhere"], "nowhere"),
    (["--score", "nowhere"], "nowhere"),
    (["--epochs", "0"], "cam.epochs"),
    (["cam.frozen=true"], "cam.frozen"),
    (["run.kvstore=dist_sync"], "data.records: several workers cannot pack the images"),
    (["run.kvstore=dist_sync", "--records", "any"], "run.kvstore: is dist_sync, but this process is no"),
])
def test_wrong_training_options_end_in_one_line(labelled_data, cam_flags, tmp_path, change, problem):
    with pytest.raises(InputError) as caught:
        train_cam.main([*labelled_data, *cam_flags, "--snapshot", str(tmp_path / "cam"), *change])
    assert problem in str(caught.value) and "\n" not in str(caught.value)
