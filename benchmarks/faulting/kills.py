"""SIGKILL at random moments of every stage, several times in a row; then the same command runs to its end."""
from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any, Dict, List

from faulting.running import Run, Watcher
from faulting.stages import Template, command, restore, run_again

WHO = ("all", "parent", "child")
# of the process that clears away semaphores, when it is killed and another one takes its place
PYTHONS_OWN = re.compile(r"Traceback [^\n]*\n[^\n]*resource_tracker\.py")


def kill_trial(seed: int, stage: str, number: int, template: Template, home: Path) -> Dict[str, Any]:
    """One to three kills of a stage, and the run after them; faults are what is not as promised."""
    rng = random.Random(f"{seed} {stage} {number}")
    run, log = home / "run", home / "trial.log"
    restore(template.before, run)
    log.unlink(missing_ok=True)
    faults: List[str] = []
    kills = []
    watcher = Watcher(run)
    for _ in range(rng.choice([1, 2, 3])):
        who, after, pick = rng.choice(WHO), rng.uniform(0, 1.05) * template.seconds, rng.random()
        trial = Run(command(stage, run), log)
        time.sleep(after)
        hit = trial.process.poll() is None
        trial.kill(who, pick)
        code = trial.end()
        if code is None:
            faults.append(f"hangs after the kill of {who}")
        if code not in (None, 0, -9) and who != "child":
            faults.append(f"ends with {code}: {trial.told()[-300:]}")
        if who == "child" and hit and "Traceback" in PYTHONS_OWN.sub("", trial.told()):
            faults.append(f"a killed child is not told in a line: {trial.told()[-600:]}")
        faults += [f"outlives the kill of {who}: {line}" for line in trial.left()]
        kills.append([who, round(after, 2), hit])
    return {"kills": kills, "faults": faults + run_again(stage, run, log, watcher, template)}
