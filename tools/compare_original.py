"""Runs the original code (a checkout of github js-fan/CIAN, unedited) and this project side by side
on the CPU, number by number.

Both sides get the same inputs, weights and random seeds, one OpenMP thread each; the original runs
in a process of its own. Every line compares a quantity; the exit code is 1 when a line fails.
Weights are random (the model zoo's are not needed), drawn so that gradients are well conditioned.

  git clone https://github.com/js-fan/CIAN original && python tools/compare_original.py --original
  original --quick
"""
from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from itertools import chain
from typing import Optional, Sequence

from cian.errors import InputError, run_tool
from cian.files import atomic_write

PACKAGES = ("mxnet", "numpy", "opencv-python", "pydensecrf2")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--original", metavar="DIR", default=os.environ.get("CIAN_ORIGINAL", ""),
                        help="the checkout [default: the environment variable CIAN_ORIGINAL]")
    result.add_argument("--quick", action="store_true", help="a smaller set of cases, a few minutes")
    result.add_argument("--only", nargs="+", default=[], metavar="TEXT",
                        help="only comparisons whose name holds one of these texts")
    result.add_argument("--seed", type=int, default=0,
                        help="another one draws other weights, images and labels [default: 0]")
    result.add_argument("--data", default="", metavar="ROOT",
                        help="also use photographs of this data set in VOC layout")
    result.add_argument("--classes", default="voc", metavar="FILE", help="its class table [default: VOC's]")
    result.add_argument("--list", default="train", metavar="NAME", help="its list of images [default: train]")
    result.add_argument("--json", metavar="FILE", help="also write all lines there, after every comparison")
    result.add_argument("--resume", action="store_true",
                        help="take over the comparisons that --json's file holds already")
    result.add_argument("--markdown", metavar="FILE",
                        help="also write the summary there, as a table in Markdown")
    result.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="make so many comparisons at a time [default: 1]")
    result.add_argument("--work", metavar="DIR", help="keep the files that are exchanged in this new folder")
    return result


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    if not args.original:
        raise InputError("no checkout of the original code was named", field="--original",
                         remedy="clone https://github.com/js-fan/CIAN and name its folder")
    if "mxnet" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = "1"  # two CPU devices wait for each other for ever with more
    if args.resume and not args.json:
        raise InputError("needs the file to go on from", field="--resume", remedy="name it by --json")
    if args.jobs < 1:
        raise InputError(f"{args.jobs} is below 1", field="--jobs")
    if args.work and os.path.exists(args.work):
        raise InputError("exists already", file=args.work, field="--work", remedy="name a new folder")
    with tempfile.TemporaryDirectory(prefix="compare_original_") as temporary:
        if args.work:
            os.makedirs(args.work)
        return compare(args, args.work or temporary)


def compare(args: argparse.Namespace, work: str) -> int:
    """Make the comparisons and print them as they come; 1 when one of them failed."""
    from cian.tools.engine.fidelity import runner, suite, table
    from cian.tools.engine.fidelity.process import Original
    from cian.tools.engine.fidelity.record import Record

    original = Original(args.original, work)
    versions = {"original": original.commit, "cian": version("cian"), "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES}}
    record = Record(versions,
                    {key: getattr(args, key) for key in ("quick", "only", "seed", "data", "classes", "list")})
    known = record.resumed(args.json) if args.resume else {}
    print(f"{record.setting}\n\n{table.HEADER}")
    chosen = [check for check in suite.checks(original, quick=args.quick, seed=args.seed, data=args.data,
                                              classes=args.classes, data_list=args.list) if not args.only
              or any(text in check.name for text in args.only)]
    if not chosen:
        raise InputError(f"no comparison is called {' or '.join(args.only)}", field="--only")
    rest = [check for check in chosen if check.name not in known]
    for made in chain(known.values(), runner.make(rest, jobs=args.jobs, keep=bool(args.work))):
        print("\n".join(map(table.format_row, made.rows)), flush=True)
        record.checks.append(made)
        if args.json:
            record.save(args.json)
    record.checks.sort(key=lambda made: [check.name for check in chosen].index(made.name))
    print("\nthe largest error of each quantity\n" + table.HEADER)
    print("\n".join(map(table.format_row, table.summarise(record.rows))))
    print(f"\n{table.count(record.rows)}; {sum(made.seconds for made in record.checks) / 60:.0f} minutes")
    if args.json:
        record.save(args.json)
    if args.markdown:
        with atomic_write(args.markdown, "w") as stream:
            stream.write(f"{record.setting}: {table.count(record.rows)}.\n\n{table.markdown(record.rows)}")
    return int(any(row.verdict == "FAIL" for row in record.rows))


if __name__ == "__main__":
    run_tool(main)
