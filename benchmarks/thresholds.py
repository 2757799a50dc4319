"""Thresholds of the seeds chosen without masks, held against the best that masks would choose.

  python benchmarks/thresholds.py --classifier RUN --data DATA --classes DATA/classes.txt --list dev
  --json thresholds.json

The masks of the list are opened, to measure. Of each choice: objects among the labelled pixels,
coverage, precision and recall of objects and of background, and mIoU over all pixels, one without a
seed being missed. 'agreement' is the choice of seeds.thresholds=auto before it makes objects
generous; 'best' is the pair of the largest mIoU in a grid of both.
"""
from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple
from unittest import mock

import numpy as np
from measuring import machine

from cian.data.classes import ClassTable
from cian.errors import run_tool
from cian.files import write_json
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.metrics import pair_counts
from cian.tools.engine.report import text_table
from cian.tools.engine.seeds import thresholds
from cian.tools.engine.seeds.make import assign_seeds
from cian.tools.engine.seeds.quality import seed_scores

# maps (K, H, W), classes, saliency and mask (H, W)
Cues = Tuple[np.ndarray, List[int], np.ndarray, np.ndarray]
GIVEN = {"given, 0.3 / 0.06": (0.3, 0.06), "given, 0.3 / 0.10": (0.3, 0.1), "given, 0.3 / 0.20": (0.3, 0.2)}
FOREGROUND, BACKGROUND = (np.linspace(0.1, 0.5, 9), np.linspace(0.04, 0.3, 14))
STRIDE = 4  # pixels of the grid's figures
COLUMNS = ("foreground", "background", "objects", "coverage", "object precision", "object recall",
           "background precision", "background recall", "mIoU")


def figures(cues: Sequence[Cues], pair: Tuple[float, float], conflicts: str, classes: ClassTable,
            stride: int = 1) -> Dict[str, float]:
    """The figures of the seeds with two thresholds, named by ``COLUMNS``."""
    total, number = np.zeros((256, 256), np.int64), classes.num_classes
    for maps, present, saliency, mask in cues:
        maps, saliency, mask = (values[..., ::stride, ::stride] for values in (maps, saliency, mask))
        total += pair_counts(mask, assign_seeds(maps, present, saliency, *pair, conflicts))
    labelled, right = total[:number, :number], np.diag(total)[:number]
    scores = seed_scores(total, classes)
    parts = (labelled[:, 1:], right[1:], right[1:], right[:1], right[:1])
    wholes = (labelled, labelled[:, 1:], total[1:number], labelled[:, :1], total[0])
    objects, *shares = (part.sum() / (whole.sum() or np.nan) for part, whole in zip(parts, wholes))
    values = (*pair, objects, scores["coverage"], *shares, scores["mean_iou"])
    return dict(zip(COLUMNS, map(float, values)))


def compare(cues: Sequence[Cues], choose: Callable[[], Tuple[float, float]], conflicts: str,
            classes: ClassTable) -> Dict[str, Any]:
    """The figures of every choice; ``choose`` gives the tool's."""
    with mock.patch.object(thresholds, "GENEROUS", 1.0):
        pairs = {**GIVEN, "agreement": choose()}
    grid = [(float(f), float(b)) for f in FOREGROUND for b in BACKGROUND]
    pairs.update({"auto": choose(), "best": max(grid, key=lambda pair: figures(
        cues, pair, conflicts, classes, STRIDE)["mIoU"])})
    known = np.concatenate([mask[mask < classes.num_classes] for *_, mask in cues])
    return {"images": len(cues), "truth": float((known > 0).mean()), "conflicts": conflicts,
            "choices": {name: figures(cues, pair, conflicts, classes) for name, pair in pairs.items()}}


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """All figures."""
    import tempfile

    from cian.data.classes import read_label_png
    from cian.data.preparation import prepare
    from cian.data.tree import DatasetTree
    from cian.tools.engine.images import read_image
    from cian.tools.engine.models.snapshot import resolve_checkpoint
    from cian.tools.engine.seeds.make import SALIENCY
    from cian.tools.engine.seeds.maps import CamMaps, load_classifier

    tree = DatasetTree(args.data, classes=args.classes)
    net, digest = load_classifier(resolve_checkpoint(args.classifier), tree.classes)
    config = SeedConfig(conflicts=args.conflicts)
    with tempfile.TemporaryDirectory() as folder, \
            prepare(tree, args.list, folder, workers=1).images as images:
        cam, known, cues = CamMaps.of(net, config), {}, []
        for name, labels in zip(images.names, images.labels):
            image = read_image(tree.image_path(name))
            present = [int(value) for value in np.flatnonzero(labels) if value]
            known[image.tobytes()] = maps = cam(image, present)
            cues.append((maps, present, SALIENCY[config.saliency](config, name, image, maps),
                         read_label_png(tree.mask_path(name))))

        def choose() -> Tuple[float, float]:
            found = thresholds.choose_thresholds(replace(config, thresholds="auto"), images,
                                                 lambda image, _: known[image.tobytes()])
            return found.foreground_threshold, found.background_threshold

        found = compare(cues, choose, args.conflicts, tree.classes)
    return {"list": args.list, "classifier": digest, **found, "machine": machine()}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, metavar="PATH", help="what tools/train_cam.py wrote")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="train", metavar="NAME")
    parser.add_argument("--conflicts", default="ignore", choices=("ignore", "largest"))
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    found = measure(args)
    print(f"{found['images']} images, {found['truth']:.1%} of the pixels are objects")
    print(text_table(("choice", *COLUMNS), [(name, *(f"{row[key]:.3f}" for key in COLUMNS))
                                            for name, row in found["choices"].items()]))
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    run_tool(main)
