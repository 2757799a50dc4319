"""The report of a reproduction: the paper's figures beside ours, by seed, with what every figure
was measured on.
"""
from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cian.data.tree import DatasetTree
from cian.errors import PathLike
from cian.files import atomic_write_bytes, read_text, write_json
from cian.tools.engine.models.snapshot import load_network
from cian.tools.engine.prediction.pictures import pairs_by_class, write_gallery, write_pair
from cian.tools.engine.report import Page, markdown_table
from cian.tools.engine.reproduction.plan import TRAINING, Measurement
from cian.tools.engine.reproduction.rows import HEADER, PAIRED_HEADER, Row, paired_cells, rows_of
from cian.tools.engine.reproduction.stages import in_order
from cian.tools.engine.training.scalars import read_scalars

SHOWN, PAIRS = 6, 3  # images of the gallery, pairs of Figure 3
TRAINING_HEADER = ("row", "seed", "round", "steps", "seed loss", "agreement", "in completion", "minutes")
LOOKED = "What was looked at, and when"
LOOKED_HEADER = ("list", "row", "scores", "first", "last")
LEGEND = ("'±' is the sample standard deviation over the seeds. A gain is that over the table's first row, "
          "in the same figure, of the same "
          "seeds. A paper's figure in brackets is the one of the row that this one mirrors on another data "
          "set: only the gains compare. Of "
          "each training round, the last epoch: seed loss of an image (self branch), the part of the "
          "labelled pixels that the target "
          "branch predicts so, and the part of all pixels that the completion loss takes (or would take).")


def conditions(measurement: Measurement) -> str:
    """What every mIoU of the table was measured on, in one paragraph."""
    config = measurement.experiment.config
    data, predict = measurement.scores["val"].config.data, config.predict  # type: ignore[union-attr]
    crf = "without and with" if "val_crf" in measurement.scores else "without"
    fit = ("images at their own size" if predict.fit == "native"
           else f"images under '{predict.fit}' {predict.size_px}")
    frozen = f", frozen: {' '.join(config.train.freeze)}" if config.train.freeze else ""
    return (f"mIoU in per cent on the list {os.path.basename(data.val_list)}, classes that occur nowhere "
            "counted as 0. Training labels: "
            "image-level labels only, by seeds from class activation maps (saliency: "
            f"{config.seeds.saliency}; rows of Table 4 replace a "
            f"portion with ground truth). Scales {', '.join(f'{scale:g}' for scale in predict.scales)}"
            f"{' and their maximum' if predict.add_max else ''}, {'with' if predict.mirror else 'without'} "
            f"mirror, {fit}; "
            f"{crf} dense CRF (preset '{predict.crf}'). {config.network.model}, preset {config.preset}, "
            f"{config.train.epochs} epochs, batch {config.train.batch_size} on "
            f"{', '.join(config.run.devices)}, "
            f"crop {config.train.crop_px}, learning rate {config.train.lr:g}{frozen}.")


def scores_plot(rows: Sequence[Row], title: str) -> bytes:
    """Bars of ours with the spread and each seed as a point, the paper's as a mark, as a PNG file's
    content.
    """
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.4), dpi=110)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        if row.mean is not None:
            axes.barh(place, row.mean, xerr=row.spread or 0,
                      color="#4c78a8" if row.figure.endswith("crf") else "#9ecae9", height=0.66)
            axes.plot(list(row.values.values()), [place] * len(row.values), "k.", markersize=4)
        if row.paper is not None and not row.mirrored:
            axes.plot(row.paper, place, "D", color="#e45756", markersize=6)
    axes.set_yticks(range(len(rows)), [f"{row.name} ({row.scored})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU, % (points: seeds" + ("" if rows[0].mirrored else "; red: the paper") + ")")
    axes.set_title(title)
    figure.tight_layout()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


class FinishedRound(NamedTuple):
    """A training round that is done: its row and seed, its number from 1, how long it took, and
    what it logged by name and step.
    """

    row: str
    seed: int
    number: int
    seconds: float
    scalars: Dict[str, List[Tuple[int, float]]]


def finished_rounds(measurements: Sequence[Measurement]) -> List[FinishedRound]:
    """All training rounds that are done, with their logs; one that has none is told and left out."""
    found = []
    for measurement in measurements:
        for number, stage in enumerate(measurement.rounds, 1):
            done = stage.done
            if done is None:
                continue
            scalars = read_scalars(stage.folder / "tensorboard")
            if scalars:
                found.append(FinishedRound(measurement.experiment.claim.row, measurement.seed, number,
                                           done["seconds"], scalars))
            else:
                print(f"note: {stage.folder} has TensorBoard's events alone, as older runs: no curves of it",
                      file=sys.stderr)
    return found


def training_cells(trained: FinishedRound) -> List[str]:
    """What the log of a round says at its end, in the order of ``TRAINING_HEADER``."""
    step, loss = trained.scalars["loss/seed_self"][-1]
    agreeing, completed = (trained.scalars[name][-1][1] for name in ("pixels/agreeing", "pixels/completion"))
    return [trained.row, str(trained.seed), str(trained.number), str(step), f"{loss:.3f}", f"{agreeing:.1%}",
            f"{completed:.1%}", f"{trained.seconds / 60:.1f}"]


def curves_plot(rounds: Sequence[FinishedRound], title: str) -> bytes:
    """Seed loss, agreement and completed pixels over the steps, a line a round (colour: row,
    dashes: second round), as a PNG file's
    content."""
    panels = {"loss/seed_self": "seed loss of an image",
              "pixels/agreeing": "labelled pixels that\nthe target branch predicts so",
              "pixels/completion": "pixels in the completion loss"}
    names = list(dict.fromkeys(trained.row for trained in rounds))
    figure = Figure(figsize=(11, 3.4), dpi=110)
    for axes, (scalar, label) in zip(figure.subplots(1, len(panels)), panels.items()):
        for trained in rounds:
            steps, values = zip(*trained.scalars[scalar])
            axes.plot(steps, values, "--" if trained.number > 1 else "-",
                      color=f"C{names.index(trained.row)}", linewidth=1)
        axes.set_xlabel("step")
        axes.set_title(label, fontsize=9)
    figure.legend([Line2D([], [], color=f"C{at}") for at in range(len(names))], names, loc="lower center",
                  ncol=min(len(names), 6), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return _png(figure)


def write_report(tables: Sequence[Tuple[str, Sequence[Measurement]]], command: str, versions: Dict[str, Any],
                 path: PathLike) -> None:
    """Write ``path.md`` with the plots ``path-N-*.png``, ``path.json`` with every figure, and
    ``path.html``, which has pictures of the data set too.

    Parameters
    ----------
    tables : (title, measurements) of each.
    command : that made the report, as a user types it.
    versions : of the packages that matter.
    """
    base = os.fspath(path)
    page = Page("Reproduction of the paper's tables", f"Made by: {command}")
    lines = [f"# {page.title}", "", f"Made by `{command}`", ""]
    for number, (title, measurements) in enumerate(tables, 1):
        _add_table(page, lines, title, measurements, f"{base}-{number}")
    every = [measurement for _, measurements in tables for measurement in measurements]
    add_pictures(page, every, f"{base}-pictures")
    looked = looked_cells(every)
    page.heading(LOOKED)
    page.table(LOOKED_HEADER, looked)
    lines += [f"## {LOOKED}", "", markdown_table(LOOKED_HEADER, looked), ""]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    page.text(f"{LEGEND} Versions: {shown}.")
    lines += [f"{LEGEND} Versions: {shown}.", ""]
    page.save(f"{base}.html")
    atomic_write_bytes(f"{base}.md", "\n".join(lines).encode())
    write_json(f"{base}.json", {"command": command, "versions": versions, "tables": [
        {"title": title, "measurements": [record(measurement) for measurement in measurements]}
        for title, measurements in tables]})


def _add_table(page: Page, lines: List[str], title: str, measurements: Sequence[Measurement],
               base: str) -> None:
    """A table with its plots, which get names that begin with ``base``, to the page and the Markdown."""
    rows = rows_of(measurements)
    first = {row.figure: row for row in reversed(rows)}
    cells, rounds = [row.cells(first[row.figure]) for row in rows], finished_rounds(measurements)
    page.heading(title)
    page.text(conditions(measurements[0]))
    page.table(HEADER, cells)
    lines += [f"## {title}", "", conditions(measurements[0]), "", markdown_table(HEADER, cells), ""]
    paired = paired_cells(rows)
    if paired:
        page.table(PAIRED_HEADER, paired)
        lines += [markdown_table(PAIRED_HEADER, paired), ""]
    plots = {"scores": scores_plot(rows, title)}
    if rounds:
        plots["training"] = curves_plot(rounds, title)
    for name, content in plots.items():
        target = f"{base}-{name}.png"
        atomic_write_bytes(target, content)
        page.picture(content, f"{title}: {name}")
        lines += [f"![{title}: {name}]({os.path.basename(target)})", ""]
    training = [training_cells(trained) for trained in rounds]
    page.table(TRAINING_HEADER, training)
    lines += [markdown_table(TRAINING_HEADER, training), ""]


def record(measurement: Measurement) -> Dict[str, Any]:
    """Everything measured of a row with a seed: by figure the mean and class IoU and how they were
    made, the stages' keys and seconds.
    """
    experiment, figures = measurement.experiment, {}
    for name, stage in measurement.scores.items():
        if stage.done is not None:
            score = json.loads(read_text(stage.folder / "score.json"))
            figures[name] = {key: score[key] for key in ("mean_iou", "iou") if key in score}
    stages = {f"{stage.kind}-{stage.key}": stage.done["seconds"]
              for stage in in_order(measurement.scores.values()) if stage.done}
    return {"table": experiment.claim.table, "row": experiment.claim.row,
            "file": "/".join(experiment.path.parts[-3:]), "seed": measurement.seed,
            "configuration": experiment.config.hash((*TRAINING, "cam", "seeds", "predict")),
            "figures": figures, "seconds": stages}


def looked_cells(measurements: Sequence[Measurement]) -> List[List[str]]:
    """Every score that is in the folder of the stages, of these rows or of other settings and lists,
    by list and row, in the order of ``LOOKED_HEADER``: masks are opened for them alone.
    """
    stages = {stage.folder: m.experiment.name for m in reversed(measurements) for stage in m.scores.values()}
    found: Dict[Tuple[str, str], List[str]] = {}
    for path in {folder.parent for folder in stages}:
        for done in path.glob("score-*/done.json"):
            score = json.loads(read_text(done.with_name("score.json")))
            tree = os.path.basename(os.path.dirname(score["truth"]))
            place = f"{tree}/{os.path.splitext(os.path.basename(score['list']))[0]}"
            found.setdefault((place, stages.get(done.parent, "not of this report")), []).append(
                json.loads(read_text(done)).get("finished", "unknown"))
    return [[*key, str(len(times)), min(times), max(times)]
            for key, times in sorted(found.items(), key=lambda item: (min(item[1]), item[0]))]


def add_pictures(page: Page, measurements: Sequence[Measurement], folder: str) -> None:
    """Figures 3 and 4 of the paper, of the rows' first seed: affinity of pairs in the last finished
    network with a cross branch, and the
    rows' predictions side by side; on the page, and as PNG in ``folder``."""
    # the first of each name
    shown = {m.experiment.claim.row: m for m in reversed(measurements) if m.figures() is not None}
    if not shown:
        return
    ordered = [shown[name]
               for name in dict.fromkeys(m.experiment.claim.row for m in measurements) if name in shown]
    data = measurements[0].scores["val"].config.data  # type: ignore[union-attr]
    tree = DatasetTree(data.root, mask_root=data.mask_root, classes=data.classes)
    columns = [(m.experiment.claim.row,
                str(m.scores["val"].after[0].folder / ("pred_crf" if "val_crf" in m.scores else "pred")))
               for m in ordered]
    page.heading("Predictions (Figure 4 of the paper)")
    names = tree.names(data.val_list)
    write_gallery(folder, tree, names[::max(1, len(names) // SHOWN)][:SHOWN], columns, page=page)
    crossed = [m for m in ordered if m.experiment.config.network.affinity == "cross"]
    if crossed:
        page.heading(f"Affinity of pairs (Figure 3 of the paper): {crossed[-1].experiment.claim.row}")
        net, metadata = load_network(crossed[-1].rounds[-1].folder, for_prediction=False)
        for query, reference in pairs_by_class(tree, data.val_list, PAIRS):
            write_pair(folder, net, tree.image_path(query), tree.image_path(reference), metadata["classes"],
                       page=page)
