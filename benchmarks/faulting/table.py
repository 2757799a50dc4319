"""What a campaign found, as tables."""
from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Mapping

OUTCOMES = ("as before", "refused", "otherwise", "fault")


def summary(steps: Mapping[str, Any]) -> str:
    """Tables in Markdown: mutations by kind of file, kills by stage, faults of the system, sizes."""
    parts: Dict[str, Dict[str, List[Any]]] = {}
    for name, step in steps.items():
        part, kind = name.split("/")[:2]
        parts.setdefault(part, {}).setdefault(kind, []).append(step)
    lines: List[str] = []
    if "mutations" in parts:
        rows = [[kind, *(sum(step[outcome] for step in found) for outcome in OUTCOMES)]
                for kind, found in parts["mutations"].items()]
        rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, 5))])
        lines += _table(("mutated file", "read as before", "refused in a line", "read otherwise", "fault"),
                        rows)
    if "kills" in parts:
        rows = [[kind, len(found), *(sum(who == hit[0] for step in found for hit in step["kills"])
                                     for who in ("all", "parent", "child")), sum(map(_failed, found))]
                for kind, found in parts["kills"].items()]
        lines += _table(("stage", "runs", "kills of all", "of the parent", "of a child", "runs with a fault"),
                        rows)
    if "system" in parts:
        rows = [[kind, len(found), sum("skipped" in step for step in found), sum(map(_failed, found))]
                for kind, found in parts["system"].items()]
        lines += _table(("fault of the system", "runs", "skipped", "runs with a fault"), rows)
    if "sizes" in parts:
        outcomes = Counter(step["outcome"] for found in parts["sizes"].values() for step in found)
        lines += _table(("sizes: works", "refused by name", "fault"),
                        [[outcomes["works"], outcomes["refused"], outcomes["fault"]]])
    return "\n".join(lines)


def _failed(step: Mapping[str, Any]) -> bool:
    return bool(step["faults"])


def _table(head: Any, rows: Any) -> List[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]
