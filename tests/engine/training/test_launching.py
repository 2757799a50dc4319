import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from cian.errors import InputError
from cian.tools.engine.training.launching import _free_pair, launch

ROOT = Path(__file__).resolve().parents[3]

# Prints its role and address, and joins a job without MXNet; then worker 0's fate is as told.
PROGRAM = """
import os, sys, time
from cian.errors import run_tool
from cian.tools.engine.training.watch import Member, Watch

def main():
    role = os.environ["DMLC_ROLE"]
    process = Watch(30) if role == "scheduler" else Member(role, 30)
    print(role, os.environ["DMLC_PS_ROOT_URI"], os.getpid(), os.environ.get("DMLC_NODE_HOST"), flush=True)
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


# Programs of other systems, which here start what they are told on this machine, as the real ones do
# elsewhere: ssh in an environment of its own.
STAND_INS = {"ssh": 'exec env -i PATH=/usr/bin:/bin bash -c "${!#}"',
             "srun": 'for task in $(seq $SLURM_NTASKS); do "${@:2}" & tasks="$tasks $!"; done\n'
                     'for task in $tasks; do wait $task || code=$?; done; exit ${code:-0}',
             "hostname": "echo '127.0.0.1 '", "python": f'exec {sys.executable} "$@"'}


@pytest.fixture
def page(tmp_path):
    """Returns the commands of docs/machines.md that contain a text, for a folder in which PROGRAM stands
    for the training, and the folder's environment.
    """
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train.py").write_text(PROGRAM)
    (tmp_path / "tools" / "launch.py").symlink_to(ROOT / "tools" / "launch.py")
    (tmp_path / "hosts").write_text("localhost\nlocalhost\n")
    port = _free_pair("127.0.0.1")

    def find(text):
        blocks = re.findall(r"```\w+\n(.*?)```", (ROOT / "docs" / "machines.md").read_text(), re.DOTALL)
        block = next(block for block in blocks if text in block)
        for theirs, ours in (("/shared/cian/.venv/bin/python", sys.executable), ("10.0.0.5", "127.0.0.1"),
                             ("9091", str(port)), ("9092", str(port + 1))):
            block = block.replace(theirs, ours)
        return block
    return find, {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NTASKS": "4"}


ALL = {("scheduler", "None"): 1, ("server", "127.0.0.1"): 4, ("worker", "127.0.0.1"): 4}


def joined(output):
    """How many processes have joined, by their role and the address at which they would listen."""
    return Counter((line.split()[0], line.split()[3]) for line in output.splitlines())


@pytest.mark.parametrize("text", ["--launcher ssh", "#SBATCH"])
def test_the_commands_of_the_page_start_a_job_whose_failure_is_theirs(page, tmp_path, text):
    find, environment = page

    def run(command):
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, timeout=100)

    done = run(find(text))
    assert (done.returncode, joined(done.stdout)) == (0, ALL), done.stderr
    assert run(find(text).replace("run.kvstore=dist_sync", "fail")).returncode not in (0, 127)


def test_the_containers_of_the_page_find_each_other_by_the_service(page, tmp_path):
    find, environment = page
    service, job = yaml.safe_load_all(find("kind: Service"))
    template = job["spec"]["template"]
    container = template["spec"]["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    assert service["metadata"]["name"] == variables["DMLC_PS_ROOT_URI"]
    port = int(variables["DMLC_PS_ROOT_PORT"])
    assert [entry["port"] for entry in service["spec"]["ports"]] == [port, port + 1]
    assert container["volumeMounts"][0]["name"] == template["spec"]["volumes"][0]["name"]
    variables["DMLC_PS_ROOT_URI"] = "localhost"  # a name, as that of the service is
    started = [subprocess.Popen(["env", *container["command"]], cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, env={**environment, **variables, "DMLC_ROLE": role})
               for role, count in (("scheduler", 1), ("server", 4), ("worker", 4)) for _ in range(count)]
    output = "".join(process.communicate(timeout=100)[0] for process in started)
    assert [process.returncode for process in started] == [0] * 9
    assert joined(output) == ALL
