import os
import signal
import subprocess
import sys
import time

import pytest

from cian.errors import InputError
from cian.tools.engine.training.launching import launch

# Prints its role and address, and joins a job without MXNet; then worker 0's fate is as told.
PROGRAM = """
import os, sys, time
from cian.errors import run_tool
from cian.tools.engine.training.watch import Member, Watch

def main():
    role = os.environ["DMLC_ROLE"]
    process = Watch(30) if role == "scheduler" else Member(role, 30)
    print(role, os.environ["DMLC_PS_ROOT_URI"], os.getpid(), flush=True)
    if "stay" in sys.argv or "fail" in sys.argv and role != "worker":
        time.sleep(60)
    if "fail" in sys.argv:
        return 3
    process.leave()

run_tool(main)
"""


@pytest.fixture
def run_launcher(tmp_path):
    """Starts tools/launch.py on PROGRAM with an argument, two workers and a server."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def start(argument):
        return subprocess.Popen([sys.executable, "-m", "cian.tools.launch", "-n", "2", sys.executable,
                                 str(tmp_path / "program.py"), argument], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start


def test_the_tracker_starts_all_on_loopback_and_ends_with_them(run_launcher):
    output, error = run_launcher("an argument; of 'several' words").communicate(timeout=60)
    assert sorted(line.split()[:2] for line in output.splitlines()) == [
        ["scheduler", "127.0.0.1"], ["server", "127.0.0.1"], ["worker", "127.0.0.1"], ["worker", "127.0.0.1"]]
    assert error == ""


def test_a_job_of_which_one_fails_fails_in_a_line_each(run_launcher):
    launcher = run_launcher("fail")
    _, error = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert error.splitlines()[-1] == "error: 4 of 4 processes have failed, see above"
    assert all(line.startswith("error: ") and "environ" not in line for line in error.splitlines())


def test_the_processes_end_with_a_launcher_that_is_killed(run_launcher):
    launcher = run_launcher("stay")
    processes = [int(launcher.stdout.readline().split()[2]) for _ in range(4)]
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=30)
    until = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{process}") for process in processes):
        assert time.monotonic() < until, processes
        time.sleep(0.05)


@pytest.mark.parametrize("arguments, message", [
    ({"launcher": "ssh"}, "--host: the others cannot reach 127.0.0.1; name the address"),
    ({"launcher": "ssh", "host": "node1"}, "--host: 'node1' is no address; give its numbers"),
    ({"launcher": "ssh", "host": "10.0.0.5", "command": ["python", "a b"]},
     "--launcher: the tracker does not quote 'a b'"),
    ({"options": ["--no-such-file="]}, "--tracker: '--no-such-file=' is not an option of the tracker")])
def test_what_the_tracker_cannot_do_is_refused(arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        launch(**{"command": ["true"], "workers": 1, "servers": 1, **arguments})
