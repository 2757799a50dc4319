"""Puts together what the shards of a stage have written: --shard I/N of make_seeds.py, predict.py and
evaluate.py.

Folders of label maps are checked and copied into OUT, a new folder; without --out they are checked
where they are, as after shards that wrote into one shared folder. Scores (.json) are added up. A
shard that is missing, there twice, overlapping or of other settings is refused by name.

  python tools/merge.py --out seeds machine1/seeds machine2/seeds
  python tools/merge.py runs/cian/pred_crf                  # a folder that the shards share
  python tools/merge.py --out scores.json part0.json part1.json
"""
from __future__ import annotations

import argparse
from typing import Optional, Sequence

from cian.errors import InputError, run_tool
from cian.files import read_json, write_json
from cian.tools.engine.metrics import Evaluation, merge_scores, score_rows
from cian.tools.engine.report import text_table
from cian.tools.engine.shards import merge_folders


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; prints how many images there are, or the merged scores."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="PART", help="folders, or .json files of scores")
    parser.add_argument("--out", default="", metavar="PATH", help="the merged folder or file")
    args = parser.parse_args(argv)
    scores = [part.endswith(".json") for part in args.parts]
    if any(scores) and not (all(scores) and args.out):
        raise InputError("scores are merged from .json files alone, into one", field="--out",
                         remedy="name only such files, and the one to write with --out")
    if not any(scores):
        count = merge_folders(args.parts, args.out)
        print(f"{count} images, nothing missing and nothing twice; in {args.out or ', '.join(args.parts)}")
        return 0
    content = merge_scores({path: read_json(path, "score of tools/evaluate.py", "score that shard again")
                            for path in args.parts})
    write_json(args.out, content)
    print(text_table(("class", "IoU %"), score_rows(Evaluation.from_dict(content))))
    print(f"{content['images']} images of {content['list']}; written to {args.out}")
    return 0


if __name__ == "__main__":
    run_tool(main)
