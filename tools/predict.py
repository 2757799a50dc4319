"""Predicts images with a trained network, with and without dense CRF.

Without --images it predicts a list of a data set: SNAPSHOT/pred and SNAPSHOT/pred_crf get NAME.png
for every image of the validation list. With it, images are padded no more than the network needs
(predict.fit=tight), unless a size is named. With --retrain-labels it makes the labels of the second
round, by default in the original's way: the training list, images warped to a square, ten CRF
iterations, SNAPSHOT/train_aug_pred and SNAPSHOT/train_aug_pred_crf."""
from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

# Processes that refine beside this one import this file too: what they have no use for, MXNet above
# all, is imported in functions.
from cian.errors import InputError, run_tool
from cian.tools.arguments import config_from, make_parser, named
from cian.tools.engine.config import Config
from cian.tools.engine.devices import needed_contexts
from cian.tools.engine.prediction.crf import crf_preset
from cian.tools.engine.prediction.processes import NetworkProcesses, choose_processes
from cian.tools.engine.shards import Shard

if TYPE_CHECKING:
    from cian.tools.engine.images import Sample
    from cian.tools.engine.prediction.inference import InferenceReport
    from cian.tools.engine.prediction.outputs import Outputs

EPILOG = """\
What is done is skipped, so an interrupted run goes on by the same command; a folder that holds
predictions of another checkpoint or configuration is refused. An image that cannot be read is
reported and left out, and the exit code is then 1."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; 1 when images were left out."""
    from cian.data.classes import load_classes
    from cian.tools.engine.prediction.inference import predict_samples
    from cian.tools.engine.prediction.outputs import LABEL_FOLDERS, Outputs
    args = parse(argv)
    own = args.images and not named(args, "predict.size_px")
    config = config_from(args, lambda asked: retrain_settings(args, asked) if args.retrain_labels else asked,
                         {"predict": {"fit": "tight"}} if own else None)
    checkpoint, root = model_and_folder(args, config)
    devices, part = config.run.devices, args.shard
    if args.pid is not None and args.pid >= 0:  # the original's way to use several GPUs: a process for each
        devices, part = devices[args.pid:args.pid + 1], f"{args.pid}/{len(devices)}"
    shard, every = Shard.parse(part), find_samples(args, config)
    samples = shard.of(every)  # below, the class list counts where it was named or read
    listed = named(args, "data.classes") or config.data.classes != "voc" or config.predict.filter_labels
    opened: Dict[str, Any] = {
        "path": checkpoint, "settings": config.predict, "model": getattr(args, "network.model") or "",
        "classes": load_classes(config.data.classes) if listed else None}
    folders = LABEL_FOLDERS if args.retrain_labels else ("pred", "pred_crf")
    left = sum(not os.path.exists(os.path.join(root, folders[0], f"{sample.name}.png")) for sample in samples)
    batches = -(-left // config.predict.batch_size)
    wanted = 1 if config.predict.features else config.run.processes or int(args.pid is not None)
    with NetworkProcesses(choose_processes(wanted, devices, batches), opened) as beside:
        from cian.tools.engine.prediction.predictor import load_predictors, prediction_settings
        predictors, model = load_predictors(devices=needed_contexts(devices), **opened)
        if config.predict.features:
            from cian.tools.engine.prediction.stored import StoredPredictor
            from cian.tools.engine.training.sources import open_images
            images = open_images(config, config.data.val_list)
            predictors = [StoredPredictor(live, images, config.run) for live in predictors]
        outputs = Outputs(root, {**model, "settings": prediction_settings(predictors[0].settings)},
                          predictors[0].class_names, folders=folders,
                          crf=None if config.predict.crf == "none" else replace(
                              crf_preset(config.predict.crf),
                              agreed=args.retrain_labels and config.predict.retrain_agreed),
                          overlays=args.overlay, probabilities=args.probabilities)
        report = predict_samples([*predictors, *beside.predictors(predictors[0], model)], samples, outputs,
                                 batch_size=config.predict.batch_size, workers=config.run.workers,
                                 progress=not args.quiet, jpeg_warnings=config.data.jpeg_warnings)
    return describe(report, outputs, shard, [sample.name for sample in every])


def model_and_folder(args: argparse.Namespace, config: Config) -> Tuple[str, str]:
    """Path of the model, and the folder of the predictions."""
    snapshot = config.run.snapshot + ("_retrain" if args.retrain else "")
    for flag, given, what in (("--checkpoint", args.checkpoint, "model"),
                              ("--out", args.out, "folder for the predictions")):
        if not (given or snapshot):
            raise InputError(f"no {what} was named", field=flag, remedy="give it, or --snapshot")
    checkpoint = args.checkpoint or snapshot
    if args.num_epoch is not None and not args.checkpoint:
        checkpoint = os.path.join(snapshot, f"{config.network.model}-{args.num_epoch - 1:04d}.params")
    return checkpoint, args.out or snapshot


def describe(report: InferenceReport, outputs: Outputs, shard: Shard, names: Sequence[str]) -> int:
    """Print what was done of the names, what is odd about it, what could not be done; the exit code."""
    from cian.data.degenerate import oddities, tell
    if report.predicted:
        tell(oddities(report.pixels, outputs.class_names, "the predictions"), outputs.root)
    if not report.problems:
        outputs.record(shard, names)
    for problem in report.problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(report.predicted)} predicted, {len(report.skipped)} were done before, "
          f"{len(report.problems)} could not be read; in {outputs.root}")
    return 1 if report.problems else 0


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__ or "", ("data", "network", "prediction", "run"), EPILOG)
    own = parser.add_argument_group("images")
    own.add_argument("--images", nargs="+", metavar="PATH",
                     help="image files, folders, .txt lists of paths, or patterns in quotes")
    own.add_argument("--retrain-labels", action="store_true",
                     help="labels of the training list for the second round")
    own.add_argument("--shard", default="0/1", metavar="I/N",
                     help="every N-th image from the I-th on; tools/merge.py joins what they wrote")
    own = parser.add_argument_group("model and output")
    own.add_argument("--checkpoint", metavar="FILE",
                     help=".params file, snapshot folder (its last epoch), or PREFIX-symbol.json or "
                     ".onnx file of tools/export.py [default: SNAPSHOT]")
    own.add_argument("--out", metavar="FOLDER", help="where pred/ and pred_crf/ go [default: SNAPSHOT]")
    own.add_argument("--overlay", action="store_true", help="also overlay/NAME.png, image under classes")
    own.add_argument(
        "--probabilities", choices=("npy", "npz"), default="",
        help="also probabilities/NAME: float32 (npy), or float16, compressed, with the class names (npz)")
    own.add_argument("--quiet", action="store_true", help="no progress bar")
    own = parser.add_argument_group("flags of the original code")
    own.add_argument("--infer", action="store_true", help="accepted: this tool does nothing else")
    own.add_argument("--retrain", action="store_true", help="the second round's snapshot, SNAPSHOT_retrain")
    own.add_argument("--num-epoch", type=int, metavar="N",
                     help="the checkpoint after epoch N, MODEL-<N-1>.params")
    own.add_argument("--pid", type=int, metavar="N",
                     help="use the N-th device alone, for every so-many-th image as there are devices")
    return parser.parse_args(argv)


def retrain_settings(args: argparse.Namespace, config: Config) -> Config:
    """With the training list in place of the validation list, and predict.retrain_fit, .retrain_crf
    and .retrain_filter_labels in place of .fit, .crf and .filter_labels unless the latter were asked for.
    """
    keys = [key for key in ("fit", "crf") if not named(args, f"predict.{key}")]
    asked = {key: getattr(config.predict, f"retrain_{key}") for key in keys}
    asked["filter_labels"] = config.predict.filter_labels or config.predict.retrain_filter_labels
    return config.replace(data={"val_list": config.data.train_list}, predict=asked)


def find_samples(args: argparse.Namespace, config: Config) -> List[Sample]:
    """The images that were asked for."""
    from cian.tools.engine.images import data_tree, find_images, tree_samples
    data = config.data
    if args.images:
        if args.retrain_labels or config.predict.filter_labels or config.predict.features:
            raise InputError("needs the lists and labels of a data set", field="--images",
                             remedy="name the data set with --data")
        return find_images(args.images)
    return tree_samples(data_tree(data, seeds=False), data.val_list, config.predict.filter_labels)


if __name__ == "__main__":
    run_tool(main)
