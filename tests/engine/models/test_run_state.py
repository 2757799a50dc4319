import io
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from cian.errors import InputError
from cian.tools.engine.models.run_state import read_state, write_state

TREE = {"epoch": 3, "rate": 0.1 + 0.2, "none": None,
        "deep": {"list": [1, [2.5, "three"], True], "w": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "many": [np.array(7, np.int64), {"x": np.zeros((0, 5), np.uint8)}], "big": 2 ** 63}


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(
            b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    write_state(tmp_path / "run.state", TREE)
    assert same(TREE, read_state(tmp_path / "run.state"))
    assert os.listdir(tmp_path) == ["run.state"]


def test_numpy_numbers_and_tuples_come_back_plain(tmp_path):
    write_state(tmp_path / "s", {"n": np.int64(5), "t": (1, 2)})
    assert read_state(tmp_path / "s") == {"n": 5, "t": [1, 2]}


@pytest.mark.parametrize("tree, place", [({"a": {"b": [1, {2, 3}]}}, "a/b/1"), ({"a": {1: 2}}, "a")])
def test_a_value_that_needs_pickle_is_refused_and_the_old_file_stays(tmp_path, tree, place):
    write_state(tmp_path / "s", {"good": 1})
    with pytest.raises(TypeError, match=place):
        write_state(tmp_path / "s", tree)
    assert read_state(tmp_path / "s") == {"good": 1} and os.listdir(tmp_path) == ["s"]


def test_any_damaged_byte_is_an_error_that_names_the_file_or_leaves_the_content(tmp_path):
    path = tmp_path / "run.state"
    write_state(path, TREE)
    whole = path.read_bytes()
    rng = np.random.RandomState(0)
    refused = 0
    for case in range(600):
        damaged = bytearray(whole)
        if case % 3 == 0:
            del damaged[rng.randint(len(whole)):]
        else:
            damaged[rng.randint(len(whole))] ^= 1 << rng.randint(8)
        path.write_bytes(bytes(damaged))
        try:
            assert same(TREE, read_state(path))  # a byte that nothing depends on, such as a time stamp
        except InputError as error:
            refused += 1
            assert "run.state" in str(error) and "\n" not in str(error)
    assert refused > 300


def test_a_pickle_inside_is_never_run(tmp_path):
    path, ran = tmp_path / "evil.state", tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(ran), "w")

    content = io.BytesIO()
    np.save(content, np.array([Evil()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tree.json.npy", content.getvalue())
    assert not ran.exists()
    with pytest.raises(InputError, match="evil.state: is damaged"):
        read_state(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="evil.state"):
        read_state(path)
    assert not ran.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.state: cannot be read"):
        read_state(tmp_path / "nowhere.state")


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "run.state"
    write_state(path, {"round": -1, "w": np.zeros(1)})
    code = ("import sys, numpy as np\nfrom cian.tools.engine.models.run_state import "
            "write_state\nprint('ready', flush=True)\nn = 0\n"
            "while True:\n    write_state(sys.argv[1], {'round': n, 'w': np.full(300000, n, "
            "np.float64)})\n    n += 1")
    rng = np.random.RandomState(3)
    last = -1
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            time.sleep(0.02 + 0.05 * rng.rand())
            os.kill(child.pid, signal.SIGKILL)
        state = read_state(path)
        assert (state["w"] == state["round"]).all() or state["round"] == -1
        last = max(last, state["round"])
    assert last >= 0


def test_a_full_disk_is_told_once(tmp_path):
    """Nothing of the archive that was begun speaks afterwards, when it is collected."""
    program = (
        "import gc, resource, signal, sys, numpy as np\n"
        "from cian.errors import InputError\n"
        "from cian.tools.engine.models.run_state import write_state\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try:\n    write_state(sys.argv[1], {'a': np.zeros(99999), 'b': 1})\n"
        "except InputError as error:\n    print(error)\n"
        "gc.collect()")
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.state")], capture_output=True,
                         text=True, timeout=100)
    assert "x.state: cannot be written" in run.stdout and run.stderr == "" and not list(tmp_path.iterdir())
