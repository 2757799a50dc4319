"""The network, its losses and its optimiser on both sides: logits, gradients, and what is left
after steps of SGD.
"""
from __future__ import annotations

import math
import os
import pickle
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from cian.symbols.params import AUXILIARY, load_params
from cian.tools.engine.fidelity.inputs import nearly
from cian.tools.engine.fidelity.ours import (
    LOSSES,
    STEPS,
    Arrays,
    TrainCase,
    loss_gradients,
    make_inputs,
    prefixed,
    steps_of_ours,
)
from cian.tools.engine.fidelity.process import Answer, Original
from cian.tools.engine.fidelity.table import (
    GRADIENTS,
    IDENTICAL,
    LOGITS,
    LOSS_GRADIENTS,
    PROBABILITIES,
    Row,
    differing,
    l2_error,
    loosened,
    rms_error,
    worst,
)
from cian.tools.engine.models.optimiser_states import module_order, read_momentum, write_momentum


def check_training(original: Original, case: TrainCase, photographs: Sequence[str] = ()) -> List[Row]:
    """All rows of one case. With ``photographs`` (paths) the images are theirs."""
    name = case.name + (" photographs" if photographs else "")
    folder = os.path.join(original.work, f"train_{name.replace(' ', '_')}")
    snapshot = os.path.join(folder, "snapshot")
    os.makedirs(snapshot)
    weights = os.path.join(snapshot, f"{case.model}-0019.params")
    inputs = make_inputs(case, weights, photographs)
    theirs = original.run(os.path.join(os.path.basename(folder), "job"), {
        "kind": "train", "argv": case.argv(weights, snapshot), "steps": STEPS, "save": folder}, inputs)
    ours, facts = steps_of_ours(case, weights, inputs)
    losses = loss_gradients(theirs.arrays["logits/self"], theirs.arrays["logits/cross"], inputs["label0"],
                            case.devices)
    rows = compare_names(name, theirs) + compare_settings(name, facts, theirs.report)
    rows += compare_losses(name, losses, theirs.prefixed("loss")) + compare_logits(name, ours, theirs.arrays)
    rows += explain(compare_steps(name, ours, theirs.arrays), case, weights, inputs, ours)
    return rows + check_checkpoints(name, case, theirs, folder)


def compare_names(name: str, theirs: Answer) -> List[Row]:
    """The original's own report on the file that we wrote: parameters missing, extra or of another shape."""
    found = [line for line in theirs.log
             if any(f"Find {kind}" in line for kind in ("extra", "missing", "mismatch"))]
    return [Row(name, "original loads our .params", len(found), IDENTICAL,
                found[0] if found else "no name missing, extra or mismatched")]


def compare_settings(name: str, ours: Dict[str, Any], theirs: Dict[str, Any]) -> List[Row]:
    """Learning rates, decay, momentum, scale of gradients, the frozen set."""
    return [Row(name, "learning rate of each parameter", differing(ours["lr"], theirs["lr"]), IDENTICAL,
                f"{len(theirs['lr'])} parameters"),
            Row(name, "weight decay of each parameter", differing(ours["wd"], theirs["wd"]), IDENTICAL),
            Row(name, "momentum and gradient scale", differing(
        [ours["momentum"], ours["rescale"]], [theirs["momentum"], theirs["rescale"]]), IDENTICAL),
            Row(name, "frozen parameters", float(len(set(ours["frozen"]) ^ set(theirs["frozen"]))
                                                 + len(ours["frozen_moved"]) + len(theirs["frozen_moved"])),
                IDENTICAL, f"{len(theirs['frozen'])} on both sides")]


def compare_losses(name: str, ours: Arrays, theirs: Arrays) -> List[Row]:
    """Gradients of the four losses at the original's logits."""
    return [Row(name, f"gradient of the {loss.replace('_', ' loss, ')}", l2_error(ours[loss], theirs[loss]),
                LOSS_GRADIENTS) for loss in LOSSES]


def compare_logits(name: str, ours: Arrays, theirs: Arrays) -> List[Row]:
    """Logits of both branches in training mode, before the first step."""
    return [Row(name, f"logits {branch}", rms_error(ours[f"logits/{branch}"], theirs[f"logits/{branch}"]),
                LOGITS) for branch in ("self", "cross")]


def compare_steps(name: str, ours: Arrays, theirs: Arrays) -> List[Row]:
    """Probabilities of the cross branch in every step; gradients of the first step; updates,
    momentum and statistics after steps.

    Rows are not compared once a pixel of the completion target (an argmax) differs in a step that
    they depend on. That the pixel was near a tie is what the probabilities tell: they are compared
    up to and including the step in which a pixel flips first.
    """
    probabilities = [(ours[f"probability{step}"], theirs[f"probability{step}"]) for step in range(max(STEPS))]
    flips = [int(differing(found.argmax(axis=1), expected.argmax(axis=1)))
             for found, expected in probabilities]
    last = next((step for step, flipped in enumerate(flips) if flipped), len(flips) - 1)
    apart = max(float(np.abs(found - expected).max()) for found, expected in probabilities[:last + 1])
    start = prefixed(ours, "start")
    rows = [Row(name, "probabilities of the cross branch", apart, PROBABILITIES,
                f"in {last + 1} steps, {sum(flips)} pixels flipped")]
    for quantity, key, steps in (("gradients", "gradient", 1), *(
            (f"{text} after {step} step{'s' if step > 1 else ''}", f"{key}{step}", step) for step in STEPS
            for text, key in (("updates", "param"), ("momentum", "momentum"), ("statistics", "statistics")))):
        sides = [prefixed(side, key) for side in (ours, theirs)]
        if key.startswith("param"):
            sides = [{parameter: value - start[parameter] for parameter, value in side.items()}
                     for side in sides]
        error, note = worst(*sides)
        flipped = sum(flips[:steps])
        rows.append(Row(name, quantity, error, GRADIENTS, f"{flipped} pixels of the completion target flipped"
                        if flipped else note, not flipped))
    return rows


def explain(rows: List[Row], case: TrainCase, weights: str, inputs: Arrays, ours: Arrays) -> List[Row]:
    """Loosen the tolerance of a miss after several steps by what our own steps make of a change of
    images as small as rounding.

    The first step is never loosened: both sides start it from identical numbers.
    """
    if not any(row.verdict == "FAIL" and f"{max(STEPS)} steps" in row.quantity for row in rows):
        return rows
    moved, _ = steps_of_ours(case, weights,
                             {**inputs, "data0": nearly(inputs["data0"], np.random.RandomState(case.seed))})
    spreads = {row.quantity: row.error for row in compare_steps("", moved, ours)}
    return [loosened(row, spreads[row.quantity], "images") if f"{max(STEPS)} steps" in row.quantity else row
            for row in rows]


def check_losses(original: Original, seed: int, name: str = "losses") -> List[Row]:
    """The four losses at random logits: labels out of range, of another size, none at all, and no
    agreeing pixel.
    """
    random = np.random.RandomState(seed)
    shapes = {"plain": (3, 5, 7, 11), "labels of another size": (2, 21, 13, 13), "no label": (2, 4, 5, 5),
              "one image unlabelled": (3, 6, 8, 8)}
    inputs: Arrays = {}
    for key, shape in shapes.items():
        inputs[f"self/{key}"], inputs[f"cross/{key}"] = random.normal(0, 2, (2, *shape)).astype(np.float32)
        side = (9, 9) if key == "labels of another size" else shape[2:]
        label = random.choice([*range(shape[1]), 255, 255, shape[1] + 1],
                              (shape[0], *side)).astype(np.float32)
        label[{"no label": slice(None), "one image unlabelled": slice(1)}.get(key, slice(0))] = 255
        inputs[f"label/{key}"] = label
    theirs = original.run(name, {"kind": "losses"}, inputs)
    rows = []
    for key in shapes:
        ours = loss_gradients(inputs[f"self/{key}"], inputs[f"cross/{key}"], inputs[f"label/{key}"], 1)
        for kind in ("seed", "completion"):
            expected = [theirs.arrays[f"{kind}_{branch}/{key}"] for branch in ("self", "cross")]
            found = [ours[f"{kind}_{branch}"] for branch in ("self", "cross")]
            defined = bool(np.isfinite(expected).all())
            zero = not np.any(found)
            rows.append(Row(name, f"gradient of the {kind} loss, {key}", max(map(l2_error, found, expected)),
                            LOSS_GRADIENTS, "" if defined
                            else f"the original's is not a number, ours is {'zero' if zero else 'NOT ZERO'}",
                            defined or not zero))
    return rows


def check_checkpoints(name: str, case: TrainCase, theirs: Answer, folder: str) -> List[Row]:
    """The original's checkpoint after the last step, loaded by us: names, values, and the mean over
    devices of statistics.
    """
    network = case.network()
    report = load_params(network, theirs.report["saved"][0])
    loaded = {key: parameter.data().asnumpy() for key, parameter in network.collect_params().items()}
    wanted = {**theirs.prefixed(f"param{max(STEPS)}"),
              **{key: value.mean(axis=0)
                 for key, value in theirs.prefixed(f"statistics{max(STEPS)}").items()}}
    error, _ = worst({key: loaded[key] for key in wanted}, wanted)
    lonely = len(report.missing) + len(report.extra) + len(report.mismatched)
    auxiliary = sum(key.endswith(AUXILIARY) for key in loaded)
    parameters, states = theirs.report["saved"]
    momentum, expected = read_momentum(states, parameters), theirs.prefixed(f"momentum{max(STEPS)}")
    different = sum(differing(momentum[key], expected[key])
                    for key in expected) if set(momentum) == set(expected) else math.inf
    written = os.path.join(folder, "ours.states")
    write_momentum(written, module_order(network), momentum, devices=case.devices)
    return [Row(name, "we load the original's .params", lonely, IDENTICAL,
                f"{len(loaded) - auxiliary} parameters, {auxiliary} statistics"),
            Row(name, "values of that checkpoint", error, 1e-6,
                "the mean over devices is rounded" if case.devices > 1 else ""),
            Row(name, "momentum in its .states", different, IDENTICAL, f"{len(expected)} parameters"),
            Row(name, "our .states against its own", *_differing_states(written, states))]


def _differing_states(ours: str, original: str) -> Tuple[float, float, str]:
    """Error, tolerance and note: how many entries of our file are not those of the original's, as
    MXNet's Module itself reads them.
    """
    contents = []
    for path in (ours, original):
        with open(path, "rb") as stream:
            contents.append(pickle.load(stream))  # both were written a moment ago
    found, expected = ({key: value.asnumpy() for key, value in content.items() if value is not None}
                       for content in contents)
    wrong = len(set(found) ^ set(expected)) + sum(differing(found[key], expected[key])
                                                  for key in set(found) & set(expected))
    by = "name" if isinstance(next(iter(expected)), str) else "position"
    return float(wrong), IDENTICAL, f"{len(expected)} momentum arrays by {by}"
