"""Measures of agreement, and the table of verdicts."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

import numpy as np

# Targets for float32 and one OpenMP thread.
LOGITS = 1e-5  # largest difference over the root mean square
GRADIENTS = 1e-3  # relative L2, for every parameter
LOSS_GRADIENTS = 1e-5  # relative L2 of a loss's gradient at given logits
PROBABILITIES = 1e-3  # largest difference, in steps that follow from others
PERTURBATION = 1e-7  # relative, of images or weights: as much as rounding to float32
SPREADS = 3  # how many times our own response to it two programs may differ by
LOOSEST = 0.03  # relative L2 that nothing excuses
IDENTICAL = 0.0  # number of entries that differ


@dataclass(frozen=True)
class Row:
    """One quantity of one case.

    ``compared`` is False where the two cannot be expected to agree and ``note`` says why; such a
    row does not fail.
    """

    case: str
    quantity: str
    error: float
    tolerance: float
    note: str = ""
    compared: bool = True

    @property
    def verdict(self) -> str:
        """'pass', 'FAIL', or 'not compared'. An error that is not a number fails."""
        if not self.compared:
            return "not compared"
        return "pass" if self.error <= self.tolerance else "FAIL"


def loosened(row: Row, spread: float, what: str) -> Row:
    """A failing row with a tolerance of ``SPREADS`` times our own response to ``what`` being
    changed by :data:`PERTURBATION`, at most
    ``LOOSEST``: a ReLU near its kink or two messages near a tie turn a change as small as rounding
    into a jump of the gradient, which later steps enlarge; two programs cannot agree better. The
    note says so. Another row stays as it is."""
    if row.verdict != "FAIL":
        return row
    return replace(row, tolerance=max(row.tolerance, min(SPREADS * spread, LOOSEST)),
                   note=f"{row.note}; {what} changed by {PERTURBATION:g} change our own by {spread:.1e}")


def rms_error(ours: np.ndarray, original: np.ndarray) -> float:
    """Largest absolute difference over the root mean square of the original's values; infinite for
    other shapes or NaN.
    """
    if ours.shape != original.shape:
        return math.inf
    scale = math.sqrt(float(np.mean(np.square(original, dtype=np.float64))))
    return _ratio(float(np.max(np.abs(ours.astype(np.float64) - original))), scale)


def l2_error(ours: np.ndarray, original: np.ndarray) -> float:
    """L2 norm of the difference over that of the original; 0 where both are zero, infinite for
    other shapes or NaN.
    """
    if ours.shape != original.shape:
        return math.inf
    return _ratio(float(np.linalg.norm(ours.astype(np.float64) - original)),
                  float(np.linalg.norm(original.astype(np.float64))))


def _ratio(difference: float, scale: float) -> float:
    if math.isnan(difference) or math.isnan(scale):
        return math.inf
    if scale == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / scale


def worst(ours: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray]) -> Tuple[float, str]:
    """The largest :func:`l2_error` over parameters, and its name; infinite where only one side has a name."""
    lonely = set(ours) ^ set(original)
    if lonely or not ours:
        return (math.inf,
                f"only one side has {', '.join(sorted(lonely)[:3])}" if lonely else "nothing to compare")
    errors = {name: l2_error(ours[name], original[name]) for name in original}
    name = max(errors, key=lambda key: errors[key])
    return errors[name], f"{len(errors)} parameters, worst {name}"


def differing(ours: Any, original: Any) -> float:
    """Number of entries that differ between two arrays, or between two dicts; infinite for other shapes."""
    if isinstance(ours, dict) and isinstance(original, dict):
        return float(sum(ours.get(key) != original.get(key) for key in {*ours, *original}))
    ours, original = np.asarray(ours), np.asarray(original)
    return float(np.sum(ours != original)) if ours.shape == original.shape else math.inf


_LAYOUT = "{:42}  {:48}  {:>9}  {:>9}  {}"
HEADER = _LAYOUT.format("case", "quantity", "error", "tolerance", "verdict")


def format_row(row: Row) -> str:
    """One line of the table under :data:`HEADER`: errors as counts where the two must be identical."""
    return _LAYOUT.format(row.case, row.quantity, *_numbers(row),
                          row.verdict + (f"  ({row.note})" if row.note else ""))


def _numbers(row: Row) -> Tuple[str, str]:
    exact = row.tolerance == IDENTICAL
    error = f"{row.error:.0f}" if row.error == 0 or (exact
                                                     and math.isfinite(row.error)) else f"{row.error:.1e}"
    return error, "identical" if exact else f"{row.tolerance:.0e}"


def summarise(rows: Iterable[Row]) -> List[Row]:
    """One row for each quantity: its largest error over all cases (the failing ones first, those
    not compared left out).

    ``case`` tells how many cases, and of how many the tolerance was loosened.
    """
    groups: Dict[str, List[Row]] = {}
    for row in rows:
        if row.compared:
            groups.setdefault(row.quantity, []).append(row)
    result = []
    for quantity, group in groups.items():
        strict = min(row.tolerance for row in group)
        loosened = [row for row in group if row.tolerance > strict]
        worst_row = max(group, key=lambda row: (row.verdict == "FAIL", row.tolerance == strict, row.error))
        note = f"{len(loosened)} loosened, up to {max(row.error for row in loosened):.1e}" if loosened else ""
        result.append(Row(f"{len(group)} case{'s' if len(group) > 1 else ''}", quantity, worst_row.error,
                          worst_row.tolerance, note))
    return result


def count(rows: Sequence[Row]) -> str:
    """How many rows have which verdict, in words."""
    return ", ".join(f"{sum(row.verdict == verdict for row in rows)} {verdict}"
                     for verdict in ("pass", "FAIL", "not compared"))


def markdown(rows: Sequence[Row]) -> str:
    """The summary as a table in Markdown, and below it the reason of every row that was loosened or
    could not be compared.
    """
    lines = ["| quantity | cases | largest error | tolerance | verdict |", "|---|---:|---:|---:|---|"]
    summary = summarise(rows)
    for row in summary:
        verdict = row.verdict + (f" ({row.note})" if row.note else "")
        lines.append(f"| {row.quantity} | {row.case.split()[0]} | {' | '.join(_numbers(row))} | {verdict} |")
    strict = {row.quantity: row.tolerance for row in summary}
    reasons = [row for row in rows if not row.compared or row.tolerance > strict[row.quantity]]
    lines += ["", *(f"* {row.case}, {row.quantity}: {_numbers(row)[0]}, {row.verdict}; {row.note}"
                    for row in reasons)]
    return "\n".join(lines).rstrip() + "\n"
