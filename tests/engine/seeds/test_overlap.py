"""Work by threads: order, how far ahead, and errors."""
from concurrent.futures import ThreadPoolExecutor

import pytest

from cian.tools.engine.seeds.overlap import AHEAD, overlapped


def test_overlapped_keeps_order_and_few_items_ahead():
    started = []
    def items():
        for k in range(50):
            started.append(k)
            yield k
    with ThreadPoolExecutor(3) as pool:
        results = overlapped(pool, lambda k: k * k, items())
        assert next(results) == 0
        assert len(started) <= AHEAD + 1
        assert list(results) == [k * k for k in range(1, 50)]


def test_error_of_an_item_is_raised_in_its_place():
    with ThreadPoolExecutor(2) as pool:
        results = overlapped(pool, lambda k: 1 // (k - 2), range(9))
        assert [next(results), next(results)] == [-1, -1]
        with pytest.raises(ZeroDivisionError):
            next(results)
