"""How much sooner onnxruntime is done than MXNet where a network does not train, and how far its results
are from MXNet's.

  python benchmarks/engines.py --data VOC2012 --networks resnet50_largefov runs/cian --json engines.json
  python benchmarks/engines.py --data VOC2012 --networks runs/cian --procedure whole
  python benchmarks/engines.py --data VOC2012 --list train --seeds efficientnet_lite0 --images 100

Both engines are in this process and take turns, image by image, with OMP_NUM_THREADS threads. A
model's name stands for random weights under which its network is well conditioned.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from measuring import machine, ratios, spread

from cian.data.tree import DatasetTree
from cian.environment import usable_cores
from cian.errors import run_tool
from cian.files import write_json
from cian.tools.engine.config import PredictConfig, SeedConfig

ENGINES = ("mxnet", "onnx")
ONE_PASS: Dict[str, Any] = {"scales": (1.0,), "add_max": False, "mirror": False}


def open_network(name: str, images: Sequence[np.ndarray]) -> Any:
    """A checkpoint's network, or one of random weights that suit two of the images."""
    from cian.symbols import MODELS, build_model
    from cian.tools.engine.fidelity.inputs import condition
    from cian.tools.engine.models.snapshot import load_network
    if name not in MODELS:
        return load_network(name)[0]
    net = build_model(name, num_classes=21, affinity="self")
    crops = [image[:193, :193].transpose(2, 0, 1).astype(np.float32) for image in images[:2]]
    condition(net, np.stack(crops), seed=0)
    return net


def agreement(net: Any, images: Sequence[np.ndarray], procedure: Dict[str, Any]) -> Dict[str, Any]:
    """Seconds an image of both engines, the largest and the mean difference of logits relative to
    the root mean square of an image's, and the share of pixels with the same label.
    """
    from cian.tools.engine.prediction.predictor import Predictor
    predictors = {engine: Predictor(net, PredictConfig(fit="native", engine=engine, **procedure))
                  for engine in ENGINES[::-1]}
    for predictor in predictors.values():  # each builds its graph in its own order of sums
        predictor.logits(images[0][:97, :129])
    seconds: Dict[str, List[float]] = {engine: [] for engine in ENGINES}
    largest, squares, equal, pixels = 0.0, [], 0, 0
    for turn, image in enumerate(images):
        logits = {}
        for engine in ENGINES[::1 if turn % 2 else -1]:
            start = time.perf_counter()
            logits[engine] = predictors[engine].logits(image)
            seconds[engine].append(time.perf_counter() - start)
        want, got = (logits[engine].astype(np.float64) for engine in ENGINES)
        rms = np.sqrt(np.square(want).mean())
        largest = max(largest, float(np.abs(want - got).max() / rms))
        squares.append(np.square((want - got) / rms).mean())
        equal += int((want.argmax(axis=0) == got.argmax(axis=0)).sum())
        pixels += want[0].size
    return {"images": len(images), "median_s": {engine: spread(values) for engine, values in seconds.items()},
            "times_as_fast": ratios(*seconds.values()), "largest_error": largest,
            "rms_error": float(np.sqrt(np.mean(squares))), "equal_labels": equal / pixels}


def seeds(model: str, tree: DatasetTree, data_list: str, names: Sequence[str], rounds: int) -> Dict[str, Any]:
    """Seconds a round of making CAMs and seeds by both engines, with random weights."""
    from cian.data.lists import write_list
    from cian.data.preparation import prepare
    from cian.symbols import CAMClassifier, initialize
    from cian.tools.engine.seeds.make import make_seeds
    from cian.tools.engine.seeds.maps import CamMaps
    net = CAMClassifier(model, len(tree.classes) - 1)
    initialize(net, 0)
    config, found = SeedConfig(), {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory(prefix="engines_") as folder:
        some = os.path.join(folder, "some.txt")
        write_list(some, list(names))
        records = prepare(tree, some, os.path.join(folder, "records")).images
        maps = {engine: CamMaps.of(net, config, engine=engine) for engine in ENGINES}
        for turn in range(-1, rounds):  # the round before the first one warms up
            for engine in ENGINES[::1 if turn % 2 else -1]:
                start = time.perf_counter()
                make_seeds(config, records, maps[engine], os.path.join(folder, f"{engine}_{turn}"), {},
                           workers=usable_cores())
                if turn >= 0:
                    found[engine].append(time.perf_counter() - start)
    return {"images": len(names), "median_s": {engine: spread(values) for engine, values in found.items()},
            "times_as_fast": ratios(*found.values())}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", required=True, metavar="ROOT", help="data set in VOC's layout")
    result.add_argument("--list", default="val", metavar="LIST")
    result.add_argument("--images", type=int, default=0, metavar="N", help="so many of it [default: all]")
    result.add_argument("--networks", nargs="*", default=[], metavar="NETWORK",
                        help="checkpoints, snapshot folders or model names")
    result.add_argument("--procedure", choices=("one", "whole"), default="one",
                        help="one pass, or the test's scales and mirror [default: one]")
    result.add_argument("--seeds", metavar="BACKBONE", help="make CAMs and seeds with this classifier")
    result.add_argument("--classes", default="voc", metavar="FILE")
    result.add_argument("--rounds", type=int, default=3, metavar="N", help="of making seeds [default: 3]")
    result.add_argument("--json", metavar="FILE", help="also write the figures there")
    return result


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    from cian.tools.engine.images import read_image
    tree = DatasetTree(args.data, classes=args.classes)
    names = tree.names(args.list)
    names = names[::-(-len(names) // args.images)] if args.images else names
    figures: Dict[str, Any] = {}
    procedure = ONE_PASS if args.procedure == "one" else {}
    images = [read_image(tree.image_path(name)) for name in names] if args.networks else []
    for network in args.networks:
        found = agreement(open_network(network, images), images, procedure)
        figures[os.path.basename(os.path.normpath(network))] = found
        print("{}: {images} images, labels {equal_labels:.5%} equal, logits at most {largest_error:.1e} and "
              "{rms_error:.1e} rms apart".format(network, **found))
    if args.seeds:
        figures[args.seeds] = seeds(args.seeds, tree, args.list, names, args.rounds)
    for name, found in figures.items():
        print("{}: onnxruntime is {median:.2f} ({min:.2f}-{max:.2f}) times as fast".format(
            name, **found["times_as_fast"]))
    if args.json:
        command = ["benchmarks/engines.py", *(sys.argv[1:] if argv is None else argv)]
        write_json(args.json, {"command": command, "procedure": args.procedure, "machine": machine(),
                               "threads": int(os.environ["OMP_NUM_THREADS"]), "found": figures})
    return 0


if __name__ == "__main__":
    run_tool(main)
