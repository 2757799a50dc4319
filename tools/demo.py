"""Runs the whole pipeline on a generated data set: images and image-level labels to masks, two
rounds, in minutes on a CPU.

  python tools/demo.py --out runs/demo
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Optional, Sequence

from cian.errors import run_tool
from cian.tools.engine.report import text_table
from cian.tools.engine.reproduction.demonstration import COLUMNS, configure, results, stages, write_page
from cian.tools.engine.reproduction.stages import run_stage

EPILOG = """\
OUT gets the data set, the records, the seeds, both rounds' checkpoints and predictions, a log of
every stage below stages/, and the page index.html. A demonstration that was broken off goes on by
the same command."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints a line a stage, the table, and where the page is."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER",
                        help="where everything goes [default: runs/demo]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the data set [default: 0]")
    args = parser.parse_args(argv)
    out, started = args.out, time.monotonic()
    config = configure(out, args.seed)
    plan, times = stages(out, config), []
    for number, stage in enumerate(plan, 1):
        print(f"[{number:2d}/{len(plan)}] {stage.kind} ({stage.tool}) ", end="", flush=True)
        record = stage.done
        print("was done before" if record else "...", end="", flush=True)
        record = record or run_stage(stage)
        print(f" {record['seconds']:.0f} s", flush=True)
        times.append((f"{stage.kind} ({stage.tool})", f"{record['seconds']:.1f}"))
    rows = results(out)
    page = write_page(out, config, rows, times)
    print(f"\n{text_table(COLUMNS, rows)}\n\n{time.monotonic() - started:.0f} s in all; open {page}")
    return 0


if __name__ == "__main__":
    run_tool(main)
