"""The pages that people look at, in a headless browser: no error, no missing picture, no dead link, and
no wider than a phone's or a desktop's window. Built documentation and a finished demonstration are
looked at where they are there.
"""
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from cian.tools.engine.report import Page

ROOT = Path(__file__).resolve().parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BUILT = [path for name in ("runs/demo/index.html", "build/site/docs/index.html", "build/site/README.html",
                           "build/site/build/reference/cian.symbols.html", "build/site/docs/performance.html")
         for path in [ROOT / name] if path.is_file()]
LOOK = """<!doctype html><iframe id=page src="{name}" width={width} height=900></iframe><script>
page.onload = () => {{
  const inside = page.contentDocument;
  document.title = JSON.stringify({{
    width: inside.documentElement.scrollWidth,
    broken: [...inside.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80)),
    pictures: inside.images.length, text: inside.body.innerText.length}});
}};
</script>"""


def look_at(path, width):
    """What the browser sees of a page in a frame of ``width`` pixels, and the console's errors."""
    frame = path.parent / f".look-{path.stem}-{width}.html"
    frame.write_text(LOOK.format(name=path.name, width=width), encoding="utf-8")
    try:
        done = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
             "--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1600,1000",
             "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    finally:
        frame.unlink()
    seen = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1).replace("&amp;", "&"))
    return seen, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def dead_links(path):
    """Links and sources of a page that lead to no file beside it."""
    found = re.findall(r'(?:href|src)="([^"#?]+)[^"]*"', path.read_text(encoding="utf-8"))
    return [link for link in found if not re.match(r"[a-z]+:|//", link)
            and not (path.parent / unquote(link)).exists()]


@pytest.fixture
def sample(tmp_path):
    """A page with everything that our pages are made of."""
    picture = np.full((90, 120, 3), 128, np.uint8)
    page = Page("A page", "With a table of many columns, pictures, a legend and a long command.")
    page.table(("row", *(f"column {number}" for number in range(12))), [("a", *map(str, range(12)))])
    page.legend(("cat", "dog"), np.array([[9, 9, 9], [200, 0, 0]], np.uint8))
    page.pictures([picture] * 6, [f"picture {number}" for number in range(6)])
    page.code("python tools/train.py " + " ".join(f"train.key_{number}=value" for number in range(30)))
    page.save(tmp_path / "page.html")
    return tmp_path / "page.html"


def check(path):
    assert dead_links(path) == []
    for width in (400, 1400):
        seen, errors = look_at(path, width)
        assert errors == [] and seen["broken"] == [] and seen["text"] > 50
        assert seen["width"] <= width, f"{path.name} needs {seen['width']} of {width} pixels"


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_page_of_ours_can_be_read_on_a_phone_and_on_a_desktop(sample):
    check(sample)
    assert look_at(sample, 400)[0]["pictures"] == 6
    whole = sample.read_text(encoding="utf-8")
    sample.write_text(whole.replace("image/png;base64,", "image/png;base64,x", 1), encoding="utf-8")
    assert len(look_at(sample, 400)[0]["broken"]) == 1


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.skipif(not BUILT, reason="neither make docs nor make demo was run here")
@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.name)
def test_built_pages_can_be_read_on_a_phone_and_on_a_desktop(path):
    check(path)
