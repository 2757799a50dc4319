"""The watch without MXNet: processes that wait where the store would work."""
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from cian.errors import InputError
from cian.tools.engine.config import RunConfig
from cian.tools.engine.training.launching import _free_pair
from cian.tools.engine.training.watch import _name_own_address, join

PROCESS = """
import os, sys, time
from cian.tools.engine.training.watch import Member, Watch
role, patience, *rest = sys.argv[1:]
process = Watch(float(patience)) if role == "scheduler" else Member(role, float(patience))
if role == "worker":
    process.number(int(rest[0]))
print("joined", flush=True)
if "stay" in rest:
    time.sleep(120)
if "fail" in rest:
    sys.stdin.readline()  # not before all have joined
    process.fail("image cat.jpg is damaged")
    sys.exit(2)
process.leave()
"""


@pytest.fixture
def start_all():
    """Starts a scheduler, a server and two workers, as they are told; returns them when they have joined."""
    started = []

    def start(*, patience=30, first="stay", second="stay", others="stay"):
        begun, port = [], _free_pair("127.0.0.1")
        environment = {**os.environ, "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port),
                       "DMLC_NUM_WORKER": "2", "DMLC_NUM_SERVER": "1"}
        for told in (("scheduler", others), ("server", others), ("worker", "0", first),
                     ("worker", "1", second)):
            if "absent" not in told:
                begun.append(subprocess.Popen(
                    [sys.executable, "-c", PROCESS, told[0], str(patience), *told[1:]], env=environment,
                    text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        started.extend(begun)
        for process in begun:
            assert process.stdout.readline() == "joined\n", process.stderr.read()
        return begun, port + 1

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(processes, seconds):
    until = time.monotonic() + seconds
    return [(process.wait(max(0.1, until - time.monotonic())), process.stderr.read())
            for process in processes]


@pytest.mark.parametrize("victim, who", [(0, "the scheduler"), (1, r"a server \(.*\)"),
                                         (2, r"worker 0 \(.*\)")])
def test_all_end_with_one_line_when_one_is_killed(start_all, victim, who):
    processes, _ = start_all()
    processes.pop(victim).send_signal(signal.SIGKILL)
    for code, error in ends(processes, 10):
        assert code == 1
        assert re.fullmatch(f"error: {who} has ended before the work was done; the same command goes on "
                            "from the last checkpoint\n", error)


def test_all_end_when_one_is_silent(start_all):
    processes, _ = start_all(patience=2)
    processes[3].send_signal(signal.SIGSTOP)
    for code, error in ends(processes[:3], 15):
        assert code == 1 and re.match(r"error: worker 1 \(.*\) was not heard of for 2 s;", error)


def test_all_end_when_one_never_comes(start_all):
    processes, _ = start_all(patience=2, second="absent")
    for code, error in ends(processes, 15):
        assert code == 1 and "only 1 of 2 workers came within 2 s" in error


def test_the_error_of_one_is_told_to_all(start_all):
    processes, _ = start_all(second="fail")
    processes[3].stdin.write("\n")
    processes[3].stdin.flush()
    results = ends(processes, 10)
    assert results.pop() == (2, "")
    for code, error in results:
        assert code == 1 and re.match(r"error: worker 1 \(.*\) has failed: image cat.jpg is damaged;", error)


def test_a_job_that_is_done_ends_without_a_word_and_a_stranger_does_not_disturb_it(start_all):
    processes, port = start_all(first="", second="", others="")
    assert ends(processes, 10) == [(0, "")] * 4
    processes, port = start_all()
    for content in (b"", b"GET / HTTP/1.0\r\n\r\n", b"[]\n"):
        with socket.create_connection(("127.0.0.1", port), 5) as stranger:
            stranger.sendall(content)
    time.sleep(1)
    assert [process.poll() for process in processes] == [None] * 4


@pytest.mark.parametrize("host, interface, expected", [
    ("", "", "127.0.0.1"), ("node7", "", "127.0.0.1"), ("10.0.0.7", "", "10.0.0.7"), ("node7", "eth1", None)])
def test_a_process_listens_where_it_reaches_the_scheduler_unless_told_otherwise(monkeypatch, host, interface,
                                                                                expected):
    monkeypatch.setenv("DMLC_NODE_HOST", host)
    monkeypatch.setenv("DMLC_INTERFACE", interface)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(
            server.getsockname()) as line:
        _name_own_address(line)
    assert os.environ.get("DMLC_NODE_HOST") == expected


@pytest.mark.parametrize("kvstore, role, message", [
    ("dist_sync", "scheduler", "DMLC_PS_ROOT_URI: is 'node1', and the scheduler listens at addresses alone;"),
    ("dist_sync", None, "run.kvstore: is dist_sync, but this process is no part of a job: DMLC_ROLE is ''"),
    ("device", "worker", "run.kvstore: is device, but this is the worker of a job of several processes; add"),
    ("dist_sync", "worker", "DMLC_PS_ROOT_URI: is not set; start the job with tools/launch.py")])
def test_a_kvstore_and_variables_that_do_not_fit_are_refused(monkeypatch, kvstore, role, message):
    for name in ("DMLC_ROLE", "DMLC_PS_ROOT_URI"):
        monkeypatch.delenv(name, raising=False)
    if role:
        monkeypatch.setenv("DMLC_ROLE", role)
    if role == "scheduler":
        monkeypatch.setenv("DMLC_PS_ROOT_URI", "node1")
        monkeypatch.setenv("DMLC_PS_ROOT_PORT", "9091")
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        join(RunConfig(kvstore=kvstore))


def test_the_last_message_is_read_though_signs_of_life_are_not(start_all):
    processes, _ = start_all(second="fail")
    processes[0].send_signal(signal.SIGSTOP)  # the watch reads late
    assert os.WIFSTOPPED(os.waitpid(processes[0].pid, os.WUNTRACED)[1])  # all its threads, and not at once
    processes[3].stdin.write("\n")
    processes[3].stdin.flush()
    time.sleep(1)
    assert processes[3].poll() is None
    processes[0].send_signal(signal.SIGCONT)
    results = ends(processes, 10)
    assert results.pop() == (2, "")
    assert all("has failed: image cat.jpg is damaged;" in error for _, error in results)
