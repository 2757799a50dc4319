"""What labels alone tell of seeds and of a second round's labels, against hand counts."""
import numpy as np
import pytest

from cian.data.classes import ClassTable, write_label_png
from cian.tools.engine.seeds.balance import (
    balance_table,
    implausible,
    label_pixels,
    lost_labels,
    seed_balance,
)

CLASSES = ClassTable(("background", "cat", "dog", "cow"))
LABELS = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.uint8)
SEEDS = {"a": [[0, 0, 1, 1, 255]], "b": [[0, 255, 1, 0, 255]]}


def write(folder, maps):
    for name, labels in maps.items():
        write_label_png(folder / f"{name}.png", np.array(labels, np.uint8))
    return folder


def test_balance_is_that_counted_by_hand(tmp_path):
    pixels = label_pixels(write(tmp_path, SEEDS), ["a", "b"], workers=2)
    found = seed_balance(pixels, LABELS, CLASSES)
    assert (found["images"], found["coverage"], found["objects"]) == (2, 0.7, pytest.approx(3 / 7))
    assert found["classes"] == {"cat": {"images": 2, "without": 0, "share": pytest.approx(0.3)},
                                "dog": {"images": 1, "without": 1, "share": 0.0},
                                "cow": {"images": 0, "without": 0, "share": None}}
    assert implausible(found) == ["dog: 1 of its 1 images have no seed of it"]
    assert balance_table(found).splitlines()[-2:] == ["70.0% of the pixels labelled, 42.9% of them objects",
                                                      "note: dog: 1 of its 1 images have no seed of it"]


def test_seeds_without_any_label_are_told_and_not_divided_by(tmp_path):
    pixels = label_pixels(write(tmp_path, {"a": [[255, 255]]}), ["a"])
    found = seed_balance(pixels, LABELS[:1], CLASSES)
    assert found["objects"] is None and implausible(found) == ["cat: 1 of its 1 images have no seed of it"]


@pytest.mark.parametrize("objects, shares, expected", [
    (0.5, (0.1, 0.2, 0.3), []),
    (0.2, (0.1, 0.2, 0.3), ["objects are 20% of the labelled pixels"]),
    (0.8, (0.1, 0.2, 0.3), ["objects are 80% of the labelled pixels"]),
    (0.5, (0.01, 0.2, 0.2), ["cat: 1.0% of its images' pixels, where 20.0% is usual"]),
    (0.5, (0.0, 0.0, 0.4), ["cat: 0.0% of its images' pixels", "dog: 0.0% of its images' pixels"]),
    (0.5, (0.1, 0.1, 0.4), ["cow: 40.0% of its images' pixels, where 10.0% is usual"]),
])
def test_shares_far_from_the_others_and_a_wrong_balance_are_implausible(objects, shares, expected):
    rows = {name: {"images": 5, "without": 0, "share": share}
            for name, share in zip(CLASSES.foreground, shares)}
    found = implausible({"objects": objects, "classes": rows})
    assert len(found) == len(expected) and all(map(str.startswith, found, expected))


def test_labels_that_lost_objects_or_a_class_are_told_and_others_are_not(tmp_path):
    seeds = write(tmp_path / "seeds", {"a": [[0, 0, 1, 1, 255, 1]], "b": [[0, 2, 2, 1, 255, 2]]})
    kept = write(tmp_path / "kept", {"a": [[0, 1, 1, 1, 1, 1]], "b": [[0, 2, 2, 1, 0, 0]]})
    swapped = write(tmp_path / "swapped", {"a": [[0, 0, 1, 1, 1, 1]], "b": [[0, 1, 1, 1, 0, 2]]})
    lost = write(tmp_path / "lost", {"a": [[0, 0, 0, 1, 0, 0]], "b": [[0, 2, 0, 1, 0, 2]]})
    assert lost_labels(seeds, seeds, ["a", "b"], CLASSES) == []
    assert lost_labels(seeds, kept, ["a", "b"], CLASSES) == ["dog: 33% of its seeds are lost"]
    assert lost_labels(seeds, swapped, ["a", "b"], CLASSES) == ["dog: 67% of its seeds are lost"]
    assert lost_labels(seeds, lost, ["a", "b"], CLASSES, workers=2) == [
        "43% of the seeds of objects became background; objects are 33% of the labels, 70% of the seeds",
        "cat: 50% of its seeds are lost", "dog: 33% of its seeds are lost"]
