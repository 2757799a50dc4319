"""Trains the segmentation network on images and seeds (the first round).

Runs that stop for whatever reason go on by the same command, with the same result as if they had
not. Ground-truth masks are not read.

  python tools/train.py --data VOC2012 --label-root seeds --snapshot runs/cian \\
      --pretrained resnet-101-0000.params --gpus 0,1
  python tools/train.py -c experiments/voc/base.yaml --records work/records --snapshot runs/cian \\
      train.lr=1e-3
"""
from __future__ import annotations

import sys
from typing import List, Optional, Sequence

from cian.errors import run_tool
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.training.watch import join

EPILOG = """\
The folder SNAPSHOT gets MODEL-EPOCH.params with .params.json (the last --num-save epochs),
MODEL.state (to go on from), MODEL.log, tensorboard/, config.yaml (everything resolved) and run.json
(hash, versions, seeds, devices).

As in the original's script, --infer hands the rest of the command line to tools/predict.py, and
--retrain to tools/retrain.py."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints the last checkpoint's path as its last line."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--infer" in given or "--retrain" in given:
        return _forward(given)
    parser = make_parser(__doc__ or "", ("data", "network", "training", "run"), EPILOG)
    parser.add_argument("--fresh", action="store_true",
                        help="remove the checkpoints of another run in SNAPSHOT, and start anew")
    args = parser.parse_args(given)
    config = config_from(args)
    member = join(config.run)
    from cian.tools.engine.training.round import fit  # imports MXNet, whose threads config_from has set

    print(fit(config, fresh=args.fresh, member=member))
    return 0


def _forward(given: List[str]) -> int:
    """The original's one script for all: find the tool that does what was asked."""
    if "--infer" in given:
        from cian.tools import predict

        return predict.main(given)
    from cian.tools import retrain

    return retrain.main([argument for argument in given if argument != "--retrain"])


if __name__ == "__main__":
    run_tool(main)
