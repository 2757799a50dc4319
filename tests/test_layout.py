"""The rules of the house, checked on the source: who may import whom, and how files read."""
from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for folder in ("symbols", "data", "tools") for path in (ROOT / folder).rglob("*.py"))
# Folder -> packages of the project that its files may import.
GROUND = ("cian.choices", "cian.errors", "cian.environment", "cian.files", "cian.later", "cian.pickles",
          "cian.processes")
ALLOWED = {"symbols": (*GROUND, "cian.symbols"), "data": (*GROUND, "cian.data"),
           "tools/engine": (*GROUND, "cian.symbols", "cian.data", "cian.tools.engine")}
# The rooms of the engine: a room may use those of the lines before it, and the ground below them all.
FLOORS = ({"models"}, {"training", "prediction", "export"}, {"seeds"}, {"reproduction", "fidelity"})
MAX_FUNCTION, MAX_FILE, MAX_ENTRY = 40, 300, 125  # lines; of a function without its docstring
MAX_SENTENCE = 30  # words
LONG_FILES = {"tools/engine/fidelity/original.py": 330,  # runs alone, beside the original's own modules
              # of these a third is their help
              "tools/predict.py": 160, "tools/reproduce.py": 150, "tools/retrain.py": 150}
# Tests of what no single file does, or of one file's behaviour under a heading of its own.
BY_TOPIC = {f"test_{name}" for name in (
    "layout", "pages", "damage", "masks", "packing", "hostile_model_files", "freezing", "whole_network",
    "chain", "defects", "document", "original")}


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


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent == ROOT / "tools"
                                  and "run_tool(main)" in path.read_text(encoding="utf-8")],
                         ids=lambda path: path.name)
def test_entry_points_stay_thin(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONG_FILES.get(f"tools/{path.name}", MAX_ENTRY)


def test_files_and_functions_stay_short():
    for path in SOURCES:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONG_FILES.get(name, MAX_FILE), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                documented = node.body[0] if ast.get_docstring(node) else None
                words = documented.end_lineno - documented.lineno + 1 if documented else 0
                assert node.end_lineno - node.lineno + 1 - words <= MAX_FUNCTION, f"{name}: {node.name}"


@pytest.mark.parametrize("room", [room for floor in FLOORS for room in sorted(floor)] + [""])
def test_no_arrow_climbs_between_the_rooms_of_the_engine(room):
    at = next((number for number, floor in enumerate(FLOORS) if room in floor), 0)
    below = set().union(*FLOORS[:at]) | {room}
    for path in sorted((ROOT / "tools" / "engine" / room).glob("*.py")):
        for module in imported_modules(path):
            parts = module.split(".")[3:4] if module.startswith("cian.tools.engine.") else []
            is_room = any(parts == [other] for floor in FLOORS for other in floor)
            assert not is_room or parts[0] in below, f"{path.relative_to(ROOT)} imports {module}"


def test_the_type_checker_sees_a_wrong_call_across_folders(tmp_path):
    if importlib.util.find_spec("mypy") is None or shutil.which("make") is None:
        pytest.skip("mypy or make is not installed")
    subprocess.run(["make", "-s", "types", f"TYPES={tmp_path / 'types'}"], cwd=ROOT, check=True)
    (tmp_path / "types" / "cian" / "planted.py").write_text(
        "from cian.files import read_bytes\nread_bytes(1, 2, 3, nonsense=4)\n", encoding="utf-8")
    found = subprocess.run([sys.executable, "-m", "mypy", "-p", "cian.planted"], cwd=ROOT,
                           env={**os.environ, "MYPYPATH": str(tmp_path / "types")},
                           capture_output=True, text=True)
    assert found.returncode == 1 and "planted.py:2: error: " in found.stdout, found.stdout + found.stderr


def test_tests_mirror_the_sources():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.relative_to(ROOT / "tests").parent
        at_top = folder.parts[:1] in (("symbols",), ("data",), ("tools",), ("benchmarks",))
        source = ROOT / ("" if at_top else "tools") / folder / f"{path.stem[len('test_'):]}.py"
        assert path.stem in BY_TOPIC or source.is_file(), f"{path.relative_to(ROOT)} tests no file"


def test_the_readme_names_every_room_and_every_tool():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [f"engine/{room}/" for floor in FLOORS for room in floor]
    tools = [f"tools/{path.name}" for path in SOURCES if path.parent == ROOT / "tools"
             and "run_tool(main)" in path.read_text(encoding="utf-8")]
    assert [name for name in (*rooms, *tools, "tools/cian/") if name not in text] == []


def test_prose_is_wrapped_at_100_columns():
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/README.md")]):
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            prose = not fenced and not line.lstrip().startswith(("|", "![", "```", "<"))
            assert not prose or len(line) <= 100, f"{path.relative_to(ROOT)}:{number} is {len(line)} long"


def test_sentences_of_the_documents_are_short():
    for path in [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
                 *sorted(ROOT.glob("docs/*.md"))]:
        prose = re.sub(r"^(```.*?^```|[|#!<].*?|    .*?)$", "", path.read_text(encoding="utf-8"),
                       flags=re.MULTILINE | re.DOTALL)
        for text in re.split(r"\n\s*\n|\n\s*(?=[-*] |\d+\. )", prose):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))
            text = re.sub(r":(\s[^.!?:]*?[,;]){3,}[^.!?:]*", ":", text)  # a list of values
            for sentence in re.split(r"(?<=[.!?:])\W*\s", text):
                assert len(sentence.split()) < MAX_SENTENCE, f"{path.relative_to(ROOT)}: {sentence}"


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
