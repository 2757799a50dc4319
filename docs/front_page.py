"""Draws docs/figures/cian.png: the method, and what the second round of `make demo` predicts of images that
were not trained on.

  python docs/front_page.py --demo runs/demo --out docs/figures/cian.png
"""
from __future__ import annotations

import argparse
import io
import os

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from cian.data.classes import read_label_png
from cian.data.tree import DatasetTree
from cian.tools.engine.images import read_image
from cian.tools.engine.metrics import evaluate
from cian.tools.engine.prediction.outputs import overlay

INK, FILL, CROSS = "#1c2430", "#eef2f7", "#c2410c"
BOXES = {  # name: (x, y, width, height, text)
    "query": (0.0, 2.2, 1.5, 0.8, "query image"),
    "reference": (0.0, 0.4, 1.5, 0.8, "reference image\n(shares a class)"),
    "network": (2.1, 1.3, 1.3, 0.8, "one backbone"),
    "affinity": (4.0, 1.3, 2.0, 0.8, "affinity of every pixel\nto the reference's"),
    "logits": (6.6, 1.3, 1.5, 0.8, "merged feature,\nclass scores"),
    "seeds": (8.7, 2.2, 2.1, 0.8, "seed loss: points\nof a classifier (CAM)"),
    "completion": (8.7, 0.4, 2.1, 0.8, "completion loss:\nthe network's own labels")}
ARROWS = (("query", "network"), ("reference", "network"), ("network", "affinity"), ("affinity", "logits"),
          ("logits", "seeds"), ("logits", "completion"))


def draw_method(axes: Axes) -> None:
    """The siamese network and its two losses as boxes and arrows."""
    for name, (x, y, width, height, text) in BOXES.items():
        colour = CROSS if name == "affinity" else INK
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02", fc=FILL, ec=colour,
                                      lw=1.4))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=colour, fontsize=10)
    for start, end in ARROWS:
        x, y, width, height, _ = BOXES[start]
        to_x, to_y, _, to_height, _ = BOXES[end]
        axes.add_patch(FancyArrowPatch((x + width + 0.04, y + height / 2), (
            to_x - 0.04, to_y + to_height / 2), arrowstyle="-|>", mutation_scale=12, color=INK, lw=1.2))
    axes.set(xlim=(-0.1, 10.9), ylim=(0.2, 3.2))
    axes.axis("off")


def median_images(demo: str, tree: DatasetTree, count: int) -> list:
    """Names of ``count`` images around the median of the images' own mIoU: neither best nor worst."""
    found = os.path.join(demo, "first_retrain", "pred_crf")
    masks = os.path.join(demo, "data", "SegmentationClassAug")
    scored = [(evaluate([name], found, masks, tree.classes.names, subset=True, workers=1).mean_iou_present,
               name) for name in tree.names("val")]
    middle = len(scored) // 2 - count // 2
    return [name for _, name in sorted(scored)[middle:middle + count]]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="runs/demo", metavar="FOLDER", help="a finished demonstration")
    parser.add_argument("--out", default="docs/figures/cian.png", metavar="FILE")
    args = parser.parse_args()
    tree = DatasetTree(os.path.join(args.demo, "data"),
                       classes=os.path.join(args.demo, "data", "classes.txt"))
    names = median_images(args.demo, tree, 5)
    matplotlib.rcParams["font.size"] = 10
    figure = Figure(figsize=(10, 7.2), dpi=90, layout="constrained")
    grid = figure.add_gridspec(4, len(names), height_ratios=(1.6, 1, 1, 1))
    draw_method(figure.add_subplot(grid[0, :]))
    for column, name in enumerate(names):
        image = read_image(tree.image_path(name))
        found = read_label_png(os.path.join(args.demo, "first_retrain", "pred_crf", f"{name}.png"))
        pictures = {"image": image, "predicted": overlay(image, found),
                    "ground truth": overlay(image, read_label_png(tree.mask_path(name)))}
        for row, (title, picture) in enumerate(pictures.items(), 1):
            axes = figure.add_subplot(grid[row, column], xticks=[], yticks=[], frame_on=False)
            axes.imshow(picture)
            axes.set_ylabel("" if column else title)
    canvas = io.BytesIO()
    figure.savefig(canvas)
    Image.open(canvas).convert("RGB").quantize(128).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
