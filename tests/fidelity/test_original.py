"""The quick comparison with a checkout of the original code; run with ``CIAN_ORIGINAL=DIR pytest -m
original``.
"""
import os

import pytest

from cian.tools import compare_original

ORIGINAL = os.environ.get("CIAN_ORIGINAL", "")


@pytest.mark.original
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not ORIGINAL, reason="CIAN_ORIGINAL names no checkout of github js-fan/CIAN")
@pytest.mark.parametrize("part", ["losses", "resnet50 65px 21cls g2 max 1dev", "g3 avg", "resnet101",
                                  "2dev r2", "loader", "sampling", "evaluation", "rounds"])
def test_ours_agrees_with_the_original(part, capsys, monkeypatch):
    if "2dev" in part and os.environ.get("OMP_NUM_THREADS") != "1":
        pytest.skip("two CPU devices need OMP_NUM_THREADS=1 before MXNet is loaded")
    code = compare_original.main(["--original", ORIGINAL, "--quick", "--only", part])
    assert code == 0, capsys.readouterr().out
