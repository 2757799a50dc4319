"""Runs jobs with the original code (github js-fan/CIAN), unedited, on the CPU, in a process of its own.

``python -m cian.tools.engine.fidelity.original CHECKOUT FOLDER`` reads ``FOLDER/request.json``
(``{"kind": ..., ...}``) and ``FOLDER/inputs.npz``, runs the job of that kind with the checkout's
own functions, and writes ``FOLDER/outputs.npz`` and ``FOLDER/report.json``. What it changes of the
original, in the memory of this process only:

* ``mx.gpu`` is ``mx.cpu``; the ``numpy.bool`` alias that MXNet needs is set (by importing ``cian``);
* ``VOC.categories`` is replaced when the request names other classes;
* the sixteen processes of its evaluation run in turn: they add to shared memory without a lock, and
  are forked, which a process that has loaded MXNet does not survive reliably;
* every update is followed by ``mx.nd.waitall()``: without it a checkpoint misses the last step's
  moving statistics;
* functions are wrapped to record what passes through them: the learning rates of each update, the
  CRF's unary energies, the confusion matrix.
"""
from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import runpy
import sys
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple
from unittest import mock

import numpy as np

import cian

mx: Any = importlib.import_module("mxnet")
Arrays = Dict[str, np.ndarray]
Answer = Tuple[Arrays, Dict[str, Any]]
LOSSES = ("seed_self", "seed_cross", "completion_self", "completion_cross")
TRAIN_SCRIPT, RETRAIN_SCRIPT = "train_infer_segment", "generate_retrain"


def arguments(script: str, argv: Sequence[str]) -> argparse.Namespace:
    """What the original script's own parser makes of ``argv``: its defaults, its flags; the script
    stops there.
    """
    parsed: List[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *_: Any) -> argparse.Namespace:
        parsed.append(parse(parser, list(argv)))
        raise _Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), contextlib.suppress(_Parsed):
        runpy.run_path(os.path.join("scripts", f"{script}.py"), run_name="__main__")
    return parsed[0]


class _Parsed(Exception):
    """Raised in place of going on after the arguments were parsed."""


def train(request: Dict[str, Any], inputs: Arrays) -> Answer:
    """Steps of ``Module.forward_backward`` and ``update`` on given batches, as ``run_training`` makes them.

    inputs: ``data<k>`` (B, 3, S, S), ``label<k>`` (B, h, w) of step k = 0, 1, ... Logits, gradients
    and what the optimiser applies are those of step 0; ``param<k>/``, ``momentum<k>/`` and
    ``statistics<k>/`` follow after the k-th step of ``request["steps"]``.
    """
    script = importlib.import_module(f"scripts.{TRAIN_SCRIPT}")
    args = arguments(TRAIN_SCRIPT, request["argv"])
    args.snapshot += "_retrain" if args.retrain else ""
    module = script.build_model(args)
    group = module._exec_group
    names = [name for name, grads in zip(group.param_names, group.grad_arrays) if grads[0] is not None]
    frozen = sorted(set(group.param_names) - set(names))
    start = {name: module._exec_group.param_arrays[group.param_names.index(name)][0].asnumpy()
             for name in frozen}
    outputs = _logits_and_losses(module, inputs["data0"], inputs["label0"], len(module._context))
    optimizer = module._optimizer
    for step in range(max(request["steps"])):
        module.forward_backward(_batch(inputs, step))
        outputs[f"probability{step}"] = module.get_outputs()[1].asnumpy()
        if step == 0:
            for name, grads in zip(group.param_names, group.grad_arrays):
                if grads[0] is not None:
                    outputs[f"gradient/{name}"] = sum(grad.asnumpy() for grad in grads)
        module.update()
        mx.nd.waitall()
        if step + 1 in request["steps"]:
            outputs.update(_state(module, names, step + 1))
    arrays = dict(zip(group.param_names, group.param_arrays))
    applied = dict(zip(names, zip(*_applied(module, names))))
    moved = [name for name in frozen if not np.array_equal(arrays[name][0].asnumpy(), start[name])]
    report = {"trained": names, "frozen": frozen, "frozen_moved": moved,
              "lr": {n: v[0] for n, v in applied.items()}, "wd": {n: v[1] for n, v in applied.items()},
              "momentum": optimizer.momentum, "rescale": optimizer.rescale_grad}
    if request.get("save"):
        save = importlib.import_module("lib.utils").SaveParams(module, request["save"], args.model)
        report["saved"] = save(0)
    return outputs, report


def _batch(inputs: Arrays, step: int) -> Any:
    return mx.io.DataBatch(data=[mx.nd.array(inputs[f"data{step}"])],
                           label=[mx.nd.array(inputs[f"label{step}"])])


def _logits_and_losses(module: Any, data: np.ndarray, label: np.ndarray, devices: int) -> Arrays:
    """Logits of both branches in training mode, and the gradients that the original's four loss
    operators give at them.
    """
    logits = mx.sym.Group([module.symbol[branch].get_children()[0] for branch in range(2)])
    shadow = mx.mod.Module(logits, data_names=("data",), label_names=None, context=module._context)
    shadow.bind(data_shapes=[("data", data.shape)], for_training=True)
    shadow.init_params(arg_params=module.get_params()[0], aux_params=module.get_params()[1], allow_extra=True)
    shadow.forward(mx.io.DataBatch(data=[mx.nd.array(data)]), is_train=True)
    own, cross = (output.asnumpy() for output in shadow.get_outputs())
    return {"logits/self": own, "logits/cross": cross,
            **{f"loss/{name}": gradient
               for name, gradient in _loss_gradients(own, cross, label, devices).items()}}


def losses(_: Dict[str, Any], inputs: Arrays) -> Answer:
    """Gradients of the loss operators at given logits ``self/NAME``, ``cross/NAME`` and
    ``label/NAME``, on one device.
    """
    importlib.import_module("lib.models")  # registers the operators
    names = [name[5:] for name in inputs if name.startswith("self/")]
    found = {name: _loss_gradients(inputs[f"self/{name}"], inputs[f"cross/{name}"], inputs[f"label/{name}"],
                                   1) for name in names}
    return {f"{loss}/{name}": gradient for name, gradients in found.items()
            for loss, gradient in gradients.items()}, {}


def _loss_gradients(own: np.ndarray, cross: np.ndarray, label: np.ndarray, devices: int) -> Arrays:
    """What the original's operators give at the logits of both branches, device by device, by the
    names of ``LOSSES``.
    """
    pieces: Dict[str, List[np.ndarray]] = {name: [] for name in LOSSES}
    for block in np.split(np.arange(len(own)), devices):
        target = mx.nd.array(cross[block])
        for name in LOSSES:
            branch = mx.nd.array((cross if name.endswith("cross") else own)[block])
            branch.attach_grad()
            with mx.autograd.record():
                if name.startswith("seed"):
                    loss = mx.nd.Custom(branch, mx.nd.array(label[block]), op_type="SegmentLoss")
                else:
                    loss = mx.nd.Custom(branch, target, mx.nd.array(label[block]), op_type="CompletionLoss")
            loss.backward()
            pieces[name].append(branch.grad.asnumpy())
    return {name: np.concatenate(piece) for name, piece in pieces.items()}


def _states(module: Any) -> Dict[Any, Any]:
    """Momentum arrays by the updater's own keys; on several devices the key-value store holds them."""
    return (module._kvstore if module._update_on_kvstore else module)._updater.states


def _keys(module: Any, names: List[str]) -> List[Any]:
    """The updater's key of each parameter: its name in the key-value store, its position otherwise."""
    if module._update_on_kvstore:
        return list(names)
    return [module._exec_group.param_names.index(name) for name in names]


def _applied(module: Any, names: List[str]) -> Tuple[List[float], List[float]]:
    """Learning rate and weight decay that the optimiser applies to each named parameter."""
    keys = _keys(module, names)
    return module._optimizer._get_lrs(keys), module._optimizer._get_wds(keys)


def _state(module: Any, names: List[str], step: int) -> Arrays:
    group, states = module._exec_group, _states(module)
    parameters = dict(zip(group.param_names, group.param_arrays))
    result = {f"param{step}/{name}": parameters[name][0].asnumpy() for name in names}
    for name, key in zip(names, _keys(module, names)):
        result[f"momentum{step}/{name}"] = states[key].asnumpy()
    for name, devices in zip(group.aux_names, group.aux_arrays):
        if name.startswith("bn_out"):
            result[f"statistics{step}/{name}"] = np.stack([array.asnumpy() for array in devices])
    return result


def run(request: Dict[str, Any], _: Arrays) -> Answer:
    """The original's whole ``run_training``; records the learning rate of every update, by the
    optimiser's own account.
    """
    script = importlib.import_module(f"scripts.{TRAIN_SCRIPT}")
    args = arguments(TRAIN_SCRIPT, request["argv"])
    args.data_list = args.data_list or args.train_list
    args.snapshot += "_retrain" if args.retrain else ""
    rates: List[Dict[str, float]] = []
    update = mx.mod.Module.update

    def record(module: Any) -> None:
        rates.append(dict(zip(request["watch"], _applied(module, request["watch"])[0])))
        update(module)
        mx.nd.waitall()

    np.random.seed(request["seed"])
    with mock.patch.object(mx.mod.Module, "update", record):
        script.run_training(args)
    state: Any = np.random.get_state()
    return {"random_state": state[1]}, {"rates": rates, "position": int(state[2])}


def infer(request: Dict[str, Any], _: Arrays) -> Answer:
    """The original's ``run_infer`` or ``generate_retrain_seeds``; records the logits that reach the
    CRF, a (C, H, W) array an image.
    """
    name = RETRAIN_SCRIPT if request["labels"] else TRAIN_SCRIPT
    script = importlib.import_module(f"scripts.{name}")
    args = arguments(name, request["argv"])
    args.data_list = args.data_list or args.test_list
    unary: List[np.ndarray] = []
    # its C++ part exists in this very class only, so it is wrapped, not derived from
    field = script.dcrf.DenseCRF2D

    class Recorded:
        def __init__(self, width: int, height: int, classes: int) -> None:
            self.field, self.height = field(width, height, classes), height

        def __getattr__(self, name: str) -> Any:
            return getattr(self.field, name)

        def setUnaryEnergy(self, energy: np.ndarray) -> None:
            unary.append(-energy.reshape(len(energy), self.height, -1))
            self.field.setUnaryEnergy(energy)

    with mock.patch.object(script.dcrf, "DenseCRF2D", Recorded):
        (script.generate_retrain_seeds if request["labels"] else script.run_infer)(args)
    return {f"logits{index}": logits for index, logits in enumerate(unary)}, {}


def load_batches(request: Dict[str, Any], _: Arrays) -> Answer:
    """Epochs of ``VOCSegGroupLoader`` from ``np.random.seed``: order, batches (unless
    ``order_only``), and the state afterwards.
    """
    loader_module = importlib.import_module("lib.loader.voc_seg_group_loader")
    patched = mock.patch.object(loader_module, "load_batch_semantic",
                                lambda *_: None) if request["order_only"] else contextlib.nullcontext()
    outputs: Arrays = {}
    with patched:
        np.random.seed(request["seed"])
        loader = loader_module.VOCSegGroupLoader(
            request["image_root"], request["label_root"], request["annotation_root"], request["list"],
            request["batch_size"], request["group_size"], request["devices"], request["crop_px"], pad=False,
            shuffle=True, rand_scale=True, rand_mirror=True, rand_crop=True, downsample=8)
        position = {path: index for index, path in enumerate(loader.image_src_list)}
        for epoch in range(request["epochs"]):
            loader.reset()
            order = []
            for step, batch in enumerate(loader):
                order.append([position[path] for path in loader.cache_image_src_list])
                if batch is not None:
                    outputs[f"data{epoch}/{step}"] = batch.data[0].asnumpy()
                    outputs[f"label{epoch}/{step}"] = batch.label[0].asnumpy()
            outputs[f"order{epoch}"] = np.array(order, dtype=np.int64).reshape(len(order),
                                                                               request["batch_size"])
    state: Any = np.random.get_state()
    outputs["random_state"] = state[1]
    return outputs, {"position": int(state[2]), "labels": loader.ann_list}


def evaluate(request: Dict[str, Any], _: Arrays) -> Answer:
    """The original's ``run_eval``; records the confusion matrix (rows: truth) on its way through
    ``np.diag``.
    """
    script = importlib.import_module("scripts.eval_segment")
    seen: List[np.ndarray] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def diag(self, matrix: np.ndarray) -> np.ndarray:
            seen.append(matrix.copy())
            return np.diag(matrix)

    class InTurn:
        def __init__(self, target: Callable[..., Any], args: Tuple[Any, ...]) -> None:
            self.start, self.join = (lambda: target(*args)), (lambda: None)

    printed: List[str] = []
    with mock.patch.object(script, "np", Recorder()), mock.patch.object(
            script, "print", printed.append, create=True), mock.patch.object(script.mp, "Process", InTurn):
        script.run_eval(request["list"], request["prediction_root"], request["mask_root"],
                        request["num_classes"])
    iou = np.diag(seen[0]) / np.maximum(seen[0].sum(axis=0) + seen[0].sum(axis=1) - np.diag(seen[0]), 1e-10)
    found = re.search(r"mIOU: (\S+)", printed[0])
    return {"confusion": seen[0], "iou": iou}, {"miou": float(found.group(1)) if found else None}


JOBS: Dict[str, Callable[[Dict[str, Any], Arrays], Answer]] = {
    "train": train, "losses": losses, "run": run, "infer": infer, "load": load_batches, "evaluate": evaluate}


@contextlib.contextmanager
def _checkout(folder: str, classes: Sequence[str]) -> Iterator[None]:
    """The working directory, import path and in-memory changes under which the original runs."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    with mock.patch.object(mx, "gpu", mx.cpu):
        if classes:
            importlib.import_module("lib.utils").VOC.categories = list(classes)
        yield


def main(checkout: str, folder: str) -> int:
    """Run the job in ``folder``; standard output is the original's own."""
    folder = os.path.abspath(folder)
    with open(os.path.join(folder, "request.json"), encoding="utf-8") as stream:
        request = json.load(stream)
    inputs: Arrays = {}
    if os.path.exists(os.path.join(folder, "inputs.npz")):
        with np.load(os.path.join(folder, "inputs.npz")) as archive:
            inputs = {name: archive[name] for name in archive.files}
    with _checkout(os.path.abspath(checkout), request.get("classes", ())):
        outputs, report = JOBS[request["kind"]](request, inputs)
    report["versions"] = {"cian": cian.__version__, "mxnet": mx.__version__, "numpy": np.__version__}
    np.savez(os.path.join(folder, "outputs.npz"), **outputs)
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as stream:
        json.dump(report, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
