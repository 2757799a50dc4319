"""Trains the CAM classifier on images and their image-level labels, with the multi-label sigmoid loss.

A run that stops for whatever reason goes on by the same command, with the same result as if it had
not. Ground-truth masks are not read.

  python tools/train_cam.py --records work/records --snapshot runs/cam --model vgg16 \\
      --pretrained vgg16-0000.params --devices gpu:0
  python tools/train_cam.py --data DATA --classes DATA/classes.txt --train-list train --snapshot runs/cam \\
      --model efficientnet_lite0 --pretrained package --score val cam.freeze_backbone=true
"""
from __future__ import annotations

import contextlib
from typing import Optional, Sequence

from cian.errors import InputError, run_tool
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.training.watch import KVSTORE_ALONE, join

EPILOG = """\
The folder SNAPSHOT gets MODEL_cam-EPOCH.params with .params.json, MODEL_cam-EPOCH.map.json (average
precision by class), MODEL_cam.state (to go on from), MODEL_cam.log, tensorboard/ and config.yaml
(everything resolved).

With cam.freeze_backbone=true only the classification layer is trained, on features of whole images
that are computed once and kept in SNAPSHOT: minutes in place of hours for a small data set on a
CPU. One device is used, the first of run.devices."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints the classifier's path as its last line."""
    parser = make_parser(__doc__ or "", ("classifier", "data", "run"), EPILOG)
    parser.add_argument(
        "--score", action="append", default=[], metavar="LIST",
        help="also report the average precision on the image-level labels of this list; repeatable")
    parser.add_argument("--fresh", action="store_true",
                        help="remove the classifier of other settings in SNAPSHOT, and start anew")
    args = parser.parse_args(argv)
    config = config_from(args)
    if config.run.kvstore != KVSTORE_ALONE and not config.data.records:
        raise InputError("several workers cannot pack the images", field="data.records",
                         remedy="name what tools/prepare.py packed")
    member = join(config.run)
    # imports MXNet, whose threads config_from has set
    from cian.tools.engine.seeds.classifier import train_classifier
    from cian.tools.engine.training.sources import list_name, open_images

    with contextlib.ExitStack() as stack:
        images = stack.enter_context(open_images(config, config.data.train_list))
        score = {list_name(name): stack.enter_context(open_images(config, name)) for name in args.score}
        print(train_classifier(config, images, score=score, fresh=args.fresh, member=member))
    return 0


if __name__ == "__main__":
    run_tool(main)
