"""The original's side of benchmarks/compare.py: a checkout of github js-fan/CIAN, unedited, with
nothing of this project in the process.

``python original_side.py JOB.json`` reads ``{"checkout": ..., "task": ..., ...}``. 'train', 'infer'
and 'evaluate' do once what the original's command lines do; the other tasks repeat a piece of work
as :mod:`serving` says. Changed in the memory of this process only: ``mx.gpu`` is ``mx.cpu``; the
alias ``numpy.bool`` that MXNet 1.9.1 reads exists; the image size of a prediction is that of the
job (the script sets 513).
"""
from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import runpy
import sys
from typing import Any, Callable, Dict, List
from unittest import mock

import numpy as np
from serving import batch_taker, serve, timed, timed_batches

Job = Dict[str, Any]
SCRIPT = "train_infer_segment"


class _Parsed(Exception):
    """Raised in place of going on after the arguments were parsed."""


def arguments(argv: List[str]) -> argparse.Namespace:
    """What the original script's own parser makes of ``argv``."""
    found: List[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *_: Any) -> argparse.Namespace:
        found.append(parse(parser, argv))
        raise _Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(_Parsed):
        runpy.run_path(os.path.join("scripts", f"{SCRIPT}.py"), run_name="__main__")
    return found[0]


def script() -> Any:
    """The original's training and inference script as a module, on the CPU."""
    mx: Any = importlib.import_module("mxnet")
    mx.gpu = mx.cpu
    return importlib.import_module(f"scripts.{SCRIPT}")


def train(job: Job) -> None:
    """``train_infer_segment.py``, from the random state that ours begins with."""
    source, args = script(), arguments(job["argv"])
    np.random.seed(0)
    source.run_training(args)


def infer(job: Job) -> None:
    """``train_infer_segment.py --infer``."""
    script().run_infer(_prediction_arguments(job))


def evaluate(job: Job) -> None:
    """``eval_segment.py``."""
    sys.argv = ["eval_segment.py", *job["argv"]]
    runpy.run_path(os.path.join("scripts", "eval_segment.py"), run_name="__main__")


def loading(job: Job) -> Callable[[], float]:
    """Batches of the group loader, to arrays that can be used."""
    module = importlib.import_module("lib.loader.voc_seg_group_loader")
    np.random.seed(0)
    loader = module.VOCSegGroupLoader(*job["roots"], job["batch_size"], 2, 1, job["crop_px"], shuffle=True,
                                      rand_scale=True, rand_mirror=True, rand_crop=True, downsample=8)
    return timed_batches(batch_taker(loader), job["batches"], job["ahead"])


def step(job: Job) -> Callable[[], float]:
    """A training step on a batch that is there."""
    module = script().build_model(arguments(job["argv"]))
    mx: Any = importlib.import_module("mxnet")
    with np.load(job["batch"]) as arrays:
        batch = mx.io.DataBatch(data=[mx.nd.array(arrays["data"])], label=[mx.nd.array(arrays["label"])])

    def work() -> None:
        module.forward_backward(batch)
        module.update()
        mx.nd.waitall()

    return timed(work)


def prediction(job: Job) -> Callable[[], float]:
    """The inference loop, from image files to label maps with CRF; the network is built beforehand."""
    source, args = script(), _prediction_arguments(job)
    args.batch_size = 1  # as run_infer sets it for one device
    module = source.build_model(args, False)
    source.build_model = lambda *_: module
    return timed(lambda: source.run_infer(args))


def crf(job: Job) -> Callable[[], float]:
    """The same loop with stored logits in place of a network's: the enlarged maps are there."""
    source, args = script(), _prediction_arguments(job)
    mx: Any = importlib.import_module("mxnet")
    coarse = mx.nd.array(np.load(job["logits"])[None])
    enlarged = mx.nd.contrib.BilinearResize2D(coarse, height=args.image_size, width=args.image_size).asnumpy()

    class Stored:
        def __init__(self) -> None:
            self.calls = 0

        def forward(self, *_: Any, **__: Any) -> None:
            self.calls += 1

        def get_outputs(self) -> List[Any]:
            return [self]

        def asnumpy(self) -> np.ndarray:  # every second call is the mirrored image
            return enlarged if self.calls % 2 else enlarged[:, :, :, ::-1]

    source.build_model = lambda *_: Stored()
    return timed(lambda: source.run_infer(args))


def _prediction_arguments(job: Job) -> argparse.Namespace:
    args = arguments(job["argv"])
    args.image_size = job["size_px"]
    return args


ONCE: Dict[str, Callable[[Job], None]] = {"train": train, "infer": infer, "evaluate": evaluate}
REPEATED: Dict[str, Callable[[Job], Callable[[], float]]] = {"loading": loading, "step": step,
                                                             "prediction": prediction, "crf": crf}


def main(path: str) -> int:
    with open(path, encoding="utf-8") as stream:
        job = json.load(stream)
    os.chdir(job["checkout"])
    sys.path.insert(0, job["checkout"])
    if "bool" not in np.__dict__:
        np.bool = bool  # type: ignore[attr-defined]
    if job["task"] in ONCE:
        ONCE[job["task"]](job)
    else:
        serve(job["pipe"], REPEATED[job["task"]](job))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
