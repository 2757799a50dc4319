"""Our side of the training steps: the same quantities under the same names as the original's
``train`` job gives.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import mxnet as mx
import numpy as np

from cian.symbols.cian import CIAN
from cian.symbols.losses import CIANLoss, CompletionLoss, SeedLoss
from cian.symbols.params import configure_training, load_params, save_params
from cian.tools.engine.config import TrainConfig
from cian.tools.engine.fidelity.inputs import condition, crops_of, labels_for, random_images
from cian.tools.engine.training.step import Trainer

Arrays = Dict[str, np.ndarray]
STEPS = (1, 3)
LOSSES = ("seed_self", "seed_cross", "completion_self", "completion_cross")
CONFIG = TrainConfig()


@dataclass(frozen=True)
class TrainCase:
    """Settings of one comparison of training steps.

    The learning rate is a tenth of the default: under random weights the default one overshoots,
    every pixel goes to one class within a step, and rounding grows a hundredfold with each further
    step. Cases at the default rate say so in their name.
    """

    model: str = "resnet50_largefov"
    num_classes: int = 21
    image_px: int = 65
    batch_size: int = 4
    group_size: int = 2
    merge_type: str = "max"
    devices: int = 1
    second_round: bool = False
    lr: float = 5e-5
    seed: int = 0

    @property
    def name(self) -> str:
        """As it is called in the table."""
        rate = "" if self.lr == TrainCase.lr else f" lr{self.lr:g}"
        return (f"{self.model.replace('_largefov', '')} {self.image_px}px {self.num_classes}cls "
                f"g{self.group_size} {self.merge_type} "
                f"{self.devices}dev r{2 if self.second_round else 1}{rate}")

    def network(self) -> CIAN:
        """Our network, without values."""
        return CIAN(self.model, self.num_classes, group_size=self.group_size, merge_type=self.merge_type)

    def argv(self, weights: str, snapshot: str) -> List[str]:
        """The original's command line; in a second round it finds its weights by the snapshot's name."""
        flags = {"--image-root": "-", "--annotation-root": "-", "--snapshot": snapshot, "--model": self.model,
                 "--pretrained": weights, "--batch-size": self.batch_size, "--image-size": self.image_px,
                 "--num-cls": self.num_classes, "--lr": self.lr, "--group_size": self.group_size,
                 "--merge-type": self.merge_type, "--gpus": ",".join(map(str, range(self.devices)))}
        return [str(part) for pair in flags.items() for part in pair] + (["--retrain"] if self.second_round
                                                                         else [])


def make_inputs(case: TrainCase, weights: str, photographs: Sequence[str] = ()) -> Arrays:
    """Batches ``data<k>``, ``label<k>`` for each step; writes the weights that both sides load, by
    our own writer.
    """
    network = case.network()
    batches = [crops_of(photographs, case.batch_size, case.image_px, case.seed + step) if photographs
               else random_images(case.batch_size, case.image_px, case.seed + step)
               for step in range(max(STEPS))]
    condition(network, batches[0], case.seed)
    save_params(network, weights)
    inputs: Arrays = {}
    for step, images in enumerate(batches):
        logits = network(mx.nd.array(images))[1].asnumpy()
        inputs[f"data{step}"], inputs[f"label{step}"] = images, labels_for(logits, case.seed + step)
    return inputs


def steps_of_ours(case: TrainCase, weights: str, inputs: Arrays) -> Tuple[Arrays, Dict[str, Any]]:
    """Our side of the original's ``train`` job: the same arrays under the same names, and the
    settings applied.
    """
    contexts = [mx.cpu(device) for device in range(case.devices)]
    network = case.network()
    load_params(network, weights, ctx=contexts)
    if not case.second_round:
        network.collect_params()["bn_out_gamma"].set_data(
            mx.nd.zeros(network.collect_params()["bn_out_gamma"].shape))
    configure_training(network, lr_mult_new=CONFIG.lr_mult_new, decay_beta=CONFIG.decay_beta)
    trainer = Trainer(network, CIANLoss(case.num_classes), contexts, CONFIG, reordered=False)
    result: Arrays = {}
    before = trainer.state_dict()["parameters"]
    for step in range(max(STEPS)):
        parts = split(inputs[f"data{step}"], inputs[f"label{step}"], case.num_classes, contexts)
        targets = [logits_in_training(network, part.data[0]) for part in parts]
        result[f"probability{step}"] = np.concatenate([mx.nd.softmax(mx.nd.array(cross), axis=1).asnumpy()
                                                       for _, cross in targets])
        if step == 0:
            result["logits/self"], result["logits/cross"] = (np.concatenate(branch)
                                                             for branch in zip(*targets))
        trainer.step(parts, case.lr, step)
        if step == 0:
            result.update({f"gradient/{name}": array.asnumpy()
                           for name, array in trainer.optimiser.gradients().items()})
        if step + 1 in STEPS:
            state = trainer.state_dict()
            trained = state["momentum"]
            result.update({f"param{step + 1}/{name}": state["parameters"][name] for name in trained})
            result.update({f"start/{name}": before[name] for name in trained})
            result.update({f"momentum{step + 1}/{name}": value for name, value in trained.items()})
            result.update(
                {f"statistics{step + 1}/{name}": np.stack([device[name] for device in state["moving"]])
                 for name in state["moving"][0] if name.startswith("bn_out")})
    after = trainer.state_dict()
    moved = [name for name in before if name not in after["momentum"]
             and not np.array_equal(before[name], after["parameters"][name])]
    return result, {**applied(trainer), "frozen": sorted(set(before) - set(after["momentum"])),
                    "frozen_moved": moved}


def split(images: np.ndarray, labels: np.ndarray, num_classes: int,
          contexts: Sequence[mx.Context]) -> List[mx.io.DataBatch]:
    """Each device's block of a batch; image-level labels are all ones, since the original's losses
    do not see any.
    """
    everything = np.ones((len(images), num_classes), np.float32)
    blocks = zip(*(np.split(array, len(contexts)) for array in (images, labels, everything)))
    return [mx.io.DataBatch(data=[mx.nd.array(data, ctx=context)],
                            label=[mx.nd.array(seeds, ctx=context), mx.nd.array(present, ctx=context)])
            for context, (data, seeds, present) in zip(contexts, blocks)]


def logits_in_training(network: CIAN, images: mx.nd.NDArray) -> List[np.ndarray]:
    """Logits with the batch's statistics in ``bn_out``; without a backward pass nothing changes."""
    with mx.autograd.train_mode():
        return [logits.asnumpy() for logits in network(images)]


def applied(trainer: Trainer) -> Dict[str, Any]:
    """Learning rate and decay of each trained parameter by the optimiser's own account, its
    momentum and its scale.
    """
    optimiser = trainer.optimiser
    inner = optimiser.optimizer
    trained = [(index, param.name)
               for index, param in enumerate(optimiser._params) if param.grad_req != "null"]
    indices = [index for index, _ in trained]
    return {"lr": dict(zip([name for _, name in trained], inner._get_lrs(indices))),
            "wd": dict(zip([name for _, name in trained], inner._get_wds(indices))),
            "momentum": inner.momentum, "rescale": inner.rescale_grad}


def prefixed(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays called ``prefix/NAME``, by NAME."""
    return {name[len(prefix) + 1:]: array for name, array in arrays.items() if name.startswith(prefix + "/")}


def loss_gradients(own: np.ndarray, cross: np.ndarray, labels: np.ndarray, devices: int) -> Arrays:
    """Gradients of our four losses at given logits, device by device, by the names of ``LOSSES``."""
    classes = own.shape[1]
    losses: Dict[str, Any] = {"seed": SeedLoss(classes), "completion": CompletionLoss(classes)}
    pieces: Dict[str, List[np.ndarray]] = {name: [] for name in LOSSES}
    for block in np.split(np.arange(len(own)), devices):
        seeds, target, present = mx.nd.array(labels[block]), mx.nd.array(cross[block]), mx.nd.ones(
            (len(block), classes))
        for name in LOSSES:
            kind, branch = name.split("_")
            logits = mx.nd.array((own if branch == "self" else cross)[block])
            logits.attach_grad()
            with mx.autograd.record():
                value = losses[kind](logits, seeds) if kind == "seed" else losses[kind](logits, target, seeds,
                                                                                        present)
            value.backward()
            pieces[name].append(logits.grad.asnumpy())
    return {name: np.concatenate(piece) for name, piece in pieces.items()}
