"""Sphinx's settings. The source folder is the repository, so that links between documents hold; the
reference and the tools' pages are written anew by every build into build/reference.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "build" / "reference"
ROOMS = ("models", "training", "prediction", "export", "seeds", "reproduction", "fidelity")

project, author = "CIAN", "CIAN's authors"
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
include_patterns = ["*.md", "docs/*.md", "experiments/results/**/*.md", "build/reference/*.md"]
myst_heading_anchors = 3
html_theme, html_title = "furo", "CIAN"
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
napoleon_google_docstring = False
napoleon_use_ivar = True


def page(name: str, title: str, body: List[str]) -> None:
    """Write one page of the reference."""
    (REFERENCE / f"{name}.md").write_text("\n".join([f"# {title}", "", *body]) + "\n", encoding="utf-8")


def write_reference() -> None:
    """A page a package with its modules, and a page a tool with its ``--help``."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for old in REFERENCE.glob("*.md"):
        old.unlink()
    folders: Dict[str, Path] = {"cian": ROOT / "tools" / "cian", "cian.symbols": ROOT / "symbols",
                                "cian.data": ROOT / "data", "cian.tools.engine": ROOT / "tools" / "engine"}
    folders.update({f"cian.tools.engine.{room}": ROOT / "tools" / "engine" / room for room in ROOMS})
    for package, folder in folders.items():
        body = []
        for path in sorted(folder.glob("*.py")):
            if path.stem != "__init__":
                body += [f"## {path.stem}", "", "```{eval-rst}", f".. automodule:: {package}.{path.stem}",
                         "```", ""]
        page(package, package, body)
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    for path in sorted((ROOT / "tools").glob("*.py")):
        if "run_tool(main)" in path.read_text(encoding="utf-8"):
            text = subprocess.run([sys.executable, str(path), "--help"], env=environment, check=True,
                                  capture_output=True, text=True).stdout
            page(f"tool-{path.stem}", f"tools/{path.name}", ["```text", text.rstrip(), "```"])


write_reference()
