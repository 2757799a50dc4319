"""When the CRF mends labels and when it destroys them: the share of objects before it, and margins.

  python benchmarks/crf_balance.py --classifier RUN --data DATA --classes DATA/classes.txt --list dev
  --json crf.json --figure crf.png

No network is trained: logits are a factor times the class activation maps of the image's classes,
and times a level for background. The level sets how much of the labels is objects before the CRF,
the factor what the CRF's weights (preset 'retrain', the second round's) stand against. The masks of
the list are opened, to measure.
"""
from __future__ import annotations

import argparse
import io
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from matplotlib.figure import Figure
from measuring import machine

from cian.data.classes import read_label_png
from cian.data.tree import DatasetTree
from cian.errors import run_tool
from cian.files import atomic_write_bytes, write_json
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.images import read_image
from cian.tools.engine.metrics import Evaluation, pair_counts
from cian.tools.engine.prediction.crf import crf_preset, dense_crf
from cian.tools.engine.report import text_table

LEVELS, FACTORS = (0.15, 0.25, 0.35, 0.5), (8.0, 24.0)
# image, maps (K, H, W), their classes, mask (H, W)
Item = Tuple[np.ndarray, np.ndarray, Sequence[int], np.ndarray]


def sweep(items: Iterable[Item], names: Sequence[str]) -> Dict[str, Any]:
    """Of every level and factor: objects and mIoU before and after the CRF, and the mean difference
    of the two largest logits.
    """
    number, images = len(names), 0
    counts = {(level, factor): np.zeros((2, 256, 256), np.int64) for level in LEVELS for factor in FACTORS}
    margins = dict.fromkeys(counts, 0.0)
    for image, maps, present, mask in items:
        images += 1
        classes = np.array([0, *present], np.uint8)
        for level, factor in counts:
            background = np.full((1, *mask.shape), level, np.float32)
            logits = np.float32(factor) * np.concatenate([background, maps.astype(np.float32)])
            second, first = np.partition(logits, -2, axis=0)[-2:]
            margins[level, factor] += float((first - second).mean())
            for at, values in enumerate((logits, dense_crf(logits, image, crf_preset("retrain")))):
                counts[level, factor][at] += pair_counts(mask, classes[values.argmax(axis=0)])
    rows: List[Dict[str, float]] = []
    for (level, factor), both in counts.items():
        row = {"level": level, "factor": factor, "margin": margins[level, factor] / images}
        for prefix, total in zip(("", "crf_"), both[:, :number, :number]):
            row[f"{prefix}objects"] = float(total[:, 1:].sum() / total.sum())
            row[f"{prefix}mIoU"] = Evaluation(tuple(names), total, images).mean_iou
        rows.append(row)
    known = both[0][:number].sum(axis=1)
    return {"images": images, "truth": float(known[1:].sum() / known.sum()), "rows": rows}


def chart(found: Dict[str, Any]) -> bytes:
    """A PNG file: from the labels before the CRF an arrow to those after it."""
    figure = Figure(figsize=(7, 4.4), dpi=110)
    axes = figure.add_subplot()
    for at, factor in enumerate(sorted({row["factor"] for row in found["rows"]})):
        rows = [row for row in found["rows"] if row["factor"] == factor]
        for row in rows:
            start, end = ((row[f"{prefix}objects"], 100 * row[f"{prefix}mIoU"]) for prefix in ("", "crf_"))
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": f"C{at}"})
            axes.plot(*start, "k.")
            axes.plot(*end, "o", color=f"C{at}", markersize=4)
        margins = [row["margin"] for row in rows]
        axes.plot([], [], "o-", color=f"C{at}", label=f"margin {min(margins):.1f} to {max(margins):.1f}")
    axes.axvline(found["truth"], color="#999", linestyle=":", label="objects in the truth")
    axes.set(xlabel="objects, share of all pixels", ylabel="mIoU of the labels, %",
             title="labels before (black) and after the CRF")
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def cam_items(args: argparse.Namespace, tree: DatasetTree) -> Iterator[Item]:
    """The images of the list with the classifier's maps and their masks."""
    from cian.tools.engine.models.snapshot import resolve_checkpoint
    from cian.tools.engine.seeds.maps import CamMaps, load_classifier

    maps = CamMaps.of(load_classifier(resolve_checkpoint(args.classifier), tree.classes)[0], SeedConfig())
    names = tree.names(args.list)
    names = names[::-(-len(names) // args.limit)]
    for name, labels in zip(names, tree.labels(names)):
        image, present = read_image(tree.image_path(name)), [int(at) for at in np.flatnonzero(labels) if at]
        yield image, maps(image, present), present, read_label_png(tree.mask_path(name))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, metavar="PATH", help="what tools/train_cam.py wrote")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="train", metavar="NAME")
    parser.add_argument("--limit", type=int, default=60, metavar="N",
                        help="images, spread over the list [default: 60]")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    parser.add_argument("--figure", metavar="FILE", help="where the picture goes")
    args = parser.parse_args(argv)
    tree = DatasetTree(args.data, classes=args.classes)
    found = {"list": args.list, **sweep(cam_items(args, tree), tree.classes.names), "machine": machine()}
    columns = ("margin", "objects", "mIoU", "crf_objects", "crf_mIoU")
    print(f"{found['images']} images, {found['truth']:.1%} of the pixels are objects")
    print(text_table(columns, [[f"{row[key]:.3f}" for key in columns] for row in found["rows"]]))
    if args.json:
        write_json(args.json, found)
    if args.figure:
        atomic_write_bytes(args.figure, chart(found))
    return 0


if __name__ == "__main__":
    run_tool(main)
