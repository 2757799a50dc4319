"""What frozen layers save: training steps with and without them, and a classifier on features that
are computed once.

  python benchmarks/frozen.py --model resnet50_largefov --crop 225 --json FILE
  python benchmarks/frozen.py --model efficientnet_lite0_largefov --crop 129 --batch 8 --embed 64 --json FILE
  python benchmarks/frozen.py --records RUN/records --list train --images 12 --json FILE

Steps of all ways take turns in one process; a figure is the median over the rounds of the
processor's seconds (of all threads, which other work on the machine changes little), and of its
ratio to that of training every layer in the same round. What is frozen of EfficientNet-Lite0 is not
computed: a step takes windows of stored features (``train.features=stored``). Memory is the peak of
a process that takes two steps one way. With --records it measures the CAM classifier on a frozen
backbone in place of that: --epochs over features of the disk, the time of computing them included,
against the same batches with the features computed when they are needed. Weights are random: they
change no time.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from cian.environment import usable_cores
from cian.errors import run_tool
from cian.files import atomic_write_bytes


class Way(NamedTuple):
    """What is frozen, whether the forward pass of a frozen backbone is recorded all the same, and
    how many channels of features are stored.
    """

    frozen: Tuple[str, ...] = ()
    recorded: bool = False
    stored: int = 0


ALL = "all layers train"
RESNET = {ALL: Way(), "conv0 to stage2 frozen": Way(("conv0_", "stage1_", "stage2_")),
          "backbone frozen": Way(("conv0_", "stage")),
          "backbone frozen, recorded": Way(("conv0_", "stage"), True)}
LITE0 = {ALL: Way(), "stored below the last convolution": Way(("stem_", "block"), False, 320),
         "stored behind the backbone": Way(("stem_", "block", "head_"), False, 1280)}
CLASSES = 21


def ways_of(model: str) -> Dict[str, Way]:
    """The ways to train a network."""
    return LITE0 if model.startswith("efficientnet") else RESNET


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; with --task the work of one child process."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_largefov", help="a ResNet or EfficientNet-Lite0")
    parser.add_argument("--crop", type=int, default=321, metavar="PX")
    parser.add_argument("--batch", type=int, default=4, metavar="N")
    parser.add_argument("--embed", type=int, default=0, metavar="N",
                        help="channels of the embedding [default: half of the backbone's]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--records", metavar="FOLDER",
                        help="packed images: measure the CAM classifier's features")
    parser.add_argument("--list", default="train", help="name of the record set [default: train]")
    parser.add_argument("--images", type=int, default=12, metavar="N")
    parser.add_argument("--epochs", type=int, default=15, metavar="N")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="of the classifier")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task:
        steps(args, [args.task], 2)
        print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6))
        return 0
    figures = {"threads": int(os.environ.get("OMP_NUM_THREADS") or usable_cores()),
               **(classifier(args) if args.records else layers(args))}
    print(json.dumps(figures, indent=1))
    if args.json:
        atomic_write_bytes(args.json, json.dumps(figures, indent=1).encode())
    return 0


def layers(args: argparse.Namespace) -> Dict[str, Any]:
    """Processor seconds, their ratio and memory of a step by way."""
    child = [sys.executable, os.path.abspath(__file__), "--model", args.model, "--crop", str(args.crop),
             "--batch", str(args.batch), "--embed", str(args.embed), "--task"]
    ways = list(ways_of(args.model))
    # First, because a process counts what its parent held when it was made.
    peaks = {way: int(subprocess.run([*child, way], stdout=subprocess.PIPE, check=True,
                                     text=True).stdout.splitlines()[-1]) for way in ways}
    seconds = steps(args, ways, args.rounds + 1)
    found = {}
    for way in ways:
        ratios = [one / whole for one, whole in zip(seconds[way], seconds[ALL])]
        found[way] = {"cpu_seconds": round(statistics.median(seconds[way]), 3),
                      "ratio": round(statistics.median(ratios), 3),
                      "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)], "peak_mb": peaks[way]}
    return {"model": args.model, "crop_px": args.crop, "batch": args.batch, "rounds": args.rounds,
            "ways": found}


def steps(args: argparse.Namespace, ways: Sequence[str], count: int) -> Dict[str, List[float]]:
    """Processor seconds of ``count`` steps by way, in turns, without the first of each."""
    import mxnet as mx

    from cian.symbols import CIANLoss, build_model, configure_training, initialize
    from cian.tools.engine.config import Config
    from cian.tools.engine.training.step import Trainer
    rng, side = np.random.RandomState(0), (args.crop - 1) // 8 + 1
    pixels = rng.randint(0, 256, (args.batch, 3, args.crop, args.crop))
    labels = [mx.nd.array(rng.choice([0, 1, 2, 255], (args.batch, side, side))),
              mx.nd.ones((args.batch, CLASSES))]
    trainers, parts = {}, {}
    for way in ways:
        frozen, recorded, stored = ways_of(args.model)[way]
        net = build_model(args.model, num_classes=CLASSES, embed_channels=args.embed)
        initialize(net)
        configure_training(net, freeze=frozen)
        trainers[way] = Trainer(net, CIANLoss(CLASSES), [mx.cpu()], Config().train, stored=bool(stored))
        if recorded:
            trainers[way]._branches = None
        data = rng.rand(args.batch, stored, side, side) if stored else pixels
        parts[way] = mx.io.DataBatch(data=[mx.nd.array(data, dtype=np.float32)], label=labels,
                                     index=np.arange(args.batch))
    seconds: Dict[str, List[float]] = {way: [] for way in ways}
    for number in range(count):
        for way in ways:
            started = time.process_time()
            trainers[way].step([parts[way]], 1e-4, number)
            mx.nd.waitall()
            seconds[way].append(time.process_time() - started)
    return {way: measured[1:] for way, measured in seconds.items()}


class Recomputed:
    """A table of pooled features that computes each row anew when it is read."""

    def __init__(self, backbone: Any, images: Any, count: int) -> None:
        self._backbone, self._images, self._count = backbone, images, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        import mxnet as mx

        from cian.tools.engine.seeds.features import network_input
        rows = []
        for row, view in zip(*place):
            pixels = network_input(self._images.image(int(row))[..., ::-1])
            seen = mx.nd.array(pixels[..., ::-1] if view else pixels)
            rows.append(self._backbone(seen).asnumpy().mean(axis=(2, 3))[0])
        return np.stack(rows)


class FirstOf:
    """The first images of a record set."""

    def __init__(self, images: Any, count: int) -> None:
        self._count, self.image, self.names = count, images.image, images.names[:count]

    def __len__(self) -> int:
        return self._count


def classifier(args: argparse.Namespace) -> Dict[str, Any]:
    """Seconds of a classifier's training on stored features and on recomputed ones; their last
    batches must be the same.
    """
    import mxnet as mx

    from cian.data.records import RecordSet
    from cian.symbols import initialize
    from cian.symbols.backbones import build_backbone
    from cian.tools.engine.models.engine import start_engine
    from cian.tools.engine.seeds.features import FeatureIter, pooled_features
    with RecordSet.open(args.records, args.list) as records, tempfile.TemporaryDirectory() as folder:
        count = min(args.images, len(records))
        labels, backbone = records.labels[:count, 1:], build_backbone(args.backbone)
        initialize(backbone)
        backbone.hybridize()
        backbone(mx.nd.zeros((1, 3, 225, 321))).wait_to_read()

        def run(features: Any) -> np.ndarray:
            batches = FeatureIter(features, labels, 16, seed=0)
            for _ in range(args.epochs):
                batches.reset()
                for batch in batches:
                    last = batch.data[0].asnumpy()
            return last
        started = time.perf_counter()
        stored = run(pooled_features(start_engine(backbone, "mxnet", mx.cpu())[1], backbone.out_channels,
                                     FirstOf(records, count), os.path.join(folder, "features.f32")))
        once = time.perf_counter() - started
        started = time.perf_counter()
        again = run(Recomputed(backbone, records, count))
        each_time = time.perf_counter() - started
    return {"backbone": args.backbone, "images": count, "epochs": args.epochs,
            "seconds_stored": round(once, 2), "seconds_recomputed": round(each_time, 2),
            "ratio": round(each_time / once, 2), "identical": bool((stored == again).all())}


if __name__ == "__main__":
    run_tool(main)
