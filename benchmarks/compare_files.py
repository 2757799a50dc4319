"""The files of benchmarks/compare.py: images, labels, lists and weights that both sides read, and
both command lines.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Dict, List

import cv2
import numpy as np
from loader import generated_tree
from measuring import beside, environment

from cian.data.lists import read_list
from cian.errors import InputError

CLASSES = 21
SCORED_PX = (500, 375)


@dataclass(frozen=True)
class Settings:
    """What both sides do, and on how much.

    Attributes
    ----------
    width_px, height_px : of generated images; those to predict must fit into ``size_px``.
    crop_px, batch_size, lr : of training. The rate is a tenth of the default, which overshoots
        under random weights.
    size_px : side of the padded square of a prediction (the original's script sets 513).
    steps, chain_images : training steps and predicted images of the whole chain.
    predicted, refined : images of a round of prediction, and of the CRF alone.
    load_batches, load_batch_size : of a round of loading.
    scored : label maps of an evaluation.
    """

    model: str = "resnet50_largefov"
    width_px: int = 500
    height_px: int = 375
    crop_px: int = 321
    batch_size: int = 4
    lr: float = 5e-5
    size_px: int = 513
    steps: int = 8
    chain_images: int = 8
    predicted: int = 8
    refined: int = 16
    load_batches: int = 8
    load_batch_size: int = 16
    scored: int = 1449


QUICK = Settings(width_px=128, height_px=96, crop_px=97, batch_size=2, size_px=129, steps=4, chain_images=6,
                 predicted=6, refined=32)


class Files:
    """Everything below the folder ``root``; made by the constructor.

    Parameters
    ----------
    data : a data set in VOC's layout (JPEGImages, Annotations, seeds with gray PNG, train.txt), or
        '' for a generated one. Its first images are used, and its seeds stand for ground truth too,
        which costs the same to read.
    """

    def __init__(self, root: str, settings: Settings, data: str = "") -> None:
        self.root, self.settings = root, settings
        self.data = data or os.path.join(root, "data")
        os.makedirs(root, exist_ok=True)
        if not data:
            # One class that all images have: groups form whatever the order, so that an epoch has
            # as many steps as there are batches.
            generated_tree(self.data, max(settings.steps * settings.batch_size, 4 * settings.load_batch_size,
                                          settings.refined), (settings.height_px, settings.width_px),
                           common=15)
        self.names = read_list(os.path.join(self.data, "train.txt"))
        self._check_sizes(self.names[:max(settings.chain_images, settings.predicted, settings.refined)])
        self.lists = {key: self._write_list(key, self.names[:count]) for key, count in (
            ("all", len(self.names)), ("train", settings.steps * settings.batch_size),
            ("val", settings.chain_images), ("predicted", settings.predicted), ("refined", settings.refined))}
        self._write_label_maps(settings.scored)
        self.weights = os.path.join(root, "start", f"{settings.model}-0000.params")
        self.batch, self.logits = os.path.join(root, "batch.npz"), os.path.join(root, "logits.npy")
        self.records = os.path.join(root, "records")
        os.makedirs(os.path.dirname(self.weights))

    def folder(self, name: str) -> str:
        """A folder of the data set."""
        return os.path.join(self.data, name)

    def facts(self) -> Dict[str, Any]:
        """The settings and what they were applied to, for the results."""
        return {**asdict(self.settings),
                "data": "generated" if self.data.startswith(self.root) else os.path.basename(self.data)}

    def training_flags(self, snapshot: str, data_list: str) -> List[str]:
        """The flags of a training run, which both command lines understand."""
        settings = self.settings
        return self._flags({"--label-root": self.folder("seeds"), "--pretrained": self.weights,
                            "--snapshot": snapshot, "--data-list": data_list,
                            "--batch-size": settings.batch_size, "--image-size": settings.crop_px,
                            "--num-epoch": 1, "--lr": settings.lr})

    def prediction_flags(self, snapshot: str, data_list: str) -> List[str]:
        """Those of a prediction by the first epoch's checkpoint."""
        return self._flags({"--snapshot": snapshot, "--data-list": data_list, "--num-epoch": 1})

    def part(self, name: str, count: int) -> str:
        """A list of the first so many names of another one."""
        return self._write_list(f"{name}_{count}", read_list(self.lists[name])[:count])

    def _flags(self, flags: Dict[str, Any]) -> List[str]:
        common = {"--image-root": self.folder("JPEGImages"), "--annotation-root": self.folder("Annotations"),
                  "--model": self.settings.model, "--num-cls": CLASSES, **flags}
        return [str(part) for pair in common.items() for part in pair]

    def _write_list(self, name: str, names: List[str]) -> str:
        path = os.path.join(self.root, f"{name}.txt")
        with open(path, "w", encoding="utf-8") as stream:
            stream.writelines(f"{entry}\n" for entry in names)
        return path

    def _check_sizes(self, names: List[str]) -> None:
        for name in names:
            path = os.path.join(self.folder("JPEGImages"), f"{name}.jpg")
            if max(cv2.imread(path).shape[:2]) > self.settings.size_px:
                raise InputError(f"is larger than {self.settings.size_px} pixels, where the original's "
                                 "prediction cuts images", file=path,
                                 remedy="use a larger --size, or other images")

    def _write_label_maps(self, count: int) -> None:
        """Truth and predictions for the evaluation, of the size that VOC's images have: the seeds
        of one image against another's.
        """
        sources = [cv2.imread(os.path.join(self.folder("seeds"), f"{name}.png"), cv2.IMREAD_GRAYSCALE)
                   for name in self.names[:64]]
        sources = [cv2.resize(source, SCORED_PX, interpolation=cv2.INTER_NEAREST) for source in sources]
        names = [f"map_{number:05d}" for number in range(count)]
        self.lists["scored"] = self._write_list("scored", names)
        content = {"truth": [cv2.imencode(".png", source)[1].tobytes() for source in sources],
                   "scored": [cv2.imencode(".png", np.where(source == 255, 0, source))[1].tobytes()
                              for source in sources]}
        for shift, (folder, files) in enumerate(content.items()):
            os.makedirs(os.path.join(self.root, folder))
            for number, name in enumerate(names):
                with open(os.path.join(self.root, folder, f"{name}.png"), "wb") as stream:
                    stream.write(files[(number + shift) % len(files)])

    def prepare(self) -> None:
        """Weights and arrays that both sides read, and our packed records of all images, by a
        process of their own.
        """
        settings, job = self.settings, os.path.join(self.root, "files.json")
        with open(job, "w", encoding="utf-8") as stream:
            json.dump({"task": "files", "model": settings.model, "weights": self.weights, "batch": self.batch,
                       "logits": self.logits, "batch_size": settings.batch_size, "crop_px": settings.crop_px,
                       "size_px": settings.size_px, "records": self.records, "list": self.lists["all"],
                       "image_root": self.folder("JPEGImages"), "annotation_root": self.folder("Annotations"),
                       "label_root": self.folder("seeds")}, stream)
        subprocess.run([sys.executable, beside("our_side.py"), job], check=True, env=environment(0))
