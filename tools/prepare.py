"""Checks a data set and packs its images, image-level labels and seeds into record files.

Every problem is listed: lists with duplicates, missing or damaged images, unknown classes, images without labels, seeds of another
size. With a problem nothing is written and the exit code is 2.

  python tools/prepare.py --root VOC2012 --list train_aug --out work/records
  python tools/prepare.py --root VOC2012 --list train_aug --out work/records --seeds seeds/   # the images are not packed again
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
from cian.data.tree import DatasetTree
from cian.data.verification import verify
from cian.errors import InputError, run_tool


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the record sets")
    parser.add_argument("--list", action="append", metavar="NAME", dest="lists",
                        help="a list below ImageSets/Segmentation or a file; may be repeated (default train_aug; with --verify: every set)")
    parser.add_argument("--root", default="", help="VOC-layout tree: JPEGImages/ Annotations/ ImageSets/Segmentation/")
    parser.add_argument("--image-root", default="", help="folder of NAME.jpg (default ROOT/JPEGImages)")
    parser.add_argument("--annotation-root", default="", help="folder of NAME.xml (default ROOT/Annotations)")
    parser.add_argument("--labels-file", default="", help="image-level labels in place of the XML: 'NAME class class ...' a line, or .npz")
    parser.add_argument("--classes", default="voc", help="'voc', or a file with a class a line, background first")
    parser.add_argument("--seeds", default="", metavar="DIR", help="also pack the label maps DIR/NAME.png, as the set LIST_seeds")
    parser.add_argument("--num-parts", type=int, default=1, help="record files to spread a set over (default 1)")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 is one a core")
    parser.add_argument("--verify", action="store_true", help="only compare packed sets with their checksums and decode every record")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    if arguments.verify:
        return verify_sets(arguments.out, arguments.lists)
    tree = DatasetTree(arguments.root, image_root=arguments.image_root, annotation_root=arguments.annotation_root,
                       labels_file=arguments.labels_file, label_root=arguments.seeds, classes=arguments.classes)
    options = {"num_parts": arguments.num_parts, "workers": arguments.workers}
    surveys, problems = [], []
    for name in dict.fromkeys(arguments.lists or ["train_aug"]):
        surveys.append(survey(tree, name, arguments.out, **options))
        problems += surveys[-1].problems
    if len({result.name for result in surveys}) < len(surveys):
        raise InputError("two lists have the same name, and so would their record sets", field="--list", remedy="rename one of the files")
    if problems:
        return report(problems, "nothing was written")
    for result in surveys:
        prepared = pack(tree, result, arguments.out, **options)
        for records, checked in ((prepared.images, result.images), (prepared.seeds, result.seeds)):
            if records is not None:
                print(f"{records.path}: {len(records)} {records.kind}, {'packed' if checked is not None else 'unchanged'}")
    return 0


def verify_sets(folder: str, names: Optional[Sequence[str]]) -> int:
    """Check packed sets, those of ``names`` or all in the folder."""
    names = names or sorted(entry[:-5] for entry in os.listdir(folder) if entry.endswith(".json")) if os.path.isdir(folder) else names
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
