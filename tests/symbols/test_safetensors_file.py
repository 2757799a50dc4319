"""Safetensors files."""
import json

import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.safetensors_file import read_safetensors

NUMBERS = np.arange(6, dtype=np.float32)
DATA = NUMBERS.tobytes()


def safetensors(header, data=DATA):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2, 3), place=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def test_tensors_come_back_by_name():
    content = safetensors({"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("I64", (), (8, 16))})
    found = read_safetensors(content, "x.safetensors")
    np.testing.assert_array_equal(found["a"], NUMBERS.reshape(2, 3))
    assert set(found) == {"a", "b"} and found["b"].shape == () and found["b"].dtype == np.int64


@pytest.mark.parametrize("content, message", [
    (safetensors({"a": entry()})[:-1], "lies outside of the file"),
    (safetensors({"a": entry(place=(0, 20))}), "lies outside of the file"),
    (safetensors({"a": entry(place=(-24, 0))}), "no whole number"),
    (safetensors({"a": entry(shape=(2, 3.0))}), "no whole number"),
    (safetensors({"a": entry(shape=(2 ** 40, 3))}), "lies outside of the file"),
    (safetensors({"a": entry("BF16")}), "type BF16"),
    (safetensors({"a": 3}), "cannot be read"), (safetensors([3]), "cannot be read"),
    (safetensors({"a": entry()})[:20], "cannot be read"), (b"\xff" * 9, "cannot be read")])
def test_damaged_files_are_refused_by_name(content, message):
    with pytest.raises(InputError, match=f"x.safetensors.*{message}"):
        read_safetensors(content, "x.safetensors")
