"""Pairing and iterating at sizes that VOC does not have: seconds and memory, and how both grow.

  python benchmarks/loader_scale.py --labels train_aug_labels.npz --images 10582 100000 1000000 \\
      --folder scratch

Labels are drawn, with replacement, from those of an npz file (`names`, `labels` (n, classes)), or
are made up without one. Pairing is measured for each way to draw groups; with --original also the
original's queue, on the same lists, and its groups are compared. With --folder, record sets of that
many small images are packed there and a PairIter with two workers is run over some of their
batches. Each row is measured in a process of its own. Seconds are those of the CPU, so that other
programs do not count; memory of several processes counts shared pages once, and pages of files not
at all.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import cv2
import numpy as np

from cian.data.classes import ClassTable
from cian.data.label_png import encode_gray_png
from cian.data.manifest import HEADER
from cian.data.pairs import GroupSampler
from cian.data.records import RecordSet
from cian.data.writer import record_writer
from cian.environment import usable_cores
from cian.errors import InputError, run_tool

GROUPS_PER_BATCH, SEED = 8, 0
BATCHES = (1, 1500, 3000, 6000)  # when memory is looked at
CLASSES = ["background", *(f"class{number}" for number in range(1, 21))]


def shared_out_mb(pids: Sequence[int]) -> float:
    """Memory of processes together without that of files, shared pages counted once, in MB."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
            total += sum(int(line.split()[1])
                         for line in stream if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total / 1024


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM")) / 1024


def drawn_labels(path: str, count: int) -> np.ndarray:
    """(count, 21) multi-hot labels with the background, as in the file, or drawn from its rows."""
    if path:
        with np.load(path) as content:
            known = content["labels"].astype(np.uint8)
    else:
        known = (np.random.RandomState(1).random_sample((10_000, 20)) < 0.02).astype(np.uint8)
        known[np.arange(10_000), np.random.RandomState(2).randint(0, 20, 10_000)] = 1
    rows = np.arange(count) if count == len(known) else np.random.RandomState(SEED).randint(0, len(known),
                                                                                            count)
    return np.concatenate([np.ones((count, 1), np.uint8), known[rows]], axis=1)


def measure_pairing(labels: np.ndarray, pairing: str) -> Dict[str, float]:
    """Seconds and peak memory of making a sampler and of drawing an epoch."""
    before, start = peak_mb(), time.process_time()
    sampler = GroupSampler(labels, groups_per_batch=GROUPS_PER_BATCH, pairing=pairing, seed=SEED)
    made, times = time.process_time() - start, []
    for _ in range(3):
        start = time.process_time()
        sampler.next_epoch()
        times.append(time.process_time() - start)
    peak = peak_mb() - before
    result = sampler.account()
    return {"make s": made, "epoch s": sorted(times)[1], "peak MB": peak, "used": result.used,
            "dropped": result.dropped, "served most": int(result.served.max())}


def measure_original(labels: np.ndarray, checkout: str) -> Dict[str, float]:
    """Seconds of the original's queue over an epoch (its images are not read), and whether ours
    forms the same groups.
    """
    sys.path.insert(0, checkout)
    import lib.loader.voc_seg_group_loader as module

    module.load_batch_semantic = lambda images, *_: images
    loader = module.VOCSegGroupLoader.__new__(module.VOCSegGroupLoader)
    loader.ann_list = [np.flatnonzero(row[1:]).tolist() for row in labels]
    loader.image_src_list = loader.label_src_list = range(len(labels))
    loader.batch_size, loader.group_size, loader.meta_length = 2 * GROUPS_PER_BATCH, 2, GROUPS_PER_BATCH
    loader.target_size = loader.scale_sampler = loader.downsample = None
    loader.rand_scale = loader.rand_mirror = loader.rand_crop = None
    loader.shuffle, loader.index = True, list(range(len(labels)))
    np.random.seed(SEED)
    loader.reset()
    start = time.process_time()
    loader.reset()
    batches: List[Any] = list(iter(loader))
    seconds = time.process_time() - start
    ours = GroupSampler(labels, groups_per_batch=GROUPS_PER_BATCH, seed=SEED).next_epoch()
    theirs = np.array(batches).reshape(-1, 2, GROUPS_PER_BATCH).transpose(0, 2, 1).reshape(-1, 2)
    if not np.array_equal(ours, theirs):
        raise InputError("ours are other groups than the original's", field=f"{len(labels)} images")
    return {"epoch s": seconds}


def pack(folder: str, labels: np.ndarray) -> Dict[str, float]:
    """Record sets of small images and seeds with these labels."""
    rng, classes, count = np.random.RandomState(SEED), ClassTable(CLASSES), len(labels)
    pictures = [cv2.imencode(".jpg", rng.randint(0, 256, (16, 16, 3), np.uint8))[1].tobytes()
                for _ in range(64)]
    seed = encode_gray_png(np.zeros((16, 16), np.uint8))
    for name, kind in (("images", "images"), ("seeds", "labels")):
        with record_writer(folder, name, kind, classes, count, num_parts=4) as writer:
            for index in range(count):
                vector = labels[index].astype("<f4").tobytes() if kind == "images" else b""
                content = pictures[index % 64] if kind == "images" else seed
                writer.add(f"{index:07d}", HEADER.pack(len(vector) // 4, 0, index, 0) + vector + content,
                           (16, 16))
            writer.finish(np.packbits(labels, axis=1) if kind == "images" else np.zeros((count, 0), np.uint8))
    return {}


def measure_iterating(folder: str) -> Dict[str, float]:
    """Seconds to the first batch, and memory of this process and its workers, early and after many
    batches.
    """
    from cian.data.iterators import PairIter

    images, seeds = RecordSet.open(folder, "images"), RecordSet.open(folder, "seeds")
    images.labels  # noqa: B018 - unpacked once, for every iterator
    me = [os.getpid()]
    before, start = shared_out_mb(me), time.process_time()
    with PairIter(images, seeds, batch_size=2 * GROUPS_PER_BATCH, crop_px=17, workers=2,
                  order="counter") as iterator:
        result = {"record sets MB": before, "until the first batch s": 0.0}
        for number in range(max(BATCHES) + 1):
            if iterator.position == iterator.num_batches:
                iterator.reset()
            next(iterator)
            if number == 0:
                result["until the first batch s"] = time.process_time() - start
            if number in BATCHES:
                result[f"after {number} batches MB"] = shared_out_mb(me + iterator.worker_pids)
    return result


def in_child(function: Callable[..., Dict[str, float]], *arguments: Any) -> Dict[str, float]:
    """Run a measurement in a new process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work() -> None:
        queue.put(function(*arguments))

    child = context.Process(target=work)
    child.start()
    result = queue.get()
    child.join()
    return result


def plot(rows: Sequence[Dict[str, Any]], path: str) -> None:
    """Seconds of an epoch's groups and peak memory against the number of images; memory of the
    iterator against batches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    *panels, last = figure.subplots(1, 3)
    for axes, key, label in zip(panels, ("epoch s", "peak MB"),
                                ("CPU seconds to draw an epoch's groups", "memory to do so, MB")):
        for what in dict.fromkeys(row["what"] for row in rows if key in row):
            chosen = [row for row in rows if row["what"] == what]
            axes.loglog([row["images"] for row in chosen], [row[key] for row in chosen], marker="o",
                        label=what)
        axes.set(xlabel="images", ylabel=label)
    for row in rows:
        if row["what"] == "PairIter":
            last.plot(BATCHES, [row[f"after {number} batches MB"] for number in BATCHES], marker="o",
                      label=f"{row['images']:,} images")
    last.set(xlabel="batches handed out", ylabel="MB, process and two workers", ylim=(0, None))
    for axes in (*panels, last):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=90)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="",
                        help="npz with labels (n, 20) to draw from [default: made up]")
    parser.add_argument("--images", type=int, nargs="+", default=[10_582, 100_000, 1_000_000], help="sizes")
    parser.add_argument("--original", default=os.environ.get("CIAN_ORIGINAL", ""),
                        help="checkout of the original code, to compare with")
    parser.add_argument("--folder",
                        help="scratch folder for record sets; without it only pairing is measured")
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--plot", help="also draw them into this PNG")
    parser.add_argument("--read", help="measure nothing: take the figures from this file of --json")
    arguments = parser.parse_args(argv)
    rows: List[Dict[str, Any]] = []
    if arguments.read:
        with open(arguments.read, encoding="utf-8") as stream:
            rows, arguments.images = json.load(stream)["rows"], []

    def add(what: str, count: int, function: Callable[..., Dict[str, float]], *details: Any) -> None:
        rows.append({"what": what, "images": count, **in_child(function, *details)})
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in rows[-1].items()), flush=True)

    for count in arguments.images:
        labels = drawn_labels(arguments.labels, count)
        for pairing in ("common", "even", "random"):
            add(pairing, count, measure_pairing, labels, pairing)
        if arguments.original:
            add("original's queue", count, measure_original, labels, arguments.original)
        if arguments.folder:
            folder = os.path.join(arguments.folder, str(count))
            try:
                in_child(pack, folder, labels)
                add("PairIter", count, measure_iterating, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as stream:
            machine = {"cores": usable_cores(), "python": platform.python_version(), "numpy": np.__version__}
            json.dump({**machine, "rows": rows}, stream, indent=1)
    if arguments.plot:
        plot(rows, arguments.plot)
    return 0


if __name__ == "__main__":
    run_tool(main)
