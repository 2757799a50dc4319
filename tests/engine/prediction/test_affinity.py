"""What is counted of an affinity."""
import numpy as np
import pytest

from cian.tools.engine.prediction.affinity import class_gain, effective_share


def test_a_uniform_affinity_reaches_every_pixel_and_a_sharp_one_a_single():
    assert effective_share(np.full((7, 3), 1 / 7)) == pytest.approx(1)
    assert effective_share(np.eye(5)) == pytest.approx(1 / 5)


def test_weight_on_the_own_class_counts_over_its_share_of_the_reference():
    reference = np.array([0, 2, 2, 3, 255])
    uniform = np.full((5, 4), 0.2)
    # only the first one takes part: background, ignored, a class that is not there
    query = np.array([2, 0, 255, 4])
    assert class_gain(uniform, query, reference) == pytest.approx(1)
    uniform[:, 0] = [0.1, 0.5, 0.3, 0.1, 0]
    assert class_gain(uniform, query, reference) == pytest.approx(0.8 / 0.4)
    assert class_gain(uniform, query[1:], reference) is None
