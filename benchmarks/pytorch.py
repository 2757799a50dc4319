"""This project beside PyTorch on the CPU: a training step and a prediction of the same network.

  python -m venv scratch && scratch/bin/pip install torch==2.13.0 numpy
  python benchmarks/pytorch.py --python scratch/bin/python --json pytorch.json

PyTorch runs the graph that MXNet describes on our weights (pytorch_side.py), in eager mode, with
images and filters in its usual layout and with channels last. The sides take turns, each in a
process of its own with as many threads. Their logits are compared.

  forward  one crop through the test-time network (ours as predict.engine=auto)
  step     forwards, backwards and update on a batch of crops of the training network
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from measuring import Server, machine, ratios, spread

from cian.environment import usable_cores
from cian.errors import run_tool
from cian.files import write_json

CLASSES, LR = 21, 5e-5
OURS, LAYOUTS = "ours", {"PyTorch": False, "PyTorch, channels last": True}
TASKS = {"forward": 1, "step": 0}  # images; 0 is the whole batch


def write_files(args: argparse.Namespace, folder: str) -> Dict[str, Any]:
    """Weights, graphs and a batch; returns where they are, as jobs of both sides name them."""
    import mxnet as mx

    from cian.symbols import build_model, configure_training, save_params
    from cian.tools.engine.fidelity.inputs import condition, random_images
    network = build_model(args.model, num_classes=CLASSES)
    images = random_images(args.batch_size, args.crop_px, seed=0)
    condition(network, images[:2], seed=0)
    job = {"model": args.model, "lr": LR, "crop_px": args.crop_px,
           **{name: os.path.join(folder, name) for name in ("weights.params", "batch.npz", "values.npz")}}
    job = {key.partition(".")[0]: value for key, value in job.items()}
    save_params(network, job["weights"])
    np.savez(job["values"], **{name: param.data().asnumpy()
                               for name, param in network.collect_params().items()})
    side = (args.crop_px - 1) // 8 + 1
    np.savez(job["batch"], data=images, label=np.random.RandomState(0).choice(
        [0, 0, 1, 255], (args.batch_size, side, side)).astype(np.float32))
    configure_training(network)
    job["trained"] = [name for name, param in network.collect_params().items() if param.grad_req != "null"]
    for task, net in (("forward", network.for_prediction()), ("step", network)):
        with open(os.path.join(folder, f"{task}.json"), "w", encoding="utf-8") as stream:
            stream.write(mx.sym.Group(net(mx.sym.var("data"))).tojson())
    return job


def measure(args: argparse.Namespace, folder: str) -> Dict[str, Any]:
    """Seconds of every round and peak memory of every side, task by task, and how far logits are apart."""
    common, found = write_files(args, folder), {}
    threads = args.threads or usable_cores()
    for task, images in TASKS.items():
        servers: Dict[str, Server] = {}
        seconds: Dict[str, List[float]] = {side: [] for side in (OURS, *LAYOUTS)}
        cpu: Dict[str, List[float]] = {side: [] for side in seconds}
        outs = {side: os.path.join(folder, f"{task}_{number}.npy") for number, side in enumerate(seconds)}
        try:
            for side in seconds:
                job = {**common, "task": task, "threads": threads, "out": outs[side],
                       "images": images or args.batch_size, "graph": os.path.join(folder, f"{task}.json"),
                       "channels_last": LAYOUTS.get(side)}
                program, python = ("our_side.py", sys.executable) if side == OURS else ("pytorch_side.py",
                                                                                       args.python)
                servers[side] = Server(program, job, outs[side] + ".d", threads, python)
            for turn in range(args.rounds):
                for side in sorted(seconds, reverse=bool(turn % 2)):
                    for values, value in zip((seconds[side], cpu[side]), servers[side].run()):
                        values.append(value)
        finally:
            peaks = {side: server.close() for side, server in servers.items()}
        found[task] = {"seconds": seconds, "median_s": {side: spread(values)
                                                        for side, values in seconds.items()},
                       "times_as_fast": {side: ratios(seconds[side], seconds[OURS]) for side in LAYOUTS},
                       "cpu_seconds": cpu,
                       "times_the_cpu": {side: ratios(cpu[side], cpu[OURS]) for side in LAYOUTS},
                       "peak_mb": peaks}
        if task == "forward":
            want, *others = (np.load(path) for path in outs.values())
            rms = np.sqrt(np.square(want).mean())
            found[task]["largest_error"] = max(float(np.abs(other - want).max() / rms) for other in others)
    return {"threads": threads, "model": args.model, "crop_px": args.crop_px,
            "batch_size": args.batch_size, "found": found}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, metavar="FILE", help="the interpreter that has torch")
    parser.add_argument("--model", default="resnet50_largefov", metavar="NAME")
    parser.add_argument("--crop", dest="crop_px", type=int, default=321, metavar="PX")
    parser.add_argument("--batch-size", type=int, default=2, metavar="N")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="[default: one a core]")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pytorch_") as folder:
        figures = measure(args, folder)
    for task, found in figures["found"].items():
        print(f"{task}: ours {found['median_s'][OURS]['median']:.2f} s, {found['peak_mb'][OURS]:.0f} MB")
        for side, ratio in found["times_as_fast"].items():
            print("  {} takes {median:.2f} ({min:.2f}-{max:.2f}) times as long, {cpu:.2f} times the CPU "
                  "time, {peak:.0f} MB".format(side, cpu=found["times_the_cpu"][side]["median"],
                                         peak=found["peak_mb"][side], **ratio))
    print("logits are at most {largest_error:.1e} of their rms apart".format(**figures["found"]["forward"]))
    if args.json:
        command = ["benchmarks/pytorch.py", *(sys.argv[1:] if argv is None else argv)]
        write_json(args.json, {"command": command, "machine": machine(), **figures})
    return 0


if __name__ == "__main__":
    run_tool(main)
