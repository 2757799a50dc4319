"""Checks a data set and packs its images, image-level labels and seeds into record files.

Every problem is listed: lists with duplicates, missing or damaged images, unknown classes, images
without labels, seeds of another size. With a problem nothing is written and the exit code is 2.
What is packed already from the same files is not packed again.

  python tools/prepare.py --root VOC2012 --list train_aug --out work/records
  python tools/prepare.py --root VOC2012 --list train_aug --out work/records --seeds seeds/
  python tools/prepare.py --verify --out work/records
"""
from __future__ import annotations

import argparse
import os
import sys
from typing import List, Optional, Sequence

from cian.data.manifest import read_manifest
from cian.data.preparation import pack, survey
from cian.data.records import RecordSet
from cian.data.verification import verify
from cian.errors import InputError, run_tool
from cian.tools.arguments import config_from, make_parser
from cian.tools.engine.images import data_tree


def main(argv: Optional[Sequence[str]] = None) -> int:
    arguments = parse(argv)
    config = config_from(arguments)
    data, out = config.data, arguments.out or config.data.records
    if not out:
        raise InputError("no folder for the record sets was named", field="--out", remedy="give it")
    if arguments.verify:
        return verify_sets(out, arguments.lists)
    tree = data_tree(data)
    options = {"num_parts": arguments.num_parts, "workers": config.run.workers}
    surveys, problems = [], []
    for name in dict.fromkeys(arguments.lists or [data.train_list]):
        surveys.append(survey(tree, name, out, **options))
        problems += surveys[-1].problems
    if len({result.name for result in surveys}) < len(surveys):
        raise InputError("two lists have the same name, and so would their record sets", field="--list",
                         remedy="rename one of the files")
    if problems:
        return report(problems, "nothing was written")
    for result in surveys:
        prepared = pack(tree, result, out, **options)
        for records, checked in ((prepared.images, result.images), (prepared.seeds, result.seeds)):
            if records is not None:
                print(f"{records.path}: {len(records)} {records.kind}, "
                      f"{'packed' if checked is not None else 'unchanged'}")
    return 0


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__ or "", ["data"])
    own = parser.add_argument_group("packing")
    own.add_argument("--out", metavar="FOLDER", help="folder of the record sets [default: data.records]")
    own.add_argument("--list", action="append", metavar="NAME", dest="lists",
                     help="list to pack: a file, or a name below ImageSets/Segmentation; repeatable "
                     "[default: data.train_list; with --verify every set of the folder]")
    own.add_argument("--root", dest="data.root", metavar="FOLDER", help="the same as --data")
    own.add_argument("--seeds", dest="data.label_root", metavar="FOLDER",
                     help="the same as --label-root: packed as the set LIST_seeds")
    own.add_argument("--num-parts", type=int, default=1, metavar="N",
                     help="record files to spread a set over [default: 1]")
    own.add_argument("--workers", type=int, dest="run.workers", metavar="N",
                     help="processes; 0 is one a core [run.workers; default 0]")
    own.add_argument("--verify", action="store_true",
                     help="only compare packed sets with their checksums and decode every record")
    return parser.parse_args(argv)


def verify_sets(folder: str, names: Optional[Sequence[str]]) -> int:
    """Check packed sets, those of ``names`` or all in the folder."""
    names = names or sorted(entry[:-5] for entry in os.listdir(folder)
                            if entry.endswith(".json")) if os.path.isdir(folder) else names
    if not names:
        raise InputError("holds no record set", file=folder, remedy="make one: prepare --root ... --out ...")
    problems: List[InputError] = []
    for name in names:
        try:
            count = read_manifest(folder, name)["count"]
            with RecordSet.open(folder, name) as records:
                found = verify(records)
        except InputError as problem:
            found = [problem]
        problems += found
        if not found:
            print(f"{os.path.join(folder, name)}: {count} records are as they were packed")
    return report(problems, "pack the set again") if problems else 0


def report(problems: Sequence[InputError], consequence: str) -> int:
    """Print every problem as a line on standard error; the exit code."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(problems)} problem{'s' * (len(problems) > 1)}; {consequence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run_tool(main)
