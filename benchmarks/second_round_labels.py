"""Ways to make the labels of the second round, judged without any mask: by the seeds that the first
round was trained on.

  python benchmarks/second_round_labels.py --checkpoint RUN --seeds SEEDS --data DATA --classes
  DATA/classes.txt --json labels.json

A network of a first round predicts images of the training list, warped to a square (the original's
way) and as they are; without CRF, with the five iterations of the test, and with the ten that the
original makes these labels with. Of each way:

  foreground, background   share of the seeds' pixels of objects, and of background, that get the seed's label
  share                    share of all pixels that are background
  margin                   mean difference of the two largest logits: what the CRF's weights stand against
"""
from __future__ import annotations

import argparse
import json
import os
from typing import Any, Dict, Optional, Sequence

import numpy as np
from measuring import machine

from cian.data.classes import IGNORE, read_label_png
from cian.data.tree import DatasetTree
from cian.errors import run_tool
from cian.files import atomic_write_bytes
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.images import read_image
from cian.tools.engine.prediction.crf import crf_preset, dense_crf
from cian.tools.engine.report import text_table

FITS, CRFS = ("warp", "native"), ("none", "test", "retrain")
COUNTS = ("foreground", "foreground_agreeing", "background", "background_agreeing", "pixels",
          "predicted_background")


def counts(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The numbers of pixels named by ``COUNTS``; both maps are (H, W)."""
    objects, background = (seeds != 0) & (seeds != IGNORE), seeds == 0
    agreeing = labels == seeds
    return np.array([objects.sum(), (objects & agreeing).sum(), background.sum(),
                     (background & agreeing).sum(), labels.size, (labels == 0).sum()])


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """All figures."""
    import mxnet as mx

    from cian.tools.engine.prediction.predictor import load_predictors

    tree = DatasetTree(args.data, classes=args.classes)
    names = tree.names(args.list)
    names = names[::-(-len(names) // args.limit)]
    ways: Dict[str, Any] = {}
    for fit in FITS:
        settings = PredictConfig(fit=fit, size_px=args.size, scales=(1.0,), add_max=False, mirror=False)
        predictor = load_predictors(args.checkpoint, settings, [mx.cpu()])[0][0]
        total, margin = {crf: np.zeros(len(COUNTS), np.int64) for crf in CRFS}, 0.0
        for name in names:
            image, seeds = read_image(tree.image_path(name)), read_label_png(os.path.join(args.seeds,
                                                                                          f"{name}.png"))
            logits = predictor.logits(image)
            second, first = np.partition(logits, -2, axis=0)[-2:]
            margin += float((first - second).mean()) / len(names)
            for crf in CRFS:
                scores = logits if crf == "none" else dense_crf(logits, image, crf_preset(crf))
                total[crf] += counts(scores.argmax(axis=0), seeds)
        for crf, sums in total.items():
            found = dict(zip(COUNTS, sums.tolist()))
            ways[f"{fit}, {crf}"] = {"foreground": found["foreground_agreeing"] / found["foreground"],
                                     "background": found["background_agreeing"] / found["background"],
                                     "share": found["predicted_background"] / found["pixels"],
                                     "margin": margin}
    return {"images": len(names), "size_px": args.size, "ways": ways, "machine": machine()}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of a first round")
    parser.add_argument("--seeds", required=True, metavar="FOLDER", help="NAME.png that it was trained on")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="train", metavar="NAME")
    parser.add_argument("--size", type=int, default=321, metavar="PX",
                        help="side of the square [default: 321]")
    parser.add_argument("--limit", type=int, default=60, metavar="N",
                        help="images, spread over the list [default: 60]")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    found = measure(args)
    print(text_table(("way", "foreground", "background", "share", "margin"), [
        (way, *(f"{row[key]:.1%}" for key in ("foreground", "background", "share")), f"{row['margin']:.2f}")
        for way, row in found["ways"].items()]))
    if args.json:
        atomic_write_bytes(args.json, json.dumps(found, indent=1).encode())
    return 0


if __name__ == "__main__":
    run_tool(main)
