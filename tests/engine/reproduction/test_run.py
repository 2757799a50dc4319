"""Stages handed to a batch system: by a plan that it runs, or one by one."""
import json
import os
import re
import sys
from pathlib import Path

import pytest

from cian.errors import InputError
from cian.tools.engine.reproduction.run import hand_out, run_all, submitter
from cian.tools.engine.reproduction.stages import Stage


@pytest.fixture
def stages(tmp_path):
    """Two stages of a tool that prints the version; the second needs the first."""
    first = Stage("records", "0123456789", tmp_path / "records-0123456789", "complexity", ("--help",))
    second = tmp_path / "cam-abcdefabcd"
    return [first, Stage("cam", "abcdefabcd", second, "complexity", ("--help",), (first,))]


def test_a_plan_names_what_each_stage_needs_and_how_to_run_it_alone(stages, tmp_path):
    argv = ["--table", "2", "--plan-json", "x", "--jobs=3", "--out", "runs", "--submit", "sbatch {command}"]
    assert hand_out(stages, argv, tmp_path / "plan.json", None)
    first, second = json.loads((tmp_path / "plan.json").read_text())
    assert (first["after"], second["after"]) == ([], ["records-0123456789"]) and not second["done"]
    assert second["command"] == [sys.executable, "-m", "cian.tools.reproduce", "--table", "2", "--out",
                                 "runs", "--stage", "cam-abcdefabcd"]


def test_a_stage_alone_runs_when_those_before_it_are_done(stages):
    with pytest.raises(InputError, match="--stage: cam-abcdefabcd needs records-0123456789; run that first"):
        hand_out(stages, [], None, "cam-abcdefabcd")
    for name in ("records-0123456789", "cam-abcdefabcd"):
        assert hand_out(stages, [], None, name)
    assert all(stage.done for stage in stages)
    with pytest.raises(InputError, match="'nope' is no stage of this command"):
        hand_out(stages, [], None, "nope")


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "machines.md").read_text()


@pytest.mark.parametrize("template", ["sbatch {command}", *re.findall("--submit '(.*)'", PAGE)])
def test_submitted_stages_run_by_the_template_in_order(stages, tmp_path, monkeypatch, template):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    script = tmp_path / "sbatch"  # does what the plan's command would have done
    script.write_text(f"""#!{sys.executable}
import json, os, shlex, sys
if sys.argv[1:3] == ["--wait", "--wrap"]:
    sys.argv[1:] = shlex.split(sys.argv[3])
name = sys.argv[-1]
folder = os.path.join({str(tmp_path)!r}, name)
os.makedirs(folder)
with open(os.path.join(folder, "done.json"), "w") as stream:
    json.dump({{"key": name.split("-")[1], "seconds": 1.0, "images": 0, "argv": sys.argv[1:]}}, stream)
""")
    script.chmod(0o755)
    run_all(stages, stages, 2, submitter(template, ["--out", "a folder"]))
    assert [stage.done["argv"][-4:] for stage in stages] == [["--out", "a folder", "--stage", stage.name]
                                                            for stage in stages]


@pytest.mark.parametrize("template, message", [
    ("sbatch", "--submit: holds no {command}"), ("true {command}", "is not done .exit code 0"),
    ("false {command}", "is not done .exit code 1")])
def test_a_submission_that_does_not_do_its_stage_is_refused(stages, template, message):
    with pytest.raises(InputError, match=message):
        submitter(template, [])(stages[0], 1)
