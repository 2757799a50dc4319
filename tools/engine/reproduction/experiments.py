"""Rows of the paper's tables as files: a configuration and the claim that it stands for."""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import yaml

from cian.errors import InputError, PathLike
from cian.files import decoding, read_text
from cian.tools.engine.config import Config, load_config

# Which figures a claim may name: the split, with or without CRF.
FIGURES = ("val", "val_crf", "test", "test_crf")


@dataclass(frozen=True)
class Claim:
    """What a row says.

    Attributes
    ----------
    table : number of the paper's table.
    row : the row's name in it.
    difference : what the row changes, in words.
    rounds : 1, or 2 with the retraining round.
    paper : mIoU in per cent by figure (``val``, ``val_crf``, ``test``, ``test_crf``); empty where
        the paper gives none.
    over : name of the row's file that this one is compared with, seed by seed.
    mirrors : for rows on another data set, the file of the paper's row; ``over`` is that one's.
    """

    table: int
    row: str
    difference: str
    rounds: int = 1
    over: str = ""
    paper: Dict[str, float] = field(default_factory=dict)
    mirrors: str = ""


@dataclass(frozen=True)
class Experiment:
    """A row: its file, its claim and its resolved configuration."""

    path: Path
    claim: Claim
    config: Config

    @property
    def name(self) -> str:
        """``table/row`` from the file's name: ``table2/cp``."""
        return f"{self.path.parent.name}/{self.path.stem}"


def load_experiment(path: PathLike, overrides: Iterable[str] = (),
                    preset: Optional[str] = None) -> Experiment:
    """Read one file of ``experiments/``.

    Raises
    ------
    InputError
        Naming file and key: anything that :func:`~cian.tools.engine.config.load_config` refuses,
        and a missing or malformed claim.
    """
    config = load_config([path], overrides, preset)
    text = read_text(path)
    with decoding(path, "is not valid YAML"):
        content = yaml.safe_load(text)
    return Experiment(Path(path), _claim((content or {}).get("claim"), path), config)


def find_experiments(root: PathLike, dataset: str, table: int, overrides: Iterable[str] = (),
                     preset: Optional[str] = None) -> List[Experiment]:
    """All rows of a table on a data set, sorted by file name.

    Raises
    ------
    InputError
        When there is no such data set or table, naming those that there are.
    """
    folder = Path(root) / dataset / f"table{table}"
    if not folder.is_dir():
        known = sorted(f"{p.parent.name} {p.name[5:]}" for p in Path(root).glob("*/table*"))
        raise InputError(f"no rows for table {table} on {dataset}", file=folder,
                         remedy=f"there are (data set, table): {', '.join(known)}")
    return [load_experiment(path, overrides, preset) for path in sorted(folder.glob("*.yaml"))]


def _claim(content: Any, path: PathLike) -> Claim:
    kinds = {"table": int, "row": str, "difference": str, "rounds": int, "over": str, "paper": dict,
             "mirrors": str}
    if not isinstance(content, dict):
        raise InputError("is missing", file=path, field="claim",
                         remedy="say table, row, difference, rounds and the paper's figures")
    content = {key: value for key, value in content.items() if (key, value) != ("paper", None)}
    unknown = [key for key in content if key not in kinds]
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}", file=path, field="claim",
                         remedy=f"known: {', '.join(kinds)}")
    missing = sorted({"table", "row", "difference"} - set(content))
    if missing:
        raise InputError("is missing", file=path, field=f"claim.{missing[0]}")
    for key, value in content.items():
        if type(value) is not kinds[key]:
            raise InputError(f"needs a value of type {kinds[key].__name__}, not {value!r}", file=path,
                             field=f"claim.{key}")
    claim = Claim(**content)
    wrong = [key for key, value in claim.paper.items() if key not in FIGURES
             or not isinstance(value, (int, float))]
    if wrong:
        raise InputError(f"{wrong[0]!r} is not one of the figures {', '.join(FIGURES)} with a number",
                         file=path, field="claim.paper")
    if claim.rounds not in (1, 2):
        raise InputError(f"{claim.rounds!r} is not 1 or 2", file=path, field="claim.rounds")
    if claim.mirrors and not os.path.exists(Path(path).parent.parent.parent / claim.mirrors):
        raise InputError(f"{claim.mirrors!r} does not exist below experiments/", file=path,
                         field="claim.mirrors")
    return claim
