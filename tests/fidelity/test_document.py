"""What docs/fidelity.md points to exists: tests, files, options; and, where a checkout is named,
lines of the original.
"""
import dataclasses
import os
import re
from pathlib import Path

import pytest

from cian.tools.engine.config import PRESETS, SECTIONS

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
ORIGINAL = os.environ.get("CIAN_ORIGINAL", "")
FOLDERS = ("", "lib/models", "lib/models/layers_custom", "lib/loader", "lib/utils", "scripts")


def test_every_test_that_is_named_exists():
    named = re.findall(r"`([a-z/]+/test_\w+\.py)(?:::(test_\w+))?", TEXT)
    assert len(named) > 45
    for path, test in named:
        content = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert f"def {test}(" in content if test else content, f"{path}::{test}"


def test_every_file_and_link_exists():
    for link in re.findall(r"\]\((\.\./[^)#]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"`((?:symbols|data|tools)/[\w/]+\.py)", TEXT):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


def test_every_option_exists_and_every_key_of_the_paper_preset_is_listed():
    for section, key in re.findall(r"`(network|loss|train|predict|run|data)\.(\w+)", TEXT):
        assert key in {field.name for field in dataclasses.fields(SECTIONS[section])}, f"{section}.{key}"
    for section, keys in PRESETS["paper"].items():
        for key, value in keys.items():
            default = next(field.default
                           for field in dataclasses.fields(SECTIONS[section]) if field.name == key)
            assert f"`{section}.{key}`: `{default}` → `{value}`" in TEXT


def test_every_option_with_a_choice_is_in_a_table_that_names_its_test():
    for section in ("network", "loss", "train", "predict"):
        for key in dataclasses.fields(SECTIONS[section]):
            if key.metadata["choices"] and key.name != "model" or isinstance(key.default, bool):
                lines = [line for line in TEXT.splitlines() if f"`{section}.{key.name}`" in line
                         and line.startswith("|")]
                assert any(re.search(r"`[a-z/]+/test_\w+\.py(::test_\w+)?`|the same", line)
                           for line in lines), f"{section}.{key.name}"


@pytest.mark.original
@pytest.mark.skipif(not ORIGINAL, reason="CIAN_ORIGINAL names no checkout of github js-fan/CIAN")
def test_every_line_of_the_original_exists():
    references = re.findall(r"`((?:[\w/]+/)?\w+\.py):(\d[\d, -]*)", TEXT)
    assert len(references) > 30
    for name, lines in references:
        path = next(candidate for folder in FOLDERS
                    for candidate in [Path(ORIGINAL, folder, name)] if candidate.is_file())
        last = max(int(number) for number in re.findall(r"\d+", lines))
        assert last <= len(path.read_text(encoding="utf-8").splitlines()), f"{name}:{lines}"
