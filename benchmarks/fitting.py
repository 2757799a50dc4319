"""Prediction of images padded to a square, as the original's test does it, against less padding
(tight) and none (native).

  python benchmarks/fitting.py --checkpoint runs/msrc --data DATA --classes DATA/classes.txt --size 321
  python benchmarks/fitting.py --checkpoint runs/msrc --data DATA --classes DATA/classes.txt \\
      --size 513 --longest 500 --limit 12

For each image the ways take turns in one process, and the figure is the median over the images of
the ratio of their times: the network and the enlarging of its logits, without CRF and files. The
mean IoU of all ways is over the same images. --longest resizes images and truth, so that small
photographs stand for those of another data set. --one-scale leaves out the other scales and the
mirror.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from measuring import machine

from cian.data.classes import load_classes, read_label_png
from cian.data.tree import DatasetTree
from cian.environment import usable_cores
from cian.errors import run_tool
from cian.files import atomic_write_bytes
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.images import read_image
from cian.tools.engine.metrics import Evaluation, confusion_matrix

WAYS = ("pad", "tight", "native")  # the first is what the others are compared with


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE",
                        help="anything that tools/predict.py takes")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree with masks")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="val", metavar="NAME")
    parser.add_argument("--size", type=int, default=513, metavar="PX",
                        help="side of the padded square [default: 513]")
    parser.add_argument("--longest", type=int, default=0, metavar="PX",
                        help="resize images to this longest side")
    parser.add_argument("--limit", type=int, default=0, metavar="N",
                        help="images, spread over the list [default: all]")
    parser.add_argument("--one-scale", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    figures = measure(args)
    print(json.dumps(figures, indent=1))
    if args.json:
        atomic_write_bytes(args.json, json.dumps(figures, indent=1).encode())
    return 0


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """All ways over the images."""
    import mxnet as mx

    from cian.tools.engine.prediction.predictor import load_predictors
    tree, classes = DatasetTree(args.data, classes=args.classes), load_classes(args.classes)
    names = tree.names(args.list)
    names = names[::-(-len(names) // args.limit)] if args.limit else names
    procedure = {"scales": (1.0,), "add_max": False, "mirror": False} if args.one_scale else {}
    predictors = {way: load_predictors(args.checkpoint, PredictConfig(
        fit=way, size_px=args.size, **procedure), [mx.cpu()])[0][0] for way in WAYS}
    seconds: Dict[str, List[float]] = {way: [] for way in WAYS}
    confusion = {way: np.zeros((len(classes),) * 2, np.int64) for way in WAYS}
    equal, pixels = dict.fromkeys(WAYS, 0), 0
    for turn, name in enumerate(names):
        image, truth = resized(read_image(tree.image_path(name)), read_label_png(tree.mask_path(name)),
                               args.longest)
        labels = {}
        for way in (*WAYS[turn % len(WAYS):], *WAYS[:turn % len(WAYS)]):
            started = time.perf_counter()
            labels[way] = predictors[way].logits(image).argmax(axis=0).astype(np.uint8)
            seconds[way].append(time.perf_counter() - started)
            confusion[way] += confusion_matrix(truth, labels[way], len(classes))
        pixels += truth.size
        for way in WAYS:
            equal[way] += int((labels[WAYS[0]] == labels[way]).sum())
    scores = {way: Evaluation(classes.names, confusion[way], len(names)) for way in WAYS}
    return {"size_px": args.size, "longest_px": args.longest, "one_scale": args.one_scale,
            "images": len(names), "threads": int(os.environ.get("OMP_NUM_THREADS") or usable_cores()),
            "seconds": {way: round(statistics.median(seconds[way]), 3) for way in WAYS},
            "times_as_fast": {way: times_as_fast(seconds[WAYS[0]], seconds[way]) for way in WAYS[1:]},
            "mean_iou": {way: round(100 * scores[way].mean_iou, 3) for way in WAYS},
            "equal_labels": {way: round(equal[way] / pixels, 5) for way in WAYS[1:]}, "machine": machine()}


def times_as_fast(usual: List[float], other: List[float]) -> Dict[str, Any]:
    """Median and quartiles of the ratios, image by image; the first one, which includes building
    the graph, is left out.
    """
    low, median, high = statistics.quantiles([one / two for one, two in zip(usual, other)][1:], n=4)
    return {"median": round(median, 3), "quartiles": [round(low, 3), round(high, 3)]}


def resized(image: np.ndarray, truth: np.ndarray, longest: int) -> Tuple[np.ndarray, np.ndarray]:
    """The image and its truth at this longest side; 0 leaves them."""
    height, width = truth.shape
    size = tuple(round(side * longest / max(height, width)) for side in (width, height))
    return (cv2.resize(image, size),
            cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST)) if longest else (image, truth)


if __name__ == "__main__":
    run_tool(main)
