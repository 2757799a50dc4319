"""Runs the original code (a checkout of github js-fan/CIAN, unedited) and this project side by side on the CPU, number by number.

Both sides get the same inputs, weights and random seeds, one OpenMP thread each; the original runs in a process of its own. Every
line compares a quantity; the exit code is 1 when a line fails. Weights are random (the model zoo's are not needed), drawn so that
gradients are well conditioned.

  git clone https://github.com/js-fan/CIAN original && python tools/compare_original.py --original original --quick
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from typing import Dict, List, Optional, Sequence

from cian.errors import InputError, run_tool

PACKAGES = ("mxnet", "numpy", "opencv-python", "pydensecrf2")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--original", metavar="DIR", default=os.environ.get("CIAN_ORIGINAL", ""),
                        help="the checkout [default: the environment variable CIAN_ORIGINAL]")
    result.add_argument("--quick", action="store_true", help="a smaller set of cases, a few minutes")
    result.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="only comparisons whose name holds one of these texts")
    result.add_argument("--seed", type=int, default=0, help="another one draws other weights, images and labels [default: 0]")
    result.add_argument("--data", default="", metavar="ROOT", help="also use photographs of this data set in VOC layout")
    result.add_argument("--classes", default="voc", metavar="FILE", help="its class table [default: VOC's]")
    result.add_argument("--list", default="train", metavar="NAME", help="its list of images [default: train]")
    result.add_argument("--json", metavar="FILE", help="also write all lines there")
    result.add_argument("--work", metavar="DIR", help="keep the files that are exchanged in this new folder")
    return result


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    if not args.original:
        raise InputError("no checkout of the original code was named", field="--original",
                         remedy="clone https://github.com/js-fan/CIAN and name its folder")
    if "mxnet" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = "1"  # two CPU devices wait for each other for ever with more
    if args.work and os.path.exists(args.work):
        raise InputError("exists already", file=args.work, field="--work", remedy="name a new folder")
    with tempfile.TemporaryDirectory(prefix="compare_original_") as temporary:
        if args.work:
            os.makedirs(args.work)
        return compare(args, args.work or temporary)


def compare(args: argparse.Namespace, work: str) -> int:
    """Make the comparisons and print them as they come; 1 when one of them failed."""
    from cian.data.files import atomic_write
    from cian.tools.engine.fidelity import suite, table
    from cian.tools.engine.fidelity.process import Original

    original = Original(args.original, work)
    versions: Dict[str, str] = {"original": original.commit, "cian": version("cian"), "python": platform.python_version(),
                                **{name: version(name) for name in PACKAGES}}
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + "; float32, one OpenMP thread\n\n" + table.HEADER)
    rows: List[table.Row] = []
    for name, check in suite.checks(original, quick=args.quick, seed=args.seed, data=args.data, classes=args.classes, data_list=args.list):
        if args.only and not any(text in name for text in args.only):
            continue
        for row in check():
            rows.append(row)
            print(table.format_row(row), flush=True)
        gc.collect()  # networks are cycles of references, and a case of ResNet-101 takes two gigabytes
    if not rows:
        raise InputError(f"no comparison is called {' or '.join(args.only)}", field="--only")
    print("\nthe largest error of each quantity\n" + table.HEADER)
    for row in table.summarise(rows):
        print(table.format_row(row))
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("pass", "FAIL", "not compared")}
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if args.json:
        with atomic_write(args.json, "w") as stream:
            json.dump({"versions": versions, "command": sys.argv[1:], "rows": table.to_json(rows)}, stream, indent=1)
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    run_tool(main)
