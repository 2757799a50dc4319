"""Makes seeds from a CAM classifier: sparse label maps of the training images, as palette PNGs with
255 for ignored pixels.

A pixel whose CAM exceeds seeds.foreground_threshold is a seed of that class, one whose saliency is
below seeds.background_threshold is a seed of the background; pixels claimed twice or not at all are
ignored. Finished seeds are kept when the command is repeated.

  python tools/make_seeds.py --records work/records --classifier runs/cam --out runs/seeds \\
      --saliency images --saliency-root maps
  python tools/make_seeds.py --records work/records --classifier runs/cam --out runs/seeds \\
      --measure VOC2012/SegmentationClassAug
  python tools/make_seeds.py --records work/records --classifier runs/cam --out runs/seeds_10 \\
      --strong-masks VOC2012/SegmentationClassAug seeds.strong_ratio=0.1     # Table 4
"""
from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence

from cian.errors import InputError, run_tool
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.config import Config
from cian.tools.engine.shards import Shard

if TYPE_CHECKING:
    from cian.data.records import RecordSet

EPILOG = """\
The folder OUT gets NAME.png for every image, balance.json (what the labels alone tell of them, as
printed), seeds.json (what they were made with, and Table 4's
choice of names) and, with --measure, quality.json. Ground truth is opened for --measure and
--strong-masks alone; nothing else of the seeds depends on --measure.

The three kinds of saliency (seeds.saliency) have scales of their own, so the background threshold
of one is not that of another:
  images    NAME.png of a saliency model, 0..255 for 0..1; the paper's 0.06 was chosen for such maps
  builtin   barrier distance and colour contrast to the border; 0.06 is strict, 0.10 labels more background
  low_cam   the largest CAM of the image's classes; what the classifier overlooks becomes background"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints how many seeds were written, and the quality where it is measured."""
    parser = make_parser(__doc__ or "", ("seeds", "data", "run"), EPILOG)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the seeds")
    parser.add_argument("--classifier", metavar="PATH",
                        help="what tools/train_cam.py wrote: its file or its snapshot [default: SNAPSHOT]")
    parser.add_argument("--measure", metavar="MASKS",
                        help="folder of NAME.png ground truth: report the quality of CAMs and seeds")
    parser.add_argument("--strong-masks", default="", metavar="MASKS",
                        help="folder of NAME.png ground truth, which replaces a portion seeds.strong_ratio "
                        "of the seeds (Table 4)")
    parser.add_argument("--shard", default="0/1", metavar="I/N",
                        help="every N-th image from the I-th on, for several processes or machines; "
                        "tools/merge.py checks and joins what they wrote, and a call without "
                        "--shard then tells their balance")
    args = parser.parse_args(argv)
    config = config_from(args)
    args.shard = Shard.parse(args.shard)
    if args.measure and args.shard.count > 1:
        raise InputError("needs all seeds", field="--measure", remedy="measure when all shards are there")
    if not (args.classifier or config.run.snapshot):
        raise InputError("no classifier was named", field="--classifier",
                         remedy="name what tools/train_cam.py wrote")
    # imports MXNet, whose threads config_from has set
    from cian.tools.engine.training.sources import open_images

    with open_images(config, config.data.train_list) as images:
        report = _make(config, args, images)
        if args.measure:
            _measure(config, args, images, report)
    return 0


def _make(config: Config, args: argparse.Namespace, images: RecordSet) -> Dict[str, Any]:
    from cian.data.provenance import check_label_folder
    from cian.environment import usable_cores
    from cian.files import write_json
    from cian.tools.engine.devices import parse_devices
    from cian.tools.engine.models.snapshot import resolve_checkpoint
    from cian.tools.engine.seeds.balance import balance_table, label_pixels, seed_balance
    from cian.tools.engine.seeds.make import make_seeds
    from cian.tools.engine.seeds.maps import CamMaps, load_classifier
    from cian.tools.engine.seeds.quality import CamScore
    from cian.tools.engine.seeds.thresholds import choose_thresholds

    device, workers = parse_devices(config.run.devices)[0], config.run.workers or usable_cores()
    net, digest = load_classifier(resolve_checkpoint(args.classifier or config.run.snapshot), images.classes,
                                  device)
    if args.measure:
        check_label_folder(args.measure, images.classes, images.path, "masks", images.turned())
    settings, maps = config.seeds, CamMaps.of(net, config.seeds, device, config.predict.engine)
    if settings.thresholds == "auto":
        settings = choose_thresholds(settings, images, maps)
        print(f"chosen: seeds.foreground_threshold={settings.foreground_threshold:g} "
              f"seeds.background_threshold={settings.background_threshold:g}")
    score = CamScore(args.measure, images.classes, settings.foreground_threshold) if args.measure else None
    written = make_seeds(settings, images, maps, args.out, {"classifier": digest},
                         strong_masks=args.strong_masks, workers=workers, watch=score, progress=True,
                         shard=args.shard)
    if args.shard.count == 1:
        balance = seed_balance(label_pixels(args.out, images.names, workers), images.labels, images.classes)
        write_json(os.path.join(args.out, "balance.json"), balance)
        print(balance_table(balance))
    there = len(args.shard.of(range(len(images)))) - written
    print(f"{args.out}: {written} seeds written, {there} were there")
    return {"cam": score.evaluation().to_dict()} if score else {}


def _measure(config: Config, args: argparse.Namespace, images: RecordSet, report: Dict[str, Any]) -> None:
    from cian.environment import usable_cores
    from cian.files import write_json
    from cian.tools.engine.seeds.make import read_seed_manifest
    from cian.tools.engine.seeds.quality import measure_seeds, quality_table

    report.update(measure_seeds(args.out, args.measure, images.names, images.classes, config.run.workers
                                or usable_cores()), seeds=read_seed_manifest(args.out)["hash"])
    write_json(os.path.join(args.out, "quality.json"), report)
    print(quality_table(report))


if __name__ == "__main__":
    run_tool(main)
