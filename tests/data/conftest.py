"""A small data set in VOC layout, and its record sets, for the tests of the loader."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from cian.data.classes import VOC_CLASSES, ClassTable
from cian.data.packing import pack_images, pack_labels

COUNT, CLASSES_USED = 31, (1, 2, 5, 15)


def made_up_labels(count, rng):
    """Multi-hot labels of VOC's width: one of four classes each, every third image a second one."""
    labels = np.zeros((count, len(VOC_CLASSES)), np.uint8)
    labels[:, 0] = 1
    for index in range(count):
        labels[index, rng.choice(CLASSES_USED, 1 + (index % 3 == 0), replace=False)] = 1
    return labels


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Folder with JPEGImages, Annotations, seeds (gray PNG) and train.txt; sizes around the crop of
    61 pixels, no two alike.
    """
    root, rng = tmp_path_factory.mktemp("tree"), np.random.RandomState(3)
    names, labels = [f"im_{number:02d}" for number in range(COUNT)], made_up_labels(COUNT, rng)
    for folder in ("JPEGImages", "Annotations", "seeds"):
        (root / folder).mkdir()
    for number, name in enumerate(names):
        height, width = 41 + 2 * number, 97 - number
        coarse = rng.randint(0, 256, (7, 11, 3), np.uint8)
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"),
                    cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        held = np.append(np.flatnonzero(labels[number]), 255).astype(np.uint8)
        seed = cv2.resize(held[rng.randint(0, len(held), (5, 7))], (width, height),
                          interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(root / "seeds" / f"{name}.png"), seed)
        objects = "".join(f"<object><name>{VOC_CLASSES[index]}</name><difficult>0</difficult></object>"
                          for index in np.flatnonzero(labels[number, 1:]) + 1)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "train.txt").write_text("".join(f"{name}\n" for name in names))
    return SimpleNamespace(root=root, names=names, labels=labels)


@pytest.fixture(scope="session")
def records(tree, tmp_path_factory):
    """``images`` and ``seeds``: the record sets of ``tree``, the seeds in another order than the images."""
    folder, classes = tmp_path_factory.mktemp("records"), ClassTable(VOC_CLASSES)
    jpegs = [str(tree.root / "JPEGImages" / f"{name}.jpg") for name in tree.names]
    turned = tree.names[::-1]
    images = pack_images(folder, "images", tree.names, jpegs, tree.labels, classes, workers=1)
    seeds = pack_labels(folder, "seeds", turned,
                        [str(tree.root / "seeds" / f"{name}.png") for name in turned], classes, workers=1)
    return SimpleNamespace(images=images, seeds=seeds, folder=folder)
