"""The whole pipeline, tool after tool, on tiny networks: it runs with every backbone, and it learns
from image-level labels alone.
"""
from __future__ import annotations

import ctypes
import os
from functools import partial

import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import read_label_png, write_label_png
from cian.symbols import backbones
from cian.symbols.cam import CAMClassifier
from cian.symbols.cian import CIAN
from cian.symbols.params import initialize
from cian.tools import evaluate, make_seeds, predict, prepare, retrain, train, train_cam

IN_OPEN = 0x20


class Watch:
    """The kernel's own record (inotify) of files that anybody opens in a folder, C libraries included."""

    def __init__(self, folder):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        if self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), IN_OPEN) < 0:
            pytest.skip(f"inotify does not watch here: {os.strerror(ctypes.get_errno())}")

    def opened(self):
        """Names of the files that were opened since the last call; listing the folder itself has no
        name and does not count.
        """
        try:
            events = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        names = []
        while events:
            length = int.from_bytes(events[12:16], "little")
            names.append(events[16:16 + length].rstrip(b"\0").decode())
            events = events[16 + length:]
        return [name for name in names if name]


@pytest.fixture
def tiny(monkeypatch):
    """Every backbone of this process small enough for a test."""
    for name, build in dict(backbones.BACKBONES).items():
        monkeypatch.setitem(backbones.BACKBONES, name, partial(build, **backbones.TINY[name]))


@pytest.fixture
def tree(make_voc_tree, tmp_path):
    """Eight images with image-level labels, and masks that a training stage must leave alone."""
    root = make_voc_tree(tmp_path / "data", images=8)
    for number in range(8):
        write_label_png(os.path.join(root, "SegmentationClassAug", f"image_{number:02d}.png"),
                        np.full((37, 41), 1, np.uint8))
    return root


def train_stages(tree, out, cam_model, model, cam_weights, weights):
    """All stages that learn something or make labels to learn from."""
    data = ["--data", tree, "--classes", f"{tree}/classes.txt", "--train-list", "train", "--workers", "1"]
    records, cam, seeds, first = (str(out / name) for name in ("records", "cam", "seeds", "first"))
    small = ["--batch-size", "4", "--num-epoch", "1", "--image-size", "33"]
    packed = [*data, "--records", records]
    assert prepare.main([*data, "--out", records]) == 0
    assert train_cam.main([*packed, *small, "--model", cam_model, "--pretrained", cam_weights, "--snapshot",
                           cam]) == 0
    assert make_seeds.main([*packed, "--classifier", cam, "--out", seeds,
                            "seeds.background_threshold=0.2"]) == 0
    assert train.main([*packed, *small, "--label-root", seeds, "--model", model, "--pretrained", weights,
                       "--snapshot", first]) == 0
    assert predict.main([*data, "--snapshot", first, "--retrain-labels", "--image-size", "41",
                         "--quiet"]) == 0
    assert retrain.main(["--snapshot", first, *small]) == 0
    return data, first


@pytest.mark.parametrize("cam_model, model, given",
                         [("vgg16", "resnet50_largefov", False), ("vgg16", "resnet101_largefov", True),
                          ("vgg16", "vgg16_largefov", True), ("resnet18", "vgg16_largefov", False)])
def test_chain_runs_from_labels_alone_with_every_backbone(tiny, tree, tmp_path, cam_model, model, given):
    weights = cam_weights = ""
    if given:  # files of the model zoo's names: the backbone, and a classifier of other classes
        weights, cam_weights = str(tmp_path / "zoo-0000.params"), str(tmp_path / "zoo_cam-0000.params")
        for net, path in ((CIAN(model, 4), weights), (CAMClassifier(cam_model, 3), cam_weights)):
            initialize(net, 5)
            new = tuple(net.new_layers)
            values = {name: param.data()
                      for name, param in net.collect_params().items() if not name.startswith(new)}
            mx.nd.save(path, {("aux:" if "_moving_" in name else "arg:") + name: value
                              for name, value in values.items()})
    watch = Watch(os.path.join(tree, "SegmentationClassAug"))
    data, first = train_stages(tree, tmp_path, cam_model, model, cam_weights, weights)
    assert watch.opened() == [], "a training stage opened ground truth"
    second = first + "_retrain"
    assert predict.main([*data, "--snapshot", second, "--data-list", "train", "--image-size", "41",
                         "--quiet"]) == 0
    assert read_label_png(os.path.join(second, "pred_crf", "image_00.png"), 4).shape == (37, 41)
    assert evaluate.main([*data, "--snapshot", second, "--data-list", "train"]) == 0
    assert len(set(watch.opened())) == 8, "the watch sees evaluation open the masks"
