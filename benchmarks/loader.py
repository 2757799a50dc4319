"""Speed of the loader against the original's, on the same 500x375 JPEGs, in one interleaved run.

  python benchmarks/loader.py --original PATH_OF_CHECKOUT

Each side runs in a process of its own and makes the batches of a round when it is asked to; the
sides take turns, and the figures are medians over the rounds, of images a second and of the ratio
within a round. Without --data the pictures are generated (about the size in bytes of VOC's). First
the batches of both loaders are compared, bit for bit.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from cian.data.classes import VOC_CLASSES, ClassTable
from cian.data.lists import read_list
from cian.data.packing import pack_images, pack_labels
from cian.data.records import RecordSet
from cian.data.tree import DatasetTree
from cian.environment import usable_cores
from cian.errors import InputError, run_tool

BATCH_SIZE, CROP_PX, SEED = 16, 321, 0
HEIGHT, WIDTH = 375, 500
# What each side is, and its threads: one, or as many as it takes by itself.
SIDES = {
    "original, one thread": 1, "original, its own threads": 0, "decoding alone, one thread": 1,
    "decoding records, one thread": 1, "ours, one thread": 1, "ours, two workers": 1,
}


def generated_tree(root: str, count: int, size_px: Tuple[int, int] = (HEIGHT, WIDTH),
                   common: int = 0) -> None:
    """Pictures with detail at every scale, blobs as seeds, and annotations, in VOC's layout.

    ``size_px`` is height and width; every picture has the class of number ``common``, unless that is 0.
    """
    rng = np.random.RandomState(SEED)
    height, width = size_px
    for folder in ("JPEGImages", "Annotations", "seeds"):
        os.makedirs(os.path.join(root, folder))
    names = [f"picture_{number:04d}" for number in range(count)]
    for name in names:
        picture = np.full((height, width, 3), 128, np.float32)
        for octave in range(1, 8):
            noise = rng.standard_normal((3 * 2 ** octave // 2, 4 * 2 ** octave // 2, 3)).astype(np.float32)
            picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 150 / 2 ** octave
        cv2.imwrite(os.path.join(root, "JPEGImages", f"{name}.jpg"),
                    np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
        classes = rng.choice(20, 1 + (rng.random_sample() < 0.4), replace=False) + 1
        classes[0] = common or classes[0]
        field = cv2.resize(rng.standard_normal((9, 12)).astype(np.float32), (width, height),
                           interpolation=cv2.INTER_CUBIC)
        seed = np.digitize(field, [-0.3, 0.4, 0.9])
        cv2.imwrite(os.path.join(root, "seeds", f"{name}.png"),
                    np.array([0, 255, classes[0], classes[-1]], np.uint8)[seed])
        objects = "".join(f"<object><name>{VOC_CLASSES[index]}</name><difficult>0</difficult></object>"
                          for index in sorted(classes))
        with open(os.path.join(root, "Annotations", f"{name}.xml"), "w", encoding="utf-8") as stream:
            stream.write(f"<annotation>{objects}</annotation>")
    with open(os.path.join(root, "train.txt"), "w", encoding="utf-8") as stream:
        stream.write("".join(f"{name}\n" for name in names))


def pack(root: str, out: str) -> None:
    """Record sets of the tree."""
    names, classes = read_list(os.path.join(root, "train.txt")), ClassTable(VOC_CLASSES)
    tree = DatasetTree(root)
    pack_images(out, "images", names, [tree.image_path(name) for name in names], tree.labels(names), classes)
    pack_labels(out, "seeds", names, [os.path.join(root, "seeds", f"{name}.png") for name in names], classes)


def endless(loader: Any) -> Iterator[Any]:
    """Batches of one epoch after another."""
    while True:
        loader.reset()
        yield from loader


def original_batches(checkout: str, root: str) -> Iterator[Any]:
    """Batches of the original's loader."""
    sys.path.insert(0, checkout)
    from lib.loader.voc_seg_group_loader import VOCSegGroupLoader

    np.random.seed(SEED)
    folders = (os.path.join(root, name) for name in ("JPEGImages", "seeds", "Annotations", "train.txt"))
    return endless(VOCSegGroupLoader(*folders, BATCH_SIZE, 2, 1, CROP_PX, shuffle=True, rand_scale=True,
                                     rand_mirror=True, rand_crop=True, downsample=8))


def our_batches(out: str, workers: int) -> Iterator[Any]:
    """Batches of PairIter."""
    from cian.data.iterators import PairIter

    return endless(PairIter(RecordSet.open(out, "images"), RecordSet.open(out, "seeds"),
                            batch_size=BATCH_SIZE, crop_px=CROP_PX, seed=SEED, workers=workers))


def decoded_batches(root: str) -> Iterator[None]:
    """Nothing but the decoding of as many images and seeds."""
    names = read_list(os.path.join(root, "train.txt"))
    while True:
        for start in range(0, len(names) - BATCH_SIZE + 1, BATCH_SIZE):
            for name in names[start:start + BATCH_SIZE]:
                cv2.imread(os.path.join(root, "JPEGImages", f"{name}.jpg"))
                cv2.imread(os.path.join(root, "seeds", f"{name}.png"), cv2.IMREAD_GRAYSCALE)
            yield None


def decoded_records(out: str) -> Iterator[None]:
    """The same of our record sets: the same JPEGs, but seeds that were packed so that they decode fast."""
    images, seeds = RecordSet.open(out, "images"), RecordSet.open(out, "seeds")
    while True:
        for start in range(0, len(images) - BATCH_SIZE + 1, BATCH_SIZE):
            for index in range(start, start + BATCH_SIZE):
                images.image(index)
                seeds.label(index)
            yield None


def serve(pipe: Any, side: str, checkout: str, root: str, out: str) -> None:
    """In the process of a side: make batches as told, a (warm-up, timed) pair of numbers a round;
    send seconds, CPU seconds, checksum.
    """
    if SIDES[side]:
        cv2.setNumThreads(SIDES[side])
    makers: Dict[str, Callable[[], Iterator[Any]]] = {
        "original": lambda: original_batches(checkout, root), "decoding alone": lambda: decoded_batches(root),
        "decoding records": lambda: decoded_records(out),
        "ours": lambda: our_batches(out, 2 if side.endswith("workers") else 0)}
    batches = makers[side.split(",")[0]]()
    while True:
        request = pipe.recv()
        if request is None:
            return
        for _ in range(request[0]):
            finish(next(batches))
        checksum, start, cpu = 0, time.perf_counter(), cpu_seconds()
        for _ in range(request[1]):
            batch = next(batches)
            finish(batch)
            if request[0] == 0 and batch is not None:
                checksum = zlib.crc32(batch.label[0].asnumpy().tobytes(),
                                      zlib.crc32(batch.data[0].asnumpy().tobytes(), checksum))
        pipe.send((time.perf_counter() - start, cpu_seconds() - cpu, checksum))


def cpu_seconds() -> float:
    """CPU time of this process and its children so far."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with open(f"/proc/{child.pid}/stat", encoding="ascii") as stream:
            user, system = stream.read().rsplit(")", 1)[1].split()[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def finish(batch: Any) -> None:
    """Wait until the arrays of a batch exist."""
    if batch is not None:
        batch.data[0].wait_to_read()
        batch.label[0].wait_to_read()


def start_side(side: str, *arguments: str) -> Tuple[Any, Any]:
    """A process for ``side`` and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(SIDES[side] or usable_cores())
    # not a daemon: it has workers of its own
    process = context.Process(target=serve, args=(theirs, side, *arguments))
    process.start()
    os.environ.pop("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    return process, ours


def measure(sides: Dict[str, Tuple[Any, Any]], rounds: int, batches: int) -> Tuple[Dict[str, List[float]],
                                                                                   Dict[str, List[float]]]:
    """Images a second, and CPU milliseconds an image, of each side in each round, the sides taking turns."""
    def ask(side: str, warm_up: int, timed: int) -> Tuple[float, float, int]:
        sides[side][1].send((warm_up, timed))
        return sides[side][1].recv()

    checksums = {side: ask(side, 0, 4)[2] for side in sides if not side.startswith("decoding")}
    if len(set(checksums.values())) != 1:
        raise InputError(f"the loaders' first batches differ: {checksums}",
                         remedy="compare OpenCV and NumPy of both sides")
    print("the first four batches of every loader are the same, bit for bit")
    speeds: Dict[str, List[float]] = {side: [] for side in sides}
    cpu_ms: Dict[str, List[float]] = {side: [] for side in sides}
    names = list(sides)
    for number in range(rounds):
        for side in names[number % len(names):] + names[:number % len(names)]:
            # As many batches as the workers may have made ahead go by before the clock starts.
            seconds, cpu, _ = ask(side, 5, batches)
            speeds[side].append(batches * BATCH_SIZE / seconds)
            cpu_ms[side].append(cpu * 1000 / batches / BATCH_SIZE)
    return speeds, cpu_ms


def summary(speeds: Dict[str, List[float]], cpu_ms: Dict[str, List[float]]) -> List[Dict[str, Any]]:
    """Rows of medians: images a second, ratios within a round to both originals and to decoding,
    CPU milliseconds an image.
    """
    rows = []
    for side, values in speeds.items():
        row: Dict[str, Any] = {"side": side, "images/s": statistics.median(values),
                               "range": (min(values), max(values))}
        for label, other in (("x original, 1 thread", "original, one thread"),
                             ("x original, own threads", "original, its own threads"),
                             ("of decoding", "decoding alone, one thread")):
            ratios = [mine / theirs for mine, theirs in zip(values, speeds[other])]
            row[label], row[f"{label}, range"] = statistics.median(ratios), (min(ratios), max(ratios))
        row["CPU ms"] = statistics.median(cpu_ms[side])
        rows.append(row)
    return rows


def show(rows: Sequence[Dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':28}{'images/s':>10} "
          f"{'range':>13}{'x original, 1 thread':>25}{'x original, own threads':>27}{'of decoding':>13}"
          f"{'CPU ms/image':>14}")
    for row in rows:
        spans = ["{:.2f} ({:.2f}-{:.2f})".format(row[key], *row[f"{key}, range"]) for key in
                 ("x original, 1 thread", "x original, own threads")]
        print(f"{row['side']:28}{row['images/s']:>10.0f} "
              f"{'{:.0f}-{:.0f}'.format(*row['range']):>13}{spans[0]:>25}{spans[1]:>27}"
              f"{row['of decoding']:>13.2f}{row['CPU ms']:>14.2f}")


def plot(speeds: Dict[str, List[float]], path: str) -> None:
    """Every round as a dot, the medians as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    sides = list(speeds)[::-1]
    axes.barh(sides, [statistics.median(speeds[side]) for side in sides],
              color=["tab:blue" if side.startswith("ours") else "tab:gray" for side in sides])
    for number, side in enumerate(sides):
        axes.plot(speeds[side], [number] * len(speeds[side]), "k.", markersize=4)
    axes.set(xlabel=f"images/s ({WIDTH}x{HEIGHT} JPEG, crop {CROP_PX}); bars are medians, dots rounds")
    figure.savefig(path, dpi=110)


def benchmark(original: str, data: Optional[str], images: int, rounds: int, batches: int) -> Dict[str, Any]:
    """Run every side in turn; the machine, the summary's rows, and the figures of each round."""
    if not os.path.exists(os.path.join(original, "lib", "loader", "voc_seg_group_loader.py")):
        raise InputError("is not a checkout of the original code", file=original, field="--original")
    with tempfile.TemporaryDirectory() as scratch:
        root = data or os.path.join(scratch, "tree")
        if not data:
            generated_tree(root, images)
        pack(root, os.path.join(scratch, "records"))
        sides = {side: start_side(side, original, root, os.path.join(scratch, "records")) for side in SIDES}
        try:
            speeds, cpu_ms = measure(sides, rounds, batches)
        finally:
            for process, pipe in sides.values():
                if process.is_alive():
                    pipe.send(None)
                process.join()
    return {"cores": usable_cores(), "load": os.getloadavg()[0], "machine": platform.machine(),
            "python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__,
            "rows": summary(speeds, cpu_ms), "rounds": speeds, "cpu_ms": cpu_ms}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", default=os.environ.get("CIAN_ORIGINAL", ""),
                        help="checkout of the original code [default: the environment's CIAN_ORIGINAL]")
    parser.add_argument(
        "--data",
        help="folder with JPEGImages, Annotations, seeds (gray PNG) and train.txt, of VOC's classes")
    parser.add_argument("--images", type=int, default=192, help="pictures to generate without --data [192]")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, each side once a round [9]")
    parser.add_argument("--batches", type=int, default=12, help="batches of 16 a side and round [12]")
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--plot", help="also draw them into this PNG")
    parser.add_argument("--read", help="measure nothing: take the figures from this file of --json")
    arguments = parser.parse_args(argv)
    if arguments.read:
        with open(arguments.read, encoding="utf-8") as stream:
            figures = json.load(stream)
    else:
        figures = benchmark(arguments.original, arguments.data, arguments.images, arguments.rounds,
                            arguments.batches)
    print(", ".join(f"{key} {value}"
                    for key, value in figures.items() if isinstance(value, (int, float, str))))
    show(figures["rows"])
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as stream:
            json.dump(figures, stream, indent=1)
    if arguments.plot:
        plot(figures["rounds"], arguments.plot)
    return 0


if __name__ == "__main__":
    run_tool(main)
