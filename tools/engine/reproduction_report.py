"""The report of a reproduction: the paper's figures beside ours, by seed, with what every figure was measured on."""
from __future__ import annotations

import io
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np

from cian.data.files import atomic_write_bytes
from cian.errors import PathLike

from .report import Page, markdown_table
from .reproduction import TRAINING, Measurement

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

HEADER = ("row", "figure", "paper", "ours", "seeds", "difference", "configuration")
NAMES = {"val": "val", "val_crf": "val, CRF", "test": "test", "test_crf": "test, CRF"}


class Row:
    """One figure of one row: the values of its seeds beside the paper's."""

    def __init__(self, measurements: Sequence[Measurement], figure: str) -> None:
        first = measurements[0]
        self.name, self.figure, self.path = first.experiment.claim.row, figure, first.experiment.path
        self.paper: Optional[float] = first.experiment.claim.paper.get(figure)
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
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None

    def cells(self) -> List[str]:
        """The row in the order of ``HEADER``."""
        ours = "not measured" if self.mean is None else f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")
        by_seed = ", ".join(f"{seed}: {value:.2f}" for seed, value in sorted(self.values.items())) or "-"
        difference = f"{self.mean - self.paper:+.2f}" if self.mean is not None and self.paper is not None else "-"
        return [self.name, NAMES[self.figure], "-" if self.paper is None else f"{self.paper:.1f}", ours, by_seed, difference, self.hash]


def rows_of(measurements: Sequence[Measurement]) -> List[Row]:
    """All figures of a table, rows in their first order, 'val' before 'val_crf'."""
    grouped: Dict[str, List[Measurement]] = {}
    for measurement in measurements:
        grouped.setdefault(str(measurement.experiment.path), []).append(measurement)
    return [Row(group, figure) for group in grouped.values() for figure in group[0].scores]


def conditions(measurement: Measurement) -> str:
    """What every mIoU of the table was measured on, in one paragraph."""
    config = measurement.experiment.config
    data, predict = measurement.scores["val"].config.data, config.predict  # type: ignore[union-attr]
    crf = "without and with" if "val_crf" in measurement.scores else "without"
    return (f"mIoU in per cent on the list {os.path.basename(data.val_list)}, classes that occur nowhere counted as 0. Training labels: "
            f"image-level labels only, by seeds from class activation maps (saliency: {config.seeds.saliency}; rows of Table 4 replace a "
            f"portion with ground truth). Scales {', '.join(f'{scale:g}' for scale in predict.scales)}"
            f"{' and their maximum' if predict.add_max else ''}, {'with' if predict.mirror else 'without'} mirror, images under "
            f"'{predict.fit}' {predict.size_px}; {crf} dense CRF (preset '{predict.crf}'). {config.network.model}, preset {config.preset}, "
            f"{config.train.epochs} epochs, batch {config.train.batch_size} on {', '.join(config.run.devices)}, "
            f"crop {config.train.crop_px}, learning rate {config.train.lr:g}.")


def figure_picture(rows: Sequence[Row], title: str) -> np.ndarray:
    """Bars of ours with the spread and each seed as a point, the paper's as a mark; (H, W, 3) uint8 RGB."""
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 1.4), dpi=110)
    try:
        for place, row in enumerate(rows):
            if row.mean is not None:
                axes.barh(place, row.mean, xerr=row.spread or 0, color="#4c78a8" if row.figure.endswith("crf") else "#9ecae9", height=0.66)
                axes.plot(list(row.values.values()), [place] * len(row.values), "k.", markersize=4)
            if row.paper is not None:
                axes.plot(row.paper, place, "D", color="#e45756", markersize=6)
        axes.set_yticks(range(len(rows)), [f"{row.name} ({NAMES[row.figure]})" for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("mIoU, % (points: seeds; red: the paper)")
        axes.set_title(title)
        figure.tight_layout()
        content = io.BytesIO()
        figure.savefig(content, format="png")
    finally:
        pyplot.close(figure)
    return cv2.imdecode(np.frombuffer(content.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def write_report(tables: Sequence[Tuple[str, Sequence[Measurement]]], command: str, versions: Dict[str, Any], path: PathLike) -> None:
    """Write ``path``.md and ``path``.html.

    Parameters
    ----------
    tables : (title, measurements) of each.
    command : that made the report, as a user types it.
    versions : of the packages that matter.
    """
    page = Page("Reproduction of the paper's tables", f"Made by: {command}")
    lines = [f"# {page.title}", "", f"Made by `{command}`", ""]
    for title, measurements in tables:
        rows = rows_of(measurements)
        cells = [row.cells() for row in rows]
        page.heading(title)
        page.text(conditions(measurements[0]))
        page.table(HEADER, cells)
        page.pictures([figure_picture(rows, title)], [title])
        lines += [f"## {title}", "", conditions(measurements[0]), "", markdown_table(HEADER, cells), ""]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    page.text(f"Versions: {shown}. '±' is the sample standard deviation over the seeds.")
    lines += [f"Versions: {shown}. '±' is the sample standard deviation over the seeds.", ""]
    page.save(f"{os.fspath(path)}.html")
    atomic_write_bytes(f"{os.fspath(path)}.md", "\n".join(lines).encode())
