"""The metadata beside a model file."""
import json

import pytest

from cian.errors import InputError
from cian.symbols import build_model, initialize, metadata_path, read_metadata, save_params, write_metadata


@pytest.fixture
def saved(tmp_path):
    net = build_model("resnet18_largefov", tiny=True, num_classes=3)
    initialize(net)
    path = tmp_path / "resnet18_largefov-0000.params"
    save_params(net, path,
                {"network": net.settings, "classes": ["background", "cat", "dog"], "config_hash": "0123"})
    return path


def test_metadata_builds_the_network_that_the_file_fits(saved):
    found = read_metadata(saved)
    net = build_model(found["network"].pop("model"), **found["network"])
    assert net.settings["num_classes"] == len(found["classes"]) == 3
    assert found["config_hash"] == "0123" and found["preprocessing"]["channels"] == "RGB"
    assert set(found["versions"]) == {"cian", "mxnet", "numpy", "python"}


def test_a_changed_model_file_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-200] ^= 1
    saved.write_bytes(content)
    with pytest.raises(InputError, match="params.json: sha256: was written for other bytes"):
        read_metadata(saved)
    assert read_metadata(saved, verify=False)["classes"] == ["background", "cat", "dog"]


@pytest.mark.parametrize("key", ["network", "classes", "preprocessing"])
def test_a_missing_key_is_asked_for_by_name(saved, key):
    source = metadata_path(saved)
    with open(source, encoding="utf-8") as stream:
        content = json.load(stream)
    for broken, message in (({k: v for k, v in content.items() if k != key}, "missing"),
                            ({**content, key: 3}, "wrong type")):
        with open(source, "w", encoding="utf-8") as stream:
            json.dump(broken, stream)
        with pytest.raises(InputError, match=f"params.json: {key}: is .*{message}"):
            read_metadata(saved)


@pytest.mark.parametrize("classes, message", [(["background", "cat"], "2 names, and the network has 3"), (
    ["background", "cat", "cat"], "different names"), (["a", "b", 3], "different names")])
def test_classes_must_fit_the_network(saved, classes, message):
    with pytest.raises(InputError, match=f"classes: .*{message}"):
        write_metadata(saved, {"network": {"num_classes": 3}, "classes": classes})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", "[" * 100_000])
def test_damaged_metadata_is_refused(saved, text):
    with open(metadata_path(saved), "w", encoding="utf-8") as stream:
        stream.write(text)
    with pytest.raises(InputError, match="params.json"):
        read_metadata(saved)


def test_a_model_file_without_metadata_says_what_to_do(tmp_path):
    (tmp_path / "resnet-101-0000.params").write_bytes(b"")
    with pytest.raises(InputError, match="resnet-101-0000.params.json.*give the model name and the classes"):
        read_metadata(tmp_path / "resnet-101-0000.params")
