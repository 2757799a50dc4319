"""Inputs of the comparison: weights under which random networks are well conditioned, images,
labels, and a small data set.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence, Tuple

import cv2
import mxnet as mx
import numpy as np

from cian.data.lists import write_list
from cian.data.tree import DatasetTree
from cian.symbols.cian import CIAN
from cian.symbols.layers import BatchNorm
from cian.symbols.params import initialize
from cian.tools.engine.fidelity.table import PERTURBATION

Arrays = Dict[str, np.ndarray]


def condition(network: CIAN, images: np.ndarray, seed: int) -> None:
    """Random weights under which gradients are well conditioned.

    Under plain random weights a step's gradient is a discontinuous function of rounding: every ReLU
    near its kink and every near tie of a maximum flips with it, and activations grow from unit to
    unit. So the channels here are mostly on (beta above three gammas) or off, the statistics of all
    batch norms are those of ``images``, features are small against the classifier's weights,
    classes start balanced, and the affinity tells pixels apart. ``bn_out_gamma`` is not zero (a
    first round zeroes it). ``bn_data_gamma``, with which nobody computes, is not 1, so that a file
    tells who overwrites it.
    """
    initialize(network, seed, zero_gamma=False)
    random = np.random.RandomState(seed)
    for name, parameter in sorted(network.collect_params().items()):
        scale = {"bn1": 0.4, "bn_out": 0.25}.get(name.rpartition("_")[0], 1.0)
        if name.endswith("_gamma"):
            parameter.set_data(mx.nd.array(scale * random.uniform(0.3, 0.5, parameter.shape)))
        elif name.endswith("_beta"):
            side = 0.1 if name.startswith("bn_out") else random.choice([1, 1, 1, -1, -1], parameter.shape)
            parameter.set_data(mx.nd.array(scale * side * random.uniform(1.2, 1.8, parameter.shape)))
    norms: List[BatchNorm] = []
    network.apply(lambda block: norms.append(block) if isinstance(block, BatchNorm) else None)
    hooks = [norm.register_forward_pre_hook(_calibrate) for norm in dict.fromkeys(norms)]
    feature = network.backbone(mx.nd.array(images))
    _balance(network, feature)
    _sharpen(network, feature)
    network(mx.nd.array(images))
    for hook in hooks:
        hook.detach()
    gamma = network.collect_params()["bn_data_gamma"]
    gamma.set_data(mx.nd.array(random.uniform(1.2, 1.8, gamma.shape)))


def _balance(network: CIAN, feature: mx.nd.NDArray) -> None:
    """Enlarge the classifier's weights, and make them orthogonal to the mean feature: no class is
    ahead at the start.
    """
    mean = feature.mean(axis=(0, 2, 3)).asnumpy().astype(np.float64)
    mean /= np.linalg.norm(mean)
    weight = 5 * network.head.weight.data().asnumpy().astype(np.float64)
    weight -= np.einsum("ocij,c->oij", weight, mean)[:, None] * mean[None, :, None, None]
    network.head.weight.set_data(mx.nd.array(weight))


def _sharpen(network: CIAN, feature: mx.nd.NDArray) -> None:
    """Scale the embeddings: scores of Eq. 1 with a standard deviation of 2 over reference pixels,
    values and messages of order 1.

    With plain weights on small features the affinity is uniform, all messages are alike, and
    ``bn_out`` divides by almost nothing.
    """
    module = network.affinity
    assert module is not None
    query, key, value = (layer(feature).asnumpy().reshape(feature.shape[0], -1,
                                                          feature.shape[2] * feature.shape[3])
                         for layer in (module.query, module.key, module.value))
    scores = np.matmul(key.transpose(0, 2, 1), query)
    factors = {module.query: np.sqrt(2 / scores.std(axis=1).mean()),
               module.key: np.sqrt(2 / scores.std(axis=1).mean()), module.value: 1 / value.std(),
               module.out: 100 * np.sqrt(2 / value.shape[1])}
    for layer, factor in factors.items():
        layer.weight.set_data(layer.weight.data() * float(factor))


def _calibrate(norm: BatchNorm, inputs: Tuple[mx.nd.NDArray, ...]) -> None:
    """Make the statistics of what enters a batch norm its moving statistics."""
    mean = inputs[0].mean(axis=(0, 2, 3), keepdims=True)
    norm.moving_mean.set_data(mean.reshape((-1,)))
    norm.moving_var.set_data(mx.nd.square(mx.nd.broadcast_sub(inputs[0], mean)).mean(axis=(0, 2, 3)))


def random_images(count: int, side: int, seed: int) -> np.ndarray:
    """(count, 3, side, side) float32 of whole numbers 0..255: coloured patches with fine noise, as
    photographs are smooth.
    """
    random = np.random.RandomState(seed)
    images = []
    for _ in range(count):
        coarse = random.randint(0, 256, (max(2, side // 12), max(2, side // 12), 3)).astype(np.float32)
        smooth = cv2.resize(coarse, (side, side),
                            interpolation=cv2.INTER_CUBIC) + random.normal(0, 12, (side, side, 3))
        images.append(np.clip(np.rint(smooth), 0, 255))
    return np.stack(images).astype(np.float32).transpose(0, 3, 1, 2)


def nearly(values: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """The values as float32, changed by as much as rounding."""
    return (values * (1 + PERTURBATION * random.standard_normal(values.shape))).astype(np.float32)


def crops_of(paths: Sequence[str], count: int, side: int, seed: int) -> np.ndarray:
    """The like from photographs: ``count`` of them resized to the side."""
    chosen = np.random.RandomState(seed).permutation(len(paths))[:count]
    images = [cv2.resize(cv2.imread(paths[index]), (side, side))[..., ::-1]
              for index in np.resize(chosen, count)]
    return np.stack(images).astype(np.float32).transpose(0, 3, 1, 2)


def labels_for(logits: np.ndarray, seed: int) -> np.ndarray:
    """(N, h, w) float32 seeds for images with these (N, C, h, w) logits: patches, ignored ones between them.

    As in real seeds the background prevails; after a step the network predicts it, so that the
    completion loss has agreeing pixels then (the original has no finite gradient without). One
    class that the network predicts now, and two others, occur as well.
    """
    random = np.random.RandomState(seed)
    count, classes, height, width = logits.shape
    labels = np.full((count, height, width), 255, np.float32)
    for image in range(count):
        predicted = np.argmax(np.bincount(logits[image].argmax(axis=0).ravel(), minlength=classes))
        others = [predicted, *random.randint(1, classes, 2).tolist()]
        patches = random.choice([255, 255, 255, 0, 0, 0, *others], (4, 4))
        patches.flat[random.permutation(16)[:2]] = 0, predicted
        labels[image] = cv2.resize(patches.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return labels


def data_files(data: DatasetTree, names: Sequence[str], folder: str, seed: int) -> Dict[str, Any]:
    """Folders, list, names and image-level labels of a data set, for the loaders and the
    evaluations of both sides.

    ``label_root`` gets gray seeds and ``mask_root`` gray truth of the images' classes: patches, 255
    ignored. (The data set's own masks are not opened; the original would read their colours as gray
    levels.)
    """
    random = np.random.RandomState(seed)
    roots = {key: os.path.join(folder, name)
             for key, name in (("label_root", "Seeds"), ("mask_root", "Truth"))}
    for root in roots.values():
        os.makedirs(root)
    labels = data.labels(names)
    for name, present in zip(names, labels):
        height, width = cv2.imread(data.image_path(name)).shape[:2]
        patches = random.choice([0, 0, *np.flatnonzero(present)], (4, 4)).astype(np.uint8)
        truth = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)
        seeds = np.where(cv2.resize(random.rand(5, 5), (width, height)) > 0.6, 255, truth).astype(np.uint8)
        cv2.imwrite(os.path.join(roots["label_root"], f"{name}.png"), seeds)
        truth[random.rand(height, width) < 0.02] = 255
        cv2.imwrite(os.path.join(roots["mask_root"], f"{name}.png"), truth)
    path = os.path.join(folder, "list.txt")
    write_list(path, names)
    return {**roots, "image_root": data.image_root, "annotation_root": data.annotation_root, "list": path,
            "names": list(names), "labels": labels}


def write_annotation(path: str, objects: Sequence[str], random: np.random.RandomState) -> None:
    """VOC XML in which some objects are difficult, sometimes all of them, and one occurs twice."""
    entries = [(name, int(random.rand() < 0.3)) for name in [*objects, objects[0]]]
    body = "".join(f"<object><name>{name}</name><difficult>{difficult}</difficult></object>"
                   for name, difficult in entries)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(f"<annotation>{body}</annotation>\n")
