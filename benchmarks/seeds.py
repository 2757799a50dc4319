"""What overlapping gains in making seeds: decoding, network and the rest side by side, against one
after the other.

  python benchmarks/seeds.py --images 200 --json seeds.json

Both ways run the same code in this process, in turns; beside them stands the time of the network
alone, below which neither can come. The classifier's weights are random.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence
from unittest import mock

import numpy as np
from loader import generated_tree
from measuring import machine, ratios, spread

from cian.environment import usable_cores
from cian.errors import run_tool
from cian.files import atomic_write


class Timed:
    """Maps of an image, and the seconds that they have taken so far."""

    def __init__(self, maps: Any) -> None:
        self.maps, self.seconds = maps, 0.0

    def __call__(self, image: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        start = time.perf_counter()
        try:
            return self.maps(image, classes)
        finally:
            self.seconds += time.perf_counter() - start


def measure(model: str, count: int, size_px: Sequence[int], rounds: int, folder: str) -> Dict[str, Any]:
    """Seconds a round of both ways, and of the network alone."""
    from cian.data.preparation import prepare
    from cian.data.tree import DatasetTree
    from cian.symbols import CAMClassifier, initialize
    from cian.tools.engine.config import SeedConfig
    from cian.tools.engine.seeds import make as seeds
    from cian.tools.engine.seeds.maps import CamMaps

    generated_tree(os.path.join(folder, "data"), count, (size_px[1], size_px[0]))
    tree = DatasetTree(os.path.join(folder, "data"))
    images = prepare(tree, os.path.join(folder, "data", "train.txt"), os.path.join(folder, "records")).images
    net = CAMClassifier(model, 20)
    initialize(net, 0)
    net.hybridize()
    found: Dict[str, List[float]] = {"overlapped": [], "one after the other": [], "network alone": []}

    def run(way: str, turn: int) -> None:
        maps = Timed(CamMaps.of(net, SeedConfig()))
        in_turn = mock.patch.object(seeds, "overlapped", lambda _, function, items: map(function, items))
        start = time.perf_counter()
        with in_turn if way == "one after the other" else mock.patch.object(seeds, "overlapped",
                                                                            seeds.overlapped):
            seeds.make_seeds(SeedConfig(), images, maps, os.path.join(folder, f"{way}_{turn}"), {},
                             workers=usable_cores())
        seconds = time.perf_counter() - start
        if turn >= 0:  # the round before the first one warms up
            found[way].append(seconds)
            if way == "one after the other":
                found["network alone"].append(maps.seconds)

    ways = ("overlapped", "one after the other")
    for turn in range(-1, rounds):
        for way in ways[::-1] if turn % 2 else ways:
            run(way, turn)
    return {"images": count, "size_px": list(size_px), "model": model, "seconds": found,
            "median_s": {way: spread(values) for way, values in found.items()},
            "times_as_fast": ratios(found["one after the other"], found["overlapped"])}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0", metavar="NAME",
                        help="backbone of the classifier")
    parser.add_argument("--images", type=int, default=60, metavar="N")
    parser.add_argument("--size", type=int, nargs=2, default=[500, 375], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="seeds_") as folder:
        found = measure(args.model, args.images, args.size, args.rounds, folder)
    for way, values in found["median_s"].items():
        print(f"{way:20} {1000 * values['median'] / args.images:7.1f} ms an image")
    print("overlapped is {median:.2f} ({min:.2f}-{max:.2f}) times as fast".format(**found["times_as_fast"]))
    if args.json:
        command = ["benchmarks/seeds.py", *(sys.argv[1:] if argv is None else argv)]
        with atomic_write(args.json, "w") as stream:
            json.dump({"command": command, "machine": machine(), **found}, stream, indent=1)
    return 0


if __name__ == "__main__":
    run_tool(main)
