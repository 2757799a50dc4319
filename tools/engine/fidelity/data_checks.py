"""Loader, sampling, image-level labels and evaluation: the same files and the same random seed on
both sides.
"""
from __future__ import annotations

import os
from typing import Any, Dict, List, Sequence

import cv2
import mxnet as mx
import numpy as np

from cian.data.annotations import read_xml_labels
from cian.data.classes import ClassTable
from cian.data.iterators import PairIter
from cian.data.lists import write_list
from cian.data.pairs import GroupSampler
from cian.data.preparation import prepare
from cian.data.tree import DatasetTree
from cian.tools.engine.fidelity.inputs import write_annotation
from cian.tools.engine.fidelity.process import Original
from cian.tools.engine.fidelity.table import IDENTICAL, Row, differing, l2_error
from cian.tools.engine.metrics import evaluate


def class_names(count: int) -> List[str]:
    """Names of a generated data set with ``count`` foreground classes."""
    return [f"class{index:02d}" for index in range(1, count + 1)]


def check_loader(original: Original, tree: Dict[str, Any], classes: Sequence[str], *, crop_px: int,
                 batch_size: int, group_size: int, devices: int, seed: int, epochs: int = 2,
                 name: str = "loader") -> List[Row]:
    """Every batch of whole epochs: order, images, seeds; image-level labels; and the random state afterwards.

    ``tree`` is that of :func:`~cian.tools.engine.fidelity.inputs.data_files`, ``classes`` are
    without the background.
    """
    request = {"kind": "load", "classes": list(classes), "order_only": False, "seed": seed, "epochs": epochs,
               "batch_size": batch_size, "group_size": group_size, "devices": devices, "crop_px": crop_px,
               **{key: tree[key] for key in ("image_root", "label_root", "annotation_root", "list")}}
    theirs = original.run(name, request)
    work = os.path.join(original.work, name)
    class_file = os.path.join(work, "classes.txt")
    with open(class_file, "w", encoding="utf-8") as stream:
        stream.write("\n".join(["background", *classes]) + "\n")
    files = DatasetTree(image_root=tree["image_root"], annotation_root=tree["annotation_root"],
                        label_root=tree["label_root"], classes=class_file)
    packed = prepare(files, tree["list"], os.path.join(work, "records"), workers=1)
    assert packed.seeds is not None
    random = np.random.RandomState(seed)
    order, images, labels, count = 0.0, 0.0, 0.0, 0
    with PairIter(packed.images, packed.seeds, batch_size=batch_size, group_size=group_size,
                  num_devices=devices, crop_px=crop_px, seed=random) as loader:
        for epoch in range(epochs):
            loader.reset()
            expected = theirs.arrays[f"order{epoch}"]
            order += abs(len(expected) - len(loader))
            for step, batch in enumerate(loader):
                order += differing(batch.index, expected[step])
                images += differing(batch.data[0].asnumpy(), theirs.arrays[f"data{epoch}/{step}"])
                labels += differing(batch.label[0].asnumpy(), theirs.arrays[f"label{epoch}/{step}"])
                count += 1
    mx.nd.waitall()
    state: Any = random.get_state()
    expected_labels = np.zeros_like(packed.images.labels)
    expected_labels[:, 0] = 1
    for row, present in enumerate(theirs.report["labels"]):
        expected_labels[row, np.asarray(present, int) + 1] = 1
    return [Row(name, "image-level labels", differing(packed.images.labels, expected_labels), IDENTICAL,
                f"{len(expected_labels)} images"),
            Row(name, "order of samples", order, IDENTICAL, f"{count} batches of {epochs} epochs"),
            Row(name, "images of batches", images, IDENTICAL),
            Row(name, "seeds of batches", labels, IDENTICAL), Row(name, "random state afterwards", differing(
        state[1], theirs.arrays["random_state"]) + differing(state[2], theirs.report["position"]), IDENTICAL)]


def check_sampling(original: Original, *, images: int, num_classes: int, batch_size: int, group_size: int,
                   devices: int, seed: int, name: str = "sampling") -> List[Row]:
    """The order of whole epochs over many images with random annotations, some classes common and
    some rare.
    """
    random = np.random.RandomState(seed)
    classes = class_names(num_classes - 1)
    root = os.path.join(original.work, f"{name}_annotations")
    os.makedirs(root)
    names = [f"{index:06d}" for index in range(images)]
    likely = 1 / np.arange(1, num_classes)
    for entry in names:
        objects = random.choice(num_classes - 1, random.randint(1, min(4, num_classes)), replace=False,
                                p=likely / likely.sum())
        write_annotation(os.path.join(root, entry + ".xml"), [classes[index] for index in objects], random)
    return compare_sampling(original, root, names, classes, batch_size=batch_size, group_size=group_size,
                            devices=devices, seed=seed, name=name)


def compare_sampling(original: Original, annotation_root: str, names: Sequence[str], classes: Sequence[str],
                     *, batch_size: int, group_size: int, devices: int, seed: int, name: str,
                     epochs: int = 2) -> List[Row]:
    """The order of whole epochs over the named images, from annotations alone; ``classes`` are
    without the background.
    """
    path = os.path.join(original.work, f"{name}_list.txt")
    write_list(path, names)
    theirs = original.run(name, {"kind": "load", "classes": list(classes), "order_only": True, "seed": seed,
                                 "epochs": epochs, "batch_size": batch_size, "group_size": group_size,
                                 "devices": devices, "crop_px": 9, "image_root": "", "label_root": None,
                                 "annotation_root": annotation_root, "list": path})
    table = ClassTable(["background", *classes])
    labels = np.zeros((len(names), len(table)), np.uint8)
    labels[:, 0] = 1
    for row, entry in enumerate(names):
        labels[row, list(read_xml_labels(os.path.join(annotation_root, entry + ".xml"), table))] = 1
    stream = np.random.RandomState(seed)
    sampler = GroupSampler(labels, group_size=group_size, groups_per_batch=batch_size // group_size,
                           seed=stream)
    wrong = 0.0
    for epoch in range(epochs):
        groups = sampler.next_epoch().reshape(-1, devices, batch_size // (group_size * devices), group_size)
        wrong += differing(groups.transpose(0, 1, 3, 2).reshape(-1, batch_size),
                           theirs.arrays[f"order{epoch}"])
    state: Any = stream.get_state()
    wrong_state = differing(state[1], theirs.arrays["random_state"]) + differing(state[2],
                                                                                 theirs.report["position"])
    note = f"{epochs} epochs of {len(names)} images, groups of {group_size}, {devices} device(s)"
    return [Row(name, "order of samples", wrong, IDENTICAL, note),
            Row(name, "random state afterwards", wrong_state, IDENTICAL)]


def check_evaluation(original: Original, tree: Dict[str, Any], classes: Sequence[str], seed: int,
                     name: str = "evaluation") -> List[Row]:
    """Confusion matrix and intersection over union of random predictions."""
    random = np.random.RandomState(seed)
    root = os.path.join(original.work, f"{name}_predictions")
    os.makedirs(root)
    for entry in tree["names"]:
        truth = cv2.imread(os.path.join(tree["mask_root"], entry + ".png"), cv2.IMREAD_GRAYSCALE)
        wrong = random.randint(0, len(classes) + 1, truth.shape)
        prediction = np.where((truth == 255) | (random.rand(*truth.shape) < 0.4), wrong,
                              truth).astype(np.uint8)
        cv2.imwrite(os.path.join(root, entry + ".png"), prediction)
    theirs = original.run(name, {"kind": "evaluate", "list": tree["list"], "prediction_root": root,
                                 "mask_root": tree["mask_root"], "num_classes": len(classes) + 1})
    ours = evaluate(tree["names"], root, tree["mask_root"], ["background", *classes], workers=1)
    note = "the original divides in float32"
    return [Row(name, "confusion matrix",
                differing(ours.confusion, theirs.arrays["confusion"].astype(np.int64)), IDENTICAL),
            Row(name, "IoU of each class", l2_error(np.nan_to_num(ours.iou), theirs.arrays["iou"]), 1e-6,
                note), Row(name, "mean IoU", abs(ours.mean_iou / theirs.report["miou"] - 1), 1e-6, note)]
