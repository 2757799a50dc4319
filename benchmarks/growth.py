"""How time and memory grow: of a training step with crop, batch and group size, of prediction and
evaluation with the number of images.

  python benchmarks/growth.py --json growth.json --plot growth.png

Each point is a process of its own; seconds are the median of its repetitions, memory is its peak
(with the processes below it).
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

from compare_files import Files, Settings
from measuring import Measured, Server, machine, spread

from cian.errors import run_tool
from cian.files import atomic_write

BASE = {"crop": 161, "batch_size": 4, "group_size": 2}
# What varies, its values, and what is fixed beside it. A batch holds whole groups.
SERIES: Dict[str, Dict[str, Any]] = {
    "crop": {"values": (97, 161, 225), "fixed": {"batch_size": 2}},
    "batch_size": {"values": (2, 4, 8), "fixed": {"crop": 97}},
    "group_size": {"values": (2, 3, 6), "fixed": {"batch_size": 6, "crop": 97}},
}
PREDICTED, SCORED = (4, 16, 64), (500, 2000, 8000)
LABELS = {"crop": "side of the crop, pixels", "batch_size": "images of a batch",
          "group_size": "images of a group (batch of 6)", "predicted": "images predicted",
          "scored": "label maps scored"}


def step_point(model: str, values: Dict[str, int], rounds: int, folder: str) -> Dict[str, float]:
    """Seconds of a training step and the peak memory of its process."""
    job = {"task": "random_step", "model": model, **BASE, **values}
    server = Server("our_side.py", job, folder)
    seconds: List[float] = []
    try:
        seconds = [server.run()[0] for _ in range(rounds)]
    finally:
        peak = server.close()
    return {"seconds": spread(seconds)["median"], "peak_mb": peak}


def measure_steps(model: str, rounds: int, folder: str, names: Sequence[str]) -> Dict[str,
                                                                                      List[Dict[str, float]]]:
    """All series of the training step."""
    result: Dict[str, List[Dict[str, float]]] = {}
    for name in names:
        result[name] = []
        for value in SERIES[name]["values"]:
            point = step_point(model, {**SERIES[name]["fixed"], name: value}, rounds,
                               os.path.join(folder, f"{name}_{value}"))
            result[name].append({name: value, **SERIES[name]["fixed"], **point})
            print(name, value, point, flush=True)
    return result


def measure_counts(folder: str, predicted: Sequence[int],
                   scored: Sequence[int]) -> Dict[str, List[Dict[str, float]]]:
    """Whole command lines of prediction (a small network on small images) and evaluation, by their
    numbers of images.
    """
    settings = Settings(model="resnet18_largefov", width_px=64, height_px=48, crop_px=33, size_px=65,
                        chain_images=max(predicted), predicted=max(predicted), refined=max(predicted),
                        scored=max(scored))
    files = Files(os.path.join(folder, "files"), settings)
    files.prepare()
    result: Dict[str, List[Dict[str, float]]] = {"predicted": [], "scored": []}
    for count in predicted:
        out = os.path.join(folder, f"predicted_{count}")
        flags = files.prediction_flags(os.path.dirname(files.weights), files.part("val", count))
        command = [sys.executable, "-m", "cian.tools.predict", *flags, "--image-size", "65", "--classes",
                   "voc", "--out", out, "--quiet"]
        found = Measured(command, f"{out}.log")
        result["predicted"].append({"predicted": count, "seconds": found.seconds, "peak_mb": found.peak_mb})
        print("predicted", result["predicted"][-1], flush=True)
    for count in scored:
        command = [sys.executable, "-m", "cian.tools.evaluate", "--data-list", files.part("scored", count),
                   "--prediction-root", os.path.join(files.root, "scored"), "--groundtruth-root",
                   os.path.join(files.root, "truth"), "--subset", "--json",
                   os.path.join(folder, "scores.json")]
        found = Measured(command, os.path.join(folder, "evaluate.log"))
        result["scored"].append({"scored": count, "seconds": found.seconds, "peak_mb": found.peak_mb})
        print("scored", result["scored"][-1], flush=True)
    return result


def plot(series: Dict[str, List[Dict[str, float]]], path: str) -> None:
    """A panel a series: seconds on the left axis, memory on the right one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(series), 3.2), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items()):
        values = [point[name] for point in points]
        axes.set(xlabel=LABELS[name], xlim=(0, 1.08 * max(values)))
        for side, label, marker, colour, measured in ((axes, "seconds", "o", "tab:blue",
                                                       [point["seconds"] for point in points]),
                                                      (axes.twinx(), "peak memory, GB", "s", "tab:orange",
                                                       [point["peak_mb"] / 1000 for point in points])):
            side.plot(values, measured, marker=marker, color=colour)
            side.set_ylim(0, 1.08 * max(measured))
            side.set_ylabel(label, color=colour)
    figure.savefig(path, dpi=110)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=(*SERIES, "images"), default=[*SERIES, "images"],
                        metavar="NAME", help=f"some of: {', '.join(SERIES)}, images")
    parser.add_argument("--model", default="resnet50_largefov", metavar="NAME", help="of the training steps")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed steps a point")
    parser.add_argument("--json", metavar="FILE",
                        help="also write the figures there; other series that it holds are kept")
    parser.add_argument("--plot", metavar="PNG", help="also draw them there")
    args = parser.parse_args(argv)
    found: Dict[str, Any] = {"model": args.model, "series": {}, "commands": {}}
    if args.json and os.path.exists(args.json):
        with open(args.json, encoding="utf-8") as stream:
            found = json.load(stream)
    found["machine"] = machine()
    with tempfile.TemporaryDirectory(prefix="growth_") as folder:
        found["series"].update(measure_steps(args.model, args.rounds, folder,
                                             [name for name in SERIES if name in args.series]))
        if "images" in args.series:
            found["series"].update(measure_counts(folder, PREDICTED, SCORED))
    for name in args.series:
        found["commands"][name] = ["benchmarks/growth.py", *(sys.argv[1:] if argv is None else argv)]
    if args.json:
        with atomic_write(args.json, "w") as stream:
            json.dump(found, stream, indent=1)
    if args.plot:
        plot(found["series"], args.plot)
    return 0


if __name__ == "__main__":
    run_tool(main)
