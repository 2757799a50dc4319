"""How entry points end."""
from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import sys

import pytest

from cian.errors import InputError


def test_error_is_one_line_of_file_field_problem_and_remedy():
    error = InputError("has 3\nclasses", file="a/b.txt", field="classes", remedy="give 4")
    assert str(error) == "a/b.txt: classes: has 3 classes; give 4"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("megabytes, told", [(200, "done\n"), (-30, "")])
def test_a_product_without_memory_does_not_wait_for_ever(megabytes, told):
    program = f"""
import mmap, resource, numpy
from cian.environment import _pages
from cian.errors import run_tool
virtual, _ = _pages("/proc/self/statm")
limit = virtual + (64 + {megabytes}) * 2 ** 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
def main():
    kept, step = [], 2 ** 24
    while step > 2 ** 12:
        try:
            kept.append(mmap.mmap(-1, step))
        except OSError:
            step //= 2
    values = numpy.ones((60, 60))
    values @ values
    print("done")
run_tool(main)"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.stdout == told
    assert ("there is not enough memory" in run.stderr) is (not told), run.stderr


def test_after_a_lack_of_memory_nothing_fails_again_at_the_end():
    program = """
import atexit
from cian.errors import run_tool
def main():
    atexit.register(lambda: 1 / 0)
    raise MemoryError
run_tool(main)"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "not enough memory" in run.stderr


@pytest.mark.parametrize("body, code, shown", [
    ("raise InputError('is wrong', field='x')", 2, "error: x: is wrong\n"),
    ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ("return 3", 3, ""),
    ("return None", 0, ""),
])
def test_entry_point_ends_with_its_code_and_one_line(body, code, shown):
    program = f"from cian.errors import InputError, run_tool\ndef main():\n    {body}\nrun_tool(main)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (code, shown)


def test_defect_keeps_its_traceback():
    program = "from cian.errors import run_tool\nrun_tool(lambda: 1 / 0)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "ZeroDivisionError" in run.stderr and "Traceback" in run.stderr


def test_closed_output_ends_quietly():
    program = (
        "from cian.errors import run_tool\ndef main():\n    for n in range(200000): print(n)\nrun_tool(main)")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait(timeout=60) == 141


def test_each_line_is_written_in_one_piece_for_processes_share_a_terminal():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps pieces apart
    program = ("from cian.errors import InputError, run_tool\ndef main():\n    print('one')\n"
               "    raise InputError('two')\nrun_tool(main)")
    subprocess.run([sys.executable, "-c", program], stdout=theirs, stderr=theirs, timeout=60,
                   env={**os.environ, "PYTHONUNBUFFERED": "1"})
    with ours, theirs:
        assert [ours.recv(99), ours.recv(99)] == [b"one\n", b"error: two\n"]


@pytest.mark.parametrize(("body", "shown"), [
    ("open('nowhere/x')", "error: nowhere/x: No such file or directory"),
    ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", "error: No space left on device"),
    ("raise MemoryError", "error: there is not enough memory"),
    ("raise type('MXNetError', (Exception,), {})('Failed to allocate CPU Memory')",
     "error: there is not enough"),
    ("raise RuntimeError('can\\'t start new thread')", "error: there is not enough memory"),
    ("raise MachineError('a process died')", "error: a process died"),
    ("os.kill(os.getpid(), 0), os.execv('/', ['/'])",
     "error: Permission denied|error: /: Permission denied")])
def test_what_the_machine_fails_at_is_told_in_one_line(body, shown):
    program = ("import os\nfrom cian.errors import MachineError, run_tool\n"
               f"def main():\n    {body}\nrun_tool(main)")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and re.match(shown, run.stderr) and len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_that_the_terminal_cannot_show_are_printed_with_escapes(encoding):
    program = ("from cian.errors import InputError, run_tool\ndef main():\n    print('d\\udce9\\u20ac')\n"
               "    raise InputError('x', file='d\\udce9\\u20ac')\nrun_tool(main)")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60,
                         env={**os.environ, "PYTHONIOENCODING": encoding})
    assert run.returncode == 2 and b"\\udce9" in run.stdout and b"\\udce9" in run.stderr
    assert b"Traceback" not in run.stderr
