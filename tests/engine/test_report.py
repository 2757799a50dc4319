"""Tables and the self-contained page."""
import base64
import re

import cv2
import numpy as np

from cian.tools.engine.report import Page, encode_picture, html_table, markdown_table, text_table

HEADER, ROWS = ("method", "mIoU"), [("seeds", "48.1"), ("first round", "52.0")]


def test_text_columns_line_up_with_numbers_to_the_right():
    assert text_table(HEADER, ROWS) == (
        "method       mIoU\n"
        "-----------  ----\n"
        "seeds        48.1\n"
        "first round  52.0")


def test_markdown_escapes_bars():
    assert markdown_table(("a|b", "n"), [("x", "1")]) == "| a\\|b | n |\n|---|---:|\n| x | 1 |"


def test_html_escapes_markup_and_marks_numbers():
    table = html_table(HEADER, [("<b>&", "1")])
    assert "<td>&lt;b&gt;&amp;</td><td class=n>1</td>" in table and "<b>" not in table


def test_a_png_picture_is_the_picture():
    picture = np.random.RandomState(0).randint(0, 256, (7, 11, 3), np.uint8)
    content = base64.b64decode(encode_picture(picture).partition("base64,")[2])
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
                                  picture)


def test_the_page_needs_no_other_file_and_escapes_what_it_is_given(tmp_path):
    page = Page("A <title>", "summary & more")
    page.heading("Tables")
    page.table(HEADER, ROWS)
    page.legend(["cat", "dog"], np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    page.pictures([np.zeros((3, 5, 3), np.uint8)] * 2, ["left", 'right "quoted"'])
    page.pictures([np.zeros((3, 5, 3), np.uint8)], ["photo"])
    page.code("cian <args>")
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "A &lt;title&gt;" in text and "summary &amp; more" in text and "cian &lt;args&gt;" in text
    assert "rgb(1, 2, 3)" in text and "repeat(2," in text and "right &quot;quoted&quot;" in text
    assert len(re.findall('src="data:image/png;base64,', text)) == 3
    assert not re.search(r'(src|href)="(?!data:)', text)
