"""Momentum in the files of MXNet's Module: both ways, and files that are damaged or hostile."""
import os
import pickle
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest

from cian.errors import InputError
from cian.symbols.params_file import read_params
from cian.tools.engine.models.optimiser_states import read_momentum, write_momentum

BATCH = mx.io.DataBatch([mx.nd.arange(50).reshape((2, 1, 5, 5)) / 50], [mx.nd.array([1, 2])])


def make_module(devices, params=None):
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=3, kernel=(3, 3), name="conv")
    symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(x, num_hidden=4, name="dense"), name="softmax")
    module = mx.mod.Module(symbol, context=[mx.cpu(number) for number in range(devices)])
    module.bind([("data", (2, 1, 5, 5))], [("softmax_label", (2,))])
    module.init_params(mx.init.Normal(0.1))
    if params is not None:
        module.load_params(params)
    module.init_optimizer("device", "sgd", {"learning_rate": 0.1, "momentum": 0.9})
    return module


def step(module):
    module.forward_backward(BATCH)
    module.update()
    mx.nd.waitall()
    return {name: array.asnumpy() for name, array in module.get_params()[0].items()}


@pytest.fixture(params=[1, 2], ids=["one device", "two devices"])
def saved(request, tmp_path):
    """A Module after a step, its files, its number of devices, and its parameters before and after."""
    if request.param > 1 and os.environ.get("OMP_NUM_THREADS") != "1":
        pytest.skip("two CPU devices need OMP_NUM_THREADS=1 before MXNet is loaded; another test starts "
                    "such a process")
    module = make_module(request.param)
    before = {name: array.asnumpy() for name, array in module.get_params()[0].items()}
    after = step(module)
    params, states = str(tmp_path / "net.params"), str(tmp_path / "net.states")
    module.save_params(params)
    module.save_optimizer_states(states)
    return module, params, states, request.param, before, after


def test_momentum_after_a_step_is_the_step(saved):
    _, params, states, _, before, after = saved
    momentum = read_momentum(states, params)
    assert momentum.keys() == before.keys()
    for name, value in momentum.items():
        np.testing.assert_allclose(value, after[name] - before[name], atol=1e-7, err_msg=name)


def test_a_module_goes_on_from_what_we_wrote(saved, tmp_path):
    module, params, states, devices, _, after = saved
    written = str(tmp_path / "ours.states")
    write_momentum(written, list(read_params(params)[0]), read_momentum(states, params), devices=devices)
    other = make_module(devices, params)
    other.load_optimizer_states(written)
    fresh, expected, found = step(make_module(devices, params)), step(module), step(other)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-8, err_msg=name)
    # without momentum it would be another step
    assert any(np.abs(fresh[name] - expected[name]).max() > 1e-3 for name in after)


def test_two_devices_agree_in_a_process_of_one_thread():
    done = subprocess.run([sys.executable, "-m", "pytest", "-W", "ignore", "-p", "no:cacheprovider",
                           "--import-mode=importlib", "-k", "two and devices and not process", __file__],
                          capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-2000:]


class _Attack:
    def __reduce__(self):
        return os.system, ("echo run > attacked",)


@pytest.fixture
def files(tmp_path):
    """Paths of a parameter file with two arrays, and of a state to write."""
    path = str(tmp_path / "net.params")
    mx.nd.save(path, {"arg:a": mx.nd.ones((2, 3)), "arg:b": mx.nd.ones((5,))})
    return path, str(tmp_path / "net.states")


def test_code_in_a_state_is_refused_and_not_run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(files[1], "wb") as stream:
        pickle.dump({0: _Attack()}, stream)
    with pytest.raises(InputError,
                       match=r"net\.states: is not the state of an optimiser \(it asks for posix\.system\)"):
        read_momentum(files[1], files[0])
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("content, message", [
    ({7: mx.nd.ones((2, 3))}, "momentum for 7, which is none of the 2 parameters"),
    ({"c": mx.nd.ones((2, 3))}, "momentum for 'c'"),
    ({1: mx.nd.ones((2, 3))}, r"b: has the shape \(2, 3\), the parameter \(5,\)"),
    ({0: 3.0}, "does not hold one momentum array"),
    ([mx.nd.ones((2, 3))], "does not hold one momentum array"),
    ({0: bytearray(9)}, "does not hold one momentum array"),
])
def test_a_state_that_does_not_fit_is_named(files, content, message):
    with open(files[1], "wb") as stream:
        pickle.dump(content, stream)
    with pytest.raises(InputError, match=message):
        read_momentum(files[1], files[0])


def test_a_parameter_without_momentum_is_left_out(files):
    with open(files[1], "wb") as stream:
        pickle.dump({0: None, "b": mx.nd.arange(5)}, stream)
    momentum = read_momentum(files[1], files[0])
    assert list(momentum) == ["b"] and momentum["b"].tolist() == [0, 1, 2, 3, 4]


def test_every_truncation_and_every_changed_byte_ends_in_an_array_or_in_one_line(files):
    whole = pickle.dumps({0: mx.nd.ones((2, 3)), "b": mx.nd.ones((5,))})
    broken = [whole[:length] for length in range(0, len(whole), 3)]
    random = np.random.RandomState(0)
    for position in range(len(whole)):
        broken.append(whole[:position] + bytes([random.randint(256)]) + whole[position + 1:])
    refused = 0
    for content in broken:
        with open(files[1], "wb") as stream:
            stream.write(content)
        try:
            read_momentum(files[1], files[0])
        except InputError as error:
            assert "net.states" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > len(broken) // 2


def test_momentum_of_an_unknown_parameter_is_not_written(files):
    with pytest.raises(InputError, match="has no parameter c"):
        write_momentum(files[1], ["a", "b"], {"c": np.zeros(3, np.float32)})
    assert not os.path.exists(files[1])
