"""Runs stages side by side, each once what it needs is done."""
from __future__ import annotations

import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Dict, Sequence, Set

from tqdm import tqdm

from cian.environment import usable_cores
from cian.tools.engine.reproduction.stages import Stage, estimate, run_stage


def run_all(stages: Sequence[Stage], waiting: Sequence[Stage], jobs: int) -> None:
    """Run what is not done, in order, up to ``jobs`` stages side by side. When one fails, those
    that run are brought to their end.
    """
    left = list(waiting)
    running: Set[Future[Dict[str, Any]]] = set()
    threads = max(1, usable_cores() // jobs) if jobs > 1 else 0
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(stages), initial=len(stages) - len(left),
                                                unit="stage", file=sys.stderr) as bar:
        while left or running:
            ready = [stage for stage in left if all(needed.done for needed in stage.after)]
            for stage in ready[:jobs - len(running)]:
                left.remove(stage)
                running.add(pool.submit(run_stage, stage, threads))
                bar.set_description(
                    f"{stage.kind}, "
                    f"{estimate(stages, [stage for stage in stages if not stage.done], jobs)} left")
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                bar.update()
