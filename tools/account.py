"""Says what an epoch does with the images: used, dropped, pairs by class, how often each one is
served; as text, figures and a picture.

  python tools/account.py --data VOC2012 --train-list train_aug
  python tools/account.py --data VOC2012 --pairings common even random --epochs 20 --plot account.png

Needs image-level labels only (--annotation-root or --labels-file), no images.
"""
from __future__ import annotations

import os
from typing import Optional, Sequence

from cian.data.lists import resolve_list
from cian.data.tree import DatasetTree
from cian.errors import InputError, run_tool
from cian.files import atomic_write, write_json
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.training.pairing_account import class_table, describe, draw, figures, take_account


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = make_parser(__doc__ or "", ["data"])
    own = parser.add_argument_group("account")
    own.add_argument("--pairings", nargs="+", choices=("common", "even", "random"), metavar="PAIRING",
                     help="pairings to compare: common, even, random [default: train.pairing]")
    own.add_argument("--epochs", type=int, default=1, metavar="N", help="epochs to sum over [default: 1]")
    own.add_argument("--json", metavar="FILE", help="also write the figures there")
    own.add_argument("--plot", metavar="FILE", help="also draw them into this PNG")
    arguments = parser.parse_args(argv)
    config = config_from(arguments)
    if arguments.epochs < 1:
        raise InputError(f"must be at least 1, not {arguments.epochs}", field="--epochs")
    data = config.data
    if data.labels_file:  # the tree's folders need not exist
        folder = os.path.dirname(os.path.abspath(data.labels_file))
        tree = DatasetTree(image_root=folder, labels_file=data.labels_file, classes=data.classes)
    else:
        tree = DatasetTree(data.root, image_root=data.image_root, annotation_root=data.annotation_root,
                           classes=data.classes)
    names = resolve_list(data.root, data.train_list)
    labels = tree.labels(names)
    accounts = [take_account(config, labels, names, pairing, arguments.epochs)
                for pairing in dict.fromkeys(arguments.pairings or [config.train.pairing])]
    for account in accounts:
        print(describe(account))
    print(class_table(accounts, tree.classes.names))
    if arguments.json:
        write_json(arguments.json, [figures(account, tree.classes.names) for account in accounts])
    if arguments.plot:
        with atomic_write(arguments.plot, "wb") as stream:
            draw(accounts, tree.classes.names, stream)
    return 0


if __name__ == "__main__":
    run_tool(main)
