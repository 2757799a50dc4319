"""What a training step costs: its time by kind of operation, and the rate of its convolutions
against this machine's best.

  python benchmarks/profile_step.py --crop 321 --batch-size 2 --json profile.json --plot profile.png

The step is timed as it runs in training; then MXNet's profiler times every operator of some more
steps, run one by one. Each different convolution of the network is also timed alone, forwards and
backwards, and so are square matrix products; the fastest of them all stands for what the processor
can do. Rates are GFLOP for a CPU second, so they are those of one core, and other work on the
machine disturbs them little. Weights are random ones under which the affinity is as sharp as that
of a trained network.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from measuring import machine, spread

from cian.environment import prepare
from cian.errors import run_tool
from cian.files import atomic_write
from cian.tools.engine.report import text_table

CLASSES = 21
GEMM_SIDES = (1024, 2048, 3072)
ATTRIBUTES = ("kernel", "stride", "dilate", "pad", "num_filter", "num_group")
# Kinds of operators by a part of their name; the first that fits.
KINDS = (("_backward_Convolution", "convolutions, backward"), ("Convolution", "convolutions, forward"),
         ("batch_dot", "affinity products"), ("BatchNorm", "batch norms"), ("sgd", "optimiser"),
         ("Pooling", "pooling and ReLU"), ("Activation", "pooling and ReLU"),
         ("elemwise_add", "sums of branches and gradients"), ("add_n", "sums of branches and gradients"),)
# of the engine, not work
WAITING = ("WaitForVar", "DeleteVariable", "DeleteOperator", "ResourceNativeRandomSetSeed")


def kind_of(operator: str) -> str:
    """The kind of operation that an operator's name belongs to."""
    return next((kind for part, kind in KINDS if part in operator), "losses and the rest")


def make_step(args: argparse.Namespace) -> Tuple[Any, Callable[[], None]]:
    """A network and a step of its training on random images and labels, with the sums as the layers
    are written (run.sums=original): the fast ones fold layers, which a table of layers cannot show.
    """
    import mxnet as mx
    import numpy as np

    from cian.symbols import build_model, configure_training
    from cian.symbols.losses import CIANLoss
    from cian.tools.engine.config import TrainConfig
    from cian.tools.engine.fidelity.inputs import condition, random_images
    from cian.tools.engine.training.step import Trainer

    net = build_model(args.model, num_classes=CLASSES, group_size=args.group_size)
    images = random_images(args.batch_size, args.crop, seed=0)
    condition(net, images, seed=0)
    configure_training(net)
    trainer = Trainer(net, CIANLoss(CLASSES), [mx.cpu()], TrainConfig(), reordered=False)
    random, label_px = np.random.RandomState(0), (args.crop - 1) // 8 + 1
    labels = mx.nd.array(random.choice([0, 0, 1, 255], (args.batch_size, label_px, label_px)))
    parts = [mx.io.DataBatch(data=[mx.nd.array(images)],
                             label=[labels, mx.nd.ones((args.batch_size, CLASSES))])]

    def step() -> None:
        trainer.step(parts, 1e-6, 0)
        mx.nd.waitall()

    step()
    return net, step


def seconds_of(work: Callable[[], None], times: int,
               clock: Callable[[], float] = time.process_time) -> List[float]:
    """Seconds of each of so many calls, of CPU time or by another clock."""
    result = []
    for _ in range(times):
        start = clock()
        work()
        result.append(clock() - start)
    return result


def profile(net: Any, step: Callable[[], None], steps: int) -> Dict[str, Tuple[float, float]]:
    """Calls and milliseconds a step of every operator, by MXNet's profiler; the graph runs operator
    by operator for it.
    """
    import mxnet as mx

    net.hybridize()  # without static memory: whole segments of the graph count as one operator there
    step()
    with tempfile.TemporaryDirectory() as folder:
        mx.profiler.set_config(profile_symbolic=True, profile_imperative=True, profile_memory=False,
                               profile_api=False, aggregate_stats=True,
                               filename=os.path.join(folder, "profile.json"))
        mx.profiler.set_state("run")
        for _ in range(steps):
            step()
        mx.profiler.set_state("stop")
        found = json.loads(mx.profiler.dumps(reset=True, format="json"))["Time"]["operator"]
    return {name: (row["Count"] / steps, row["Total"] / steps)
            for name, row in found.items() if name not in WAITING}


def by_kind(operators: Dict[str, Tuple[float, float]]) -> Dict[str, Dict[str, float]]:
    """Milliseconds, calls and share of each kind, the most expensive first."""
    total = sum(ms for _, ms in operators.values())
    kinds: Dict[str, Dict[str, float]] = {}
    for name, (calls, ms) in operators.items():
        row = kinds.setdefault(kind_of(name), {"ms": 0.0, "calls": 0.0})
        row["ms"] += ms
        row["calls"] += calls
    for row in kinds.values():
        row["share"] = row["ms"] / total
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["ms"]))


def convolutions(model: str, group_size: int, shape: Tuple[int, ...]) -> List[Dict[str, Any]]:
    """The different convolutions of a network at an input (N, 3, H, W): attributes, sizes,
    multiply-adds, how often they are applied.
    """
    from cian.tools.engine.reproduction.table_one import count_layers, network_symbol

    symbol, _ = network_symbol(model, "cross", CLASSES, group_size)
    internals = symbol.get_internals()
    _, outputs, _ = internals.infer_shape(data=shape)
    sizes = dict(zip(internals.list_outputs(), outputs))
    nodes = json.loads(symbol.tojson())["nodes"]
    multiply_adds = {layer.name: layer.multiply_adds for layer in count_layers(symbol, shape)}
    found: Dict[str, Dict[str, Any]] = {}
    for node in nodes:
        if node["op"] != "Convolution":
            continue
        source = nodes[node["inputs"][0][0]]["name"]
        size = sizes[source if source in sizes else f"{source}_output"]
        attributes = {key: value for key, value in node["attrs"].items() if key in ATTRIBUTES}
        entry = {**attributes, "input": list(size), "gflop": 2e-9 * multiply_adds[node["name"]], "layers": 0}
        found.setdefault(json.dumps([attributes, size]), entry)["layers"] += 1
    return list(found.values())


def time_convolution(entry: Dict[str, Any], times: int) -> Dict[str, float]:
    """GFLOP a CPU second of a convolution alone: forwards, and backwards to its input and its weight."""
    import mxnet as mx

    def numbers(key: str) -> Tuple[int, ...]:
        return tuple(
            json.loads(entry.get(key, "(1, 1)").replace("(", "[").replace(")", "]").replace(",]", "]")))

    filters, groups, kernel = int(entry["num_filter"]), int(entry.get("num_group", 1)), numbers("kernel")
    options = {"kernel": kernel, "stride": numbers("stride"), "dilate": numbers("dilate"),
               "num_filter": filters, "num_group": groups,
               "pad": numbers("pad") if "pad" in entry else (0, 0), "no_bias": True}
    image = mx.nd.random.normal(shape=tuple(entry["input"]))
    weight = mx.nd.random.normal(shape=(filters, entry["input"][1] // groups, *kernel))
    image.attach_grad()
    weight.attach_grad()
    forward, backward = [], []
    for _ in range(times + 1):  # the first one prepares
        start = time.process_time()
        with mx.autograd.record():
            output = mx.nd.Convolution(image, weight, **options)
        mx.nd.waitall()
        between = time.process_time()
        output.backward()
        mx.nd.waitall()
        forward.append(between - start)
        backward.append(time.process_time() - between)
    return {"forward_gflops": entry["gflop"] / statistics.median(forward[1:]),
            "backward_gflops": 2 * entry["gflop"] / statistics.median(backward[1:])}


def best_gemm(times: int) -> Dict[str, float]:
    """GFLOP a CPU second of square products of float32 matrices by their sides; the best of some calls."""
    import mxnet as mx

    result = {}
    for side in GEMM_SIDES:
        one, other = mx.nd.random.normal(shape=(side, side)), mx.nd.random.normal(shape=(side, side))
        seconds = seconds_of(lambda one=one, other=other: mx.nd.dot(one, other).wait_to_read(),
                             times + 1)[1:]  # type: ignore[misc]
        result[str(side)] = 2e-9 * side ** 3 / min(seconds)
    return result


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """All figures."""
    net, step = make_step(args)
    seconds, cpu = spread(seconds_of(step, args.steps, time.perf_counter)), spread(seconds_of(step,
                                                                                              args.steps))
    operators = profile(net, step, args.steps)
    layers = convolutions(args.model, args.group_size, (args.batch_size, 3, args.crop, args.crop))
    for entry in layers:
        entry.update(time_convolution(entry, args.repeats))
    gemm = best_gemm(args.repeats)
    kinds = by_kind(operators)
    # Backwards a convolution is done twice: to its input and to its weight. The first one needs no
    # gradient of the image.
    work = sum(entry["gflop"] * entry["layers"] * (2 if entry["input"][1] == 3 else 3) for entry in layers)
    share = sum(row["share"] for kind, row in kinds.items() if kind.startswith("convolutions"))
    alone = sum(entry["layers"] * entry["gflop"]
                * (1 / entry["forward_gflops"] + 2 / entry["backward_gflops"]) for entry in layers)
    best = max([*gemm.values(),
                *(entry[f"{way}_gflops"] for entry in layers for way in ("forward", "backward"))])
    return {"seconds_a_step": seconds, "cpu_seconds_a_step": cpu, "convolution_gflop_a_step": work,
            "convolution_gflops_in_a_step": work / (share * cpu["median"]), "convolutions_alone_cpu_s": alone,
            "gemm_gflops": gemm, "best_gflops": best, "least_cpu_seconds_a_step_at_that_rate": work / best,
            "kinds": kinds, "convolutions": layers,
            "operators": {name: {"calls": calls, "ms": ms} for name, (calls, ms) in operators.items()}}


def shape_name(entry: Dict[str, Any]) -> str:
    """A convolution in short: 3x3 d2 256>256."""
    kernel = entry["kernel"].strip("()").replace(", ", "x")
    dilation = "" if entry.get("dilate",
                               "(1, 1)") == "(1, 1)" else f" d{entry['dilate'].strip('()').split(',')[0]}"
    stride = "" if entry.get("stride",
                             "(1, 1)") == "(1, 1)" else f" s{entry['stride'].strip('()').split(',')[0]}"
    group = "" if entry.get("num_group", "1") == "1" else f" g{entry['num_group']}"
    return f"{kernel}{dilation}{stride}{group} {entry['input'][1]}>{entry['num_filter']}"


def report(found: Dict[str, Any]) -> str:
    """Both tables and the rates."""
    kinds = text_table(("kind", "ms a step", "share", "calls"),
                       [(kind, f"{row['ms']:.0f}", f"{row['share']:.1%}", f"{row['calls']:.0f}")
                        for kind, row in found["kinds"].items()])
    layers = text_table(("convolution", "layers", "pixels", "GFLOP", "forward GFLOP/CPU s", "backward"),
                        [(shape_name(entry), str(entry["layers"]), f"{entry['input'][2]}x{entry['input'][3]}",
                          f"{entry['gflop']:.2f}", f"{entry['forward_gflops']:.0f}",
                          f"{entry['backward_gflops']:.0f}") for entry in found["convolutions"]])
    return (f"{kinds}\n\n{layers}\n\n{found['seconds_a_step']['median']:.2f} s a step, "
            f"{found['cpu_seconds_a_step']['median']:.2f} s of CPU "
            f"time; {found['convolution_gflop_a_step']:.0f} GFLOP of convolutions in it at "
            f"{found['convolution_gflops_in_a_step']:.0f} "
            f"a CPU second; the best is {found['best_gflops']:.0f}, at which they would take "
            f"{found['least_cpu_seconds_a_step_at_that_rate']:.2f} s")


def plot(found: Dict[str, Any], path: str) -> None:
    """Shares by kind; rates of the different convolutions, with the area of a dot for their work."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    kinds = list(found["kinds"].items())[::-1]
    left.barh([kind for kind, _ in kinds], [100 * row["share"] for _, row in kinds], color="tab:blue")
    left.set_xlabel("% of the operators' time in a step")
    layers = sorted(found["convolutions"], key=lambda entry: -entry["gflop"] * entry["layers"])[:14][::-1]
    for key, colour in (("forward_gflops", "tab:blue"), ("backward_gflops", "tab:orange")):
        right.scatter([entry[key] for entry in layers], range(len(layers)),
                      [8 + 6 * entry["gflop"] * entry["layers"] for entry in layers], color=colour,
                      label=key.partition("_")[0])
    right.set_yticks(range(len(layers)), [f"{shape_name(entry)} ({entry['layers']})" for entry in layers],
                     fontsize=8)
    right.axvline(max(found["gemm_gflops"].values()), color="black", linewidth=0.8, label="matrix product")
    right.set_xlim(left=0)
    right.set_xlabel("GFLOP a CPU second, of each convolution alone")
    for handle in right.legend(fontsize=8).legend_handles[:2]:
        handle.set_sizes([30])
    figure.savefig(path, dpi=110)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_largefov", metavar="NAME")
    parser.add_argument("--crop", type=int, default=321, metavar="PX")
    parser.add_argument("--batch-size", type=int, default=2, metavar="N")
    parser.add_argument("--group-size", type=int, default=2, metavar="N")
    parser.add_argument("--steps", type=int, default=3, metavar="N",
                        help="steps that are timed, and as many that are profiled")
    parser.add_argument("--repeats", type=int, default=3, metavar="N",
                        help="calls of a convolution or product alone")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--plot", metavar="PNG", help="also draw them there")
    args = parser.parse_args(argv)
    # before MXNet is loaded: operators in bulk cannot be told apart
    os.environ["MXNET_EXEC_BULK_EXEC_TRAIN"] = "0"
    prepare()
    found = {"command": ["benchmarks/profile_step.py", *(sys.argv[1:] if argv is None else argv)],
             "machine": {**machine(), "threads": os.environ["OMP_NUM_THREADS"]}, **measure(args)}
    print(report(found))
    if args.json:
        with atomic_write(args.json, "w") as stream:
            json.dump(found, stream, indent=1)
    if args.plot:
        plot(found, args.plot)
    return 0


if __name__ == "__main__":
    run_tool(main)
