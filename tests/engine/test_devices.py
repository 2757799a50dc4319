import os
import subprocess
import sys

import mxnet as mx
import pytest

from cian.errors import InputError
from cian.tools.engine.devices import limit_threads, parse_devices, split_devices


def test_names_become_contexts_in_their_order():
    assert parse_devices(("cpu:0",)) == [mx.cpu(0)]
    assert split_devices(("gpu:1", " cpu ", "gpu")) == [("gpu", 1), ("cpu", 0), ("gpu", 0)]


@pytest.mark.parametrize("names",
                         [(), ("",), ("cuda:0",), ("cpu:-1",), ("cpu:0", "cpu"), ("gpu:0:1",), ("0",)])
def test_a_wrong_name_is_refused(names):
    with pytest.raises(InputError, match="run.devices"):
        split_devices(names)


def test_a_gpu_that_this_build_cannot_use_is_refused_with_the_remedy():
    with pytest.raises(InputError,
                       match=r"run\.devices: gpu:0 was asked for, but the installed MXNet is the CPU "
                             r"build; .*cian\[gpu\]"):
        parse_devices(("gpu:0",))


def test_several_cpu_devices_are_refused_when_mxnet_was_loaded_with_more_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(("cpu:0", "cpu:1"))
    assert os.environ["OMP_NUM_THREADS"] == "2"  # too late to change: MXNet is loaded
    with pytest.raises(InputError, match="OMP_NUM_THREADS=2; set OMP_NUM_THREADS=1"):
        parse_devices(("cpu:0", "cpu:1"))
    assert parse_devices(("cpu:0",)) == [mx.cpu(0)]


def test_two_cpu_devices_compute_at_once_when_named_before_mxnet_is_loaded():
    code = ("from cian.tools.engine.devices import parse_devices\n"
            "import os\n"
            "contexts = parse_devices(('cpu:0', 'cpu:1'))\n"
            "import mxnet as mx\n"
            "x = [mx.nd.ones((1, 3, 65, 65), ctx=c) for c in contexts]\n"
            "w = [mx.nd.ones((8, 3, 3, 3), ctx=c) for c in contexts]\n"
            "for _ in range(20):\n"
            "    y = [mx.nd.Convolution(a, b, kernel=(3, 3), num_filter=8, no_bias=True) for a, b in "
            "zip(x, w)]\n"
            "print(os.environ['OMP_NUM_THREADS'], [float(a[0, 0, 0, 0].asscalar()) for a in y])")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                            timeout=60, check=True)
    assert result.stdout.strip() == "1 [27.0, 27.0]"
