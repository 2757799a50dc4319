"""Whole rounds by the command lines of both sides: training, prediction with CRF, labels for the
second round, the second round.
"""
from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Dict, List, Sequence, Tuple

import cv2
import mxnet as mx
import numpy as np

from cian.data.classes import ClassTable, read_label_png
from cian.data.provenance import PREDICTIONS
from cian.errors import InputError
from cian.files import write_json
from cian.symbols.cian import CIAN
from cian.symbols.params import save_params
from cian.symbols.params_file import read_params, write_params
from cian.tools.engine.config import PredictConfig, TrainConfig
from cian.tools.engine.fidelity.inputs import Arrays, condition, crops_of, nearly
from cian.tools.engine.fidelity.process import Original
from cian.tools.engine.fidelity.table import (
    GRADIENTS,
    IDENTICAL,
    LOGITS,
    Row,
    differing,
    loosened,
    rms_error,
    worst,
)
from cian.tools.engine.prediction.crf import CRF_PRESETS, dense_crf
from cian.tools.engine.prediction.predictor import load_predictors
from cian.tools.engine.training.step import learning_rate

CROP_PX = 65
LR = 5e-5  # see train_checks.TrainCase
EPOCHS, BATCH, TRAINED = 2, 4, 12  # TRAINED: images of the first round
# side to which images are warped for labels of the second round (the original's own is 513); not 8n+1
WARP_PX = 124
MEASURED = 2  # images whose logits are compared; label maps are compared of all
WATCHED = ["conv0_weight", "fc1_weight", "bn_out_beta"]


class Rounds:
    """Both sides' two rounds on one data set, in folders below ``original.work``.

    Parameters
    ----------
    name : of the rows, and of a folder.
    tree : of :func:`~cian.tools.engine.fidelity.inputs.data_files`.
    classes : names without the background.
    tested : how many images of the list are predicted as at test.
    predicted : how many get labels, and are trained on in the second round.
    size_px : side of the square at test (the original's own is 513); the original cuts larger
        images, and 0 is the largest side of these.
    """

    def __init__(self, original: Original, name: str, tree: Dict[str, Any], classes: Sequence[str],
                 model: str, *, seed: int, tested: int, predicted: int, size_px: int) -> None:
        self.original, self.tree, self.classes, self.model, self.seed = original, tree, list(
            classes), model, seed
        self.name, self.job = name, name.replace(" ", "_")
        self.folder = os.path.join(original.work, self.job)
        # groups need a common class
        common = tree["labels"][:, 1 + int(tree["labels"][:, 1:].sum(axis=0).argmax())]
        self.predicted = [entry for entry, has in zip(tree["names"], common) if has][:predicted]
        self.tested = self.predicted[:tested]
        self.size_px = size_px or max(max(cv2.imread(self.image_path(entry)).shape[:2])
                                      for entry in self.tested)
        self.trained = [*self.predicted,
                        *(entry for entry in tree["names"] if entry not in self.predicted)][:TRAINED]
        self.files: Dict[str, str] = {}

    def image_path(self, name: str) -> str:
        """File of an image."""
        return os.path.join(self.tree["image_root"], f"{name}.jpg")

    def write_lists(self) -> None:
        """The class table of ours, the lists of both rounds."""
        os.makedirs(self.folder)
        for key, lines in (("classes", ["background", *self.classes]), ("trained", self.trained),
                           ("predicted", self.predicted), ("tested", self.tested)):
            self.files[key] = os.path.join(self.folder, f"{key}.txt")
            with open(self.files[key], "w", encoding="utf-8") as stream:
                stream.write("\n".join(lines) + "\n")

    def check(self) -> List[Row]:
        """All rows."""
        self.write_lists()
        weights = os.path.join(self.folder, "start.params")
        network = CIAN(self.model, len(self.classes) + 1)
        condition(network, crops_of([self.image_path(name) for name in self.trained], BATCH, CROP_PX,
                                    self.seed), self.seed)
        save_params(network, weights)
        theirs, ours = (os.path.join(self.folder, side, self.model) for side in ("original", "ours"))
        rows = self.check_round(1, theirs, ours, weights)
        checkpoint = os.path.join(theirs, f"{self.model}-{EPOCHS - 1:04d}.params")
        rows += self.check_prediction(theirs, checkpoint, labels=False)
        rows += self.check_prediction(theirs, checkpoint, labels=True)
        return rows + self.check_round(2, theirs, ours, checkpoint)

    def check_round(self, number: int, theirs: str, ours: str, start: str) -> List[Row]:
        """Train a round on both sides, from the file ``start``; the second one on the original's labels."""
        labels = self.tree["label_root"] if number == 1 else os.path.join(theirs, "train_aug_pred_crf")
        listed = self.files["trained" if number == 1 else "predicted"]
        argv = self.argv({"--label-root": labels, "--data-list": listed, "--batch-size": BATCH,
                          "--image-size": CROP_PX, "--lr": LR, "--num-epoch": EPOCHS})
        second = ["--retrain"] if number == 2 else ["--pretrained", start]
        answer = self.original.run(f"{self.job}/round{number}",
                                   {"kind": "run", "classes": self.classes, "seed": self.seed,
                                    "watch": WATCHED, "argv": [*argv, "--snapshot", theirs, *second]})
        before = {**read_params(start)[0]}
        if number == 1:
            before["bn_out_gamma"] = np.zeros_like(before["bn_out_gamma"])
        expected = self._result(theirs, number, before)
        if number == 2:  # the original does not say that these are predictions, which may be background alone
            write_json(os.path.join(labels, PREDICTIONS), {"classes": ["background", *self.classes]})
        found = self._train(argv, ours, number, start, before)
        case, note = (f"{self.name} round {number}",
                      f"{len(answer.report['rates'])} steps by both command lines")
        rows = [Row(case, f"{kind} after {EPOCHS} epochs", *_noted(worst(*sides), note))
                for kind, sides in zip(("updates", "statistics"), zip(found, expected))]
        if any(row.verdict == "FAIL" for row in rows):
            moved = self._train(argv, f"{ours}_moved", number, self._moved(start), before)
            rows = [loosened(row, worst(*sides)[0], "weights") for row, sides in zip(rows, zip(moved, found))]
        return [self._schedule(case, answer.report["rates"]), *rows]

    def _train(self, argv: Sequence[str], snapshot: str, number: int, start: str,
               before: Arrays) -> Tuple[Arrays, Arrays]:
        """Our round by our command line: updates and statistics."""
        flags = ["--retrain", "--start", start] if number == 2 else ["--pretrained", start]
        self.ours("train", [*argv, "--snapshot", snapshot, *flags, "--classes", self.files["classes"],
                            "--seed", str(self.seed), "run.sums=original"])
        return self._result(snapshot, number, before)

    def _result(self, snapshot: str, number: int, before: Arrays) -> Tuple[Arrays, Arrays]:
        """What a round changed of the parameters ``before`` it, and its moving statistics."""
        folder = snapshot + ("_retrain" if number == 2 else "")
        after, statistics = read_params(os.path.join(folder, f"{self.model}-{EPOCHS - 1:04d}.params"))
        return {name: value - before[name] for name, value in after.items()}, statistics

    def _moved(self, start: str) -> str:
        """The start with its weights changed by as much as rounding: another file."""
        arrays, statistics = read_params(start)
        folder, random = f"{os.path.dirname(start)}_moved", np.random.RandomState(self.seed)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, os.path.basename(start))
        write_params(path, {name: nearly(value, random) for name, value in arrays.items()}, statistics)
        return path

    @staticmethod
    def _schedule(case: str, rates: List[Dict[str, float]]) -> Row:
        """The learning rate of every step that the original made, against our schedule."""
        settings, batches = TrainConfig(lr=LR, epochs=EPOCHS), len(rates) // EPOCHS
        wrong = 0
        for step, found in enumerate(rates):
            rate = learning_rate(settings, step // batches, step % batches, batches)
            wanted = dict(zip(WATCHED, (rate, rate * settings.lr_mult_new, rate * settings.lr_mult_new)))
            wrong += sum(abs(found[name] / wanted[name] - 1) > 1e-12 for name in WATCHED)
        return Row(case, "learning rates applied", float(wrong), IDENTICAL,
                   f"{len(rates)} steps, of conv0, fc1 and bn_out")

    def check_prediction(self, snapshot: str, checkpoint: str, *, labels: bool) -> List[Row]:
        """Logits and label maps of the original's checkpoint: at test, or as labels for the second
        round (warped, ten iterations).
        """
        folders = ("train_aug_pred", "train_aug_pred_crf") if labels else ("pred", "pred_crf")
        listed, size_px = ("predicted", WARP_PX) if labels else ("tested", self.size_px)
        argv = self.argv({"--data-list": self.files[listed], "--image-size": size_px})
        answer = self.original.run(f"{self.job}/{folders[0]}", {
            "kind": "infer", "classes": self.classes, "labels": labels,
            "argv": [*argv, "--snapshot", snapshot, "--num-epoch", str(EPOCHS)]})
        out = os.path.join(self.folder, "predictions")
        flags = ["--retrain-labels", "--train-list", self.files["predicted"]] if labels else []
        self.ours("predict", [*argv, "--checkpoint", checkpoint, "--out", out, "--classes",
                              self.files["classes"], "--quiet", "predict.engine=mxnet", *flags])
        settings = PredictConfig(fit="warp" if labels else "pad", size_px=size_px, engine="mxnet")
        predictor = load_predictors(checkpoint, settings, [mx.cpu()], model=self.model,
                                    classes=ClassTable(["background", *self.classes]))[0][0]
        logits, crf, maps, pixels = 0.0, 0.0, [0.0, 0.0], 0
        names = self.predicted if labels else self.tested
        for index, name in enumerate(names):
            image = cv2.imread(self.image_path(name))[..., ::-1].copy()
            expected = answer.arrays[f"logits{index}"]
            if index < MEASURED:
                logits = max(logits, rms_error(predictor.logits(image), expected))
            refined = dense_crf(expected, image, CRF_PRESETS["retrain" if labels else "test"]).argmax(axis=0)
            theirs = [read_label_png(os.path.join(snapshot, folder, f"{name}.png")) for folder in folders]
            crf += differing(refined, theirs[1])
            for kind, folder in enumerate(folders):
                maps[kind] += differing(read_label_png(os.path.join(out, folder, f"{name}.png")),
                                        theirs[kind])
            pixels += image[..., 0].size
        case, note = f"{self.name} {'labels' if labels else 'test'}", f"{len(names)} images, {pixels} pixels"
        return [Row(case, "multi-scale logits", logits, LOGITS,
                    f"{min(len(names), MEASURED)} images in a square of {size_px}"),
                Row(case, "CRF labels from the same logits", crf, IDENTICAL, note),
                Row(case, "labels by both command lines", maps[0], IDENTICAL, note),
                Row(case, "CRF labels by both command lines", maps[1], IDENTICAL, note)]

    def argv(self, flags: Dict[str, Any]) -> List[str]:
        """The command line that both sides understand."""
        common = {"--image-root": self.tree["image_root"], "--annotation-root": self.tree["annotation_root"],
                  "--model": self.model, "--num-cls": len(self.classes) + 1, **flags}
        return [str(part) for pair in common.items() for part in pair]

    def ours(self, tool: str, argv: Sequence[str]) -> None:
        """Run one of our tools in a process of its own, as a user does.

        Raises
        ------
        InputError
            When it fails, with its last line.
        """
        command = [sys.executable, "-m", f"cian.tools.{tool}", *argv, "--workers", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            lines: Tuple[str, ...] = tuple(line for line in done.stderr.splitlines()
                                           if line.strip()) or ("it printed nothing",)
            raise InputError(f"our tools/{tool}.py ended with code {done.returncode}: {lines[-1]}",
                             file=self.folder)


def check_rounds(original: Original, name: str, tree: Dict[str, Any], classes: Sequence[str], model: str,
                 **sizes: int) -> List[Row]:
    """All rows of :class:`Rounds` with these values."""
    return Rounds(original, name, tree, classes, model, **sizes).check()


def _noted(measured: Tuple[float, str], note: str) -> Tuple[float, float, str]:
    """Error, tolerance and note of a row."""
    return measured[0], GRADIENTS, f"{note}; {measured[1]}"
