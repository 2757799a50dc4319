"""What must hold before MXNet is imported."""
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cian import environment


def run_python(code, **variables):
    env = {**os.environ, **variables}
    env = {key: value for key, value in env.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_import_sets_omp_threads_to_the_usable_cores():
    code = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
            "import cian; print(os.environ['OMP_NUM_THREADS'])")
    assert run_python(code, OMP_NUM_THREADS=None).stdout.strip() == "1"


def test_users_own_omp_threads_are_kept():
    assert run_python("import cian, os; print(os.environ['OMP_NUM_THREADS'])",
                      OMP_NUM_THREADS="7").stdout.strip() == "7"


def test_programs_that_are_started_can_have_the_users_own_variables():
    code = ("import cian, os; from cian.environment import users_environment as users\n"
            "names = ('OMP_NUM_THREADS', 'MXNET_CPU_TEMP_COPY')\n"
            "print([os.environ[name] for name in names], [users().get(name) for name in names], "
            "users()['PATH'] == os.environ['PATH'])")
    assert run_python(code, OMP_NUM_THREADS=None,
                      MXNET_CPU_TEMP_COPY="4").stdout.strip().endswith("'4'] [None, '4'] True")


def test_operators_share_one_buffer_unless_the_user_chose():
    for given, copies in ((None, "1"), ("4", "4")):
        run = run_python("import cian, os; print(os.environ['MXNET_CPU_TEMP_COPY'])",
                         MXNET_CPU_TEMP_COPY=given)
        assert run.stdout.strip() == copies, run.stderr


def test_mxnet_leaves_scipys_statistics_alone_until_it_uses_them():
    code = """
import cian, importlib.util, mxnet, sys
assert not any(name.startswith("scipy.stats") for name in sys.modules)
assert importlib.util.find_spec("scipy.stats")
assert abs(mxnet.contrib.quantization.stats.entropy([0.5, 0.5]) - 0.693147) < 1e-6
import scipy.stats
assert mxnet.test_utils.ss.norm is scipy.stats.norm
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("before", ["", "import mxnet; ", "import scipy.stats, mxnet; "])
def test_others_find_scipys_statistics_as_they_are(before):
    code = ("from scipy.stats._distn_infrastructure import rv_frozen; import scipy.stats; "
            "print(isinstance(scipy.stats.norm(), rv_frozen))")
    run = run_python(f"import cian; {before}{code}")
    assert run.stdout.strip() == "True", run.stderr


CORE_OF_MXNETS_OPENBLAS = """
import cian, ctypes, os, mxnet
library = ctypes.CDLL(os.path.join(os.path.dirname(mxnet.__file__), "libopenblas.so.0"))
library.openblas_get_corename.restype = ctypes.c_char_p
print(library.openblas_get_corename().decode())
"""


@pytest.mark.skipif(not environment.has_avx2(), reason="this processor has no AVX2, so nothing is set")
def test_mxnets_openblas_uses_avx2_unless_the_user_chose():
    for given, core in ((None, "Haswell"), ("Prescott", "Prescott")):
        run = run_python(CORE_OF_MXNETS_OPENBLAS, OPENBLAS_CORETYPE=given)
        assert run.stdout.strip() == core, run.stderr


def test_mxnet_imports_under_this_numpy():
    run = run_python("import cian, mxnet as mx; print((mx.nd.ones((2, 3)) * 2).asnumpy().sum())")
    assert run.stdout.strip() == "12.0", run.stderr


def test_cuda_build_without_a_driver_is_named(monkeypatch):
    def no_library(name, mode=None):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(environment.ctypes, "CDLL", no_library)
    with pytest.raises(ImportError, match=r"NVIDIA driver \(libcuda.so.1\).*cian\[cpu\]"):
        environment.preload_cuda()


def test_missing_cuda_library_names_its_wheel(monkeypatch):
    def only_cudnn_missing(name, mode=None):
        if "libcudnn" in name:
            raise OSError("not found")

    monkeypatch.setattr(environment.ctypes, "CDLL", only_cudnn_missing)
    with pytest.raises(ImportError, match=r"libcudnn.so.8.*pip install nvidia-cudnn-cu11"):
        environment.preload_cuda()


def test_gpu_on_a_cpu_build_is_refused(monkeypatch):
    monkeypatch.setattr(environment, "installed_mxnet", lambda: "mxnet")
    with pytest.raises(ValueError, match=r"gpu:0 .* CPU build.*cian\[gpu\]"):
        environment.check_gpu(0)


class FakeDriver:
    """A CUDA driver with one GPU of a given compute capability."""

    def __init__(self, major, minor, status=0):
        self.capability, self.status = {75: major, 76: minor}, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, number):
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capability[attribute]
        return 0


@pytest.mark.parametrize("capability, accepted",
                         [((7, 0), True), ((7, 5), True), ((8, 6), True), ((8, 9), True), ((9, 0), False),
                          ((3, 7), False), ((12, 0), False)])
def test_gpu_without_machine_code_is_refused(monkeypatch, capability, accepted):
    monkeypatch.setattr(environment, "installed_mxnet", lambda: "mxnet-cu112")
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: FakeDriver(*capability))
    if accepted:
        environment.check_gpu(0)
    else:
        with pytest.raises(ValueError, match=f"compute capability {capability[0]}.{capability[1]}"):
            environment.check_gpu(0)


def test_gpu_number_beyond_the_machines_is_refused(monkeypatch):
    monkeypatch.setattr(environment, "installed_mxnet", lambda: "mxnet-cu112")
    monkeypatch.setattr(environment.ctypes, "CDLL", lambda name: FakeDriver(8, 0))
    with pytest.raises(ValueError, match="gpu:3 does not exist; the driver reports 1"):
        environment.check_gpu(3)


def group(tmp_path, files, membership):
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    (tmp_path / "cgroup").write_text(membership)
    return {"root": str(tmp_path / "fs"), "membership": str(tmp_path / "cgroup")}


@pytest.mark.parametrize(("files", "membership", "expected"), [
    ({"memory/docker/a/limit": "1000\n"}, "4:memory:/docker/a\n0::/\n", [[1000]]),
    ({"memory/limit": "1000\n"}, "4:memory:/docker/not/seen/inside\n", [[1000]]),
    ({"cpu,memory/limit": "7"}, "3:cpu,memory:/\n", [[7]]),
    ({"a/b/max": "max\n", "a/max": "2000\n"}, "0::/a/b\n", [[-1], [2000]]),
    ({"max": "garbage"}, "0::/\n", []), ({}, "", [])])
def test_limits_of_both_versions_of_control_groups_are_read_upwards(tmp_path, files, membership, expected):
    paths = group(tmp_path, files, membership)
    assert environment.limits("memory", ["limit"], ["max"], **paths) == expected


@pytest.mark.parametrize(("quota", "cores"), [([150000, 100000], 2), ([20000, 100000], 1), ([-1, 100000], 9)])
def test_a_containers_share_of_processor_time_bounds_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: range(9))
    monkeypatch.setattr(environment, "limits", lambda *_: [quota])
    assert environment.usable_cores() == cores


def test_memory_is_bounded_by_the_container_and_by_ulimit(monkeypatch):
    machine = environment.usable_memory()
    monkeypatch.setattr(environment, "limits", lambda *_: [[2 ** 62], [12345 * 2 ** 10]])
    assert environment.usable_memory() == 12345 * 2 ** 10 < machine
    code = ("import resource; from cian import environment as e; "
            "resource.setrlimit(resource.RLIMIT_AS, (2 ** 33, 2 ** 33)); print(e.usable_memory() < 2 ** 33)")
    assert run_python(code).stdout.strip() == "True"
