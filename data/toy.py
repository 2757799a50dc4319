"""A generated data set in VOC layout for demonstrations and tests: a bestiary that makes weak
supervision as hard as it is on photographs.

Each class is a creature of many parts. Torso, legs, tail and neck have the same shapes in all
classes; the head tells most clearly which one it is, and the coat has a tint and a faint pattern of
the class. A classifier therefore looks at heads, its activation maps miss much of each creature,
and a method that propagates labels has something to win. Backgrounds are textured, bushes and posts
stand in front, stones lie about, and some images show two creatures.
"""
from __future__ import annotations

import os
from typing import Dict, List, Sequence, Tuple

import cv2
import numpy as np

from cian.data.classes import BACKGROUND, write_label_png
from cian.data.lists import LIST_FOLDER, MASK_FOLDER, write_list
from cian.data.toy_drawing import (
    CREATURES,
    OVERSAMPLE,
    Canvas,
    Pose,
    draw_creature,
    limb,
    noise,
    oval,
    polygon,
)
from cian.errors import InputError, PathLike
from cian.files import atomic_write, atomic_write_bytes

GROUNDS = {"grass": (92, 132, 58), "sand": (206, 182, 132), "heath": (128, 116, 84), "snow": (222, 226, 234),
           "moss": (70, 96, 66)}
SKIES = {"clear": (140, 184, 226), "dusk": (222, 168, 150), "cloud": (190, 194, 202), "forest": (52, 84, 60),
         "wall": (158, 112, 92)}
Boxes = List[Tuple[int, Tuple[int, int, int, int]]]


def make_toy(folder: PathLike, num_train: int = 120, num_val: int = 40, seed: int = 0, *, width_px: int = 144,
             height_px: int = 112, classes: Sequence[str] = tuple(CREATURES)) -> str:
    """Write the data set below ``folder`` and return the folder.

    Image i of a list depends on ``seed``, the list and i alone, so a longer list begins with a shorter one.

    Parameters
    ----------
    num_train, num_val : images of the lists ``train`` and ``val``.
    width_px, height_px : size of most images; every fourth stands upright.
    classes : creatures to draw, of ``CREATURES``; their order is that of the classes behind the background.

    Returns
    -------
    str : ``folder``, with JPEGImages/, Annotations/, SegmentationClassAug/,
        ImageSets/Segmentation/{train,val}.txt and classes.txt.
    """
    unknown = [name for name in classes if name not in CREATURES]
    if unknown or not classes:
        raise InputError(f"unknown creatures {unknown}" if unknown else "no class was named", field="classes",
                         remedy=f"choose among: {', '.join(CREATURES)}")
    if min(width_px, height_px) < 32 or min(num_train, num_val) < 0:
        raise InputError(f"cannot draw {num_train} and {num_val} images of {width_px}x{height_px} pixels",
                         field="toy data set", remedy="images need at least 32 pixels a side")
    root = os.fspath(folder)
    for number, (split, count) in enumerate((("train", num_train), ("val", num_val))):
        names = [f"{split}_{index:05d}" for index in range(count)]
        for index, name in enumerate(names):
            rng = np.random.Generator(np.random.Philox(key=[seed, number << 32 | index]))
            upright = index % 4 == 3
            size = (width_px, height_px) if upright else (height_px, width_px)
            _write_sample(root, name, *draw_scene(rng, *size, classes, first=index % len(classes)), classes)
        write_list(os.path.join(root, LIST_FOLDER, f"{split}.txt"), names)
    with atomic_write(os.path.join(root, "classes.txt"), "w") as stream:
        stream.writelines(f"{name}\n" for name in (BACKGROUND, *classes))
    return root


def draw_scene(rng: np.random.Generator, height: int, width: int, classes: Sequence[str],
               first: int) -> Tuple[np.ndarray, np.ndarray, Boxes]:
    """One picture (height, width, 3) uint8 RGB, its labels (height, width) uint8, and (label, box)
    of every creature.

    ``first`` is the class (counted from 0) of the first creature; a fifth of the pictures have two.
    """
    canvas = Canvas(height * OVERSAMPLE, width * OVERSAMPLE)
    horizon = _paint_background(canvas, rng)
    count = int(rng.choice([1, 2], p=[0.8, 0.2]))
    kinds = [first, *(int(kind) for kind in rng.integers(0, len(classes), count - 1))]
    poses = _poses(rng, canvas.size, horizon, count)
    _paint_stones(canvas, rng, horizon)
    boxes: Dict[int, Tuple[int, int, int, int]] = {}
    whole = np.zeros(canvas.labels.shape, np.uint8)
    for order, (kind, pose) in enumerate(zip(kinds, poses), 1):
        before = canvas.labels.copy()
        canvas.labels[:] = 0
        draw_creature(canvas, rng, classes[kind], kind + 1, pose)
        painted = canvas.labels > 0
        whole[painted] = order
        canvas.labels[~painted] = before[~painted]
        boxes[order] = _box(painted)
    if rng.random() < 0.4:
        _paint_occluder(canvas, rng, whole)
    return (*canvas.finished(), [(kinds[order - 1] + 1, box) for order, box in boxes.items()])


def _poses(rng: np.random.Generator, shape: Tuple[int, int], horizon: float, count: int) -> List[Pose]:
    """Places side by side, the nearer ones (lower, larger) last."""
    height, width = shape
    slot = width / count
    poses = []
    for place in rng.permutation(count):
        unit = min(slot / (3.7 if count == 1 else 3.1), height / 3.0) * rng.uniform(0.80, 1.08)
        feet = rng.uniform(max(horizon + 0.3 * unit, 0.72 * height), 0.98 * height)
        facing = int(rng.choice([-1, 1]))
        # A creature reaches 2.0 units ahead of its centre and 1.6 behind it.
        middle = slot * (place + 0.5) - 0.2 * facing * unit + rng.uniform(-0.10, 0.10) * slot
        poses.append(Pose(middle, max(feet - 1.22 * unit, 1.7 * unit), unit, facing,
                          rng.uniform(-0.12, 0.12)))
    return sorted(poses, key=lambda pose: pose.y + 1.22 * pose.unit)


def _paint_background(canvas: Canvas, rng: np.random.Generator) -> float:
    """Ground and what is behind it, textured; returns the row of the horizon."""
    height, width = canvas.size
    horizon = rng.uniform(0.25, 0.6) * height
    edge = horizon + 0.02 * height * noise(rng, 1, width, width / 4, 2)
    ground_mask = np.arange(height, dtype=np.float32)[:, None] > edge
    for table, mask, fine in ((SKIES, ~ground_mask, 30.0), (GROUNDS, ground_mask, 8.0)):
        name = str(rng.choice(list(table)))
        base = np.array(table[name], np.float32) * rng.uniform(0.85, 1.12) + rng.uniform(-8, 8, 3)
        strength = 6.0 if name in ("clear", "dusk", "cloud", "snow") else 15.0
        texture = strength * noise(rng, height, width, fine, 3) + 0.7 * strength * noise(rng, height, width,
                                                                                         width / 5, 2)
        canvas.paint(
            mask, (base + texture[:, :, None] * np.array([1.0, 0.95, 0.85], np.float32)).astype(np.float32))
    return float(horizon)


def _paint_stones(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    """Stones in the coats' colours, so that colour alone does not tell a creature."""
    height, width = canvas.size
    for _ in range(int(rng.integers(0, 4))):
        radius = rng.uniform(0.03, 0.09) * width
        outline = np.asarray(oval(rng.uniform(0, width), rng.uniform(horizon, height), radius, 0.6 * radius))
        mask = polygon((height, width), outline + rng.normal(0, 0.05 * radius, outline.shape))
        base = rng.uniform(95, 165) * np.array([1.0, 0.97, 0.90], np.float32)
        canvas.paint(mask, (base + 12 * noise(rng, height, width, 18.0, 3)[:, :, None]).astype(np.float32))


def _paint_occluder(canvas: Canvas, rng: np.random.Generator, creatures: np.ndarray) -> None:
    """A bush or a post in the foreground, unless it would hide more than a third of a creature."""
    height, width = canvas.size
    x = rng.uniform(0, width)
    if rng.random() < 0.5:
        top, bend = rng.uniform(0, 0.3) * height, rng.uniform(-8, 8)
        outline = np.asarray(limb([(x, top), (x + bend, 0.6 * height), (x, height + 4)], [22, 24, 28]))
        base = np.array((112, 80, 52), np.float32) * rng.uniform(0.6, 1.1)
    else:
        radius = rng.uniform(0.10, 0.17) * width
        angle = np.linspace(np.pi, 2 * np.pi, 24)
        ragged = radius * (1 + 0.16 * rng.standard_normal(24))
        outline = np.stack([x + ragged * np.cos(angle), height + 4 + 1.3 * ragged * np.sin(angle)], 1)
        base = np.array((48, 98, 44), np.float32) * rng.uniform(0.7, 1.2)
    mask = polygon((height, width), outline)
    for order in range(1, int(creatures.max()) + 1):
        creature = (creatures == order) & (canvas.labels > 0)
        if (mask & creature).sum() > creature.sum() / 3:
            return
    canvas.paint(mask, (base + 16 * noise(rng, height, width, 10.0, 3)[:, :, None]).astype(np.float32))


def _box(mask: np.ndarray) -> Tuple[int, int, int, int]:
    """Box (left, top, right, bottom) of a canvas mask at the final resolution, counted from 1 as VOC does."""
    rows, columns = np.flatnonzero(mask.any(axis=1)) // OVERSAMPLE, np.flatnonzero(
        mask.any(axis=0)) // OVERSAMPLE
    return int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1


def _write_sample(root: str, name: str, picture: np.ndarray, labels: np.ndarray, boxes: Boxes,
                  classes: Sequence[str]) -> None:
    encoded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    atomic_write_bytes(os.path.join(root, "JPEGImages", f"{name}.jpg"), encoded.tobytes())
    write_label_png(os.path.join(root, MASK_FOLDER, f"{name}.png"), labels)
    height, width = labels.shape
    objects = "".join(f"  <object>\n    <name>{classes[label - 1]}</name>\n    <difficult>0</difficult>\n    "
                      f"<bndbox><xmin>{left}</xmin>"
                      f"<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>\n  </object>\n"
                      for label, (left, top, right, bottom) in boxes)
    with atomic_write(os.path.join(root, "Annotations", f"{name}.xml"), "w") as stream:
        stream.write(f"<annotation>\n  <filename>{name}.jpg</filename>\n  "
                     f"<size><width>{width}</width><height>{height}</height><depth>3"
                     f"</depth></size>\n{objects}</annotation>\n")
