"""Runs stages side by side, each once what it needs is done."""
from __future__ import annotations

import shlex
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Callable, Dict, List, Optional, Sequence, Set

from tqdm import tqdm

from cian.environment import usable_cores
from cian.errors import InputError, PathLike
from cian.files import write_json
from cian.tools.engine.reproduction.stages import Stage, estimate, run_stage

OF_ALL = ("--plan-json", "--submit", "--jobs")  # flags with a value that are not of a stage alone


def run_all(stages: Sequence[Stage], waiting: Sequence[Stage], jobs: int,
            start: Optional[Callable[[Stage, int], Any]] = None) -> None:
    """Run what is not done, in order, up to ``jobs`` stages side by side. When one fails, those
    that run are brought to their end. ``start`` runs a stage with a number of threads; None runs it
    here.
    """
    left = list(waiting)
    running: Set[Future[Any]] = set()
    threads = max(1, usable_cores() // jobs) if jobs > 1 else 0
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(stages), initial=len(stages) - len(left),
                                                unit="stage", file=sys.stderr) as bar:
        while left or running:
            ready = [stage for stage in left if all(needed.done for needed in stage.after)]
            for stage in ready[:jobs - len(running)]:
                left.remove(stage)
                running.add(pool.submit(start or run_stage, stage, threads))
                bar.set_description(
                    f"{stage.kind}, "
                    f"{estimate(stages, [stage for stage in stages if not stage.done], jobs)} left")
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                bar.update()


def hand_out(stages: Sequence[Stage], argv: Optional[Sequence[str]], plan: Optional[PathLike],
             name: Optional[str]) -> bool:
    """Write the ``plan`` for a batch system, or run the stage ``name`` of it; False where neither is
    asked for. ``argv`` is the command line for all stages.
    """
    if plan:
        write_json(plan, describe_plan(stages, argv))
    elif name:
        run_named(name, stages)
    return bool(plan or name)


def describe_plan(stages: Sequence[Stage], argv: Optional[Sequence[str]]) -> List[Dict[str, Any]]:
    """The stages for a batch system: each one's name, the names of those that it needs, whether it
    is done, its images, and the command that runs it alone, out of the one for all of them.
    """
    return [{"name": stage.name, "after": [needed.name for needed in stage.after], "done": bool(stage.done),
             "images": stage.images, "command": _alone(stage, argv)} for stage in stages]


def run_named(name: str, stages: Sequence[Stage]) -> None:
    """Run one stage of the plan, unless it is done.

    Raises
    ------
    InputError
        There is none of that name, one that it needs is not done, or it fails.
    """
    found = [stage for stage in stages if stage.name == name]
    if not found:
        raise InputError(f"{name!r} is no stage of this command", field="--stage", remedy="see --plan-json")
    missing = [needed.name for needed in found[0].after if not needed.done]
    if missing:
        raise InputError(f"{name} needs {', '.join(missing)}", field="--stage", remedy="run that first")
    if not found[0].done:
        run_stage(found[0])


def submitter(template: Optional[str], argv: Optional[Sequence[str]]) -> Callable[[Stage, int], Any]:
    """Runs a stage here, where there is no template, or hands it to a batch system: by the shell
    command ``template`` with ``{command}`` filled in, which has to wait for the end of what it submits.

    Raises
    ------
    InputError
        The template holds no ``{command}``; of a stage: it fails, or is not done afterwards.
    """
    if not template:
        return run_stage
    if "{command}" not in template:
        raise InputError("holds no {command}", field="--submit", remedy="see docs/machines.md")

    def submit(stage: Stage, _: int) -> None:
        command = template.replace("{command}", shlex.join(_alone(stage, argv)))
        code = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL).returncode
        if code or not stage.done:
            raise InputError(f"the stage {stage.name} was submitted and is not done (exit code {code})",
                             file=stage.folder, remedy="see its stage.log; the same command goes on")

    return submit


def _alone(stage: Stage, argv: Optional[Sequence[str]]) -> List[str]:
    """The command that runs a stage alone."""
    kept: List[str] = []
    for argument in sys.argv[1:] if argv is None else argv:
        if kept and kept[-1] in OF_ALL:
            kept.pop()
        elif not argument.startswith(tuple(f"{flag}=" for flag in OF_ALL)):
            kept.append(argument)
    return [sys.executable, "-m", "cian.tools.reproduce", *kept, "--stage", stage.name]
