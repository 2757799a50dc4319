"""No process of ours outlives the one that has started it."""
import subprocess
import sys

import pytest

PROGRAMS = {
    "a pool that reads files": """
from cian.data import checks
def told(item):
    print(os.getpid(), flush=True)
    time.sleep(60)
checks.CHUNK = 1
threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
list(checks.parallel(told, range(4), 2))
""",
    "a pool that scores": """
from cian.tools.engine import metrics
def told(item):
    print(os.getpid(), flush=True)
    time.sleep(60)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGKILL)).start()
with metrics._pool(2, 1000) as pool:
    list(pool.map(told, range(2)))
""",
    "a stage": """
from cian.processes import run_child
from cian.errors import run_tool
if len(sys.argv) > 1:
    def told():
        print(os.getpid(), flush=True)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    run_tool(told)
run_child([sys.executable, __file__, "child"], os.environ)
"""}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_process_ends_with_the_killed_one_that_has_started_it(name, outliving):
    assert outliving("import os, signal, sys, threading, time\n" + PROGRAMS[name]) == []


def test_a_process_whose_starter_is_gone_before_it_looks_ends_at_once():
    code = "import time; from cian.processes import end_with_parent; end_with_parent(1 << 22); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 1


def test_a_process_goes_on_after_the_thread_that_has_started_it():
    code = """
import multiprocessing, threading, time
from cian.processes import end_with_parent
def work():
    end_with_parent()
    time.sleep(0.5)
process = multiprocessing.get_context("fork").Process(target=work)
thread = threading.Thread(target=process.start)
thread.start(); thread.join(); process.join()
raise SystemExit(process.exitcode)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0
