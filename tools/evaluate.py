"""Scores predictions against ground truth: per-class and mean IoU, printed and as JSON."""
from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Dict, Optional, Sequence

import numpy as np

from cian.data.classes import load_classes
from cian.data.degenerate import oddities, tell
from cian.data.lists import MASK_FOLDER, list_path, resolve_list
from cian.data.provenance import check_label_folder
from cian.errors import InputError, Problems, run_tool
from cian.files import write_json
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.metrics import Evaluation, evaluate, score_rows
from cian.tools.engine.prediction.outputs import read_manifest
from cian.tools.engine.report import text_table
from cian.tools.engine.shards import Shard

EPILOG = """\
A class that neither truth nor prediction has counts as 0 in the mean, as in the original code;
where there is one, the mean without it is printed beside it. Missing, extra, mis-sized and
unreadable predictions and values that are no class are all named, and nothing is scored."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 after naming the predictions that cannot be scored."""
    args = parse(argv)
    config = config_from(args)
    shard = Shard.parse(args.shard)
    if not args.prediction_root and not config.run.snapshot:
        raise InputError("no predictions were named", field="--prediction-root",
                         remedy="give it, or --snapshot")
    predictions = os.path.normpath(args.prediction_root or os.path.join(config.run.snapshot, "pred_crf"))
    data, split = config.data, args.data_list or config.data.val_list
    if not (data.mask_root or data.root):
        raise InputError("no ground truth was named", field="--groundtruth-root", remedy="give it, or --data")
    truth = data.mask_root or os.path.join(data.root, MASK_FOLDER)
    classes = load_classes(data.classes)
    for folder, what in ((predictions, "predictions"), (truth, "masks")):
        check_label_folder(folder, classes, classes.file or "VOC's class list", what)
    try:
        names = resolve_list(data.root, split)
        result = evaluate(shard.of(names), predictions, truth, classes.names, subset=args.subset,
                          workers=config.run.workers, progress=sys.stderr.isatty(), among=names)
    except Problems as error:
        return refuse(error, predictions)
    content = describe(result, predictions, truth, list_path(data.root, split))
    content.update(shard.describe(names) if shard.count > 1 else {})
    target = args.json or f"{predictions}{shard.suffix}.json"
    print(text_table(("class", "IoU %"), score_rows(result)))
    tell(oddities(np.pad(result.confusion.sum(axis=0), (0, 256 - len(classes))), classes.names,
                  "the predictions"), predictions)
    write_json(target, content)
    print(f"{result.images} images of {content['list']}" + (
        f", {len(result.unscored)} of it not scored" if result.unscored else "") + f"; written to {target}")
    return 0


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__ or "", ("data", "masks", "run"), EPILOG)
    own = parser.add_argument_group("evaluation")
    own.add_argument("--prediction-root", metavar="FOLDER",
                     help="NAME.png predictions [default: SNAPSHOT/pred_crf]")
    own.add_argument("--data-list", metavar="FILE",
                     help="list to score: a file, or a name below ImageSets/Segmentation "
                     "[default: data.val_list]")
    own.add_argument("--num-cls", type=int, metavar="N",
                     help="number of classes with background, checked against the class list")
    own.add_argument("--subset", action="store_true",
                     help="score the images of the list that have a prediction, ignore others")
    own.add_argument("--json", metavar="FILE", help="where the figures go [default: PREDICTION_ROOT.json]")
    own.add_argument("--shard", default="0/1", metavar="I/N",
                     help="score every N-th image from the I-th on; tools/merge.py adds the figures up")
    return parser.parse_args(argv)


def refuse(error: Problems, predictions: str) -> int:
    """Print every problem; the exit code."""
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"error: {len(error.problems)} problems in {error.file}, nothing was scored; {error.remedy}",
          file=sys.stderr)
    return 1


def describe(result: Evaluation, predictions: str, truth: str, names: str) -> Dict[str, Any]:
    """The JSON: the figures, and what they were measured on."""
    return {"predictions": predictions, "truth": truth, "list": names, "made_by": read_manifest(predictions),
            **result.to_dict()}


if __name__ == "__main__":
    run_tool(main)
