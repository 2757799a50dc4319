"""Draws what the network does: the affinity of pairs of images (Figure 3 of the paper) and
predictions side by side (Figure 4).

  python tools/visualize.py --checkpoint runs/cian --pair street.jpg station.jpg --out figures
  python tools/visualize.py --data VOC2012 --checkpoint runs/cian --partners 4 --out figures
  python tools/visualize.py --data VOC2012 --predictions baseline=runs/base/pred_crf \\
      CIAN=runs/cian/pred_crf --out figures
"""
from __future__ import annotations

import argparse
import os
from typing import List, Optional, Sequence, Tuple

from cian.data.classes import load_classes
from cian.data.provenance import check_label_folder
from cian.errors import InputError, run_tool
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.config import Config
from cian.tools.engine.devices import parse_devices
from cian.tools.engine.images import data_tree
from cian.tools.engine.report import Page

EPILOG = """\
Images are names of the data set, or files. --partners N draws the first N images of the list, each
with the next one that shares a class with it. The folder OUT gets pair-QUERY-REFERENCE.png,
gallery.png and both in figures.html."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints the page's path."""
    args, config = parse(argv)
    page = Page("Affinity and predictions")
    if args.pair or args.partners:
        draw_pairs(args, config, page)
    if args.predictions:
        draw_gallery(args, config, page)
    target = os.path.join(args.out, "figures.html")
    page.save(target)
    print(target)
    return 0


def parse(argv: Optional[Sequence[str]]) -> Tuple[argparse.Namespace, Config]:
    """The command line and its configuration; refuses one that draws nothing."""
    parser = make_parser(__doc__ or "", ("data", "masks", "network", "run"), EPILOG)
    own = parser.add_argument_group("figures")
    own.add_argument("--out", required=True, metavar="FOLDER", help="where the pictures go")
    own.add_argument("--data-list", metavar="FILE", dest="data.val_list",
                     help="list to take images from [data.val_list; default val]")
    own.add_argument("--checkpoint", metavar="FILE",
                     help="a network with affinity [default: last epoch in SNAPSHOT]")
    own.add_argument("--pair", nargs=2, action="append", default=[], metavar=("QUERY", "REFERENCE"),
                     help="draw this pair; repeatable")
    own.add_argument("--partners", type=int, default=0, metavar="N",
                     help="draw pairs for the first N images of the list")
    own.add_argument("--class", dest="class_name", default="", metavar="NAME",
                     help="class of the activations [default: the one that the query has most of]")
    own.add_argument(
        "--pixel", metavar="X,Y",
        help="pixel of the query whose affinity is drawn [default: where the class is strongest]")
    own.add_argument("--predictions", nargs="+", default=[], metavar="TITLE=FOLDER",
                     help="draw these folders of NAME.png side by side")
    own.add_argument("--names", nargs="+", default=[], metavar="NAME",
                     help="images of the gallery [default: the first of the list]")
    own.add_argument("--count", type=int, default=6, metavar="N", help="rows of the gallery [default: 6]")
    args = parser.parse_args(argv)
    config = config_from(args)
    if not (args.pair or args.partners or args.predictions):
        raise InputError("nothing to draw was named", field="command line",
                         remedy="give --pair, --partners or --predictions")
    if (args.pair or args.partners) and not (args.checkpoint or config.run.snapshot):
        raise InputError("no network was named", field="--checkpoint", remedy="give it, or --snapshot")
    if (args.partners or args.predictions) and not (config.data.root or config.data.image_root):
        raise InputError("no data set was named", field="--data",
                         remedy="give the folder that holds JPEGImages/")
    return args, config


def draw_pairs(args: argparse.Namespace, config: Config, page: Page) -> None:
    """Figure 3 of every pair."""
    # imports MXNet, whose threads config_from has set
    from cian.tools.engine.models.model_files import load_checkpoint
    from cian.tools.engine.prediction.pictures import pairs_by_class, write_pair

    device = parse_devices(config.run.devices)[0]
    classes = load_classes(config.data.classes) if config.data.classes != "voc" else None
    net, metadata = load_checkpoint(args.checkpoint or config.run.snapshot, ctx=device,
                                    model=getattr(args, "network.model") or "", classes=classes)
    pairs: List[Tuple[str, str]] = [(query, reference) for query, reference in args.pair]
    if args.partners:
        pairs += pairs_by_class(data_tree(config.data, masks=True), config.data.val_list, args.partners)
    page.heading("Affinity of pairs")
    for query, reference in pairs:
        paths = [name if os.path.isfile(name) or not (config.data.root or config.data.image_root) else
                 data_tree(config.data, masks=True).image_path(name) for name in (query, reference)]
        print(write_pair(args.out, net, paths[0], paths[1], metadata["classes"], class_name=args.class_name,
                         pixel=args.pixel, page=page))


def draw_gallery(args: argparse.Namespace, config: Config, page: Page) -> None:
    """Figure 4."""
    from cian.tools.engine.prediction.pictures import write_gallery

    columns: List[Tuple[str, str]] = []
    for text in args.predictions:
        title, equals, folder = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is not of the form TITLE=FOLDER", field="--predictions")
        columns.append((title, folder))
    tree = data_tree(config.data, masks=True)
    for _, folder in columns:
        check_label_folder(folder, tree.classes, tree.classes.file or "VOC's class list", "predictions")
    page.heading("Predictions")
    print(write_gallery(args.out, tree, args.names or tree.names(config.data.val_list)[:args.count], columns,
                        page=page))


if __name__ == "__main__":
    run_tool(main)
