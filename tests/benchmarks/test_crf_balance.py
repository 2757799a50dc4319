"""The CRF against the share of objects: figures before it by hand, and the picture."""
import crf_balance
import cv2
import numpy as np
import pytest
from crf_balance import chart, sweep


def test_level_sets_the_objects_and_factor_the_margin(monkeypatch):
    monkeypatch.setattr(crf_balance, "LEVELS", (0.3, 0.6))
    maps = np.broadcast_to(np.linspace(0, 1, 20, dtype=np.float32), (1, 10, 20))
    image, mask = np.full((10, 20, 3), 97, np.uint8), np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 2
    found = sweep([(image, maps, [2], mask)] * 2, ("background", "cat", "dog"))
    rows = {(row["level"], row["factor"]): row for row in found["rows"]}
    assert (found["images"], found["truth"], len(rows)) == (2, 0.5, 4)
    assert rows[0.3, 8]["objects"] == 14 / 20 and rows[0.6, 8]["objects"] == 8 / 20  # k / 19 > level
    assert rows[0.3, 8]["mIoU"] == pytest.approx((6 / 10 + 0 + 10 / 14) / 3)
    assert rows[0.3, 24]["margin"] == pytest.approx(3 * rows[0.3, 8]["margin"], rel=1e-5)
    assert rows[0.6, 8]["crf_objects"] < rows[0.6, 8]["objects"]  # too few of them shrink
    assert cv2.imdecode(np.frombuffer(chart(found), np.uint8), cv2.IMREAD_COLOR).shape[2] == 3
