"""The file of a comparison: all rows with their versions, from which an interrupted comparison goes on."""
from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Tuple

from cian.errors import InputError
from cian.files import read_json, write_json
from cian.tools.engine.fidelity.table import Row

REMEDY = "name another file, or the one that --json of the same command wrote"


@dataclass(frozen=True)
class Made:
    """The rows of one comparison, made in ``seconds``."""

    name: str
    rows: Tuple[Row, ...]
    seconds: float


@dataclass
class Record:
    """Rows by check, with what they depend on.

    Parameters
    ----------
    versions : of the original, of ours and of the packages.
    settings : which comparisons were asked for: the command line without the names of files.
    """

    versions: Dict[str, str]
    settings: Dict[str, Any]
    checks: List[Made] = field(default_factory=list)

    @property
    def rows(self) -> List[Row]:
        """All rows in order."""
        return [row for check in self.checks for row in check.rows]

    @property
    def setting(self) -> str:
        """The versions in one line."""
        return ", ".join(f"{name} {number}"
                         for name, number in self.versions.items()) + "; float32, one OpenMP thread"

    def save(self, path: str) -> None:
        """Write the file; an infinite error becomes null."""
        rows = [{"check": check.name, **asdict(row), "error": row.error if math.isfinite(row.error) else None,
                 "verdict": row.verdict} for check in self.checks for row in check.rows]
        content = {"versions": self.versions, "settings": self.settings,
                   "seconds": {check.name: check.seconds for check in self.checks}, "rows": rows}
        write_json(path, content)

    def resumed(self, path: str) -> Dict[str, Made]:
        """Comparisons of the file at ``path`` by name; none where there is no file.

        Raises
        ------
        InputError
            When it is no such file, or belongs to other versions or settings.
        """
        if not os.path.exists(path):
            return {}
        content = read_json(path, "file of a comparison", REMEDY)
        for key, mine in (("versions", self.versions), ("settings", self.settings)):
            if content.get(key) != mine:
                raise InputError(f"belongs to other {key}: {content.get(key)}, not {mine}", file=path,
                                 field="--resume", remedy=REMEDY)
        try:
            return {name: Made(name, tuple(_row(row) for row in content["rows"] if row["check"] == name),
                               float(seconds)) for name, seconds in content["seconds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"is no file of a comparison ({error!r})", file=path, field="--resume",
                             remedy=REMEDY) from error


def _row(entry: Dict[str, Any]) -> Row:
    error = math.inf if entry["error"] is None else float(entry["error"])
    return Row(entry["case"], entry["quantity"], error, float(entry["tolerance"]), entry["note"],
               entry["compared"])
