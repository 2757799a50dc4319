"""Prepares the process (NumPy's aliases, threads) before any test file imports MXNet; a small data
set for tests.
"""
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import cian  # noqa: F401
from cian.data.classes import write_label_png

# Started in the background, a shell's processes ignore Ctrl-C, and so would the programs that tests
# start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = ("background", "cat", "dog", "bird")
ANNOTATION = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>0</difficult></object>"


@pytest.fixture(scope="session")
def make_voc_tree():
    """A function that writes a small VOC-layout tree with seeds and without masks:
    ``make_voc_tree(folder, images=12)`` -> its path.
    """
    def make(folder, images=12, seed=0, height=37, width=41):
        rng = np.random.RandomState(seed)
        root = os.fspath(folder)
        for part in ("JPEGImages", "Annotations", "seeds", os.path.join("ImageSets", "Segmentation")):
            os.makedirs(os.path.join(root, part), exist_ok=True)
        names = [f"image_{number:02d}" for number in range(images)]
        for number, name in enumerate(names):
            present = sorted({1 + number % 3, 1 + (number // 3) % 3})
            coarse = rng.randint(0, 256, (5, 5, 3), np.uint8)
            cv2.imwrite(os.path.join(root, "JPEGImages", f"{name}.jpg"), cv2.resize(coarse, (width, height)))
            with open(os.path.join(root, "Annotations", f"{name}.xml"), "w", encoding="utf-8") as stream:
                stream.write(ANNOTATION.format("".join(OBJECT.format(CLASSES[value]) for value in present)))
            blocks = rng.choice(np.array([0, 255, *present], np.uint8), (5, 5))
            seeds = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
            write_label_png(os.path.join(root, "seeds", f"{name}.png"), seeds)
        with open(os.path.join(root, "ImageSets", "Segmentation", "train.txt"), "w",
                  encoding="utf-8") as stream:
            stream.writelines(f"{name}\n" for name in names)
        with open(os.path.join(root, "classes.txt"), "w", encoding="utf-8") as stream:
            stream.writelines(f"{name}\n" for name in CLASSES)
        return root
    return make


@pytest.fixture
def outliving(tmp_path):
    """Runs a program that prints the numbers of its processes and kills itself; returns those of
    them that still run 20 seconds later.
    """
    def run(code, *arguments):
        (tmp_path / "killed.py").write_text(code)
        with open(tmp_path / "log", "w") as log:  # not a pipe, which the processes would keep open
            subprocess.run([sys.executable, str(tmp_path / "killed.py"), *map(str, arguments)], stdout=log,
                           stderr=subprocess.DEVNULL, timeout=60)
        left = [int(number) for number in (tmp_path / "log").read_text().split()]
        assert left, "it has printed no process"
        deadline = time.monotonic() + 20
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = [process for process in left if alive(process)]
        return left
    return run


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
