"""Cached features: the same as the network's, computed once, resumed, and refused when they are not
of this run.
"""
import mxnet as mx
import numpy as np
import pytest

from cian.data.preparation import prepare
from cian.data.tree import DatasetTree
from cian.errors import InputError
from cian.symbols.backbones import TINY, build_backbone
from cian.symbols.params import initialize
from cian.tools.engine.seeds.features import FeatureIter, pooled_features


@pytest.fixture
def images(make_voc_tree, tmp_path):
    root = make_voc_tree(tmp_path / "voc", images=5)
    with prepare(DatasetTree(root, classes=f"{root}/classes.txt"), "train", tmp_path / "records",
                 workers=1).images as records:
        yield records


class Counting:
    """A tiny backbone that counts its calls."""

    def __init__(self):
        self.calls = 0
        self.net = build_backbone("resnet18", **TINY["resnet18"])
        initialize(self.net, 1)
        self.out_channels = self.net.out_channels

    def __call__(self, x):
        self.calls += 1
        return self.net(mx.nd.array(x)).asnumpy()


def pooled(backbone, images, path):
    return pooled_features(backbone, backbone.out_channels, images, path)


def test_rows_are_the_mean_features_of_the_image_and_its_mirror_image(images, tmp_path):
    backbone = Counting()
    table = pooled(backbone, images, tmp_path / "f.f32")
    assert table.shape == (5, 2, backbone.out_channels)
    for view, picture in enumerate((images.image(3), images.image(3)[:, ::-1])):
        pixels = mx.nd.array(picture[..., ::-1].transpose(2, 0, 1)[None], dtype=np.float32)
        np.testing.assert_allclose(table[3, view], backbone(pixels.asnumpy()).mean(axis=(2, 3))[0], rtol=1e-5)


def test_features_are_computed_once(images, tmp_path):
    backbone = Counting()
    first = np.array(pooled(backbone, images, tmp_path / "f.f32"))
    calls = backbone.calls
    np.testing.assert_array_equal(pooled(backbone, images, tmp_path / "f.f32"), first)
    assert backbone.calls == calls == 10


def test_interrupted_features_go_on_where_they_stopped(images, tmp_path, monkeypatch):
    whole = np.array(pooled(Counting(), images, tmp_path / "whole.f32"))
    image = images.image
    def stop_at_three(index):
        if index == 3:
            raise KeyboardInterrupt
        return image(index)
    monkeypatch.setattr(images, "image", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        pooled(Counting(), images, tmp_path / "f.f32")
    monkeypatch.undo()
    backbone = Counting()
    np.testing.assert_array_equal(pooled(backbone, images, tmp_path / "f.f32"), whole)
    assert backbone.calls < 10


def test_half_laid_out_table_is_made_again(images, tmp_path):
    (tmp_path / "f.f32").write_bytes(b"\0\0")
    assert pooled(Counting(), images, tmp_path / "f.f32").any(axis=2).all()


def test_table_that_is_not_of_this_run_is_named(images, tmp_path):
    pooled(Counting(), images, tmp_path / "f.f32")
    (tmp_path / "f.f32").write_bytes(bytes(12))
    with pytest.raises(InputError, match="f.f32.*has 12 bytes.*remove"):
        pooled(Counting(), images, tmp_path / "f.f32")


@pytest.mark.parametrize("name", ["f.f32", "f.f32.sums"])
def test_a_bit_that_was_turned_is_told(images, tmp_path, name):
    pooled(Counting(), images, tmp_path / "f.f32")
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"f.f32: image_02: does not match its checksum"):
        pooled(Counting(), images, tmp_path / "f.f32")


@pytest.fixture
def table():
    features = np.arange(11 * 2 * 3, dtype=np.float32).reshape(11, 2, 3)
    return features, np.eye(11)[:, :5]


def epoch_of(batches):
    return [(batch.index.tolist(), batch.data[0].asnumpy().tolist(), batch.label[0].asnumpy().tolist())
            for batch in batches]


def test_every_row_comes_once_an_epoch_with_its_own_label(table):
    features, labels = table
    batches = FeatureIter(features, labels, 4, seed=0)
    views = set()
    for _ in range(4):
        batches.reset()
        seen = epoch_of(batches)
        assert [len(index) for index, _, _ in seen] == [4, 4, 3]
        assert sorted(sum((index for index, _, _ in seen), [])) == list(range(11))
        for index, data, label in seen:
            np.testing.assert_array_equal(label, labels[index])
            for row, value in zip(index, np.array(data)):
                assert value.shape == (3, 1, 1)
                view, = [v for v in (0, 1) if (features[row, v] == value[:, 0, 0]).all()]
                views.add(view)
    assert views == {0, 1}


def test_epochs_differ_and_a_seed_repeats_them(table):
    def run(seed):
        batches = FeatureIter(*table, 4, seed)
        epochs = []
        for _ in range(2):
            batches.reset()
            epochs.append(epoch_of(batches))
        return epochs
    assert run(0) == run(0)
    assert run(0)[0] != run(0)[1]
    assert run(0) != run(1)


def test_restored_state_hands_out_the_batches_that_would_have_followed(table):
    batches = FeatureIter(*table, 4, 0)
    batches.reset()
    epoch_of(batches)
    batches.reset()
    iterator = iter(batches)
    next(iterator)
    state = batches.state_dict()
    rest = epoch_of(iterator)
    restored = FeatureIter(*table, 4, 0)
    restored.load_state_dict(state)
    assert epoch_of(restored) == rest
