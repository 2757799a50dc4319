"""Sizes from the least to the absurd: each works, or is refused by name.

``python -m faulting.sizes CASE FOLDER`` runs one in this process and prints what it did.
"""
from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np

from cian.errors import InputError

SHAPES = {"1x1": (1, 1), "1x10000": (1, 10000), "10000x1": (10000, 1), "7x9": (7, 9),
          "12000x9000": (9000, 12000)}


def _picture(shape: Any, folder: Path) -> str:
    from PIL import Image

    path = folder / "picture.jpg"
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(path, quality=30)
    return str(path)


def _bomb(folder: Path) -> str:
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">II", 60000, 60000) + b"\x08\x02\0\0\0"
    path = folder / "bomb.png"
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    return str(path)


def _read(path: str) -> Any:
    from cian.data.checks import check_images
    from cian.tools.engine.images import read_image

    problems = check_images([path], workers=1).problems if path.endswith(".jpg") else []
    if problems:
        raise problems[0]
    return read_image(path).shape


def _predict(shape: Any, folder: Path) -> Any:
    from cian import load_model
    from cian.symbols import build_model, initialize, save_params

    net = build_model("resnet18_largefov", tiny=True, num_classes=3)
    initialize(net)
    save_params(net, folder / "m-0000.params", {"network": net.settings, "classes": ["background", "a", "b"]})
    return load_model(folder / "m-0000.params", fit="native").predict(_picture(shape, folder)).shape


def _survey(folder: Path, name: str = "a", classes: int = 2, count: int = 1) -> Any:
    from cian.data.preparation import prepare
    from cian.data.tree import DatasetTree

    names = [name] + [f"{name}{number}" for number in range(1, count)]
    for part in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"{label}\n" for label in ["background", *(
        f"c{number}" for number in range(1, classes))]))
    os.replace(_picture((9, 9), folder), folder / "JPEGImages" / f"{name}.jpg")
    (folder / "labels.txt").write_text("".join(f"{entry} c1\n" for entry in names), encoding="utf-8")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("".join(f"{entry}\n" for entry in names),
                                                                     encoding="utf-8")
    tree = DatasetTree(folder, classes=folder / "classes.txt", labels_file=folder / "labels.txt")
    if count > 1:
        return len(tree.labels(tree.names("train")))
    return len(prepare(tree, "train", folder / "records", workers=1).images)


def _groups(folder: Path, images: int) -> Any:
    """Train with groups of 8 on a list of ``images``."""
    from faulting.world import make_data, settings

    from cian.symbols.backbones import TINY
    from cian.tools.engine.training.round import fit

    make_data(folder / "tree")
    names = folder / "tree" / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("".join(names.read_text().splitlines(keepends=True)[:images]))
    config = settings(folder).replace(data={"records": ""}, network={"group_size": 8}, train={"epochs": 1})
    return os.path.basename(fit(config, backbone_options=TINY["resnet18"]))


def _long_path(folder: Path) -> Any:
    deep = folder
    while len(str(deep)) < 4000 - 60:
        deep = deep / ("d" * 50)
    deep.mkdir(parents=True)
    return _survey(deep)


CASES: Dict[str, Callable[[Path], Any]] = {
    **{f"read {name}": lambda folder, shape=shape: _read(_picture(shape, folder))
       for name, shape in SHAPES.items()},
    **{f"predict {name}": lambda folder, shape=shape: _predict(shape, folder)
       for name, shape in SHAPES.items()},
    "a PNG that announces 60000x60000": lambda folder: _read(_bomb(folder)),
    **{f"{number} classes": lambda folder, number=number: _survey(folder, classes=number + 1)
       for number in (0, 1, 254, 255, 300)},
    "a list of one image": lambda folder: _survey(folder),
    "a list of 1,000,000 names": lambda folder: _survey(folder, count=10 ** 6),
    **{f"groups of 8 of {images} images": lambda folder, images=images: _groups(folder, images)
       for images in (1, 5, 34)},
    "a path of 4,000 characters": _long_path,
    **{f"the name {name}": lambda folder, name=name: _survey(folder, name) for name in
       ("größe", "写真", "фото", "صورة", "😀", "a'b;c", "%d{}")},
    "a name of 250 characters": lambda folder: _survey(folder, "n" * 250),
}


def main(case: str, folder: Path) -> None:
    """Run a case and print [what it did, what was told, peak memory in MB]."""
    try:
        found = ["works", str(CASES[case](folder))[:80]]
    except InputError as error:
        told = str(error)
        found = ["refused" if "\n" not in told else "fault", told.replace(str(folder), "FOLDER")[:200]]
    except Exception as error:  # any other kind is what this program looks for
        found = ["fault", f"{type(error).__name__}: {error}"[:300]]
    print(json.dumps([*found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
