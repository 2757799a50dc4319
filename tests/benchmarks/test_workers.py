import os
import subprocess
import sys

import pytest
from workers import role
from workers_model import OWN_S, PARAMETERS, modelled, step_seconds

COSTS = {"parameters": 50e6, "worker_s": 0.1, "server_s": 0.2}


@pytest.mark.parametrize("workers, servers, gbit, bits, store_s", [
    (8, 8, 100, 32, 0.1 + 0.2),              # the servers' work is longer than the link's 64 * 50e6 / 100e9
    (8, 8, 10, 32, 0.1 + 0.32),              # the link
    (8, 8, 10, 2, 0.1 + 0.2),                # compressed, the work again
    (8, 1, 10, 32, 0.1 + 8 * 0.32),          # one server's link carries the share of all
    (8, 32, 10, 32, 0.1 + 0.32),             # more servers do not widen the workers' links
    (1, 1, 10, 32, 0)])
def test_a_step_is_as_long_as_its_own_work_and_the_longer_of_link_and_server(workers, servers, gbit, bits,
                                                                              store_s):
    assert step_seconds(workers, servers, gbit, bits, COSTS) == pytest.approx(OWN_S + store_s)


def test_the_model_takes_the_costs_of_the_largest_network_by_worker():
    def store(parameters, worker_s, server_s):
        return {"parameters": parameters, "worker_cpu_s": {"median": worker_s},
                "server_cpu_s": {"median": server_s}}

    half = PARAMETERS // 2
    measured = [{"workers": count, "store": {"small": store(10, 9, 9), "large": store(half, 0.75, count)},
                 "compressed": {"large": store(half, 1.25, 1.5 * count)}} for count in (1, 2, 4)]
    found = modelled(measured)
    large = {"network": "large", "parameters": PARAMETERS}
    assert found["costs"]["32 bits"] == {**large, "worker_s": 1.5, "server_s": 2}
    assert found["costs"]["2 bits"] == {**large, "worker_s": 2.5, "server_s": 3}
    one = [point for point in found["model"] if point["workers"] == 1]
    assert {point["speed"] for point in one} == {1.0}
    many = next(point for point in found["model"] if point["workers"] == 64 and not point["servers_a_worker"])
    assert many["speed"] == pytest.approx(64 * OWN_S / (OWN_S + 1.5 + 2 * 64))


def test_a_process_of_a_job_is_found_by_its_role():
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, "DMLC_ROLE": "server"}) as process:
        process.stdout.readline()  # before it runs, the kernel may show no variables
        assert role(process.pid) == "server"
        process.communicate(b"\n")
