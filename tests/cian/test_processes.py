"""No process of ours outlives the one that has started it."""
import os
import subprocess
import sys

import pytest

from cian.processes import pool_context

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


def test_a_pool_that_could_not_be_started_whole_ends_with_its_program():
    code = """
import os
from cian.data import checks
checks.CHUNK, fork, children = 1, os.fork, []
def second_fails():
    children.append(1)
    if len(children) == 2:
        raise OSError(24, "Too many open files")
    return fork()
os.fork = second_fails
list(checks.parallel(abs, range(4), 2))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True)
    assert done.returncode == 1 and "OSError: [Errno 24] Too many open files" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores are files on Linux alone")
def test_semaphores_of_killed_processes_are_removed_and_those_of_living_ones_stay():
    code = """
import os, signal
from cian.processes import pool_context
kept = pool_context("spawn").Lock()
print(kept._semlock.name, flush=True)
from multiprocessing import resource_tracker
os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""
    left = subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True)
    abandoned = f"/dev/shm/sem.{left.stdout.strip()[1:]}"
    assert os.path.exists(abandoned)
    own = pool_context("spawn").Lock()
    pool_context("spawn")
    assert not os.path.exists(abandoned)
    assert os.path.exists(f"/dev/shm/sem.{own._semlock.name[1:]}")
