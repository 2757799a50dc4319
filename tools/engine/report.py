"""Tables as text, Markdown and HTML, and a page of tables and pictures in one file that needs
nothing else.
"""
from __future__ import annotations

import base64
import html
from typing import List, Sequence

import numpy as np

from cian.errors import PathLike
from cian.files import atomic_write_bytes
from cian.later import imported_later

with imported_later("cv2"):
    import cv2

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1c2430;
  background: #fff; margin: 2rem auto; padding: 0 1.5rem; max-width: 78rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, li { max-width: 48rem; }
code, pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; background: #f3f5f8;
  border-radius: 4px; }
code { padding: .1em .3em; } pre { padding: .7rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #dde3ea; }
th { text-align: left; border-bottom: 2px solid #9aa7b5; font-weight: 600; } td.n, th.n { text-align: right; }
td.n { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } .grid { display: grid; gap: .5rem; margin: 0 0 1.1rem; }
figure { margin: 0; }
figure img { width: 100%; display: block; border: 1px solid #dde3ea; border-radius: 3px; }
figure.wide { margin: .4rem 0 1.4rem; } figure.wide img { width: auto; max-width: 100%; border: none; }
figcaption { font-size: .8rem; color: #4a5766; padding-top: .15rem; text-align: center; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem;
  margin: .4rem 0 1rem; padding: 0; list-style: none; }
.legend span { display: inline-block; width: .9em; height: .9em; border: 1px solid #8888;
  vertical-align: -.1em; margin-right: .35em; }
"""


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal: the first to the left, numbers to the right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = ["  ".join(cell.ljust(width) if at == 0 else cell.rjust(width)
                       for at, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are aligned to the right. Bars in cells are escaped."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    return "\n".join([line(header), "|---|" + "---:|" * (len(header) - 1), *map(line, rows)])


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every cell is escaped."""
    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f"<{tag}{' class=n' if at else ''}>{html.escape(str(cell))}</{tag}>"
                  for at, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"
    body = "\n".join(line(row, "td") for row in rows)
    return (f"<div class=scroll><table><thead>{line(header, 'th')}</thead>"
            f"<tbody>\n{body}\n</tbody></table></div>")


def encode_picture(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a data URL of a PNG file."""
    return _data_url(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes())


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class Page:
    """One self-contained HTML page, filled from top to bottom. Text is escaped, markup never comes
    from outside.

    Parameters
    ----------
    title, summary : the heading, and the paragraph below it.
    """

    def __init__(self, title: str, summary: str = "") -> None:
        self.title = title
        self._parts: List[str] = [f"<h1>{html.escape(title)}</h1>"]
        if summary:
            self.text(summary)

    def heading(self, text: str) -> None:
        """A heading of a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """Preformatted text, such as commands."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; see :func:`html_table`."""
        self._parts.append(html_table(header, rows))

    def legend(self, names: Sequence[str], colours: np.ndarray) -> None:
        """Names beside squares of their colours, (n, 3) uint8."""
        items = "".join(
            '<li><span '
            f'style="background:rgb{tuple(int(level) for level in colour)}"></span>{html.escape(name)}</li>'
            for name, colour in zip(names, colours))
        self._parts.append(f"<ul class=legend>{items}</ul>")

    def pictures(self, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> None:
        """Pictures (H, W, 3) uint8 RGB side by side with a caption each."""
        figures = "".join(
            f'<figure><img src="{encode_picture(picture)}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for picture, caption in zip(pictures, captions))
        grid = f"grid-template-columns:repeat({len(pictures)},minmax(0,1fr))"
        self._parts.append(f'<div class=grid style="{grid}">{figures}</div>')

    def picture(self, content: bytes, caption: str) -> None:
        """One wide picture, the content of a PNG file, at its own size or the page's width."""
        self._parts.append(
            f'<figure class=wide><img src="{_data_url(content)}" alt="{html.escape(caption)}"></figure>')

    def save(self, path: PathLike) -> None:
        """Write the page; the file is whole or absent."""
        body = "\n".join(self._parts)
        atomic_write_bytes(path, (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n").encode())
