"""The quick campaign of faults finds nothing, and a campaign sees what it is to find."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulting.mutators import MUTATORS
from faulting.running import Run, Watcher
from faulting.stages import differences, same
from faulting.table import summary

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.py"


def test_the_quick_campaign_finds_nothing(tmp_path):
    out = tmp_path / "faults.json"
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "--quick", "--out", str(out)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=550,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    steps = json.loads(out.read_text())["steps"]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert {name.split("/")[0] for name in steps} == {"mutations", "sizes", "kills", "system"}
    assert "| all |" in summary(steps)


def test_a_file_written_in_place_and_one_that_is_renamed_are_told_apart(tmp_path):
    watcher = Watcher(tmp_path)
    (tmp_path / "half.png").write_bytes(b"x")
    (tmp_path / ".1.2.tmp").write_bytes(b"x")
    os.replace(tmp_path / ".1.2.tmp", tmp_path / "whole.png")
    (tmp_path / "m.log").write_bytes(b"x")
    assert watcher.close() == [str(tmp_path / "half.png")]


def test_a_process_that_outlives_its_command_is_seen_and_ended(tmp_path):
    trial = Run(["timeit", "-n1", "-r1", "import subprocess; subprocess.Popen(['sleep', '60'])"],
                tmp_path / "log")
    assert trial.end(60) == 0
    assert trial.left(patience=0.2) == ["sleep 60 "]
    deadline = time.monotonic() + 10
    while trial.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert trial.processes() == []


def test_a_hanging_command_is_ended(tmp_path):
    trial = Run(["timeit", "-n1", "-r1", "import time; time.sleep(60)"], tmp_path / "log")
    assert trial.end(0.5) is None
    assert trial.process.returncode == -signal.SIGKILL


def test_what_is_missing_left_or_other_is_told():
    assert differences({"a": b"1", "c": b"3", "d": b"4"}, {"a": b"1", "b": b"2", "c": b"0"}) == [
        "is missing: b", "is left: d", "differs: c"]
    assert same(b"x", b"x") and not same(b"x", b"y")


@pytest.mark.parametrize("name", ["bytes", "text", "jpeg"])
def test_a_mutation_depends_on_its_number_alone(name):
    import random

    content = b"lion 3\nbull 4\n" * 9
    changed = [MUTATORS[name](content, random.Random(f"0 {number}")) for number in range(30)]
    assert changed == [MUTATORS[name](content, random.Random(f"0 {number}")) for number in range(30)]
    assert sum(mutant != content for mutant in changed) > 20
