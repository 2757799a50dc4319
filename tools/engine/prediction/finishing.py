"""What is computed from an image's logits beside the network, and the processes that do it.

They import no MXNet and none of what reads and writes pictures, so that each takes little more
memory than its image needs.
"""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Optional, Tuple

import numpy as np
import threadpoolctl

from cian.choices import IGNORE
from cian.errors import InputError
from cian.processes import end_with_parent
from cian.tools.engine.fitting import Fit
from cian.tools.engine.prediction.crf import CRFPreset, DenseCRF


@dataclass(frozen=True)
class Task:
    """One image on its way from the network to its files.

    Attributes
    ----------
    name : the image's name, without folder and suffix.
    image : (H, W, 3) uint8 RGB.
    coarse : (C, h, w) float32 logits as the network leaves them.
    fit : how the image was brought to the network.
    allowed : classes that a pixel may take, with background; None is all.
    crf : parameters of the CRF; None is without.
    probabilities : return the class probabilities too.
    """

    name: str
    image: np.ndarray
    coarse: np.ndarray
    fit: Fit
    allowed: Optional[Tuple[int, ...]] = None
    crf: Optional[CRFPreset] = None
    probabilities: bool = False


@dataclass(frozen=True)
class Finished:
    """Label maps (H, W) uint8 without and with CRF, and class probabilities (C, H, W) float32 of
    the last step.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    labels_crf: Optional[np.ndarray] = None
    probabilities: Optional[np.ndarray] = None

    @property
    def best(self) -> np.ndarray:
        """The label map with CRF where there is one."""
        return self.labels if self.labels_crf is None else self.labels_crf


def prepare_worker() -> None:
    """Make this process one of several that finish images beside the network, which has precedence
    at the cores.

    Matrix products keep to one thread: several would wait for cores a hundred times as long as the
    small products of :meth:`Fit.enlarge` take. The process ends with the one that it works for
    (:func:`~cian.processes.end_with_parent`).
    """
    os.nice(10)
    threadpoolctl.threadpool_limits(1)
    end_with_parent()


def finish(task: Task) -> Finished:
    """Enlarge the logits, choose labels, and refine them by the CRF; classes that are not allowed
    take no part in either.

    Raises
    ------
    InputError
        For logits that are not finite, naming the image.
    """
    allowed = np.arange(len(task.coarse)) if task.allowed is None else np.asarray(task.allowed)
    coarse = task.coarse[allowed]
    if not np.isfinite(coarse).all():
        raise InputError("the network's logits are not finite", field=task.name,
                         remedy="its training may have diverged")
    values = task.fit.enlarge(coarse)  # logits, and after the CRF probabilities
    result = Finished(task.name, task.image, allowed[values.argmax(axis=0)].astype(np.uint8))
    if task.crf is not None:
        field = DenseCRF(values, task.image, task.crf)
        del values  # the field has its own copy, and inference takes the most memory
        values = field.infer()
        refined = allowed[values.argmax(axis=0)].astype(np.uint8)
        if task.crf.agreed:
            refined[refined != result.labels] = IGNORE
        result = replace(result, labels_crf=refined)
    if task.probabilities:
        probabilities = np.zeros((len(task.coarse), *task.image.shape[:2]), np.float32)
        probabilities[allowed] = softmax(values) if task.crf is None else values
        result = replace(result, probabilities=probabilities)
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis."""
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)
