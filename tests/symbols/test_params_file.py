"""MXNet's parameter files, whole, old, damaged and hostile."""
import os
import resource
import struct

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols import read_params, write_params
from cian.symbols.params_file import V1_MAGIC, V2_MAGIC, parse_arrays, read_arrays

RNG = np.random.RandomState(0)
ARG = {"conv0_weight": RNG.randn(3, 2, 5, 7).astype(np.float32), "fc1_bias": RNG.randn(11).astype(np.float32)}
AUX = {"bn0_moving_var": RNG.rand(13).astype(np.float32)}


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_file_comes_back_and_is_byte_for_byte_mxnets_own(tmp_path):
    write_params(tmp_path / "a.params", ARG, AUX)
    arg, aux = read_params(tmp_path / "a.params")
    same(arg, ARG)
    same(aux, AUX)
    arrays = {**{f"arg:{k}": mx.nd.array(v) for k, v in ARG.items()},
              **{f"aux:{k}": mx.nd.array(v) for k, v in AUX.items()}}
    mx.nd.save(str(tmp_path / "b.params"), arrays)
    assert (tmp_path / "a.params").read_bytes() == (tmp_path / "b.params").read_bytes()
    same({name: array.asnumpy() for name, array in mx.nd.load(str(tmp_path / "a.params")).items()},
         {name: array.asnumpy() for name, array in arrays.items()})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int8", "int32", "int64"])
def test_every_type_of_mxnet_is_read(tmp_path, dtype):
    values = np.arange(1, 7).reshape(2, 3).astype(dtype)
    mx.nd.save(str(tmp_path / "a.params"), {"arg:x": mx.nd.array(values, dtype=dtype)})
    same(read_params(tmp_path / "a.params")[0], {"x": values})


def old_file(version, arrays):
    """A file as MXNet wrote it before 1.0: version 0 has the number of dimensions first, version 1
    a magic number.
    """
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        if version == 0:
            parts.append(struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape))
        else:
            parts.append(struct.pack(f"<Ii{array.ndim}q", V1_MAGIC, array.ndim, *array.shape))
        parts.append(struct.pack("<iii", 1, 0, 0) + array.tobytes())
    parts.append(struct.pack("<Q", len(arrays)))
    parts += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    return b"".join(parts)


@pytest.mark.parametrize("version", [0, 1])
def test_the_model_zoos_old_files_are_read_as_mxnet_reads_them(tmp_path, version):
    path = tmp_path / "old.params"
    path.write_bytes(old_file(version, {f"arg:{k}": v for k, v in ARG.items()}))
    same({name[4:]: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}, ARG)
    same(read_params(path)[0], ARG)


@pytest.fixture
def content(tmp_path):
    write_params(tmp_path / "whole.params", ARG, AUX)
    return (tmp_path / "whole.params").read_bytes()


def test_a_file_cut_off_anywhere_is_refused(tmp_path, content):
    path = tmp_path / "cut.params"
    for length in [*range(120), *range(120, len(content), 7)]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="cut.params"):
            read_params(path)


def test_thousands_of_mutated_files_are_read_or_refused(content):
    """Each is either refused in one line that names the file, or read with the shapes it had, for a
    byte of data has changed.
    """
    rng = np.random.RandomState(1)
    path = "mutated.params"
    headers = 24 + 64  # where most of the structure is
    lengths = np.array([0, 1, 2 ** 31, 2 ** 63 - 1, 2 ** 64 - 1], np.uint64)
    outcomes = {"read": 0, "refused": 0}
    for case in range(4000):
        mutated = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(headers if case % 2 else len(mutated))
            if case % 4 == 3:
                mutated[at:at + 8] = rng.choice(lengths).tobytes()
            else:
                mutated[at] = rng.randint(256)
        try:
            arrays = parse_arrays(bytes(mutated), path)
        except InputError as error:
            assert str(error).startswith(path) and "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert sum(array.nbytes for array in arrays.values()) <= len(content)
            outcomes["read"] += 1
    assert outcomes["refused"] > 1000 and outcomes["read"] > 500


def one_array(shape=(3,), magic=V2_MAGIC, storage=0, type_flag=0, data=None, names=(b"arg:x",), count=1,
              tail=b""):
    header = struct.pack(f"<Iii{len(shape)}qiii", magic, storage, len(shape), *shape, 1, 0, type_flag)
    body = np.ones(3, np.float32).tobytes() if data is None else data
    listing = struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, count) + header + body + listing + tail


@pytest.mark.parametrize("hostile, message",
                         [({"shape": (2 ** 40, 2 ** 40)}, "ends too early"),
                          ({"shape": (-3,)}, "of the shape"), ({"shape": (0,)}, "of the shape"),
                          ({"shape": (1,) * 9}, "9 dimensions"), ({"type_flag": 99}, "unknown type 99"),
                          ({"storage": 1}, "sparse"), ({"count": 2 ** 60}, "more than it can hold"),
                          ({"names": (b"arg:x", b"arg:y")}, "1 arrays under 2 names"),
                          ({"names": (b"arg:\xff",)}, "not ASCII"), ({"names": (b"x",)}, "x: is not named"),
                          ({"names": (b"arg:",)}, "is not named"), ({"names": (b"aux:x",)}, "no parameters"),
                          ({"tail": b"12345"}, "goes on for 5 bytes"),
                          ({"data": np.array([1, np.nan, 2], np.float32).tobytes()}, "not finite"),
                          ({"data": np.array([1, np.inf, 2], np.float32).tobytes()}, "not finite")])
def test_hostile_files_are_refused_by_name(tmp_path, hostile, message):
    path = tmp_path / "hostile.params"
    path.write_bytes(one_array())
    assert list(read_arrays(path)) == ["arg:x"]
    path.write_bytes(one_array(**hostile))
    with pytest.raises(InputError, match=f"hostile.params.*{message}"):
        read_params(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n" + bytes(100), b"{}", bytes(24)])
def test_other_kinds_of_files_are_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(InputError, match="other: is not an MXNet parameter file"):
        read_params(tmp_path / "other")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="none.params: cannot be read .No such file"):
        read_params(tmp_path / "none.params")
    with pytest.raises(InputError, match="cannot be read"):
        read_params(tmp_path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.params"
    write_params(path, ARG, AUX)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 3, hard))  # the last three bytes do not fit
    try:
        with pytest.raises(InputError, match="a.params: cannot be written"):
            write_params(path, {name: array + 1 for name, array in ARG.items()}, AUX)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.params"]
    with pytest.raises(InputError, match="nowhere"):
        write_params(tmp_path / "nowhere" / "a.params", ARG, AUX)
