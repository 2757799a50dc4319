"""Class activation maps and saliency to seeds: the sparse label maps on which the segmentation
network is trained.

Paper, "Initial Seeds": a CAM in [0, 1] above 0.3 claims a pixel for its class, saliency below 0.06
claims it for the background, and "all the remaining unassigned pixels and conflictual assignments
are abandoned and marked as ignored". Nothing here opens ground truth unless Table 4's experiment
asks for it by naming the folder.
"""
from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from tqdm import tqdm

from cian.data.classes import IGNORE, read_label_png, write_label_png
from cian.data.degenerate import check_pixels, tell
from cian.data.pictures import refuse_turned
from cian.data.provenance import SEEDS as MANIFEST
from cian.data.provenance import check_label_folder
from cian.data.records import RecordSet
from cian.errors import InputError, PathLike
from cian.files import changed_keys, read_json, write_json
from cian.tools.engine.config import SeedConfig
from cian.tools.engine.ledger import Ledger, mark
from cian.tools.engine.seeds.balance import label_pixels
from cian.tools.engine.seeds.overlap import overlapped
from cian.tools.engine.seeds.saliency import barrier_saliency, read_saliency, saliency_path
from cian.tools.engine.shards import Shard

WHOLE = Shard()

# Called for each image with (name, cams (K, H, W), classes).
Watch = Callable[[str, np.ndarray, Sequence[int]], None]
# Maps of one image: (image (H, W, 3) uint8 RGB, classes) -> (K, H, W) float32 in [0, 1];
# CamMaps.__call__ is one.
Maps = Callable[[np.ndarray, Sequence[int]], np.ndarray]

# What stands for the saliency of an image: (config, name, image (H, W, 3) uint8 RGB, cams (K, H,
# W)) -> (H, W) float32 in [0, 1].
SALIENCY: Dict[str, Callable[[SeedConfig, str, np.ndarray, np.ndarray], np.ndarray]] = {
    "images": lambda config, name, image, cams: read_saliency(config.saliency_root, name, image.shape[:2]),
    "builtin": lambda config, name, image, cams: barrier_saliency(image),
    "low_cam": lambda config, name, image, cams: cams.max(axis=0, initial=0.0),
}


def assign_seeds(cams: np.ndarray, classes: Sequence[int], saliency: np.ndarray, foreground_threshold: float,
                 background_threshold: float, conflicts: str = "ignore") -> np.ndarray:
    """Label map of the pixels that exactly one class or the background claims.

    A pixel that two classes claim, or a class and the background, is a conflict and is ignored, as
    is one that nobody claims.

    Parameters
    ----------
    cams : (K, H, W) in [0, 1], one map for each of ``classes`` (pixel values 1..254).
    saliency : (H, W) in [0, 1].
    conflicts : 'ignore' as in the paper, or 'largest': of several classes the one with the largest
        CAM has the pixel. Classes that always come together and whose maps cover each other have
        hardly a seed otherwise.

    Returns
    -------
    (H, W) uint8 class indices, 255 ignored.
    """
    if len(cams) != len(classes) or cams.shape[1:] != saliency.shape:
        raise ValueError(
            f"{cams.shape} maps do not fit {len(classes)} classes and saliency of {saliency.shape}")
    background = saliency < background_threshold
    labels = np.where(background, 0, IGNORE).astype(np.uint8)
    if not len(classes):
        return labels
    claims = (cams > foreground_threshold).sum(axis=0)
    kept = claims > 0 if conflicts == "largest" else claims == 1
    labels[claims > 0] = IGNORE
    labels[kept] = np.asarray(classes, np.uint8)[cams.argmax(axis=0)][kept]
    labels[background & (claims > 0)] = IGNORE
    return labels


def make_seeds(config: SeedConfig, images: RecordSet, maps: Maps, folder: PathLike, source: Dict[str, Any], *,
               strong_masks: PathLike = "", workers: int = 1, watch: Optional[Watch] = None,
               progress: bool = False, shard: Shard = WHOLE) -> int:
    """Write ``folder``/NAME.png for every image, and the manifest of the folder.

    Decoding, the network and the rest (saliency, thresholds, writing) of different images overlap.
    Seeds that are there from an earlier call with the same settings are kept.

    Parameters
    ----------
    maps : class activation maps of an image, called from this thread only.
    source : what ``maps`` depends on (such as the classifier's digest), for the manifest.
    strong_masks : folder of NAME.png ground truth, needed where ``config.strong_ratio`` is above 0
        (Table 4): the masks of the chosen names, and only those, are read and become their seeds.
        The manifest records the choice.
    workers : threads for decoding and as many for writing.
    watch : called with (name, cams, classes) for every image, those kept included, from the writing threads.
    shard : the part of the images that this call makes.

    Returns
    -------
    Number of seeds written by this call.

    Raises
    ------
    InputError
        A folder with seeds of other settings; an image that cannot be read; a saliency map or mask
        that is missing or does not fit; seeds without a pixel of any class.
    """
    folder = os.fspath(folder)
    check_saliency(config, images)
    strong = _strong_choice(config, images, strong_masks)
    claim_folder(folder, _settings(config, images, source, strong))
    ledger, replaced = Ledger(folder), set(strong)
    sources = {name: _sources(config, name, strong_masks if name in replaced else "")
               for name in images.names}
    done = {name for name in existing(folder) if not sources.get(name) or ledger.same(name, sources[name])}
    todo = [index for index in shard.of(range(len(images))) if watch or images.names[index] not in done]

    def load(index: int) -> Tuple[int, np.ndarray, List[int]]:
        shown = images.labels[index] if watch or images.names[index] not in replaced else ()
        classes = [int(value) for value in np.flatnonzero(shown) if value]
        return index, cv2.cvtColor(images.image(index), cv2.COLOR_BGR2RGB), classes

    def finish(item: Tuple[int, np.ndarray, List[int], np.ndarray]) -> bool:
        index, image, classes, cams = item
        name = images.names[index]
        if watch:
            watch(name, cams, classes)
        if name in done:
            return False
        marks = {key: mark(path) for key, path in sources[name].items()}
        seeds = (_read_mask(strong_masks, name, images) if name in replaced
                 else _by_thresholds(config, name, image, cams, classes))
        write_label_png(os.path.join(folder, f"{name}.png"), seeds)
        ledger.add(name, marks)
        return True

    with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
        activated = ((index, image, classes, maps(image, classes))
                     for index, image, classes in overlapped(readers, load, todo))
        finished = overlapped(writers, finish, activated)
        written = sum(tqdm(finished, total=len(todo), desc="seeds", unit="image",
                           disable=None if progress else True))
    _check_seeds(folder, images, workers, shard)
    return written


def _by_thresholds(config: SeedConfig, name: str, image: np.ndarray, cams: np.ndarray,
                   classes: List[int]) -> np.ndarray:
    saliency = SALIENCY[config.saliency](config, name, image, cams)
    return assign_seeds(cams, classes, saliency, config.foreground_threshold, config.background_threshold,
                        config.conflicts)


def _sources(config: SeedConfig, name: str, masks: PathLike) -> Dict[str, str]:
    """The files beside image and classifier that a seed is made from; ``masks`` where it is one of those."""
    if masks:
        return {"mask": os.path.join(os.fspath(masks), f"{name}.png")}
    return {"saliency": saliency_path(config.saliency_root, name)} if config.saliency == "images" else {}


def _check_seeds(folder: PathLike, images: RecordSet, workers: int, shard: Shard) -> None:
    """All seeds together; see :func:`~cian.data.degenerate.check_pixels`. A part is only recorded."""
    if shard.count > 1:
        shard.record(folder, images.names)
        return
    counts = label_pixels(folder, images.names, workers).sum(axis=0)
    tell(check_pixels(counts, images.classes.names, "the seeds", folder), folder)


def check_saliency(config: SeedConfig, images: RecordSet) -> None:
    """Refuse ``images`` without a folder, a folder without ``images``, and maps of turned images."""
    if config.saliency == "images":
        refuse_turned(images.turned(), "saliency maps", config.saliency_root)
    if config.saliency == "images" and not os.path.isdir(config.saliency_root):
        raise InputError("is no folder of saliency maps", file=config.saliency_root or None,
                         field="seeds.saliency_root",
                         remedy="name the folder of NAME.png, or take seeds.saliency=builtin")
    if config.saliency != "images" and config.saliency_root:
        raise InputError(f"is not read with seeds.saliency={config.saliency}", file=config.saliency_root,
                         field="seeds.saliency_root",
                         remedy="add seeds.saliency=images, or leave the folder out")


def _settings(config: SeedConfig, images: RecordSet, source: Dict[str, Any],
              strong: Sequence[str]) -> Dict[str, Any]:
    """All that the seeds of a folder depend on, with Table 4's choice of names."""
    keys = ("foreground_threshold", "background_threshold", "saliency", "conflicts", "scales", "mirror")
    choice = {"ratio": config.strong_ratio, "seed": config.strong_seed, "of": len(images),
              "names": list(strong)}
    chosen = {"thresholds": config.thresholds} if config.thresholds != "given" else {}
    return {"seeds": {**{key: getattr(config, key) for key in keys}, **chosen},
            "strong": choice if strong else None, "images": images.identity,
            "classes": images.classes.names, "source": source}


def claim_folder(folder: PathLike, settings: Dict[str, Any]) -> None:
    """Begin a folder of label maps made with ``settings``, or go on with one of the same settings.

    Raises
    ------
    InputError
        The folder holds label maps of other or unknown settings.
    """
    path = os.path.join(os.fspath(folder), MANIFEST)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    if os.path.exists(path):
        found = read_seed_manifest(folder)
        if found["hash"] != digest:
            changed = changed_keys(found, {"hash": digest, **settings})[1:]
            raise InputError(f"holds seeds of other settings ({', '.join(changed) or 'version'} changed)",
                             file=folder, remedy="name another folder, or remove this one")
        return
    if existing(folder):
        raise InputError(f"holds PNG files, but no {MANIFEST} that says how they were made", file=folder,
                         remedy="name another folder")
    write_json(path, {"hash": digest, **settings})


def read_seed_manifest(folder: PathLike) -> Dict[str, Any]:
    """The settings of a folder of seeds; an :class:`InputError` where they are missing or damaged."""
    path = os.path.join(os.fspath(folder), MANIFEST)
    manifest = read_json(path, "manifest of seeds", "make the seeds again")
    if not isinstance(manifest.get("hash"), str):
        raise InputError("is not a manifest of seeds", file=path, remedy="make the seeds again")
    return manifest


def existing(folder: PathLike) -> set:
    """Names of the PNG files in a folder; none when there is no folder. Files are written whole, so
    a name is a finished seed.
    """
    if not os.path.isdir(folder):
        return set()
    return {entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".png")
            and not entry.name.startswith(".")}


def choose_strong(names: Sequence[str], ratio: float, seed: int) -> List[str]:
    """The names whose seeds become ground truth: round(ratio * n) of them, drawn from the sorted
    names, in sorted order.

    With one ``seed`` a smaller ratio's choice is part of a larger one's.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"{ratio:g} is not a portion from 0 to 1", field="seeds.strong_ratio")
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(sorted(names))
    return sorted(str(name) for name in shuffled[:round(ratio * len(names))])


def _strong_choice(config: SeedConfig, images: RecordSet, strong_masks: PathLike) -> List[str]:
    """Names to replace; masks and ratio must come together."""
    masks = os.fspath(strong_masks)
    strong = choose_strong(images.names, config.strong_ratio, config.strong_seed)
    if config.strong_ratio and not os.path.isdir(masks):
        raise InputError("is no folder of ground truth" if masks
                         else f"{config.strong_ratio:g} of the seeds are to be ground truth",
                         file=masks or None, field="seeds.strong_ratio",
                         remedy="name the folder of NAME.png with --strong-masks")
    if strong:
        check_label_folder(masks, images.classes, images.path, "masks", images.turned())
    if masks and not config.strong_ratio:
        raise InputError("is not read with seeds.strong_ratio=0", file=masks, field="--strong-masks",
                         remedy="give a ratio too")
    return strong


def _read_mask(root: PathLike, name: str, images: RecordSet) -> np.ndarray:
    path = os.path.join(os.fspath(root), f"{name}.png")
    mask = read_label_png(path, images.classes.num_classes)
    height, width = images.sizes[images.names.find(name)]
    if mask.shape != (height, width):
        raise InputError(f"is {mask.shape[1]}x{mask.shape[0]} pixels, its image {width}x{height}", file=path)
    return mask
