"""Runs the rows of a table of the paper and writes the report: the paper's figures beside ours.

Stages that rows have in common run once; what is done is kept, and what was broken off goes on by
the same command. Results of different settings never meet: the folder of a stage is named by a hash
of all that its result depends on.

  python tools/reproduce.py --table 2 --data VOCdevkit/VOC2012 --out runs/voc --dry-run
  python tools/reproduce.py --table 2 3 --dataset voc6 --data msrc --classes msrc/classes.txt \\
      --train-list train --out runs/msrc
  python tools/reproduce.py ... --score-list test --score-data TREE   # the same networks elsewhere
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from cian.errors import InputError, run_tool
from cian.tools.engine.reproduction.data_state import hold_to_data
from cian.tools.engine.reproduction.experiments import Experiment, find_experiments
from cian.tools.engine.reproduction.plan import Measurement, Place, plan, random_starts
from cian.tools.engine.reproduction.run import hand_out, run_all, submitter
from cian.tools.engine.reproduction.stages import estimate, in_order
from cian.tools.engine.reproduction.voc import check_voc, write_submissions, write_train_aug

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
TITLES = {2: "Table 2: ablation", 3: "Table 3: common-class against random-class pairs",
          4: "Table 4: ratios of strong supervision", 5: "Table 5: the whole method"}


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    if args.jobs < 1:
        raise InputError(f"must be at least 1, not {args.jobs}", field="--jobs")
    place = Place(os.path.abspath(args.data), args.classes if args.classes == "voc"
                  else os.path.abspath(args.classes), args.train_list, args.val_list,
                  Path(args.out).resolve(), args.saliency_root and os.path.abspath(args.saliency_root),
                  args.score_list, args.score_data and os.path.abspath(args.score_data))
    if args.sbd:
        print(f"train_aug: {write_train_aug(place.data, args.sbd)}")
    if args.dry_run:
        from cian.tools.engine.reproduction.needs import needs

        chosen = [row.config for table in args.table for row in rows_of(args, table)]
        told = needs(place, chosen, voc=args.dataset == "voc")
        print("".join(f"missing: {problem}\n" for problem in told), end="")
    elif args.dataset == "voc":
        check_voc(place.data, place.train_list, place.val_list)
    tables = [(TITLES[table], measurements_of(args, table, place)) for table in args.table]
    stages = in_order(stage for _, rows in tables for row in rows for stage in row.scores.values())
    waiting = [stage for stage in stages if not stage.done]
    for key in random_starts(row for _, rows in tables for row in rows):
        print(f"note: {key} is empty: random weights, not the paper's of ImageNet (--set {key}=gluon)")
    print(f"{len(stages)} stages, {len(stages) - len(waiting)} done; time left: "
          f"{estimate(stages, waiting, args.jobs)}", flush=True)
    if args.dry_run:
        for stage in stages:
            print(f"{'done' if stage.done else 'run '}  {' '.join(['python', *stage.command[1:]])}")
        return 2 if told else 0
    hold_to_data(place)
    if hand_out(stages, argv, args.plan_json, args.stage):
        return 0
    try:
        run_all(stages, waiting, args.jobs, submitter(args.submit, argv))
    finally:
        write_report(args, tables, place)
    if args.submission:
        write_submissions([row for _, rows in tables for row in rows], place)
    return 0


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=int, nargs="+", choices=sorted(TITLES), required=True,
                        help="tables (Table 1: tools/complexity.py)")
    parser.add_argument("--rows", nargs="+", metavar="NAME",
                        help="rows by file name, such as baseline cp [default: all]")
    parser.add_argument("--seeds", default="0", metavar="0,1,2", help="of the training rounds [default: 0]")
    parser.add_argument("--dataset", default="voc", help="folder below experiments/ [default: voc]")
    parser.add_argument("--experiments", default=str(EXPERIMENTS), metavar="FOLDER",
                        help="the rows' files [default: the repository's]")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="VOC-layout tree")
    parser.add_argument("--classes", default="voc", metavar="FILE",
                        help="'voc', or a file with a class a line [default: voc]")
    parser.add_argument("--train-list", default="train_aug", metavar="FILE", help="[default: train_aug]")
    parser.add_argument("--val-list", default="val", metavar="FILE", help="[default: val]")
    parser.add_argument("--score-list", default="", metavar="FILE", help="predict and score this list")
    parser.add_argument("--score-data", default="", metavar="FOLDER",
                        help="tree of the list that is scored, with the classes of DATA [default: DATA]")
    parser.add_argument("--saliency-root", default="", metavar="FOLDER", help="saliency images NAME.png")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where all stages keep their results")
    parser.add_argument("--report", metavar="PATH",
                        help="the report, without ending [default: OUT/report, or report-TREE-LIST]")
    parser.add_argument("--set", nargs="+", default=[], dest="overrides", metavar="section.key=value",
                        help="changes of every row")
    parser.add_argument("--preset", choices=("original", "paper"), help="in place of the files' own")
    parser.add_argument("--submission", action="store_true", help="also write archives for VOC's test server")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="stages side by side [default: 1]")
    parser.add_argument("--plan-json", metavar="FILE", help="write stages and commands, and stop")
    parser.add_argument("--stage", metavar="NAME", help="run this stage of the plan alone")
    parser.add_argument("--submit", metavar="COMMAND", help="run each stage by this, for {command} its own")
    parser.add_argument("--dry-run", action="store_true",
                        help="print what is missing, the stages, their commands and the time left, and stop")
    parser.add_argument("--sbd", metavar="FOLDER", help="first write the list train_aug from VOC's lists and "
                        "the train.txt and val.txt of the Semantic Boundaries Dataset there")
    return parser.parse_args(argv)


def rows_of(args: argparse.Namespace, table: int) -> List[Experiment]:
    """The chosen rows of a table."""
    rows = find_experiments(args.experiments, args.dataset, table, args.overrides, args.preset)
    wanted = [row for row in rows if not args.rows or row.path.stem in args.rows]
    if not wanted:
        raise InputError(f"none of {', '.join(args.rows)} is a row of table {table}", field="--rows",
                         remedy=f"there are: {', '.join(row.path.stem for row in rows)}")
    return wanted


def measurements_of(args: argparse.Namespace, table: int, place: Place) -> List[Measurement]:
    """Every row of a table with every seed."""
    try:
        seeds = [int(text) for text in args.seeds.split(",")]
    except ValueError as error:
        raise InputError(f"{args.seeds!r} is not a list of whole numbers", field="--seeds") from error
    return [plan(row, place, seed) for row in rows_of(args, table) for seed in seeds]


def write_report(args: argparse.Namespace, tables: List[Tuple[str, List[Measurement]]], place: Place) -> None:
    """The report of what is measured by now."""
    from cian.symbols.metadata import versions
    from cian.tools.engine.reproduction.report import write_report as write
    from cian.tools.engine.training.sources import list_name

    tree = os.path.basename(args.score_data.rstrip("/"))
    name = "-".join(filter(None, ("report", tree, list_name(args.score_list))))
    target = args.report or str(place.out / name)
    command = (f"python tools/reproduce.py --table {' '.join(map(str, args.table))} "
               f"--dataset {args.dataset} --seeds {args.seeds}")
    given = {"rows": " ".join(args.rows or ()), "set": " ".join(args.overrides),
             "score-list": args.score_list, "score-data": tree}
    command += "".join(f" --{key} {value}" for key, value in given.items() if value)
    write(tables, command, versions(), target)
    print(f"report: {target}.md and {target}.html")


if __name__ == "__main__":
    run_tool(main)
