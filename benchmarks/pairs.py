"""What a reference of the query's class tells a trained network that another does not.

  python benchmarks/pairs.py --run NAME RUN [--run NAME RUN ...] --seeds SEEDS --data DATA
  --classes DATA/classes.txt --list dev --json pairs.json

Every image of the list is a query, with the next one that shares a class and the next that shares
none. The masks of the list are opened, to measure. Of each network and kind of reference:

  residual    rms of the cross residual over that of the feature
  class gain  weight of an object's pixels on their own class, over its share of the reference
  changed     pixels to which the cross branch gives another class than the self branch
  right       of the completion's targets where the seed says nothing: those that are right
  objects     of the objects' pixels where the seed says nothing: those with the right target
"""
from __future__ import annotations

import argparse
import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from measuring import machine

from cian.choices import STRIDE
from cian.data.classes import IGNORE, read_label_png
from cian.data.tree import DatasetTree
from cian.errors import run_tool
from cian.files import write_json
from cian.symbols.cian import CIAN
from cian.tools.engine.images import read_image
from cian.tools.engine.models.snapshot import load_network
from cian.tools.engine.prediction.affinity import class_gain
from cian.tools.engine.report import text_table

COLUMNS = ("residual", "class gain", "changed", "right", "objects")


def references(labels: np.ndarray) -> Dict[str, np.ndarray]:
    """For every image of (n, C) labels, background first: the next that shares a class with it, and
    the next that shares none; -1 where there is no such image.
    """
    shares = labels[:, 1:].astype(int) @ labels[:, 1:].T > 0
    found = {}
    for kind, wanted in (("common", shares), ("none in common", ~shares)):
        later = np.array([np.roll(row, -at - 1)[:-1] for at, row in enumerate(wanted)])
        first = (later.argmax(axis=1) + np.arange(len(labels)) + 1) % len(labels)
        found[kind] = np.where(later.any(axis=1), first, -1)
    return found


def measure(net: CIAN, tree: DatasetTree, names: Sequence[str], seed_root: str) -> Dict[str, Any]:
    """The figures of a network by kind of reference."""
    import mxnet as mx

    rows: Dict[str, List[List[float]]] = {}
    features = [net.backbone(mx.nd.array(read_image(tree.image_path(name)).transpose(2, 0, 1)[None]))
                for name in names]
    masks = [read_label_png(tree.mask_path(name)) for name in names]
    for kind, chosen in references(np.asarray(tree.labels(names))).items():
        rows[kind] = [_pair(net, features[at], features[other], masks[at], masks[other],
                            read_label_png(os.path.join(seed_root, f"{names[at]}.png")))
                      for at, other in enumerate(chosen) if other >= 0]
    result = {}
    for kind, found in rows.items():
        share, gain, changed, right, told, objects, hidden = np.array(found).T
        result[kind] = {"residual": float(share.mean()),
                        "class gain": None if np.isnan(gain).all() else float(np.nanmean(gain)),
                        "changed": float(changed.mean()), "right": float(right.sum() / max(told.sum(), 1)),
                        "objects": float(objects.sum() / max(hidden.sum(), 1)), "pairs": len(found)}
    return result


def _pair(net: CIAN, feat: Any, feat_reference: Any, mask: np.ndarray,
          mask_reference: np.ndarray, seed: np.ndarray) -> List[float]:
    assert net.affinity is not None
    found = net.affinity.compare(feat, feat_reference)
    cross, own = (net.head(feat + found[f"residual_{branch}"])[0].asnumpy().argmax(axis=0)
                  for branch in ("cross", "self"))
    mask, seed = mask[::STRIDE, ::STRIDE], seed[::STRIDE, ::STRIDE]
    seen = mask_reference[::2 * STRIDE, ::2 * STRIDE].ravel()
    gain = class_gain(found["affinity_cross"].asnumpy(), mask.ravel(), seen)
    hidden = (seed == IGNORE) & (mask != IGNORE)
    told = hidden & np.isin(cross, seed[seed != IGNORE])
    things = hidden & (mask > 0)
    rms = [float(np.sqrt(np.square(x.asnumpy()).mean())) for x in (found["residual_cross"], feat)]
    return [rms[0] / rms[1], np.nan if gain is None else gain, float((cross != own).mean()),
            float((told & (cross == mask)).sum()), float(told.sum()),
            float((told & things & (cross == mask)).sum()), float(things.sum())]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=2, action="append", required=True, metavar=("NAME", "RUN"),
                        help="a trained round with affinity=cross; repeatable")
    parser.add_argument("--seeds", required=True, metavar="FOLDER", help="NAME.png that it was trained on")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree")
    parser.add_argument("--classes", default="voc", metavar="FILE")
    parser.add_argument("--list", default="train", metavar="NAME")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    tree = DatasetTree(args.data, classes=args.classes)
    names, runs = tree.names(args.list), {}
    for name, run in args.run:
        net = load_network(run, for_prediction=False)[0]
        found = runs[name] = {"references": measure(net, tree, names, args.seeds), "bn_out_gamma": float(
            net.affinity.norm.gamma.data().abs().mean().asscalar())}
        print(f"{name}: mean of |bn_out_gamma| {found['bn_out_gamma']:.4f}")
        print(text_table(("reference", *COLUMNS), [
            (kind, *("-" if values[key] is None else f"{values[key]:.3f}" for key in COLUMNS))
            for kind, values in found["references"].items()]), flush=True)
    if args.json:
        write_json(args.json, {"list": args.list, "runs": runs, "machine": machine()})
    return 0


if __name__ == "__main__":
    run_tool(main)
