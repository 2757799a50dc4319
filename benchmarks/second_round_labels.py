"""When a second round gains and when it collapses: ways to make its labels, of one or more rounds.

  python benchmarks/second_round_labels.py --run NAME RUN SEEDS [--run NAME RUN SEEDS ...]
  --data DATA --classes DATA/classes.txt --list dev --measure --json labels.json --figure labels.png

RUN is a trained round and SEEDS the labels that it was trained on; a round that was trained on
another's labels is named after it: '0.10' and '0.10/2'. Its network predicts images of the list as
they are and warped to a square (the original's way), without CRF and with each preset, with logits
multiplied (what the CRF's weights stand against), and restricted to the image-level labels. Of each
way:

  objects              share of all pixels that are objects
  foreground, kept     share of the seeds' pixels of objects that are objects still, and of their class
  background           share of the seeds' pixels of background that are background
  margin               mean difference of the two largest logits, before they are multiplied
  mIoU                 with --measure, which opens the masks of the list; by class in the JSON file
"""
from __future__ import annotations

import argparse
import io
import json
import os
from typing import Any, Dict, NamedTuple, Optional, Sequence

import numpy as np
from matplotlib.figure import Figure
from measuring import machine

from cian.data.classes import IGNORE, read_label_png
from cian.data.tree import DatasetTree
from cian.errors import run_tool
from cian.files import atomic_write_bytes
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.images import read_image
from cian.tools.engine.metrics import Evaluation, pair_counts
from cian.tools.engine.prediction.crf import crf_preset, dense_crf
from cian.tools.engine.report import text_table
from cian.tools.engine.seeds.quality import seed_scores

COLUMNS = ("objects", "foreground", "kept", "background", "mIoU")


class Way(NamedTuple):
    """One way to make labels: how the image meets the network, the CRF, what multiplies the logits,
    and whether other classes than the image's are left out.
    """

    fit: str
    crf: str = "none"
    factor: float = 1.0
    filtered: bool = False

    def __str__(self) -> str:
        factor = "" if self.factor == 1 else f", logits x {self.factor:g}"
        return f"{self.fit}, {self.crf}{factor}{', filtered' if self.filtered else ''}"


CRFS = ("none", "test", "retrain", "deeplab")
WAYS = (*(Way(fit, crf) for fit in ("native", "warp") for crf in CRFS),
        *(Way("native", "retrain", factor) for factor in (0.5, 2.0, 4.0)),
        *(Way("native", crf, 1.0, True) for crf in ("none", "retrain")), Way("warp", "retrain", 1.0, True))


def label_map(logits: np.ndarray, image: np.ndarray, way: Way, allowed: np.ndarray) -> np.ndarray:
    """(H, W) uint8 labels of (C, H, W) logits; ``allowed`` are the image's classes with background."""
    classes = allowed if way.filtered else np.arange(len(logits))
    values = logits[classes] * np.float32(way.factor)
    if way.crf != "none":
        values = dense_crf(values, image, crf_preset(way.crf))
    return classes[values.argmax(axis=0)].astype(np.uint8)


def way_scores(by_seed: np.ndarray, by_truth: np.ndarray, names: Sequence[str]) -> Dict[str, Any]:
    """The figures of a way from (256, 256) pixel counts of (seed, label) and of (truth, label); the
    latter are all 0 where no masks are opened.
    """
    number = len(names)
    seeds = by_seed[1:number]
    found = {"objects": by_seed[:, 1:].sum() / by_seed.sum(), "foreground": seeds[:, 1:].sum() / seeds.sum(),
             "kept": np.trace(by_seed[1:number, 1:number]) / seeds.sum(),
             "background": by_seed[0, 0] / by_seed[0].sum()}
    result: Dict[str, Any] = {key: float(value) for key, value in found.items()}
    if by_truth.any():
        scored = Evaluation(tuple(names), by_truth[:number, :number], 0)
        result.update(mIoU=scored.mean_iou, iou=dict(zip(names, map(float, np.nan_to_num(scored.iou)))))
    return result


def measure(args: argparse.Namespace, run: str, seed_root: str) -> Dict[str, Any]:
    """All figures of a run: its seeds' and those of every way."""
    import mxnet as mx

    from cian.tools.engine.prediction.predictor import load_predictors

    tree = DatasetTree(args.data, classes=args.classes)
    names = tree.names(args.list)
    names = names[::-(-len(names) // args.limit)]
    ways = [way for way in WAYS if not args.ways or str(way) in args.ways]
    predictors = {fit: load_predictors(run, PredictConfig(fit=fit, size_px=args.size, scales=(1.0,),
                                                          add_max=False, mirror=False), [mx.cpu()])[0][0]
                  for fit in dict.fromkeys(way.fit for way in ways)}
    counts = {way: np.zeros((2, 256, 256), np.int64) for way in ways}
    in_truth, margins = np.zeros((256, 256), np.int64), dict.fromkeys(predictors, 0.0)
    for name, labels in zip(names, tree.labels(names)):
        image = read_image(tree.image_path(name))
        seeds = read_label_png(os.path.join(seed_root, f"{name}.png"))
        truth = read_label_png(tree.mask_path(name)) if args.measure else None
        logits = {fit: predictor.logits(image) for fit, predictor in predictors.items()}
        for fit, values in logits.items():
            second, first = np.partition(values, -2, axis=0)[-2:]
            margins[fit] += float((first - second).mean()) / len(names)
        for way, total in counts.items():
            found = label_map(logits[way.fit], image, way, np.flatnonzero(labels))
            total[0] += pair_counts(seeds, found)
            total[1] += 0 if truth is None else pair_counts(truth, found)
        in_truth += 0 if truth is None else pair_counts(truth, seeds)
    by_seed = counts[ways[0]][0].sum(axis=1)
    result = {"images": len(names), "margin": margins, "seeds": {
        "objects": float(by_seed[1:IGNORE].sum() / by_seed[:IGNORE].sum()),
        "coverage": float(by_seed[:IGNORE].sum() / by_seed.sum())}, "ways": {
            str(way): way_scores(*total, tree.classes.names) for way, total in counts.items()}}
    if args.measure:
        known = in_truth[:IGNORE].sum(axis=1)
        result["truth"] = float(known[1:].sum() / known.sum())
        result["seeds"]["quality"] = seed_scores(in_truth, tree.classes)
    return result


def chart(runs: Dict[str, Any]) -> bytes:
    """A PNG file: what the CRF does to objects and mIoU, and objects from generation to generation."""
    figure = Figure(figsize=(11, 4.4), dpi=110)
    left, right = figure.subplots(1, 2)
    chains = list(dict.fromkeys(name.split("/")[0] for name in runs))
    truth = next((run["truth"] for run in runs.values() if "truth" in run), None)
    for at, chain in enumerate(chains):
        steps: list = []
        for name, run in runs.items():
            if name.split("/")[0] != chain:
                continue
            ways = [run["ways"][f"native, {crf}"] for crf in ("none", "retrain")]
            if not steps:
                steps.append(("seeds", run["seeds"]["objects"]))
            steps += [(f"round {len(steps) // 2 + 1}", ways[0]["objects"]), ("CRF", ways[1]["objects"])]
            if truth is not None:
                start, end = ((way["objects"], 100 * way["mIoU"]) for way in ways)
                left.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": f"C{at}"})
                left.plot(*start, "o", color=f"C{at}")
                left.plot(*end, ".", color=f"C{at}")  # the axes take no notice of arrows
                left.annotate(name, start, (4, 4), textcoords="offset points", fontsize=8)
        right.plot(range(len(steps)), [share for _, share in steps], "o-", color=f"C{at}", label=chain)
        right.set_xticks(range(len(steps)), [text for text, _ in steps], fontsize=8)
    if truth is not None:
        left.axvline(truth, color="#999", linestyle=":")
        right.axhline(truth, color="#999", linestyle=":", label="truth")
    left.set(xlabel="objects, share of all pixels", ylabel="mIoU of the labels, %",
             title="from the network's labels to the CRF's (arrow)")
    right.set(ylabel="objects, share of (labelled) pixels", title="from generation to generation")
    right.legend(fontsize=8)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=3, action="append", required=True, metavar=("NAME", "RUN", "SEEDS"),
                        help="a trained round, and NAME.png that it was trained on; repeatable")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="train", metavar="NAME")
    parser.add_argument("--measure", action="store_true", help="open the list's masks")
    parser.add_argument("--size", type=int, default=321, metavar="PX",
                        help="side of the square [default: 321]")
    parser.add_argument("--limit", type=int, default=60, metavar="N",
                        help="images, spread over the list [default: 60]")
    parser.add_argument("--ways", nargs="+", choices=[str(way) for way in WAYS], metavar="WAY",
                        help="ways by name; the figure needs both 'native, none' and 'native, retrain'")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    parser.add_argument("--figure", metavar="FILE", help="where the picture goes")
    args = parser.parse_args(argv)
    runs: Dict[str, Any] = {}
    for name, run, seeds in args.run:
        found = runs[name] = measure(args, run, seeds)
        shown = [(way, *(f"{figures[key]:.1%}" if key in figures else "-" for key in COLUMNS))
                 for way, figures in found["ways"].items()]
        print(f"{name}: {found['images']} images, seeds {found['seeds']['objects']:.1%} objects, margin "
              + ", ".join(f"{fit} {margin:.2f}" for fit, margin in found["margin"].items()))
        print(text_table(("way", *COLUMNS), shown), flush=True)
    if args.json:
        content = {"list": args.list, "size_px": args.size, "runs": runs, "machine": machine()}
        atomic_write_bytes(args.json, json.dumps(content, indent=1).encode())
    if args.figure:
        atomic_write_bytes(args.figure, chart(runs))
    return 0


if __name__ == "__main__":
    run_tool(main)
