"""Processes that take turns: their time, their memory, their deaths."""
import os
import sys
import time

import measuring
import pytest
import serving
from measuring import Measured, Server, machine, ratios

from cian import environment
from cian.errors import InputError

PROGRAM = """
import json, sys, time
sys.path.insert(0, {benchmarks!r})
from serving import serve, timed
with open(sys.argv[1]) as stream:
    job = json.load(stream)
held = bytearray(job["megabytes"] * 10 ** 6)
{work}
"""


def program(folder, work):
    path = folder / "program.py"
    path.write_text(PROGRAM.format(benchmarks=os.path.dirname(measuring.__file__), work=work))
    return str(path)


def test_a_server_warms_up_once_and_then_works_once_a_request(tmp_path):
    count = tmp_path / "count"
    work = f"serve(job['pipe'], timed(lambda: (open({str(count)!r}, 'a').write('x'), time.sleep(0.05))))"
    server = Server(program(tmp_path, work), {"megabytes": 90}, str(tmp_path / "server"))
    seconds = [server.run() for _ in range(2)]
    until = time.monotonic() + 60
    while server._memory.peak_mb < 90 and time.monotonic() < until:  # who reads it may come late
        time.sleep(0.05)
    assert 90 < server.close() < 200
    assert all(0.05 <= wall < 60 and 0 <= cpu <= wall for wall, cpu in seconds)
    assert count.read_text() == "xxx"


def test_batches_that_were_made_ahead_are_not_timed():
    pauses = iter([0.3, 0.3, 0.01, 0.01, 0.01])
    assert 0.03 <= serving.timed_batches(lambda: time.sleep(next(pauses)), 3, 2)() < 0.3


def test_a_server_that_dies_is_reported_by_its_last_words(tmp_path):
    with pytest.raises(InputError, match="ended with code 3: out of luck"):
        Server(program(tmp_path, "print('out of luck'); sys.exit(3)"), {"megabytes": 0},
               str(tmp_path / "server"))


def test_memory_of_a_command_includes_the_processes_below_it(tmp_path):
    child = "import time; held = bytearray(60 * 10 ** 6); time.sleep(1.5)"
    parent = ("import subprocess, sys; held = bytearray(40 * 10 ** 6); "
              f"subprocess.run([sys.executable, '-c', {child!r}])")
    found = Measured([sys.executable, "-c", parent], str(tmp_path / "log"))
    assert 100 < found.peak_mb < 180
    assert 1.5 < found.seconds < 60
    assert 0 < found.cpu_seconds < found.seconds


def test_a_command_that_fails_is_reported(tmp_path):
    with pytest.raises(InputError, match="ended with code 1: ValueError: no"):
        Measured([sys.executable, "-c", "raise ValueError('no')"], str(tmp_path / "log"))


def test_what_importing_the_package_sets_reaches_no_side(monkeypatch):
    for name in environment.VARIABLES:
        monkeypatch.setenv(name, "7")
    monkeypatch.setattr(environment, "USERS_VALUES", {})
    assert not set(environment.VARIABLES) & measuring.environment(0).keys()
    monkeypatch.setattr(environment, "USERS_VALUES", {"OPENBLAS_CORETYPE": "Zen", "OMP_NUM_THREADS": "5"})
    found = measuring.environment(3)
    assert (found["OMP_NUM_THREADS"],
            found["OPENBLAS_CORETYPE"]) == ("3", "Zen") and "MXNET_CPU_TEMP_COPY" not in found


def test_ratios_are_those_within_a_round():
    assert ratios([2.0, 8.0, 3.0], [1.0, 2.0, 3.0]) == {"median": 2.0, "min": 1.0, "max": 4.0}


def test_the_machine_is_described_with_its_versions_and_the_users_variables(monkeypatch):
    monkeypatch.setenv("OPENBLAS_VERBOSE", "2")
    found = machine()
    assert found["variables"]["OPENBLAS_VERBOSE"] == "2"
    assert found["cores"] >= 1 and found["mxnet"] and found["python"].startswith("3.")
