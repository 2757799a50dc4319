"""The rules of the house, checked on the source: who may import whom, and how files read."""
from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("symbols", "data", "tools") for path in (ROOT / folder).rglob("*.py"))
# Folder -> packages of the project that its files may import.
GROUND = ("cian.errors", "cian.environment", "cian.files", "cian.processes")
ALLOWED = {"symbols": (*GROUND, "cian.symbols"), "data": (*GROUND, "cian.data"),
           "tools/engine": (*GROUND, "cian.symbols", "cian.data", "cian.tools.engine")}


def imported_modules(path):
    """Full names of the modules that a file imports, relative ones resolved."""
    package = "cian." + ".".join(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            if module == "cian":  # from cian import symbols
                yield from (f"cian.{alias.name}" for alias in node.names)


def folder_of(path):
    relative = path.relative_to(ROOT).as_posix()
    return next((folder for folder in ALLOWED if relative.startswith(folder + "/")), None)


@pytest.mark.parametrize("path", [path for path in SOURCES if folder_of(path)],
                         ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path):
    allowed = ALLOWED[folder_of(path)]
    wrong = [name for name in imported_modules(path) if name.split(".")[0] == "cian"
             and not any(name == good or name.startswith(good + ".") for good in allowed) and name != "cian"]
    assert not wrong, f"imports against the arrows: {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_has_no_eval_star_import_or_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent == ROOT / "tools"],
                         ids=lambda path: path.name)
def test_entry_points_stay_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_public_function_and_class_has_a_docstring():
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node) and not (path.parent == ROOT / "tools"
                                                               and node.name == "main"):
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not missing, missing


def test_tracked_files_name_no_machine_and_are_small():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so the tracked files are unknown")
    machine = re.compile(r"(?<![\w.])/(?:work|root|opt|farm)/|index-url")
    for name in listing.stdout.split():
        path = ROOT / name
        if not path.exists() or path == Path(__file__).resolve():
            continue
        assert path.stat().st_size < 1_000_000, f"{name} is over 1 MB"
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".html", ""):
            found = machine.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name} names a machine's path: {found.group(0)}"
