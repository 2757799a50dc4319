"""PyTorch's files of both formats, read without running them."""
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.torch_file import ADMITTED, MAGIC, PROTOCOL, read_torch_arrays


class Global:
    """Pickles as a reference to ``module.name``, whatever that is."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a global."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Pickler(pickle._Pickler):
    """Writes persistent ids for storages and bare references for globals, as PyTorch does."""

    def persistent_id(self, obj):
        return obj[1] if isinstance(obj, tuple) and len(obj) == 2 and obj[0] == "pid" else None

    def save_foreign(self, obj):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(b"R")

    dispatch = {**pickle._Pickler.dispatch, Global: save_foreign, Call: save_foreign}


def dumped(obj):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(obj)
    return stream.getvalue()


def storage(length, kind="FloatStorage", key="7"):
    return ("pid", ("storage", Global("torch", kind), key, "cpu", length, None))


def tensor(source, shape, strides, offset=0):
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), source, offset, shape, strides, False,
                OrderedDict())


def torch_file(tensors, numbers, keys=("7",), magic=MAGIC):
    parts = [pickle.dumps(part, 2) for part in (magic, PROTOCOL, {"little_endian": True})]
    parts += [dumped(tensors), pickle.dumps(list(keys), 2)]
    return b"".join(parts) + b"".join(struct.pack("<q", len(n)) + n.tobytes() for n in numbers)


def zip_file(tensors, members, order=b"little", **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, data in {"data.pkl": dumped(tensors), "byteorder": order, "version": b"3", **{
                f"data/{key}": numbers.tobytes() for key, numbers in members.items()}}.items():
            archive.writestr(f"weights/{name}", data)
    return stream.getvalue()


NUMBERS = np.arange(30, dtype=np.float32)


def test_tensors_come_back_with_their_strides_and_offsets():
    source = storage(30)
    tensors = {"a": tensor(source, (2, 3), (3, 1)), "b": tensor(source, (3, 2), (1, 3), offset=4),
               "c": tensor(source, (), ())}
    found = read_torch_arrays(torch_file(tensors, [NUMBERS]), "x.pth")
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["b"], [[4, 7], [5, 8], [6, 9]])
    assert found["c"].shape == () and found["c"] == 0


@pytest.mark.parametrize("shape, strides, offset",
                         [((31,), (1,), 0), ((5, 7), (7, 1), 0), ((2,), (30,), 0), ((2,), (1,), 29),
                          ((1,), (1,), -1), ((2, 2), (1,), 0), ((-1,), (1,), 0), ((2,), (-1,), 5)])
def test_a_tensor_outside_of_its_storage_is_refused(shape, strides, offset):
    with pytest.raises(InputError, match="x.pth.*(outside of its storage|impossible layout)"):
        read_torch_arrays(torch_file({"a": tensor(storage(30), shape, strides, offset)}, [NUMBERS]), "x.pth")


@pytest.mark.parametrize("module, name",
                         [("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"),
                          ("numpy", "fromfile"), ("cian.symbols.torch_file", "read_torch_arrays")])
def test_a_file_that_asks_for_anything_else_is_refused_and_not_run(module, name, tmp_path):
    trap = tmp_path / "trap"
    hostile = torch_file({"a": Call(Global(module, name), f"touch {trap}")}, [NUMBERS])
    with pytest.raises(InputError, match=f"asks for {module}.{name}"):
        read_torch_arrays(hostile, "x.pth")
    assert not os.path.exists(trap)


def test_the_admitted_names_are_seven():
    assert len(ADMITTED) == 7


def test_a_zip_archive_gives_what_the_legacy_format_does():
    source = storage(30)
    tensors = {"a": tensor(source, (2, 3), (1, 2), offset=4),
               "n": tensor(storage(1, "LongStorage", "8"), (), ())}
    members = {"7": NUMBERS, "8": np.array([5])}
    found, legacy = (read_torch_arrays(content, "x.pth") for content in (
        zip_file(tensors, members), torch_file(tensors, members.values(), keys=("7", "8"))))
    np.testing.assert_array_equal(found["a"], [[4, 6, 8], [5, 7, 9]])
    assert found["n"] == 5 and all(np.array_equal(found[name], legacy[name]) for name in legacy)


def test_parameters_are_read_as_their_tensors():
    inner = tensor(storage(30), (2, 3), (3, 1))
    rebuilt = Call(Global("torch._utils", "_rebuild_parameter"), inner, True, OrderedDict())
    found = read_torch_arrays(zip_file({"a": rebuilt}, {"7": NUMBERS}), "x.pth")
    np.testing.assert_array_equal(found["a"], NUMBERS[:6].reshape(2, 3))
    old = ADMITTED["torch.nn.parameter", "Parameter"]()
    old.__setstate__((3, True))
    assert old.tensor == 3


HALF = {"a": tensor(storage(30, "HalfStorage"), (2,), (1,))}
VIEW = ("pid", ("storage", Global("torch", "FloatStorage"), "7", "cpu", 30, ("8", 0, 30)))
TWICE = {"a": tensor(storage(9000), (9000,), (1,)), "b": tensor(storage(30), (2,), (1,))}


@pytest.mark.parametrize("content, message", [
    (zip_file({"a": tensor(storage(30), (2,), (1,))}, {"7": NUMBERS[:-1]}), "cut off"),
    (zip_file({"a": tensor(storage(30), (2,), (1,))}, {"7": NUMBERS}, compression=zipfile.ZIP_DEFLATED),
     "compressed"),
    (zip_file({"a": tensor(storage(30), (2,), (1,))}, {"7": NUMBERS}, order=b"big"), "big-endian"),
    (zip_file({"a": tensor(storage(30), (2,), (1,))}, {}), "cannot be read"),
    (zip_file(HALF, {"7": NUMBERS}), "numbers are of the type Half"),
    (torch_file(HALF, [NUMBERS]), "type Half"),
    (torch_file(TWICE, [NUMBERS]), "outside of its storage"),
    (torch_file({"a": tensor(storage(30), (10 ** 9,), (0,))}, [NUMBERS]), "outside of its storage"),
    (torch_file({"a": tensor(VIEW, (2,), (1,))}, [NUMBERS]), "no storage"),
    (zip_file({"state_dict": {"a": 3}}, {}), "state_dict: is no tensor.*state_dict()"),
    (zip_file(3, {}), "not a state dict"),
    (zip_file(Call(Global("os", "system"), "true"), {}), "asks for os.system")])
def test_files_of_other_content_are_refused(content, message):
    with pytest.raises(InputError, match=f"x.pth.*{message}"):
        read_torch_arrays(content, "x.pth")


def test_an_archive_of_something_else_is_told_to_be_unpacked():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("resnet50_v2.params", b"x")
    with pytest.raises(InputError, match="x.zip.*ZIP archive.*unpack"):
        read_torch_arrays(stream.getvalue(), "x.zip")


def test_other_formats_are_refused():
    whole = torch_file({"a": tensor(storage(30), (30,), (1,))}, [NUMBERS])
    assert read_torch_arrays(whole, "x.pth")["a"].shape == (30,)
    for content in (b"", b"PK\x03\x04" + bytes(50), torch_file({}, [], magic=3), torch_file({"a": 3}, []),
                    whole[:-1], whole[:60]):
        with pytest.raises(InputError, match="x.pth"):
            read_torch_arrays(content, "x.pth")


def test_mutated_files_are_read_or_refused():
    whole = torch_file({"a": tensor(storage(30), (2, 3), (3, 1)), "b": tensor(storage(30), (5,), (2,))},
                       [NUMBERS])
    rng = np.random.RandomState(0)
    refused = 0
    for _ in range(2000):
        mutated = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randint(len(whole) - 120)] = rng.randint(256)
        try:
            read_torch_arrays(bytes(mutated), "x.pth")
        except InputError:
            refused += 1
    assert 500 < refused < 2000
