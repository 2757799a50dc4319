"""How sharp the affinity of trained networks is, and whether it finds the query's class in another image.

  python benchmarks/affinity.py --checkpoints RUN [RUN ...] --data DATA --classes DATA/classes.txt \\
      --json affinity.json

Images of a list are paired with the next one that shares a class (masks say where, for measurement
alone). For each checkpoint:

  effective    exp(entropy) of the affinity over the reference's pixels, as a share of them: 1 is
               uniform, which averages the image
  self, cross  of a query pixel whose class the (other) image has: the affinity's weight on that
               class over the share of pixels that it takes there; 1 is chance. Background is left
               out. The spread is over the pairs.
  gamma        mean size of bn_out_gamma, which scales what the affinity adds
"""
from __future__ import annotations

import argparse
import json
import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from measuring import machine

from cian.data.classes import read_label_png
from cian.data.tree import DatasetTree
from cian.environment import prepare
from cian.errors import run_tool
from cian.files import atomic_write_bytes
from cian.tools.engine.images import read_image
from cian.tools.engine.prediction.pictures import pairs_by_class
from cian.tools.engine.report import text_table


def measure(checkpoint: str, tree: DatasetTree, pairs: Sequence[Any]) -> Dict[str, Any]:
    """All figures of a checkpoint."""
    from cian.tools.engine.models.snapshot import load_network
    from cian.tools.engine.prediction.affinity import pair_figures

    net, _ = load_network(checkpoint, for_prediction=False)
    found: Dict[str, List[float]] = {"effective": [], "self": [], "cross": []}
    for names in pairs:
        figures = pair_figures(net, [read_image(tree.image_path(name)) for name in names],
                               [read_label_png(tree.mask_path(name)) for name in names])
        for name, value in figures.items():
            if value is not None:
                found[name].append(value)
    gamma = float(np.abs(net.collect_params()["bn_out_gamma"].data().asnumpy()).mean())
    return {"checkpoint": os.path.basename(os.path.normpath(checkpoint)), "pairs": len(pairs), "gamma": gamma,
            **{name: {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1))}
               for name, values in found.items()}}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", required=True, nargs="+", metavar="RUN",
                        help="snapshot folders or .params of cross affinity")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree with masks")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="val", metavar="NAME")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="pairs [default: 50]")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    prepare()
    tree = DatasetTree(args.data, classes=args.classes)
    pairs = pairs_by_class(tree, args.list, args.limit)
    results = [measure(checkpoint, tree, pairs) for checkpoint in args.checkpoints]
    print(text_table(("checkpoint", "effective", "self", "cross", "gamma"), [(result["checkpoint"], *(
        f"{result[name]['mean']:.2f} ± {result[name]['spread']:.2f}"
        for name in ("effective", "self", "cross")), f"{result['gamma']:.3f}") for result in results]))
    if args.json:
        atomic_write_bytes(args.json,
                           json.dumps({"machine": machine(), "results": results}, indent=1).encode())
    return 0


if __name__ == "__main__":
    run_tool(main)
