"""How entry points end."""
from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from cian.errors import InputError


def test_error_is_one_line_of_file_field_problem_and_remedy():
    error = InputError("has 3\nclasses", file="a/b.txt", field="classes", remedy="give 4")
    assert str(error) == "a/b.txt: classes: has 3 classes; give 4"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


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
