"""What the parameter server costs: bytes and seconds of the store by the number of parameters and
workers, a training step of several workers over that of one process with as many devices, and from
both a model of a step on a cluster.

  python benchmarks/workers.py --json benchmarks/results/workers.json --plot docs/figures/workers.png

All processes share this machine's cores. Jobs and single processes take turns, and what goes into
the model is CPU time.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from measuring import cpu_seconds, environment, family, machine, ratios, spread
from workers_model import draw, modelled

from cian.errors import run_tool
from cian.files import atomic_write, read_json, write_json
from cian.tools.engine.config import Config, NetworkConfig, RunConfig, TrainConfig
from cian.tools.engine.training.launching import launch
from cian.tools.engine.training.watch import join

MODELS = ("efficientnet_lite0", "resnet18", "resnet50", "resnet101")  # whose arrays go over the store
STEPPED, BATCH, CROP_PX, CLASSES = "resnet18_largefov", 2, 97, 21  # of the steps; images a device
KEYS = 2 * 10 ** 6  # of the store, beyond those of the workers


def network(model: str, contexts: Optional[Sequence[Any]] = None) -> Any:
    """A network with what trains of it set."""
    from cian.symbols.params import configure_training, initialize
    from cian.tools.engine.models.snapshot import build_network

    net = build_network(NetworkConfig(model=model), CLASSES)
    initialize(net, 0, ctx=contexts)
    configure_training(net)
    return net


def work(job: Dict[str, Any], devices: int, compressed: bool, target: str) -> None:
    """Be one process of a job, or (with devices) one alone; the first worker writes. A store that
    compresses is for exchanges alone.
    """
    run = RunConfig(kvstore="device" if devices else "dist_sync", patience=300)
    member = join(run)
    import mxnet as mx

    from cian.symbols.losses import CIANLoss
    from cian.tools.engine.training.distributed import Workers
    from cian.tools.engine.training.step import Trainer

    with Workers(run, member) as workers:
        found: Dict[str, Any] = {"store": {}, "steps": []}
        if compressed:
            workers.store.set_gradient_compression({"type": "2bit", "threshold": 0.5})
        for number, (model, shapes) in enumerate(job["shapes"].items() if member else ()):
            found["store"][model] = exchange(workers.store, KEYS + 1000 * number, shapes, job["rounds"],
                                             compressed)
        contexts = [mx.cpu(number) for number in range(devices or 1)]
        trainer = Trainer(network(STEPPED, contexts), CIANLoss(CLASSES), contexts, TrainConfig(),
                          workers=workers)
        side = (CROP_PX - 1) // 8 + 1
        parts = [mx.io.DataBatch([mx.nd.random.uniform(0, 255, (BATCH, 3, CROP_PX, CROP_PX), ctx=context)],
                                 [mx.nd.zeros((BATCH, side, side), ctx=context),
                                  mx.nd.ones((BATCH, CLASSES), ctx=context)]) for context in contexts]
        for number in range(0 if compressed else job["rounds"] + 1):
            begun = time.perf_counter()
            trainer.step(parts, 1e-6, number)
            mx.nd.waitall()
            found["steps"].append(time.perf_counter() - begun)
        del found["steps"][:1]  # which builds the graph
        if not workers.rank:
            write_json(target, found)


def exchange(store: Any, first: int, shapes: Sequence[Sequence[int]], rounds: int,
             compressed: bool) -> Dict[str, List[float]]:
    """Seconds, CPU seconds of this worker and of the server, and bytes over loopback, of summing
    arrays over the workers, in each round.
    """
    import mxnet as mx

    arrays = [mx.nd.ones(shape) for shape in shapes]
    for key, array in enumerate(arrays, first):
        store.init(key, array)
    server = next(process for process in family(os.getppid()) if role(process) == "server")
    rows = []
    for _ in range(rounds + 1):
        mx.nd.waitall()
        store._barrier()
        before, begun = [cpu_seconds(os.getpid()), cpu_seconds(server), loopback_bytes()], time.perf_counter()
        for key, array in enumerate(arrays, first):
            if compressed:  # which pushpull refuses
                store.push(key, array, priority=-key)
                store.pull(key, array, priority=-key)
            else:
                store.pushpull(key, array, priority=-key)
        mx.nd.waitall()
        seconds = time.perf_counter() - begun
        worker = cpu_seconds(os.getpid()) - before[0]
        store._barrier()
        rows.append([seconds, worker, cpu_seconds(server) - before[1], loopback_bytes() - before[2]])
    names = ("seconds", "worker_cpu_s", "server_cpu_s", "loopback_bytes")
    return dict(zip(names, np.array(rows[1:]).T.tolist()))


def role(process: int) -> str:
    """Of a process of the job."""
    with open(f"/proc/{process}/environ", "rb") as stream:
        variables = dict(entry.partition(b"=")[::2] for entry in stream.read().split(b"\0"))
    return variables.get(b"DMLC_ROLE", b"").decode()


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself."""
    with open("/proc/net/dev", encoding="ascii") as stream:
        line = next(line for line in stream if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def read(path: str) -> Any:
    """What a process, or an earlier run, has left."""
    return read_json(path, "figures", "measure again")


def measure(models: Sequence[str], counts: Sequence[int], rounds: int, turns: int,
            folder: str) -> List[Dict[str, Any]]:
    """Jobs of each number of workers, and single processes with as many devices, in turn."""
    shapes = {model: [param.shape for param in network(f"{model}_largefov").collect_params().values()
                      if param.grad_req != "null"] for model in models}
    parameters = {model: sum(int(np.prod(shape)) for shape in own) for model, own in shapes.items()}
    write_json(os.path.join(folder, "job.json"), {"shapes": shapes, "rounds": rounds})
    command = [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--job", os.path.join(
        folder, "job.json"), "--target"]
    points: Dict[int, List[Dict[str, Any]]] = {count: [] for count in counts}
    for _ in range(turns):
        for count in counts:
            job, packed, alone = (os.path.join(folder, name) for name in ("several", "packed", "alone"))
            if launch([*command, job], count, 1) or launch([*command, packed, "--compressed"], count, 1):
                raise SystemExit(1)
            subprocess.run([*command, alone, "--devices", str(count)], check=True, env=environment(1))
            points[count].append({**read(job), "compressed": read(packed)["store"],
                                  "alone": read(alone)["steps"]})
    result = []
    for count, own in points.items():
        several, alone = ([float(np.median(point[kind])) for point in own] for kind in ("steps", "alone"))
        stores = {kind: {model: {"parameters": parameters[model], **{
            name: spread([value for point in own for value in point[kind][model][name]])
            for name in own[0][kind][model]}} for model in models} for kind in ("store", "compressed")}
        result.append({"workers": count, **stores, "step_s": spread(several), "alone_s": spread(alone),
                       "step_over_alone": ratios(several, alone)})
        print(json.dumps(result[-1]), flush=True)
    return result


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="backbones")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="timed exchanges and steps")
    parser.add_argument("--turns", type=int, default=2, metavar="N", help="processes of each kind")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", metavar="PNG", help="also draw the model there")
    parser.add_argument("--from-json", metavar="FILE", help="measured before: model and draw them only")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--compressed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        work(read(args.job), args.devices, args.compressed, args.target)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"  # several devices of one process hang with more
    if args.from_json:
        found = read(args.from_json)
    else:
        with tempfile.TemporaryDirectory(prefix="workers_") as folder:
            measured = measure(args.models, args.workers, args.rounds, args.turns, folder)
        config = Config().replace(network={"model": STEPPED})
        found = {"command": ["benchmarks/workers.py", *(sys.argv[1:] if argv is None else argv)],
                 "config_hash": config.hash(("network", "loss", "train")), "machine": machine(),
                 "step": {"model": STEPPED, "images_a_device": BATCH, "crop_px": CROP_PX},
                 "measured": measured}
    found.update(modelled(found["measured"]))
    for row in found["model"]:
        if row["workers"] in (8, 64, 512):
            print("{workers:4} workers, {servers:3} servers, {gbit:3} Gbit/s, {bits:2} bits: "
                  "{seconds:8.2f} s a step, {speed:6.1f} times as fast as one".format(**row))
    if args.json:
        write_json(args.json, found)
    if args.plot:
        with atomic_write(args.plot) as stream:
            draw(found["model"], stream)
    return 0


if __name__ == "__main__":
    run_tool(main)
