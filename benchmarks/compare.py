"""Speed and memory of this project against a checkout of the original code, stage by stage, on the CPU.

  git clone https://github.com/js-fan/CIAN original
  python benchmarks/compare.py --original original --quick

Both sides do the same on the same files with the same settings, each in a process of its own, and
take turns; figures are medians over the rounds of the ratio within a round, with the least and the
largest. The original runs with the threads that it takes by itself, as its README runs it, and
where threads matter also with as many as ours. Its code is not edited. Weights are random, which
costs the same time.

  loading      batches of random crops from files (ours: from packed records, by processes)
  step         a training step on a batch that is there
  prediction   images to label maps: three scales and their maximum, mirrored too, then CRF; the
               network is loaded already
  crf          the same with stored logits in place of the network
  evaluation   the command line that scores label maps
  chain        the command lines one after the other: train an epoch, predict with CRF, evaluate

Memory is the peak over a side's processes together. Figures that --json holds of other stages with
the same settings are kept.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Sequence

from compare_files import QUICK, Files, Settings
from compare_report import DEFAULT, EQUAL, OURS, plot, report
from measuring import Measured, Server, beside, machine, ratios, spread

from cian.data.classes import read_label_png
from cian.data.lists import read_list
from cian.environment import usable_cores
from cian.errors import InputError, run_tool
from cian.files import atomic_write, read_text
from cian.tools.engine.fidelity.process import Original

STAGES = ("loading", "step", "prediction", "crf", "evaluation", "chain")
THREADED = ("step", "prediction", "chain")  # where the number of OpenMP threads decides
AHEAD = 5  # batches that may have been made before the clock starts


class Comparison:
    """Both sides and the files that they work on; ``work`` is an existing folder for what they write."""

    def __init__(self, original: Original, files: Files, work: str, rounds: int, threads: int = 0) -> None:
        self.original, self.files, self.work, self.rounds = original, files, work, rounds
        # OpenMP's; 0 is what a program takes by itself
        self._threads = {DEFAULT: 0, EQUAL: threads or usable_cores(), OURS: threads}

    def run(self, stage: str) -> Dict[str, Any]:
        """Seconds of every round and peak memory of every side; where both sides write label maps,
        the share of equal pixels.
        """
        sides = (DEFAULT, EQUAL, OURS) if stage in THREADED else (DEFAULT, OURS)
        work = os.path.join(self.work, stage)
        found = {"evaluation": self._evaluation, "chain": self._chain}.get(stage, self._repeated)(stage,
                                                                                                  sides, work)
        shutil.rmtree(work)
        return found

    @staticmethod
    def _turns(rounds: int, sides: Sequence[str], work: Callable[[str, int], None]) -> None:
        """``work(side, round)`` for all; who begins changes from round to round."""
        for turn in range(rounds):
            shift = turn % len(sides)
            for side in (*sides[shift:], *sides[:shift]):
                work(side, turn)

    def _repeated(self, stage: str, sides: Sequence[str], work: str) -> Dict[str, Any]:
        servers: Dict[str, Server] = {}
        seconds: Dict[str, List[float]] = {side: [] for side in sides}
        cpu: Dict[str, List[float]] = {side: [] for side in sides}

        def run(side: str, _: int) -> None:
            for values, value in zip((seconds[side], cpu[side]), servers[side].run()):
                values.append(value)

        try:
            for side in sides:
                folder = os.path.join(work, side.replace(", ", "_").replace(" ", "_"))
                servers[side] = Server("our_side.py" if side == OURS else "original_side.py",
                                       self._job(stage, side, folder), folder, self._threads[side])
            self._turns(self.rounds, sides, run)
        finally:
            peak = {side: server.close() for side, server in servers.items()}
        result: Dict[str, Any] = {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}
        if stage in ("prediction", "crf"):
            folders = [os.path.join(work, *parts, "pred_crf") for parts in (["original"], ["ours", "0"])]
            result["equal_pixels"] = equal_pixels(*folders, read_list(self._list(stage)))
        return result

    def _job(self, stage: str, side: str, folder: str) -> Dict[str, Any]:
        """What a process of :meth:`_repeated` reads."""
        files, settings = self.files, self.files.settings
        job: Dict[str, Any] = {"task": stage, "model": settings.model, "crop_px": settings.crop_px,
                               "size_px": settings.size_px, "lr": settings.lr, "batch": files.batch,
                               "logits": files.logits, "weights": files.weights, "ahead": AHEAD,
                               "batches": settings.load_batches, "batch_size": settings.load_batch_size,
                               "records": files.records, "list": self._list(stage),
                               "image_root": files.folder("JPEGImages"), "out": folder}
        if side == OURS:
            return job
        # the original reads the checkpoint in the folder that it writes to
        if stage in ("prediction", "crf"):
            os.makedirs(folder)
            os.symlink(files.weights, os.path.join(folder, os.path.basename(files.weights)))
            job["argv"] = files.prediction_flags(folder, self._list(stage))
        elif stage == "step":
            job["argv"] = files.training_flags(folder, files.lists["train"])
        roots = [files.folder(name) for name in ("JPEGImages", "seeds", "Annotations")]
        return {**job, "checkout": self.original.checkout, "roots": [*roots, files.lists["all"]]}

    def _list(self, stage: str) -> str:
        return self.files.lists[{"prediction": "predicted", "crf": "refined"}.get(stage, "all")]

    def _evaluation(self, _: str, sides: Sequence[str], work: str) -> Dict[str, Any]:
        seconds: Dict[str, List[float]] = {side: [] for side in sides}
        cpu: Dict[str, List[float]] = {side: [] for side in sides}
        peak = dict.fromkeys(sides, 0.0)

        def evaluate(side: str, turn: int) -> None:
            folder = os.path.join(work, f"{side}_{turn}")
            os.makedirs(folder)
            measured = self._evaluate(side, folder, self.files.lists["scored"],
                                      os.path.join(self.files.root, "scored"),
                                      os.path.join(self.files.root, "truth"))
            seconds[side].append(measured.seconds)
            cpu[side].append(measured.cpu_seconds)
            peak[side] = max(peak[side], measured.peak_mb)

        self._turns(self.rounds, sides, evaluate)
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}

    def _chain(self, _: str, sides: Sequence[str], work: str) -> Dict[str, Any]:
        parts: Dict[str, Dict[str, List[float]]] = {part: {side: [] for side in sides}
                                                    for part in ("train", "predict", "evaluate")}
        cpu: Dict[str, List[float]] = {side: [] for side in sides}
        peaks = {part: dict.fromkeys(sides, 0.0) for part in parts}

        def chain(side: str, turn: int) -> None:
            snapshot = os.path.join(work, side.replace(", ", "_").replace(" ", "_"), str(turn))
            os.makedirs(snapshot)
            cpu[side].append(0.0)
            for part, measured in self._commands(side, snapshot):
                parts[part][side].append(measured.seconds)
                cpu[side][-1] += measured.cpu_seconds
                peaks[part][side] = max(peaks[part][side], measured.peak_mb)

        self._turns(min(self.rounds, max(2, self.rounds // 2)), sides, chain)  # each is long
        predictions = [os.path.join(work, side, "0", "pred_crf") for side in (DEFAULT, OURS)]
        seconds = {side: [sum(times) for times in zip(*(parts[part][side] for part in parts))]
                   for side in sides}
        peak = {side: max(peaks[part][side] for part in parts) for side in sides}
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "parts": parts,
                "parts_peak_mb": peaks,
                "equal_pixels": equal_pixels(*predictions, read_list(self.files.lists["val"]))}

    def _commands(self, side: str, snapshot: str) -> Any:
        """Run a side's three command lines; yields the name of each and what it took."""
        files = self.files
        for part, flags in (("train", files.training_flags(snapshot, files.lists["train"])),
                            ("predict", files.prediction_flags(snapshot, files.lists["val"]))):
            log = os.path.join(snapshot, f"{part}.log")
            if side == OURS:
                size = ["--image-size", str(files.settings.size_px)] if part == "predict" else []
                command = [sys.executable, "-m", f"cian.tools.{part}", *flags, *size]
            else:
                job = {"checkout": self.original.checkout,
                       "task": {"train": "train", "predict": "infer"}[part], "argv": flags,
                       "size_px": files.settings.size_px}
                command = self._original_command(job, snapshot)
            yield part, Measured(command, log, self._threads[side])
        yield "evaluate", self._evaluate(side, snapshot, files.lists["val"],
                                         os.path.join(snapshot, "pred_crf"), files.folder("seeds"))

    def _evaluate(self, side: str, folder: str, data_list: str, predictions: str, truth: str) -> Measured:
        flags = ["--data-list", data_list, "--prediction-root", predictions, "--groundtruth-root", truth]
        if side == OURS:
            command = [sys.executable, "-m", "cian.tools.evaluate", *flags, "--json",
                       os.path.join(folder, "scores.json")]
        else:
            command = self._original_command({"checkout": self.original.checkout, "task": "evaluate",
                                              "argv": flags}, folder)
        return Measured(command, os.path.join(folder, "evaluate.log"), self._threads[side])

    def _original_command(self, job: Dict[str, Any], folder: str) -> List[str]:
        path = os.path.join(folder, f"{job['task']}.json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(job, stream)
        return [sys.executable, beside("original_side.py"), path]


def equal_pixels(first: str, second: str, names: Sequence[str]) -> float:
    """Share of the pixels on which the label maps of two folders agree."""
    same = total = 0
    for name in names:
        one, other = (read_label_png(os.path.join(folder, f"{name}.png")) for folder in (first, second))
        same, total = same + int((one == other).sum()), total + one.size
    return same / total


def summarise(found: Dict[str, Any]) -> Dict[str, Any]:
    """With medians, and ratios of the original's seconds and CPU seconds to ours, added; for each
    part of a chain too.
    """
    def compare(seconds: Dict[str, List[float]]) -> Dict[str, Any]:
        return {"median_s": {side: spread(values) for side, values in seconds.items()},
                "times_as_fast": {side: ratios(values, seconds[OURS])
                                  for side, values in seconds.items() if side != OURS}}
    result = {**found, **compare(found["seconds"])}
    cpu = found["cpu_seconds"]
    result["times_the_cpu"] = {side: ratios(values, cpu[OURS])
                               for side, values in cpu.items() if side != OURS}
    if "parts" in found:
        result["parts"] = {part: {"seconds": seconds, **compare(seconds),
                                  "peak_mb": found["parts_peak_mb"][part]}
                           for part, seconds in found["parts"].items()}
        del result["parts_peak_mb"]
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--original", metavar="DIR", default=os.environ.get("CIAN_ORIGINAL", ""),
                        help="the checkout [default: the environment variable CIAN_ORIGINAL]")
    result.add_argument("--quick", action="store_true", help="small images, a few minutes on two cores")
    result.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
                        help=f"some of: {', '.join(STAGES)}")
    result.add_argument(
        "--rounds", type=int, metavar="N",
        help="rounds, each side once a round; the chain has half as many [default: 5, with --quick 3]")
    result.add_argument(
        "--threads", type=int, default=0, metavar="N",
        help="OpenMP threads of ours, and of the original beside its default [default: one a core]")
    result.add_argument("--model", choices=("resnet50_largefov", "resnet101_largefov"),
                        help="[default: resnet50_largefov]")
    result.add_argument("--batch-size", type=int, metavar="N", help="images of a training step")
    result.add_argument("--crop", type=int, dest="crop_px", metavar="PX", help="side of the training crops")
    result.add_argument("--size", type=int, dest="size_px", metavar="PX",
                        help="side of the square to which prediction pads images")
    result.add_argument("--images", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"),
                        help="size of the generated images")
    result.add_argument(
        "--data", default="", metavar="ROOT",
        help="use its JPEGImages, Annotations, seeds (gray PNG) and train.txt in place of generated ones")
    result.add_argument("--json", metavar="FILE", help="where the figures go")
    result.add_argument("--plot", metavar="PNG", help="where their picture goes")
    result.add_argument("--work", metavar="DIR", help="keep all files in this new folder")
    return result


def settings_from(args: argparse.Namespace) -> Settings:
    """Those of --quick or the full ones, with what the command line changes."""
    changes = {key: getattr(args, key)
               for key in ("model", "batch_size", "crop_px", "size_px") if getattr(args, key) is not None}
    if args.images:
        changes["width_px"], changes["height_px"] = args.images
    return replace(QUICK if args.quick else Settings(), **changes)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    if not args.original:
        raise InputError("no checkout of the original code was named", field="--original",
                         remedy="clone https://github.com/js-fan/CIAN and name its folder")
    if args.work and os.path.exists(args.work):
        raise InputError("exists already", file=args.work, field="--work", remedy="name a new folder")
    with tempfile.TemporaryDirectory(prefix="compare_") as temporary:
        work = os.path.abspath(args.work or temporary)
        original = Original(args.original, work)
        files = Files(os.path.join(work, "files"), settings_from(args),
                      os.path.abspath(args.data) if args.data else "")
        files.prepare()
        results = {"machine": {**machine(), "original": original.commit}, "settings": files.facts(),
                   "stages": earlier(args.json, files.facts())}
        print(", ".join(f"{key} {value}" for key, value in results["machine"].items()), flush=True)
        comparison = Comparison(original, files, work, args.rounds or (3 if args.quick else 5), args.threads)
        for stage in args.stages:
            about = {"command": ["benchmarks/compare.py", *(sys.argv[1:] if argv is None else argv)],
                     "load_before": os.getloadavg()[0]}
            results["stages"][stage] = {**about, **summarise(comparison.run(stage))}
            print(f"\n{stage}\n" + report({stage: results["stages"][stage]}), flush=True)
            if args.json:
                with atomic_write(args.json, "w") as stream:
                    json.dump(results, stream, indent=1)
    print("\n" + report(results["stages"]))
    if args.plot:
        plot(results, args.plot)
    return 0


def earlier(path: Optional[str], facts: Dict[str, Any]) -> Dict[str, Any]:
    """The stages that a file of results holds for the same settings."""
    if not (path and os.path.exists(path)):
        return {}
    content = json.loads(read_text(path))
    return content["stages"] if content["settings"] == facts else {}


if __name__ == "__main__":
    run_tool(main)
