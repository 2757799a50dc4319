"""A campaign of faults over every stage: kills, faults of the system, mutated files, extreme sizes.

  python benchmarks/faults.py --seed 0 --out faults.json            # hours; what is done is kept
  python benchmarks/faults.py --quick --out faults.json             # a minute
  python benchmarks/faults.py --seed 0 --out faults.json --parts kills --stages train predict --minutes 60

The exit code is 1 where something was found that docs/reliability.md does not promise.
"""
from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from faulting import mutations, system
from faulting.kills import kill_trial
from faulting.readers import KINDS, LIGHT
from faulting.sizes import CASES
from faulting.stages import STAGES, Template, make_templates
from faulting.table import summary

from cian.environment import users_environment
from cian.errors import run_tool
from cian.files import read_json, write_json

PARTS = ("mutations", "sizes", "kills", "system")
QUICK_SIZES = ("a PNG that announces 60000x60000", "254 classes", "300 classes", "a path of 4,000 characters",
               "the name 写真")
QUICK_FAULTS = ("file size", "descriptors", "Ctrl-C", "two at once")
HERE = Path(__file__).resolve().parent
Step = Tuple[str, Callable[[], Dict[str, Any]]]


class Campaign:
    """The steps of a campaign and the world that they need, which is made when it is needed first."""

    def __init__(self, args: argparse.Namespace, home: Path) -> None:
        self.args, self.home = args, home
        self._templates: Dict[str, Template] = {}

    def steps(self) -> List[Step]:
        """Identifier and work of every step of the chosen parts."""
        args, found = self.args, []
        if "mutations" in args.parts:
            kinds = LIGHT if args.quick else tuple(KINDS)
            for kind, first, count in mutations.blocks(120 if args.quick else args.mutations, kinds):
                found.append((f"mutations/{kind}/{first}", lambda a=(kind, first, count): self.mutate(*a)))
        if "sizes" in args.parts:
            for case in QUICK_SIZES if args.quick else CASES:
                found.append((f"sizes/{case}", lambda a=case: self.size(a)))
        if "kills" in args.parts:
            for number in range(1 if args.quick else args.trials):
                for stage in self.stages():
                    found.append((f"kills/{stage}/{number}", lambda a=(stage, number): kill_trial(
                        args.seed, *a, self.templates()[a[0]], home=self.home / "stages")))
        if "system" in args.parts:
            chosen = [stage for stage in self.stages() if stage not in ("demo", "reproduce")]
            faults = QUICK_FAULTS if args.quick else args.faults
            for fault, stage, number in system.steps(faults, chosen, 1 if args.quick else args.trials):
                found.append((f"system/{fault}/{stage}/{number}", lambda a=(fault, stage, number): (
                    system.system_trial(args.seed, *a, self.templates()[a[1]], home=self.home / "stages"))))
        return found

    def stages(self) -> List[str]:
        """Names of the stages that are disturbed."""
        every = [name for name in STAGES if name != "demo"]
        return ["prepare"] if self.args.quick else self.args.stages or every

    def templates(self) -> Dict[str, Template]:
        """Undisturbed runs."""
        self._templates = self._templates or make_templates(self.home / "stages", self.stages())
        return self._templates

    def mutate(self, kind: str, first: int, count: int) -> Dict[str, Any]:
        """A block of mutations of a kind of file."""
        world = self.home / "world"
        if not world.exists():
            world.mkdir()
            child("faulting.world", str(world), *(["light"] if self.args.quick else []))
        return mutations.mutate(f"{kind}", first, count, world, self.home / "scratch", self.args.seed)

    def size(self, case: str) -> Dict[str, Any]:
        """One case of an extreme size, in a process of its own."""
        folder = self.home / "size"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        told = child("faulting.sizes", case, str(folder), check=False)
        what, text, megabytes = told if told else ("fault", "the process died", 0)
        return {"outcome": what, "told": text, "MB": megabytes, "faults": [text] if what == "fault" else []}


def child(*command: str, check: bool = True) -> Any:
    """Run a module of the campaign; the JSON on its last line, or None where it has none."""
    import json

    done = subprocess.run([sys.executable, "-W", "ignore", "-m", *command], cwd=HERE, check=check, text=True,
                          stdout=subprocess.PIPE, env={**users_environment(), "OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return json.loads(lines[-1]) if lines else None


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 where faults were found."""
    args = parse(argv)
    if "CIAN_FAULT_SHM" not in os.environ and system.can_mount():  # so that what is left there is ours
        command = [sys.executable, "-W", "ignore", str(HERE / "faults.py"), *(argv or sys.argv[1:])]
        mount = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
        os.execvpe("unshare", ["unshare", "-m", "sh", "-c", mount, "sh", *command],
                   {**os.environ, "CIAN_FAULT_SHM": "1"})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    kept = read_json(args.out, "campaign", "name another --out") if os.path.exists(args.out) else {}
    done: Dict[str, Any] = kept.get("steps", {})
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="cian-faults-") as home:
        for name, work in Campaign(args, Path(home)).steps():
            if name in done or time.monotonic() > until:
                continue
            done[name] = work()
            write_json(args.out, {"seed": args.seed, "steps": done})
            for fault in done[name]["faults"]:
                print(f"{name}: {fault}", flush=True)
    print(summary(done))
    return int(any(step["faults"] for step in done.values()))


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="[default: 0]")
    parser.add_argument("--out", required=True, metavar="FILE", help="results; what is there is not repeated")
    parser.add_argument("--quick", action="store_true",
                        help="a minute: some of everything that needs no MXNet")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="[default: all]")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES),
                        help="to disturb [default: all but demo]")
    parser.add_argument("--faults", nargs="+", choices=system.FAULTS, default=system.FAULTS,
                        help="of the system [default: all]")
    parser.add_argument("--mutations", type=int, default=10000, help="of all kinds together [default: 10000]")
    parser.add_argument("--trials", type=int, default=50, help="of a stage and of a fault [default: 50]")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no step after so long")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_tool(main)
