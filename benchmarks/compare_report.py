"""The table and the picture of benchmarks/compare.py."""
from __future__ import annotations

from typing import Any, Dict, Iterator, List, Tuple

from cian.tools.engine.report import text_table

Row = Tuple[str, Dict[str, Any]]
DEFAULT, EQUAL, OURS = "original", "original, equal threads", "ours"


def rows(stages: Dict[str, Any]) -> Iterator[Row]:
    """Stages, each followed by its parts."""
    for name, found in stages.items():
        yield name, found
        for part, inner in found.get("parts", {}).items():
            yield f"{name}: {part}", inner


def report(stages: Dict[str, Any]) -> str:
    """The table: seconds of a round; time and CPU time of the original over ours; peak memory;
    equal pixels.
    """
    header = ("stage", "original s", "equal threads s", "ours s", "times as fast", "at equal threads",
              "CPU time", "at equal threads", "peak MB original", "peak MB ours", "same labels")
    table: List[Tuple[str, ...]] = []
    for name, found in rows(stages):
        seconds = [f"{found['median_s'][side]['median']:.2f}" if side in found["median_s"] else ""
                   for side in (DEFAULT, EQUAL, OURS)]
        fast = [span(found["times_as_fast"][side]) if side in found["times_as_fast"] else ""
                for side in (DEFAULT, EQUAL)]
        cpu = [span(found["times_the_cpu"][side]) if side in found.get("times_the_cpu", {}) else ""
               for side in (DEFAULT, EQUAL)]
        peak = [f"{found['peak_mb'][side]:.0f}" for side in (DEFAULT, OURS)]
        table.append((name, *seconds, *fast, *cpu, *peak,
                      f"{100 * found['equal_pixels']:.3f} %" if "equal_pixels" in found else ""))
    return text_table(header, table)


def span(values: Dict[str, float]) -> str:
    """'median (least-largest)'."""
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"


def plot(results: Dict[str, Any], path: str) -> None:
    """Times as fast with ranges, and peak memory as a portion of the original's, for every stage."""
    from matplotlib.figure import Figure

    named = list(rows(results["stages"]))[::-1]
    figure = Figure(figsize=(10, 1.5 + 0.42 * len(named)), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    for side, shift, colour in ((DEFAULT, 0.2, "tab:blue"), (EQUAL, -0.2, "tab:cyan")):
        found = [(place + shift, row["times_as_fast"][side])
                 for place, (_, row) in enumerate(named) if side in row["times_as_fast"]]
        medians = [values["median"] for _, values in found]
        errors = [[values["median"] - values["min"] for _, values in found],
                  [values["max"] - values["median"] for _, values in found]]
        label = "its own threads" if side == DEFAULT else "equal threads"
        speed.barh([place for place, _ in found], medians, 0.38, xerr=errors, color=colour, ecolor="black",
                   label=f"original with {label}")
    speed.set_yticks(range(len(named)), [name for name, _ in named])
    speed.set_xlabel("times as fast as the original (median, range)")
    speed.axvline(1, color="black", linewidth=0.8)
    speed.legend(loc="lower right", fontsize=8)
    memory.barh(range(len(named)), [row["peak_mb"][OURS] / row["peak_mb"][DEFAULT] for _, row in named], 0.5,
                color="tab:gray")
    memory.axvline(1, color="black", linewidth=0.8)
    memory.set_xlabel("peak memory, of the original's")
    figure.suptitle(f"{results['machine']['processor']}, {results['machine']['cores']} cores", fontsize=9)
    figure.savefig(path, dpi=110)
