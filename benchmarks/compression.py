"""What the parameter server's compression of gradients (2 bits a number) does to the result: two
workers train with and without it, on several seeds, and their networks are scored.

  python benchmarks/compression.py --out runs/compression --json compression.json -c \\
      experiments/voc6/table2/baseline.yaml --data msrc --classes msrc/classes.txt --train-list train \\
      --records RECORDS --label-root SEEDS

Gluon hands gradients over by ``pushpull``, which the store refuses when it compresses; here they
are pushed and pulled. Compression is of all that a store gets, so what the workers gather is sent
as bits, each a number that survives it. Everything else is what tools/train.py does.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from statistics import median
from typing import Any, Dict, List, Optional, Sequence
from unittest import mock

import numpy as np
from measuring import machine

from cian.errors import run_tool
from cian.files import read_json, write_json
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.config import Config, save_config
from cian.tools.engine.training.launching import launch
from cian.tools.engine.training.watch import join

NONE = 0.0  # threshold of a run without compression


def work(config: Config, threshold: float) -> None:
    """Train as one process of a job, and print quantiles of the first gradients' size."""
    member = join(config.run)
    import mxnet as mx
    from mxnet import gluon

    from cian.tools.engine.training import round as training
    from cian.tools.engine.training.distributed import KEYS, Workers

    class Compressed(Workers):
        """Whose store compresses."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.store.set_gradient_compression({"type": "2bit", "threshold": threshold})

        def gather(self, name: str, values: np.ndarray) -> np.ndarray:
            values = np.ascontiguousarray(values, np.float32)
            rows = np.zeros((self.num, 32 * values.size), np.float32)
            rows[self.rank] = threshold * np.unpackbits(values.reshape(-1).view(np.uint8))
            shared = mx.nd.array(rows)
            if name not in self._keys:
                self._keys[name] = KEYS + len(self._keys)
                self.store.init(self._keys[name], mx.nd.zeros(rows.shape))
            self.store.push(self._keys[name], shared)
            self.store.pull(self._keys[name], shared)
            bits = np.packbits(shared.asnumpy() > 0, axis=1)
            return bits.view(np.float32).reshape(self.num, *values.shape)

    def exchange(trainer: gluon.Trainer) -> None:
        if not trainer.states_seen:
            sizes = np.concatenate([value.asnumpy().ravel() for value in trainer.gradients().values()])
            print("gradients", json.dumps(np.quantile(abs(sizes), (0.5, 0.9, 0.99, 1)).tolist()), flush=True)
            trainer.states_seen = True
        for index, param in enumerate(trainer._params):
            trainer._kvstore.push(index, param.list_grad(), priority=-index)
            trainer._kvstore.pull(index, param.list_grad(), priority=-index)

    gluon.Trainer.states_seen = False
    with mock.patch.object(gluon.Trainer, "_allreduce_grads", exchange), mock.patch.object(
            training, "Workers", Compressed if threshold else Workers):
        training.fit(config, member=member)


def measure(config: Config, seed: int, threshold: float, out: str) -> Dict[str, Any]:
    """Train with a seed and a threshold, and score the validation list; what is done is kept."""
    folder = os.path.join(out, f"seed{seed}-{threshold:g}")
    settings = config.replace(train={"seed": seed}, predict={"crf": "none"},
                              run={"snapshot": folder, "kvstore": "dist_sync"})
    os.makedirs(folder, exist_ok=True)
    save_config(settings, f"{folder}.yaml")
    command = [sys.executable, "-W", "ignore", os.path.abspath(__file__), "-c", f"{folder}.yaml",
               "--threshold", str(threshold)]
    if not os.path.exists(f"{folder}.json"):
        if launch(command, 2, 1):
            raise SystemExit(1)
        scores = ["--prediction-root", f"{folder}/pred", "--json", f"{folder}.json"]
        for tool, flags in (("predict", []), ("evaluate", scores)):
            subprocess.run([sys.executable, "-W", "ignore", "-m", f"cian.tools.{tool}", "-c",
                            f"{folder}.yaml", "run.kvstore=device", *flags], check=True)
    with open(os.path.join(folder, f"{config.network.model}.log"), encoding="utf-8") as stream:
        losses = [float(loss) for loss in re.findall(r"loss (\S+) \(", stream.read())]
    score = read_json(f"{folder}.json", "scores", "remove it")["mean_iou"]
    return {"seed": seed, "threshold": threshold, "mean_iou": score, "last_loss": losses[-1],
            "median_loss": median(losses)}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = make_parser(__doc__ or "", ("data", "network", "training", "run"))
    parser.add_argument("--out", default="compression", metavar="FOLDER", help="of the runs")
    parser.add_argument("--seed-list", type=int, nargs="+", default=[0, 1], metavar="N")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[NONE, 0.5], metavar="T",
                        help="what a gradient is rounded to, with both signs; 0: no compression")
    parser.add_argument("--threshold", type=float, help="be one process of a job with this one")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    config = config_from(args)
    if args.threshold is not None:
        work(config, args.threshold)
        return 0
    found: List[Dict[str, Any]] = []
    for seed in args.seed_list:
        for threshold in args.thresholds:
            found.append(measure(config, seed, threshold, args.out))
            print(found[-1], flush=True)
    if args.json:
        write_json(args.json, {"command": ["benchmarks/compression.py", *(argv or sys.argv[1:])],
                               "config_hash": config.hash(), "machine": machine(), "runs": found})
    return 0


if __name__ == "__main__":
    run_tool(main)
