"""Figures of a table's rows: the values of the seeds beside the paper's, and differences paired by seed."""
from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import numpy as np

from cian.tools.engine.reproduction.experiments import load_experiment
from cian.tools.engine.reproduction.plan import TRAINING, Measurement
from cian.tools.engine.training.sources import list_name

HEADER = ("row", "figure", "paper", "ours", "seeds", "difference", "gain", "paper's gain", "configuration")
PAIRED_HEADER = ("paired by seed", "figure", "ours", "standard error", "in standard errors", "seeds", "paper")


class Row:
    """One figure of one row: the values of its seeds beside the paper's."""

    def __init__(self, measurements: Sequence[Measurement], figure: str) -> None:
        first = measurements[0]
        claim = first.experiment.claim
        self.name, self.figure, self.path = claim.row, figure, first.experiment.path
        self.mirrored = bool(claim.mirrors)
        self.stated = load_experiment(
            self.path.parents[2] / claim.mirrors) if claim.mirrors else first.experiment
        self.paper: Optional[float] = self.stated.claim.paper.get(figure)
        data = first.scores[figure].config.data  # type: ignore[union-attr]
        self.scored = list_name(data.val_list) + (", CRF" if figure.endswith("crf") else "")
        self.hash = first.experiment.config.hash((*TRAINING, "cam", "seeds", "predict"))
        self.values: Dict[int, float] = {}
        for measurement in measurements:
            figures = measurement.figures()
            if figures is not None and figure in figures:
                self.values[measurement.seed] = figures[figure]

    @property
    def mean(self) -> Optional[float]:
        """Mean over the seeds that were measured."""
        return float(np.mean(list(self.values.values()))) if self.values else None

    @property
    def spread(self) -> Optional[float]:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return _spread(list(self.values.values()))

    def gains(self, other: Row) -> List[float]:
        """Over another row, seed by seed."""
        return [value - other.values[seed]
                for seed, value in sorted(self.values.items()) if seed in other.values]

    def cells(self, first: Row) -> List[str]:
        """The row in the order of ``HEADER``; ``first`` is the same figure of the table's first row."""
        by_seed = ", ".join(f"{seed}: {value:.2f}" for seed, value in sorted(self.values.items())) or "-"
        comparable = self.mean is not None and self.paper is not None and not self.mirrored
        paper_gain = self.paper - first.paper if self.paper is not None and first.paper is not None else None
        paper = "-" if self.paper is None else f"({self.paper:.1f})" if self.mirrored else f"{self.paper:.1f}"
        return [self.name, self.scored, paper,
                _with_spread(list(self.values.values()), "not measured"), by_seed,
                f"{self.mean - self.paper:+.2f}" if comparable else "-",  # type: ignore[operator]
                "" if self is first else _with_spread(self.gains(first), "-", "+"),
                "" if self is first else "-" if paper_gain is None else f"{paper_gain:+.1f}", self.hash]


def _spread(values: Sequence[float]) -> Optional[float]:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _with_spread(values: Sequence[float], absent: str, sign: str = "") -> str:
    if not values:
        return absent
    spread = _spread(values)
    return f"{np.mean(values):{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def rows_of(measurements: Sequence[Measurement]) -> List[Row]:
    """All figures of a table, rows in their first order, 'val' before 'val_crf'."""
    grouped: Dict[str, List[Measurement]] = {}
    for measurement in measurements:
        grouped.setdefault(str(measurement.experiment.path), []).append(measurement)
    return [Row(group, figure) for group in grouped.values() for figure in group[0].scores]


def paired_cells(rows: Sequence[Row]) -> List[List[str]]:
    """Each row less the one that its claim (or the one that it mirrors) is over, in the order of
    ``PAIRED_HEADER``. The standard error is that of the mean over the seeds that both rows have.
    """
    by_place = {(row.stated.path.resolve(), row.figure): row for row in rows}
    cells = []
    for row in rows:
        path = row.stated.path.resolve()
        other = by_place.get((path.with_name(f"{row.stated.claim.over}.yaml"), row.figure))
        if other is None:
            continue
        gains, spread = row.gains(other), _spread(row.gains(other))
        error = spread / len(gains) ** 0.5 if spread is not None else None
        paper = row.paper - other.paper if row.paper is not None and other.paper is not None else None
        cells.append([f"{row.name} less {other.name}", row.scored,
                      f"{np.mean(gains):+.2f}" if gains else "not measured",
                      "-" if error is None else f"{error:.2f}",
                      f"{np.mean(gains) / error:+.1f}" if error else "-", str(len(gains)),
                      "-" if paper is None else f"{paper:+.1f}"])
    return cells
