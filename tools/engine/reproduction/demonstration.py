"""The demonstration: the whole pipeline on a generated data set, its table, and a page with its pictures."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import cv2
import numpy as np

from cian.data.classes import IGNORE, palette, read_label_png
from cian.data.toy import make_toy
from cian.data.tree import DatasetTree
from cian.errors import InputError
from cian.files import atomic_write_bytes, read_text
from cian.tools.engine.config import Config, load_config, save_config
from cian.tools.engine.images import read_image
from cian.tools.engine.report import Page
from cian.tools.engine.reproduction.stages import Stage, stage_key

# What the demonstration changes of the original's settings so that it fits minutes on two cores: a
# network of mobile size on stored features, whose last convolution and head train; a classifier on
# features that stay as they are; few steps, so the affinity starts with a weight; a saliency
# threshold for the built-in maps; and a CRF at one margin, which is fair to all networks.
FROZEN = ("stem_", *(f"block{number}_" for number in range(16)))
SETTINGS: Dict[str, Dict[str, Any]] = {
    "data": {"train_list": "train", "val_list": "val"},
    "network": {"model": "efficientnet_lite0_largefov", "pretrained": "package", "embed_channels": 160},
    "cam": {"model": "efficientnet_lite0", "pretrained": "package", "freeze_backbone": True},
    "seeds": {"saliency": "builtin", "background_threshold": 0.2},
    "train": {"epochs": 19, "batch_size": 8, "crop_px": 177, "scales": [1.0], "lr": 5e-3,
              "lr_decay": "iteration", "gamma_start": 0.1, "pairing": "even", "freeze": FROZEN,
              "features": "stored", "label_padding": "ignore", "label_resize": "nearest",
              "keep": 1, "log_every": 8},
    "predict": {"fit": "native", "scales": [1.0], "add_max": False, "mirror": False,
                "crf": "soft", "retrain_fit": "native", "retrain_crf": "soft"}}
BASELINE = ("network.affinity=self", "loss.completion=false")
# The second round trains all layers: frozen features cannot follow what the CRF sees of outlines.
SECOND = ("train.features=", "train.freeze=[]", "train.epochs=14", "train.lr=2e-4")
IMAGES, SIZE_PX = {"train": 64, "val": 48}, {"width_px": 448, "height_px": 336}
CLASSES = ("lion", "bull", "hare", "griffin")
COLUMNS = ("", "images", "mIoU %", "with CRF %")
STEPS = (
    "The classifier learns from image-level labels alone; its activation maps mark heads first.",
    "Seeds are pixels that the maps or the saliency are sure of; the others stay without a label.",
    "The baseline learns from the same seeds, without pairs: an image sees itself alone.",
    "The first round learns from seeds, in pairs of images that share a class: the affinity passes "
    "features from one image to the other.",
    "The second round learns from the first round's predictions after a dense CRF, which follows the "
    "image's edges. Here all layers train.")
SHOWN_TRAIN, SHOWN_VAL, SHOWN_PAIRS, MEASURED_PAIRS = 6, 6, 2, 12


def configure(out: Path, seed: int = 0) -> Config:
    """Make the data set of this seed below ``out``, and the configuration of all stages, which is
    written to ``out/demo.yaml``.
    """
    root, record = out / "data", out / "data" / "seed.txt"
    if not record.exists():
        atomic_write_bytes(record, str(seed).encode())
    if read_text(record) != str(seed):
        raise InputError(f"holds the images of seed {read_text(record)}, not of {seed}", file=root,
                         field="--seed", remedy="name another folder with --out")
    if not (root / "classes.txt").exists():
        make_toy(root, IMAGES["train"], IMAGES["val"], seed, classes=CLASSES, **SIZE_PX)
    config = load_config().replace(
        **{**SETTINGS, "data": {**SETTINGS["data"], "root": str(root), "classes": str(root / "classes.txt")}})
    save_config(config, out / "demo.yaml")
    return config


def stages(out: Path, config: Config) -> List[Stage]:
    """Every stage of the pipeline in its order; each is one call of a tool, and reads what those
    before it wrote.
    """
    masks, records = str(out / "data" / "SegmentationClassAug"), str(out / "records")
    first, second, baseline = (str(out / name) for name in ("first", "first_retrain", "baseline"))
    labels = os.path.join(first, "train_aug_pred_crf")
    seeds = ["--records", records, "--label-root", str(out / "seeds")]

    def scored(snapshot: str) -> List[Tuple[str, str, List[str]]]:
        return [("predict val", "predict", ["--snapshot", snapshot]),
                ("evaluate", "evaluate", ["--prediction-root", os.path.join(snapshot, "pred")]),
                ("evaluate with CRF", "evaluate", ["--prediction-root", os.path.join(snapshot, "pred_crf")])]
    plan: List[Tuple[str, str, List[str]]] = [
        ("check and pack the images", "prepare", ["--list", "train", "--list", "val", "--out", records]),
        ("train the CAM classifier", "train_cam",
         ["--records", records, "--snapshot", str(out / "cam"), "--score", "val"]),
        ("make seeds", "make_seeds", ["--records", records, "--classifier", str(out / "cam"), "--out",
                                      str(out / "seeds"), "--measure", masks]),
        ("train the baseline", "train", [*seeds, "--snapshot", baseline, *BASELINE]),
        *scored(baseline),
        ("train the first round", "train", [*seeds, "--snapshot", first]),
        *scored(first),
        ("label train for the second round", "predict", ["--snapshot", first, "--retrain-labels"]),
        ("evaluate these labels", "evaluate", ["--prediction-root", labels, "--data-list", "train"]),
        ("train the second round", "retrain", ["--snapshot", first, *SECOND]),
        *scored(second)]
    found: List[Stage] = []
    for number, (kind, tool, arguments) in enumerate(plan, 1):
        before = found[-1:]
        key = stage_key(config.hash(), tool, arguments, [stage.key for stage in before])
        found.append(Stage(kind, key, out / "stages" / f"{number:02d}-{tool}", tool,
                           ("-c", str(out / "demo.yaml"), *arguments), tuple(before)))
    return found


def results(out: Path) -> List[Tuple[str, str, str, str]]:
    """The table: what was scored, on which images, without and with CRF, mean IoU in per cent."""
    quality = json.loads(read_text(out / "seeds" / "quality.json"))

    def score(folder: str) -> str:
        return f"{100 * json.loads(read_text(out / (folder + '.json')))['mean_iou']:.1f}"
    return [("CAM above its threshold", "train", f"{100 * quality['cam']['mean_iou']:.1f}", ""),
            ("seeds, over labelled pixels", "train", f"{100 * quality['mean_iou_labelled']:.1f}", ""),
            ("seeds, unlabelled ones missed", "train", f"{100 * quality['mean_iou']:.1f}", ""),
            ("first round, labels for the second", "train", "", score("first/train_aug_pred_crf")),
            ("baseline: no pairs", "val", score("baseline/pred"), score("baseline/pred_crf")),
            ("first round", "val", score("first/pred"), score("first/pred_crf")),
            ("second round", "val", score("first_retrain/pred"), score("first_retrain/pred_crf"))]


def write_page(out: Path, config: Config, rows: Sequence[Sequence[str]],
               times: Sequence[Sequence[str]]) -> Path:
    """One HTML page: the table, pictures of seeds and predictions, the affinity of pairs, and what
    was run; returns its path.
    """
    tree = DatasetTree(config.data.root, classes=config.data.classes)
    page = Page("CIAN on a generated data set",
                "From images and image-level labels to masks. Ground truth was used for the scores and "
                "the pictures only.")
    _best_picture(out, tree, config, page)
    page.table(COLUMNS, rows)
    for step in STEPS:
        page.text(step)
    page.legend(("ignored", *tree.classes.foreground),
                np.stack([[226] * 3, *palette()[1:len(tree.classes)]]).astype(np.uint8))
    _training_pictures(out, tree, config, page)
    _validation_pictures(out, tree, config, page)
    _affinity_pictures(out, tree, config, page)
    page.heading("What was run")
    page.table(("stage", "seconds"), times)
    page.code("\n".join(" ".join(["python", *stage.command[1:]]) for stage in stages(out, config)))
    page.save(out / "index.html")
    return out / "index.html"


def _training_pictures(out: Path, tree: DatasetTree, config: Config, page: Page) -> None:
    from cian.tools.engine.models.snapshot import resolve_checkpoint
    from cian.tools.engine.prediction.pictures import heat, label_picture
    from cian.tools.engine.seeds.maps import CamMaps, load_classifier

    maps = CamMaps.of(load_classifier(resolve_checkpoint(out / "cam"), tree.classes)[0], config.seeds)
    names = tree.names(config.data.train_list)[:SHOWN_TRAIN]
    page.heading("Training images: from activation maps to the labels of the second round")
    for name, row in zip(names, tree.labels(names)):
        image = read_image(tree.image_path(name))
        present = [int(index) for index in np.flatnonzero(row) if index]
        folders = (out / "seeds", out / "first" / "train_aug_pred", out / "first" / "train_aug_pred_crf",
                   tree.mask_root)
        page.pictures([image, heat(image, maps(image, present).max(axis=0)), *(
            label_picture(read_label_png(os.path.join(folder, f"{name}.png"))) for folder in folders)],
                      ["image: " + ", ".join(tree.classes.names[index] for index in present), "CAM", "seed",
                       "prediction", "CRF", "truth"])


def _validation_pictures(out: Path, tree: DatasetTree, config: Config, page: Page) -> None:
    from cian.tools.engine.prediction.pictures import label_picture

    page.heading("Validation images: the baseline and both rounds")
    folders = (out / "baseline" / "pred_crf", out / "first" / "pred_crf", out / "first_retrain" / "pred",
               out / "first_retrain" / "pred_crf", tree.mask_root)
    for name in tree.names(config.data.val_list)[:SHOWN_VAL]:
        page.pictures([read_image(tree.image_path(name)), *(
            label_picture(read_label_png(os.path.join(folder, f"{name}.png"))) for folder in folders)],
                      ["image", "baseline, CRF", "first round, CRF", "second round", "with CRF", "truth"])


def _best_picture(out: Path, tree: DatasetTree, config: Config, page: Page) -> None:
    """The validation image that the second round with CRF segments best, by correct pixels of objects."""
    from cian.tools.engine.prediction.pictures import label_picture

    def overlap(name: str) -> float:
        truth, found = (read_label_png(os.path.join(folder, f"{name}.png"))
                        for folder in (tree.mask_root, out / "first_retrain" / "pred_crf"))
        objects = (truth > 0) | (found > 0)
        return float((truth == found)[objects].mean())
    name = max(tree.names(config.data.val_list), key=overlap)
    maps = [read_label_png(os.path.join(folder, f"{name}.png"))
            for folder in (out / "first_retrain" / "pred_crf", tree.mask_root)]
    page.pictures([read_image(tree.image_path(name)), *map(label_picture, maps)],
                  ["the best of the validation images", "second round with CRF", "truth"])


def _affinity_pictures(out: Path, tree: DatasetTree, config: Config, page: Page) -> None:
    from cian.tools.engine.models.snapshot import load_network
    from cian.tools.engine.prediction.affinity import pair_figures
    from cian.tools.engine.prediction.pictures import pairs_by_class, write_pair

    page.heading("Affinity of pairs (Figure 3 of the paper), after the second round")
    net, metadata = load_network(out / "first_retrain", for_prediction=False)
    found = []
    for pair in pairs_by_class(tree, config.data.val_list, MEASURED_PAIRS):
        paths = [tree.image_path(name) for name in pair]
        masks = [read_label_png(tree.mask_path(name)) for name in pair]
        gain = pair_figures(net, [read_image(path) for path in paths], masks)["cross"]
        if gain is not None:
            found.append((gain, paths, masks))
    page.text("Weight of an object's pixels on their own class in the reference, over its share there "
              f"(class_gain; 1 is chance): {np.mean([gain for gain, _, _ in found]):.2f} on average over "
              f"{len(found)} pairs, the best of which are shown.")
    for gain, (query, reference), masks in sorted(found, key=lambda one: -one[0])[:SHOWN_PAIRS]:
        x, y = _inner_pixel(masks)
        write_pair(out / "figures", net, query, reference, metadata["classes"], pixel=f"{x},{y}", page=page)
        page.text(f"class_gain of this pair: {gain:.2f}.")


def _inner_pixel(masks: Sequence[np.ndarray]) -> Tuple[int, int]:
    """(x, y) of the query's pixel that lies deepest in an object whose class both masks hold."""
    query, reference = masks
    shared = [label for label in np.unique(query) if label not in (0, IGNORE) and (reference == label).any()]
    inside = np.isin(query, shared) if shared else query > 0
    depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)
