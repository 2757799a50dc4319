"""Losses of the paper (Eq. 6-9) as native, differentiable operators with values.

Every loss is the **sum** over the images of a device's batch of one image's loss, so that
``loss.backward()`` followed by a step that divides by the whole batch (Gluon's
``Trainer.step(batch_size)``) does what the original code does. A loss in which no pixel takes part
is 0, with gradient 0. Classes are C with the background; labels outside of 0..C-1 (such as IGNORE)
take no part.
"""
from __future__ import annotations

from typing import Any, List, Tuple

from mxnet.gluon import HybridBlock

from cian.choices import COMPLETION_LABELS, COMPLETION_TARGETS, NORMALISATIONS
from cian.errors import InputError


def _check(field: str, value: str, allowed: Tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{value!r} is not allowed", field=field, remedy=f"use one of: {', '.join(allowed)}")


def _one_hot(F: Any, labels: Any, num_classes: int) -> Any:
    """(N, H, W) class indices to (N, C, H, W); an index out of range gives zeros."""
    return F.transpose(F.one_hot(labels, depth=num_classes), axes=(0, 3, 1, 2))


def _cross_entropy(F: Any, logits: Any, target: Any, normalise: str) -> Any:
    """Sum over images of the mean cross entropy over the pixels of ``target``, one-hot or zero, (N,
    C, H, W) -> (1,).

    'device' divides every image by the mean number of those pixels over the batch, 'image' by its
    own. The gradient is computed as the original code does, (p - y) mask / pixels, and not by
    differentiating the value: the same up to the last bit, which training enlarges.
    """
    target = F.BlockGrad(target)
    mask = F.sum(target, axis=1, keepdims=True)
    pixels = F.sum(mask, axis=(1, 2, 3), keepdims=True)  # (N, 1, 1, 1)
    if normalise == "device":
        pixels = F.mean(pixels, axis=0, keepdims=True)
    pixels = F.maximum(pixels, 1e-5)
    value = F.BlockGrad(_total(F, F.broadcast_div(-F.log_softmax(logits, axis=1) * target, pixels)))
    gradient = F.BlockGrad(F.broadcast_div(F.broadcast_mul(F.softmax(logits, axis=1) - target, mask), pixels))
    slope = _total(F, gradient * logits)
    return value + (slope - F.BlockGrad(slope))


def _total(F: Any, x: Any) -> Any:
    """Sum of (N, C, H, W) over everything, (1,)."""
    return F.sum(F.sum(x, axis=(1, 2, 3)), axis=0, keepdims=True)


class SeedLoss(HybridBlock):
    """Cross entropy on the seeds, Eq. 6.

    Parameters
    ----------
    num_classes : int
    normalise : 'device' (original code: mean number of labelled pixels over the device's batch) or
        'image' (the equation: its own)

    Inputs: logits (N, C, H, W); labels (N, h, w) of class indices. Labels of another size than the
    logits are resized as one-hot maps, bilinearly, and kept where the largest is above 0.5. Output:
    (1,).
    """

    def __init__(self, num_classes: int, normalise: str = "device") -> None:
        super().__init__(prefix="")
        _check("normalise", normalise, NORMALISATIONS)
        self._num_classes, self._normalise = num_classes, normalise

    def target(self, F: Any, logits: Any, seed_label: Any) -> Any:
        """The seeds as one-hot maps of the size of the logits, (N, C, H, W)."""
        label = F.contrib.BilinearResize2D(_one_hot(F, seed_label, self._num_classes), F.BlockGrad(logits),
                                           mode="like")
        return F.broadcast_mul(_one_hot(F, F.argmax(label, axis=1), self._num_classes),
                               F.max(label, axis=1, keepdims=True) > 0.5)

    def hybrid_forward(self, F: Any, logits: Any, seed_label: Any) -> Any:
        return _cross_entropy(F, logits, self.target(F, logits, seed_label), self._normalise)


class CompletionLoss(HybridBlock):
    """Cross entropy on the network's own prediction where the image may hold that class, Eq. 7 and 8.

    Parameters
    ----------
    num_classes : int
    labels : 'seed' (original code: classes that occur in the image's cropped, downsampled seed) or
        'image' (Eq. 7)
    normalise : as for :class:`SeedLoss`

    Inputs: logits (N, C, H, W); target_logits (N, C, H, W), whose argmax is the target, no
    gradient; seed labels (N, h, w); with labels='image' also the image labels (N, C), 0 or 1, with
    the background's 1. Output: (1,).
    """

    def __init__(self, num_classes: int, labels: str = "seed", normalise: str = "device") -> None:
        super().__init__(prefix="")
        _check("completion_labels", labels, COMPLETION_LABELS)
        _check("normalise", normalise, NORMALISATIONS)
        self._num_classes, self._labels, self._normalise = num_classes, labels, normalise

    def target(self, F: Any, target_logits: Any, seed_label: Any, image_labels: Any) -> Any:
        """Eq. 7 as one-hot maps, zero where the prediction is none of the image's classes, (N, C, H, W)."""
        predicted = _one_hot(F, F.argmax(F.BlockGrad(target_logits), axis=1), self._num_classes)
        if self._labels == "seed":
            image_labels = F.max(_one_hot(F, seed_label, self._num_classes), axis=(2, 3))  # (N, C)
        return F.broadcast_mul(predicted, F.expand_dims(F.expand_dims(image_labels, axis=2), axis=3))

    def hybrid_forward(self, F: Any, logits: Any, target_logits: Any, seed_label: Any,
                       image_labels: Any = None) -> Any:
        return _cross_entropy(F, logits, self.target(F, target_logits, seed_label, image_labels),
                              self._normalise)


class CIANLoss(HybridBlock):
    """The overall loss, Eq. 9: seed and completion loss of every branch, each of weight 1.

    Parameters
    ----------
    num_classes : int
    affinity : 'none', 'self' or 'cross'
        Of the network; without 'cross' there is one branch.
    completion : bool
        Add the completion losses.
    completion_labels, normalise : see :class:`CompletionLoss`
    completion_target : 'cross' (original code: the cross branch teaches both) or 'own' (Eq. 7-9:
        each branch its own)

    Inputs: the network's list of logits; seed labels (N, h, w); image labels (N, C). Outputs: the
    total (1,), and the values named by ``PARTS``, (8,), without gradient: four losses (sums over
    images; absent ones are 0) and four numbers of pixels.

    Raises
    ------
    InputError
        For an unknown setting, and for a completion target 'cross' of a network without cross-image affinity.
    """

    #: What the second output holds: losses of the branches; pixels with a seed label; those of them
    #: that the target branch predicts so; pixels in the completion loss (of the cross branch, or
    #: the only one); all pixels.
    PARTS = ("seed_self", "seed_cross", "completion_self", "completion_cross",
             "labelled_pixels", "agreeing_pixels", "completion_pixels", "pixels")

    def __init__(self, num_classes: int, affinity: str = "cross", completion: bool = True,
                 completion_labels: str = "seed", completion_target: str = "cross",
                 normalise: str = "device") -> None:
        super().__init__(prefix="")
        _check("affinity", affinity, ("none", "self", "cross"))
        _check("completion_target", completion_target, COMPLETION_TARGETS)
        if completion and completion_target == "cross" and affinity != "cross":
            raise InputError(
                f"a network of affinity {affinity!r} has no cross branch to take the completion target from",
                field="completion_target", remedy="use completion=false, or the target 'own'")
        self._branches = 2 if affinity == "cross" else 1
        self._completion, self._own_target, self._seed_classes = (completion, completion_target == "own",
                                                                  completion_labels == "seed")
        self.seed = SeedLoss(num_classes, normalise)
        self.completion = CompletionLoss(num_classes, completion_labels, normalise)

    def forward(self, outputs: List[Any], seed_label: Any, image_labels: Any) -> Tuple[Any, Any]:
        # a graph has no unused inputs
        used = (outputs, seed_label) if self._seed_classes else (outputs, seed_label, image_labels)
        return super().forward(*used)

    def hybrid_forward(self, F: Any, outputs: List[Any], seed_label: Any,
                       image_labels: Any = None) -> Tuple[Any, Any]:
        teacher = outputs[-1]
        losses = [self.seed(logits, seed_label) for logits in outputs]
        absent = F.zeros_like(losses[0])
        losses += [absent] * (2 - self._branches)
        if self._completion:
            labels = (seed_label,) if self._seed_classes else (seed_label, image_labels)
            losses += [self.completion(logits, logits if self._own_target else teacher, *labels)
                       for logits in outputs]
        losses += [absent] * (4 - len(losses))
        total = F.add_n(*losses)
        return total, F.BlockGrad(F.concat(*losses, *self._counts(F, teacher, seed_label, image_labels),
                                           dim=0))

    def _counts(self, F: Any, teacher: Any, seed_label: Any, image_labels: Any) -> List[Any]:
        """Numbers of pixels, each (1,), in the order of ``PARTS``."""
        seeds = self.seed.target(F, teacher, seed_label)
        predicted = F.broadcast_equal(teacher, F.max(teacher, axis=1, keepdims=True))
        completed = self.completion.target(F, teacher, seed_label, image_labels)
        everything = F.ones_like(F.slice_axis(teacher, axis=1, begin=0, end=1))
        return [F.reshape(F.sum(x), shape=(1,)) for x in (seeds, seeds * predicted, completed, everything)]
