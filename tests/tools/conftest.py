"""A small data set with its CAM classifier, for the tools before the first round."""
import os
import sys

import numpy as np
import pytest

from cian.data.classes import write_label_png

CAM_FLAGS = ("--model", "efficientnet_lite0", "--pretrained", "package", "--epochs", "2",
             "cam.freeze_backbone=true")


@pytest.fixture(scope="session")
def labelled_data(make_voc_tree, tmp_path_factory):
    """Flags of seven images with image-level labels, and with ground truth that is of class 3 everywhere."""
    root = make_voc_tree(tmp_path_factory.mktemp("voc"), images=7)
    for number in range(7):
        write_label_png(os.path.join(root, "SegmentationClassAug", f"image_{number:02d}.png"),
                        np.full((37, 41), 3, np.uint8))
    return ["--data", root, "--classes", f"{root}/classes.txt", "--train-list", "train", "--workers", "1"]


@pytest.fixture(scope="session")
def cam_flags():
    """Flags of a classifier that is trained in a second."""
    return list(CAM_FLAGS)


@pytest.fixture(scope="session")
def cam_snapshot(labelled_data, cam_flags, tmp_path_factory):
    """The folder of a trained classifier; tests leave it as it is."""
    from cian.tools import train_cam

    folder = str(tmp_path_factory.mktemp("snapshot") / "cam")
    assert train_cam.main([*labelled_data, *cam_flags, "--snapshot", folder]) == 0
    return folder


@pytest.fixture
def opened_files():
    """A list of the files that Python opens in the test, beginning with this fixture."""
    names = []
    RECORDERS.append(names)
    yield names
    RECORDERS.remove(names)


RECORDERS = []


def _record(event, arguments):
    if event == "open" and RECORDERS:
        for names in RECORDERS:
            names.append(str(arguments[0]))


sys.addaudithook(_record)  # it cannot be removed again, and does nothing between tests
