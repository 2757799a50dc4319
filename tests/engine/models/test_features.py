"""Stored features: what the network gives, computed once, held against their checksums, and bounded."""
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.preparation import prepare
from cian.data.tree import DatasetTree
from cian.data.windows import WindowMaker, WindowTransform
from cian.errors import InputError
from cian.symbols.backbones import build_backbone
from cian.symbols.layers import constant_parts
from cian.symbols.params import configure_training, initialize
from cian.tools.engine.config import RunConfig
from cian.tools.engine.models.features import Below, View, stored_features

VIEWS = [View(scale, mirror, 33) for scale in (0.5, 1.25) for mirror in (False, True)]
FREEZE = {"resnet18": ("conv0_", "stage1_", "stage2_"), "efficientnet_lite0": ("stem_", "block"),
          "vgg16": ("conv", "fc6")}


@pytest.fixture(scope="module")
def images(make_voc_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    root = make_voc_tree(folder / "voc", images=4, height=53, width=47)
    with prepare(DatasetTree(root, classes=f"{root}/classes.txt"), "train", folder / "records",
                 workers=1).images as records:
        yield records


def make_below(name="resnet18", seed=1, freeze=None, engine="mxnet"):
    backbone = build_backbone(name, tiny=True)
    backbone.fast_layers = ()
    initialize(backbone, seed)
    configure_training(backbone, freeze=FREEZE[name] if freeze is None else freeze)
    return Below(backbone, constant_parts(backbone), mx.cpu(), engine)


def stored(below, images, views, folder, limit=1.0):
    return stored_features(below, images, views, RunConfig(features_root=str(folder), features_gb=limit),
                           progress=False)


@pytest.mark.parametrize("name", FREEZE)
def test_a_window_is_that_of_the_features_computed_then_and_there_bit_for_bit(images, tmp_path, name):
    below = make_below(name)
    maker = WindowMaker(stored(below, images, VIEWS, tmp_path), images,
                        WindowTransform(33, scales=(0.5, 1.25)))
    random, seen = np.random.RandomState(0), set()
    for index in 12 * list(range(len(images))):
        draw = maker.transform.draw_in_order(random, images.sizes[index])
        window = np.empty((1, *maker.image_shape), np.float32)
        maker([(index, draw)], window, None)
        picture = cv2.flip(images.image(index), 1) if draw.mirror else images.image(index)
        picture = cv2.resize(picture, tuple(int(side * draw.scale + 0.5) for side in (47, 53)))
        padded = np.zeros((max(len(picture), 33), max(len(picture[0]), 33), 3), np.float32)
        padded[:len(picture), :len(picture[0])] = picture[..., ::-1]
        whole = below.net(mx.nd.array(padded.transpose(2, 0, 1)[None])).asnumpy().astype(np.float16)[0]
        cut = whole[:, draw.top:draw.top + 5, draw.left:draw.left + 5]
        assert cut.shape == window[0].shape and (cut == window[0]).all() and cut.any()
        seen.add(draw)
    assert {draw.top for draw in seen if draw.scale == 1.25} == {0, 1, 2, 3, 4}
    assert {draw.left for draw in seen if draw.scale == 1.25} == {0, 1, 2, 3}
    assert {draw.top + draw.left for draw in seen if draw.scale == 0.5} == {0}


def test_features_are_computed_once_and_interrupted_ones_go_on(images, tmp_path, monkeypatch):
    below, computed, image = make_below(), [], images.image

    def counting(index):
        computed.append(index)
        if len(computed) == 6:
            raise KeyboardInterrupt
        return image(index)

    monkeypatch.setattr(images, "image", counting)
    with pytest.raises(KeyboardInterrupt):
        stored(below, images, VIEWS, tmp_path)
    files = stored(below, images, VIEWS, tmp_path)
    assert computed == [0, 1, 2, 3, 0, 1, 1, 2, 3, *2 * [0, 1, 2, 3]]
    again = stored(make_below(), images, VIEWS, tmp_path)
    assert len(computed) == 17 and [len(file.missing()) for file in again.values()] == [0] * 4
    for key, file in files.items():
        assert all((file[index] == again[key][index]).all() for index in range(4))


def test_other_weights_another_cut_and_other_images_have_files_of_their_own(images, make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "voc", images=4, height=53, width=47, seed=1)
    others = prepare(DatasetTree(root, classes=f"{root}/classes.txt"), "train", tmp_path / "records").images
    cases = [(make_below(), images), (make_below(seed=2), images),
             (make_below(freeze=(*FREEZE["resnet18"], "stage3_")), images), (make_below(), others)]
    paths = {stored(below, records, [View()], tmp_path / "f")[1.0, False].path
             for below, records in cases}
    assert len(paths) == 4 == len([name for name in os.listdir(tmp_path / "f") if name.endswith(".f16")])


def test_images_that_need_no_padding_share_their_features_whatever_the_window(images, tmp_path):
    def path(pixels):
        return stored(make_below(), images, [View(1.0, False, pixels)], tmp_path)[1.0, False].path
    assert path(33) == path(1) == path(47) != path(49)


@pytest.mark.parametrize("name", FREEZE)
def test_onnxruntime_computes_the_same_features_into_files_of_their_own(images, tmp_path, name):
    pytest.importorskip("onnxruntime")
    want, got = (stored(make_below(name, engine=engine), images, VIEWS[2:], tmp_path)
                 for engine in ("mxnet", "auto"))
    assert not {file.path for file in want.values()} & {file.path for file in got.values()}
    for view, file in want.items():
        for index in range(len(images)):
            close = np.abs(got[view][index].astype(np.float32) - file[index])
            assert file[index].std() > 0 and close.max() <= 2 ** -10 * np.abs(file[index]).max()


def test_a_damaged_map_is_named_before_it_is_used(images, tmp_path):
    file, = stored(make_below(), images, VIEWS[:1], tmp_path).values()
    content = bytearray(Path(file.path).read_bytes())
    content[len(content) * 5 // 8] ^= 1
    with open(file.path, "wb") as stream:
        stream.write(content)
    file, = stored(make_below(), images, VIEWS[:1], tmp_path).values()
    assert file[1].any() and file[3].any()
    with pytest.raises(InputError, match=r"train-0\.5-\w+\.f16: image_02: does not match its checksum"):
        file[2]
    os.truncate(file.path, len(content) - 2)
    with pytest.raises(InputError, match=r"\.f16: has \d+ bytes in place of \d+; remove"):
        stored(make_below(), images, VIEWS[:1], tmp_path)


def test_the_size_is_told_before_anything_is_computed_and_refused_above_the_bound(images, tmp_path, capsys,
                                                                                  monkeypatch):
    with pytest.raises(InputError, match=r"run\.features_gb: .*allow more than 1e-09"):
        stored(make_below(), images, VIEWS, tmp_path, 1e-9)
    told = capsys.readouterr().out
    assert "features of 4 images in 4 views: 0.00 GB in" in told and not os.listdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="GB left.*make room"):
        stored(make_below(), images, VIEWS, tmp_path)


def test_features_beyond_float16_are_refused_naming_the_image(images, tmp_path):
    below = make_below()
    below.net.collect_params()["stage2_unit1_conv2_weight"].data()[:] *= 1e6
    with pytest.raises(InputError, match="image_00: its features are not finite in float16"):
        stored(below, images, VIEWS, tmp_path)


@pytest.mark.parametrize("name, freeze, told", [
    ("resnet18", ("stage",), "at stride 1: bn_data_gamma"),
    ("resnet18", ("conv0_", "stage1_"), "at stride 4: stage2_"),
    ("efficientnet_lite0", ("block",), "stem_conv0_weight"), ("vgg16", ("conv1_",), "stride 2: conv2_1")])
def test_layers_that_train_below_stride_8_are_refused_by_name(name, freeze, told):
    with pytest.raises(InputError, match=rf"train\.freeze: .*{told}.*freeze the backbone"):
        make_below(name, freeze=freeze)


def test_the_cut_is_below_dropout_and_below_batch_norms_that_follow_the_batch():
    whole = len(build_backbone("vgg16", tiny=True).parts())
    assert len(make_below("vgg16", freeze=("conv", "fc")).net) == whole - 4
    moving = build_backbone("resnet18", tiny=True, use_global_stats=False)
    moving.fast_layers = ()
    initialize(moving)
    configure_training(moving, freeze=("conv0_", "stage"))
    with pytest.raises(InputError, match="follows the batch is at stride 1: bn_data_gamma"):
        Below(moving, constant_parts(moving), mx.cpu())
