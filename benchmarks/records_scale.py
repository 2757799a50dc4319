"""Record sets of a size that VOC does not have: seconds and memory to pack, open and read them, and
how both grow.

  python benchmarks/records_scale.py --records 10000 100000 1000000 --folder /tmp/scale

Each row is measured in processes of its own. The images are 16x16 JPEGs, so the figures are those
of the format and not of decoding. Memory is what the process has private (it does not share it with
another process), before and after.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Optional, Sequence

import cv2
import numpy as np

from cian.data.classes import load_classes
from cian.data.manifest import HEADER
from cian.data.records import RecordSet
from cian.data.verification import damaged_files
from cian.data.writer import record_writer
from cian.environment import usable_cores
from cian.errors import run_tool

READS = 20_000
FORK = multiprocessing.get_context("fork")


def private_mb() -> float:
    """Memory that belongs to this process alone, in MB."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as stream:
        return sum(int(line.split()[1]) for line in stream if line.startswith("Private_")) / 1024


def pack(folder: str, count: int, num_parts: int) -> Dict[str, float]:
    """Pack ``count`` records from a few pictures with random labels."""
    rng = np.random.RandomState(0)
    files = [cv2.imencode(".jpg", rng.randint(0, 256, (16, 16, 3), np.uint8))[1].tobytes() for _ in range(64)]
    classes = load_classes("voc")
    labels = np.zeros((count, len(classes)), np.uint8)
    labels[:, 0] = 1
    labels[np.arange(count), rng.randint(1, len(classes), count)] = 1
    before, start = private_mb(), time.perf_counter()
    with record_writer(folder, "scale", "images", classes, count, num_parts=num_parts) as writer:
        for index in range(count):
            header = HEADER.pack(len(classes), 0, index, 0) + labels[index].astype("<f4").tobytes()
            writer.add(f"2008_{index:07d}", header + files[index % 64], (16, 16))
        writer.finish(np.packbits(labels, axis=1))
    return {"pack s": time.perf_counter() - start, "pack MB": private_mb() - before}


def open_and_read(folder: str) -> Dict[str, float]:
    """Open the set, read records in random order, look names and labels up."""
    before, start = private_mb(), time.perf_counter()
    records = RecordSet.open(folder, "scale")
    opened, open_mb = time.perf_counter() - start, private_mb() - before
    order = np.random.RandomState(1).randint(0, len(records), READS)
    start = time.perf_counter()
    for index in order:
        records.image(int(index))
    read = time.perf_counter() - start
    assert records.names.find(records.names[len(records) // 2]) == len(records) // 2
    table = os.path.join(folder, records.manifest["table"]["file"])
    result = {"open s": opened, "open MB": open_mb, "reads/s": READS / read, "after reads MB": private_mb()
              - before, "forked reader MB": in_child(read_in_fork, records)["MB"],
              "table MB": os.path.getsize(table) / 2 ** 20,
              "records MB": sum(part["bytes"] for part in records.manifest["parts"]) / 2 ** 20}
    start = time.perf_counter()
    assert records.labels.shape[0] == len(records)
    result["labels s"], result["labels MB"] = time.perf_counter() - start, private_mb() - before - result[
        "after reads MB"]
    start = time.perf_counter()
    assert not damaged_files(records)
    result["checksums s"] = time.perf_counter() - start
    return result


def read_in_fork(records: RecordSet) -> Dict[str, float]:
    """Private memory that a forked reader gains."""
    before = private_mb()
    for index in np.random.RandomState(2).randint(0, len(records), READS):
        records.image(int(index))
    return {"MB": private_mb() - before}


def in_child(function: Callable[..., Dict[str, float]], *arguments: Any) -> Dict[str, float]:
    """Run a measurement in a process of its own."""
    queue = FORK.Queue()
    child = FORK.Process(target=lambda: queue.put(function(*arguments)))
    child.start()
    result = queue.get()
    child.join()
    return result


def plot(rows: Sequence[Dict[str, float]], path: str) -> None:
    """Memory and seconds against the number of records, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    counts = [row["records"] for row in rows]
    panels = (("MB", ("records MB", "table MB", "open MB", "forked reader MB")),
              ("s", ("pack s", "checksums s", "open s")))
    for axes, (unit, keys) in zip(figure.subplots(1, 2), panels):
        for key in keys:
            axes.loglog(counts, [row[key] for row in rows], marker="o", label=key[:-len(unit) - 1])
        axes.set(xlabel="records", ylabel="memory or file size, MB" if unit == "MB" else "seconds")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000], help="sizes of the sets")
    parser.add_argument("--num-parts", type=int, default=4, help="record files a set")
    parser.add_argument(
        "--folder", help="scratch folder on the disk to measure [default: of the system]; 1 GB for a million")
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--plot", help="also draw them into this PNG")
    parser.add_argument("--read", help="measure nothing: take the figures from this file of --json")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    rows = []
    if arguments.read:
        with open(arguments.read, encoding="utf-8") as stream:
            rows, arguments.records = json.load(stream)["rows"], []
    for count in arguments.records:
        folder = os.path.join(arguments.folder or tempfile.gettempdir(), f"records_scale_{count}")
        try:
            row = {"records": count, **in_child(pack, folder, count, arguments.num_parts),
                   **in_child(open_and_read, folder)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(row)
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as stream:
            json.dump({"cores": usable_cores(), "python": sys.version.split()[0], "rows": rows}, stream,
                      indent=1)
    if arguments.plot:
        plot(rows, arguments.plot)
    return 0


if __name__ == "__main__":
    run_tool(main)
