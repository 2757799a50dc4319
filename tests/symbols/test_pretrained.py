"""Where pretrained weights come from, and files that are none."""
import hashlib

import numpy as np
import pytest
import requests
from gluoncv.model_zoo import model_store

from cian.errors import InputError
from cian.symbols import CAMClassifier, build_model, initialize, load_pretrained, save_params
from cian.symbols.params_file import write_params

V2, V1B = "features.5.0.bn1.gamma", "layer1.0.conv1.weight"
V1 = ["features.4.0.body.0.weight", "features.4.0.body.6.weight", "features.1.gamma"]


def tiny(model="resnet50_largefov"):
    return build_model(model, tiny=True, num_classes=5)


def gluon_params(path, names, dtype=np.float32):
    """A file as Gluon's save_parameters() writes it."""
    write_params(path, {name: np.ones((1, 1), dtype) for name in names}, {})
    content = path.read_bytes()
    for name in names:  # without arg:
        content = content.replace((len(name) + 4).to_bytes(8, "little") + b"arg:" + name.encode(),
                                  len(name).to_bytes(8, "little") + name.encode())
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content, looks", [
    (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
    (b"version https://git-lfs.github.com", "LFS pointer"),
    (b"\x1f\x8b\x08", "compressed archive"), (b"what is this", "nothing that is known")])
def test_a_file_that_is_none_is_told_by_what_it_looks_like(content, looks, tmp_path):
    (tmp_path / "w.params").write_bytes(content)
    with pytest.raises(InputError, match=f"w.params: is no file of weights, but .*{looks}.*; fetch it again"):
        load_pretrained(tiny(), tmp_path / "w.params")


def test_a_truncated_file_and_a_missing_one_are_named(tmp_path):
    net = tiny()
    initialize(net)
    save_params(net, tmp_path / "w.params")
    (tmp_path / "w.params").write_bytes((tmp_path / "w.params").read_bytes()[:-1000])
    with pytest.raises(InputError, match="w.params: .*the file is damaged.*fetch"):
        load_pretrained(tiny(), tmp_path / "w.params")
    with pytest.raises(InputError, match="none.pth: does not exist"):
        load_pretrained(tiny(), tmp_path / "none.pth")


@pytest.mark.parametrize("model, names, looks", [
    ("resnet50_largefov", V1, "resnet5_v1 of Gluon's zoo"),
    ("resnet101_v1b_largefov", V1, "resnet5_v1 of Gluon's zoo"),
    ("resnet101_v1_largefov", [V1B, "layer1.0.conv3.weight"], "resnet5_v1b of torchvision or timm"),
    ("resnet50_v1b_largefov", [V1B, "head.block.0.weight"], "a segmentation network of GluonCV"),
    ("resnet50_v1b_largefov", ["backbone.layer1.0.conv1.weight"], "a segmentation network"),
    ("vgg16_largefov", [V2, "features.1.weight"], "resnet4_v2"),
    ("resnet50_largefov", ["features.0.weight", "features.0.bias"], "vgg3"),
    ("resnet50_largefov", ["weight"], "no network known here")])
def test_weights_of_another_network_are_told_by_what_they_look_like(model, names, looks, tmp_path):
    path = gluon_params(tmp_path / "w.params", names)
    with pytest.raises(InputError, match=f"w.params: looks like {looks}.*backbone {model[:-9]}.*or use for"):
        load_pretrained(tiny(model), path)


def test_another_depth_is_told(tmp_path):
    other = build_model("resnet18_largefov", num_classes=5, backbone_options={"widths": (4, 8, 12, 16, 20)})
    initialize(other)
    save_params(other, tmp_path / "resnet-18-0000.params")
    with pytest.raises(InputError, match="looks like a ResNet-18 by the names.*backbone resnet50.*missing"):
        load_pretrained(tiny(), tmp_path / "resnet-18-0000.params")


def test_half_precision_is_refused(tmp_path):
    path = gluon_params(tmp_path / "w.params", [V2], np.float16)
    with pytest.raises(InputError, match="looks like resnet4_v2 of Gluon's zoo and holds float16.*float32"):
        load_pretrained(tiny(), path)


def test_without_a_connection_the_user_is_told_where_to_put_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("MXNET_HOME", str(tmp_path))
    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(InputError, match="vgg16-e660d456.params.*is not there, and cannot be fetched "
                                         r"\(ConnectionError\); fetch http.*vgg16-e660d456.zip elsewhere"):
        load_pretrained(CAMClassifier("vgg16"), "gluon")
    (tmp_path / "models" / "vgg16-e660d456.params").write_bytes(b"half of it")
    with pytest.raises(InputError, match="has another SHA-1 than the zoo's"):
        load_pretrained(CAMClassifier("vgg16"), "gluon")
    with pytest.raises(InputError, match="no weights for resnet18; use for resnet18: resnet-18-0000.params"):
        load_pretrained(tiny("resnet18_largefov"), "gluon")


def test_a_file_in_the_mxnet_home_is_checked_and_loaded(tmp_path, monkeypatch):
    net = tiny()
    initialize(net)
    (tmp_path / "models").mkdir()
    save_params(net, tmp_path / "w.params")
    digest = hashlib.sha1((tmp_path / "w.params").read_bytes()).hexdigest()
    monkeypatch.setenv("MXNET_HOME", str(tmp_path))
    monkeypatch.setitem(model_store._model_sha1, "resnet50_v2", digest)
    (tmp_path / "w.params").rename(tmp_path / "models" / f"resnet50_v2-{digest[:8]}.params")
    again = tiny()
    assert len(load_pretrained(again, "gluon").loaded) == len(list(net.collect_params()))
    loaded = again.collect_params()["conv0_weight"].data().asnumpy()
    np.testing.assert_array_equal(loaded, net.collect_params()["conv0_weight"].data().asnumpy())
