"""PyTorch's legacy files, read without running them."""
import io
import os
import pickle
import struct
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


def test_the_admitted_names_are_four():
    assert len(ADMITTED) == 4


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
