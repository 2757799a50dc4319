"""Trains the second round: from the first round's last checkpoint, on that network's own
predictions of the training list.

Settings are those of the first round (its config.yaml) where flags do not change them; with -c or
--preset they start from there instead. Labels are SNAPSHOT/train_aug_pred_crf (train_aug_pred with
predict.retrain_crf=none); what is missing there is predicted first, as tools/predict.py
--retrain-labels does (for other labels, give --label-root). Optimiser and schedule start anew, and
the output batch norm keeps what it has learned. Ground-truth masks are not read.

  python tools/retrain.py --snapshot runs/cian          # trains into runs/cian_retrain
"""
from __future__ import annotations

import argparse
import os
import sys
from typing import List, Optional, Sequence

from cian.environment import users_environment
from cian.errors import InputError, run_tool
from cian.processes import run_child
from cian.tools.arguments import config_from, make_parser, resolved
from cian.tools.engine.config import Config, check_recorded, load_config, save_config
from cian.tools.engine.images import data_tree
from cian.tools.engine.prediction.outputs import label_folder, read_manifest
from cian.tools.engine.training.watch import KVSTORE_ALONE, join

EPILOG = ("The folder SNAPSHOT_retrain gets what tools/train.py writes; "
          "a run that stops goes on by the same command.")
SUFFIX = "_retrain"  # of the second round's snapshot


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints the last checkpoint's path as its last line."""
    parser = make_parser(__doc__ or "", ("data", "network", "training", "run"), EPILOG)
    parser.add_argument("--start", default="", metavar="FILE",
                        help=".params to start from [default: last epoch in SNAPSHOT]")
    parser.add_argument("--fresh", action="store_true",
                        help="remove the checkpoints of another run in SNAPSHOT_retrain, and start anew")
    args = parser.parse_args(argv)
    config = config_from(args, lambda asked: _with_first_round(args, asked))
    if not config.run.snapshot:
        raise InputError("no folder of a first round was named", field="run.snapshot",
                         remedy="give --snapshot FOLDER")
    first = config.run.snapshot[:-len(SUFFIX)]
    member = join(config.run)
    # imports MXNet, whose threads config_from has set
    from cian.tools.engine.training.round import first_round_checkpoint, fit

    start = first_round_checkpoint(args.start or first, config.network.model)
    if config.data.label_root == os.path.join(first, label_folder(config.predict.retrain_crf)):
        _predict_missing(config, first, start)
    _tell_losses(config, start)
    print(fit(config, start=start, fresh=args.fresh, member=member))
    return 0


def _with_first_round(args: argparse.Namespace, asked: Config) -> Config:
    """The second round's configuration: ``asked``, or the first round's with the same flags laid over it."""
    first = asked.run.snapshot.rstrip("/")
    if not first:
        return asked
    recorded = os.path.join(first, "config.yaml")
    if not os.path.isfile(recorded):
        return second_round(asked, first, "")
    if args.config or args.preset:
        return second_round(asked, first, load_config([recorded]).data.label_root)
    return second_round(resolved(args, [recorded]), first, check_recorded(recorded).data.label_root)


def second_round(config: Config, first: str, first_seeds: str) -> Config:
    """The configuration of the second round of the snapshot ``first``, whose first round was
    trained on the folder ``first_seeds``.
    """
    packed = os.path.join(first, "records")
    own_list = os.path.join(packed, os.path.splitext(os.path.basename(config.data.train_list))[0] + ".json")
    own_labels = os.path.join(first, label_folder(config.predict.retrain_crf))
    labels = config.data.label_root if config.data.label_root not in ("", first_seeds) else own_labels
    records = config.data.records or (packed if os.path.isfile(own_list) else "")
    return config.replace(data={"label_root": labels, "records": records}, network={"pretrained": ""},
                          run={"snapshot": first + SUFFIX})


def _missing(config: Config, start: str) -> List[str]:
    """Names of the training list without a label that was made from this checkpoint and this image."""
    from cian.symbols.metadata import metadata_path, read_metadata
    from cian.tools.engine.ledger import Ledger, unchanged
    from cian.tools.engine.training.sources import training_names

    names, folder = training_names(config), config.data.label_root
    made_by = read_manifest(folder) or {}
    if os.path.exists(metadata_path(start)) and made_by.get("checkpoint") != read_metadata(start)["sha256"]:
        return names
    ledger = Ledger(folder)
    tree = data_tree(config.data, seeds=False) if config.data.root or config.data.image_root else None
    return [name for name in names if not os.path.isfile(os.path.join(folder, f"{name}.png"))
            or tree and not unchanged(tree.image_path(name), ledger[name].get("files", {}).get("image", []))]


def _predict_missing(config: Config, first: str, start: str) -> None:
    """Predict the training list in a process of its own (loaders fork, which a process that has
    used MXNet should not).
    """
    missing = _missing(config, start)
    if not missing:
        return
    if config.run.kvstore != KVSTORE_ALONE:
        raise InputError(f"lacks {len(missing)} labels of the second round", file=config.data.label_root,
                         remedy="make them first, with tools/predict.py --retrain-labels")
    print(f"{len(missing)} labels of the second round are missing in {config.data.label_root}, or were made "
          "from something else; predicting them", flush=True)
    os.makedirs(config.run.snapshot, exist_ok=True)
    settings = os.path.join(config.run.snapshot, "labels.yaml")
    save_config(config.replace(run={"snapshot": first}), settings)
    command: List[str] = [sys.executable, "-m", "cian.tools.predict", "-c", settings, "--retrain-labels",
                          "--checkpoint", start]
    if run_child(command, users_environment()):
        raise InputError("the labels of the second round could not be predicted, see above",
                         file=config.data.label_root,
                         remedy="mend the cause, or give labels with --label-root")


def _tell_losses(config: Config, start: str) -> None:
    """Warn of what the labels have lost against the seeds of the round that ``start`` is of, where
    those are at hand.
    """
    from cian.data.classes import load_classes
    from cian.environment import usable_cores
    from cian.tools.engine.seeds.balance import lost_labels
    from cian.tools.engine.training.sources import training_names

    recorded = os.path.join(os.path.dirname(start), "config.yaml")
    seeds, labels = (load_config([recorded]).data.label_root if os.path.isfile(recorded) else "",
                     config.data.label_root)
    names = training_names(config)
    if not seeds or not all(os.path.isfile(os.path.join(root, f"{name}.png"))
                            for root in (seeds, labels) for name in names):
        return
    for text in lost_labels(seeds, labels, names, load_classes(config.data.classes),
                            config.run.workers or usable_cores()):
        print(f"warning: labels of the second round: {text}", flush=True)


if __name__ == "__main__":
    run_tool(main)
