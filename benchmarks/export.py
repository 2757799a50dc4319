"""Time and memory of export and of prediction: the live network, its exported symbol and its ONNX
file, backbone by backbone.

  python benchmarks/export.py --json benchmarks/export.json --images DATA/JPEGImages/*.jpg

Figures that the JSON file already holds for this size are kept, so an interrupted run goes on by
the same command. For each backbone all ways of running it are loaded in one process and take turns;
the figures are medians over the rounds, of seconds and of the ratio to the live network within a
round. Memory is the peak of a process of its own that does one thing: export, or load a file and
predict once. Prediction is one pass over one image of --size pixels, logits at the image's size.
Weights are random: they change neither. With --images the exported files are also held against the
live network on those pictures, in their own sizes. The tables for docs/export.md are printed at the
end.
"""
from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from cian.environment import usable_cores
from cian.errors import run_tool
from cian.files import atomic_write_bytes
from cian.tools.engine.report import text_table

MODELS = tuple(f"{backbone}_largefov" for backbone in ("resnet18", "resnet34", "resnet50", "resnet101",
                                                       "vgg16", "efficientnet_lite0"))
CLASSES = ("background", *(f"class{number}" for number in range(1, 21)))
WAYS = ("live", "symbol", "onnx", "onnx, one size")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; with --task the work of one child process."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--size", type=int, default=513, metavar="PX")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    parser.add_argument("--images", nargs="+", default=[], metavar="FILE",
                        help="pictures to compare the exported files on")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task:
        print(json.dumps(TASKS[args.task.partition(":")[0]](args, args.task.partition(":")[2])))
        return 0
    figures: Dict[str, Any] = {"size_px": args.size,
                               "threads": int(os.environ.get("OMP_NUM_THREADS") or usable_cores()),
                               "cpu": cpu_name(), "versions": package_versions(), "models": {}}
    if args.json and os.path.exists(args.json):
        with open(args.json, encoding="utf-8") as stream:
            kept = json.load(stream)
        figures["models"] = kept["models"] if kept["size_px"] == args.size else {}
    for model in args.models:
        if model not in figures["models"]:
            with tempfile.TemporaryDirectory() as folder:
                figures["models"][model] = measure(model, folder, args)
            print(f"{model}: {json.dumps(figures['models'][model])}", file=sys.stderr, flush=True)
            if args.json:
                atomic_write_bytes(args.json, json.dumps(figures, indent=1).encode())
    print(text_table(*table(figures)))
    if any("pictures" in found for found in figures["models"].values()):
        print(text_table(*agreement_table(figures)))
    return 0


def measure(model: str, folder: str, args: argparse.Namespace) -> Dict[str, Any]:
    """All figures of one backbone."""
    child = [sys.executable, os.path.abspath(__file__), "--models", model, "--size", str(args.size),
             "--rounds", str(args.rounds), *(["--images", *args.images] if args.images else []), "--folder",
             folder, "--task"]

    def run(task: str) -> Dict[str, Any]:
        return json.loads(subprocess.run([*child, task], stdout=subprocess.PIPE, check=True,
                                         text=True).stdout.splitlines()[-1])
    run("save")
    exports = {kind: run(f"export:{kind}") for kind in ("symbol", "onnx", "onnx, one size")}
    sizes = {name: round(os.path.getsize(os.path.join(folder, name)) / 1e6, 1)
             for name in ("m-0000.params", "m.onnx")}
    found = {"parameters": run("count")["parameters"], "rounds": args.rounds, "export": exports,
             "time": run("time"), "file_mb": sizes,
             "memory": {way: run(f"memory:{way}")["peak_mb"] for way in WAYS}}
    return {**found, "pictures": run("pictures")} if args.images else found


def save(args: argparse.Namespace, _: str) -> Dict[str, Any]:
    """Write the checkpoint."""
    from cian.symbols import build_model, initialize, save_params
    net = build_model(args.models[0], num_classes=len(CLASSES))
    initialize(net, zero_gamma=False)
    save_params(net, checkpoint(args), {"network": net.settings, "classes": list(CLASSES)})
    return {}


def count(args: argparse.Namespace, _: str) -> Dict[str, Any]:
    """Parameters of the network."""
    from cian.symbols import read_params
    return {"parameters": sum(array.size for array in read_params(checkpoint(args))[0].values())}


def export_one(args: argparse.Namespace, kind: str) -> Dict[str, Any]:
    """Seconds and peak memory of loading the checkpoint, writing one kind, loading it again and
    comparing on one picture.
    """
    from cian.tools.engine.export.write import Procedure, export_network
    from cian.tools.engine.models.agreement import generated_images
    from cian.tools.engine.models.model_files import load_checkpoint
    one_size = kind.endswith("one size")
    started = time.perf_counter()
    net, metadata = load_checkpoint(checkpoint(args))
    picture = generated_images(129, 1)[0][0].transpose(1, 2, 0).astype(np.uint8)
    agreement = export_network(kind.partition(",")[0], net,
                               os.path.join(args.folder, "fixed" if one_size else "m"), metadata,
                               Procedure(size_px=args.size if one_size else 0), pictures=[picture])
    return {"seconds": round(time.perf_counter() - started, 2), "peak_mb": peak_mb(),
            "relative_error": agreement.relative_error, "label_agreement": agreement.label_agreement}


def take_turns(args: argparse.Namespace, _: str) -> Dict[str, Any]:
    """Median seconds of each way, and of its ratio to the live network; the order rotates."""
    runners = {way: runner(args, way) for way in WAYS}
    pixels = image(args)
    want = runners["live"](pixels)
    error = {way: float(np.abs(run(pixels) - want).max() / np.sqrt((want ** 2).mean()))
             for way, run in runners.items()}
    seconds: Dict[str, List[float]] = {way: [] for way in WAYS}
    for turn in range(args.rounds):
        for way in (WAYS[turn % len(WAYS):] + WAYS[:turn % len(WAYS)]):
            started = time.perf_counter()
            runners[way](pixels)
            seconds[way].append(time.perf_counter() - started)
    ratio = {way: statistics.median(one / live for one, live in zip(seconds[way], seconds["live"]))
             for way in WAYS}
    return {way: {"seconds": round(statistics.median(seconds[way]), 3), "ratio": round(ratio[way], 3),
                  "relative_error": error[way]} for way in WAYS}


def pictures(args: argparse.Namespace, _: str) -> Dict[str, Any]:
    """How the symbol and the ONNX file of any size compare with the live network on the pictures;
    fails where they differ.
    """
    from cian.tools.engine.images import read_image
    from cian.tools.engine.models.agreement import compare, fitted
    images = [fitted(read_image(path), 0) for path in args.images]
    live = runner(args, "live")
    return {way: asdict(compare(live, runner(args, way), images)) for way in ("symbol", "onnx")}


def memory(args: argparse.Namespace, way: str) -> Dict[str, Any]:
    """Peak of a process that loads one way and predicts once."""
    runner(args, way)(image(args))
    return {"peak_mb": peak_mb()}


def runner(args: argparse.Namespace, way: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pixels to logits at the image's size."""
    import mxnet as mx

    from cian.tools.engine.export.write import Procedure
    from cian.tools.engine.models.model_files import load_checkpoint, open_model
    if way == "live":
        network = Procedure().network(load_checkpoint(checkpoint(args))[0].for_prediction())
        network.hybridize()
        return lambda pixels: network(mx.nd.array(pixels)).asnumpy()
    name = {"symbol": "m-symbol.json", "onnx": "m.onnx", "onnx, one size": "fixed.onnx"}[way]
    opened = open_model(os.path.join(args.folder, name))
    return lambda pixels: opened.network(mx.nd.array(pixels))[0].asnumpy()


def table(figures: Dict[str, Any]) -> Any:
    """Header and rows of the table."""
    header = ("network", "export s (symbol, ONNX)", "its peak MB", "predict s (live)", "symbol", "ONNX",
              "ONNX, one size", "peak MB (live, symbol, ONNX)")
    rows = []
    for model, found in figures["models"].items():
        export, times, peak = found["export"], found["time"], found["memory"]
        rows.append((model.replace("_largefov", ""),
                     f"{export['symbol']['seconds']:.1f}, {export['onnx']['seconds']:.1f}",
                     f"{export['symbol']['peak_mb']}, {export['onnx']['peak_mb']}",
                     f"{times['live']['seconds']:.2f}", *(f"{times[way]['ratio']:.2f}x" for way in WAYS[1:]),
                     f"{peak['live']}, {peak['symbol']}, {peak['onnx']}"))
    return header, rows


def agreement_table(figures: Dict[str, Any]) -> Any:
    """Header and rows of the table of agreement on pictures."""
    rows = []
    for model, found in figures["models"].items():
        for way, agreement in found.get("pictures", {}).items():
            rows.append((model.replace("_largefov", ""), way, str(agreement["images"]),
                         f"{agreement['relative_error']:.1e}", f"{100 * agreement['label_agreement']:.4f} %"))
    return ("network", "file", "pictures", "largest error / rms", "equal labels"), rows


def checkpoint(args: argparse.Namespace) -> str:
    """Where the network is."""
    return os.path.join(args.folder, f"{args.models[0]}-0000.params")


def image(args: argparse.Namespace) -> np.ndarray:
    """(1, 3, size, size) float32 raw RGB."""
    from cian.tools.engine.models.agreement import generated_images
    return generated_images(args.size, 1)[0]


def peak_mb() -> int:
    """Peak resident memory of this process in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def package_versions() -> Dict[str, str]:
    """Of Python and the packages that matter here."""
    return {"python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("mxnet", "numpy", "onnx", "onnxruntime")}}


def cpu_name() -> str:
    """The processor, as the system calls it."""
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        return next((line.partition(":")[2].strip() for line in stream if line.startswith("model name")),
                    "unknown")


TASKS: Dict[str, Callable[[argparse.Namespace, str],
                          Dict[str, Any]]] = {"save": save, "count": count, "export": export_one,
                                              "time": take_turns, "memory": memory, "pictures": pictures}

if __name__ == "__main__":
    run_tool(main)
