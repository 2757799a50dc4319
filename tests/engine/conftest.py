"""What several tests of the engine need."""
import subprocess
import sys
import time

import pytest


@pytest.fixture
def outliving(tmp_path):
    """Runs a program that prints the numbers of its processes and kills itself; returns those of
    them that still run 20 seconds later.
    """
    def run(code, *arguments):
        (tmp_path / "killed.py").write_text(code)
        with open(tmp_path / "log", "w") as log:  # not a pipe, which the processes would keep open
            subprocess.run([sys.executable, str(tmp_path / "killed.py"), *map(str, arguments)], stdout=log,
                           stderr=subprocess.DEVNULL, timeout=60)
        left = [int(number) for number in (tmp_path / "log").read_text().split()]
        assert left, "it has printed no process"
        deadline = time.monotonic() + 20
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = [process for process in left if alive(process)]
        return left
    return run


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
