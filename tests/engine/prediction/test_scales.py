"""Passes of an image share the threads, the longest first; test_predictor.py holds values against MXNet."""
import threading

import numpy as np

from cian.tools.engine.prediction.scales import Scales

IMAGES = np.random.RandomState(0).uniform(0, 255, (2, 3, 41, 57)).astype(np.float32)


def sampled(images):
    return images[:, :, ::8, ::8]


def test_as_many_passes_run_at_a_time_as_there_are_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    both = threading.Barrier(2, timeout=30)

    def network(images):
        both.wait()
        return sampled(images)

    found = Scales(network, (1.0,), add_max=True, mirror=True).start(IMAGES).asnumpy()
    np.testing.assert_allclose(found, sampled(IMAGES), rtol=1e-6)


def test_the_longest_pass_begins_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = []

    def network(images):
        seen.append(images.shape[2:])
        return sampled(images)

    Scales(network, (1.0, 0.75, 1.25), add_max=True, mirror=True).start(IMAGES[:1]).asnumpy()
    assert seen == [(51, 71)] * 2 + [(41, 57)] * 2 + [(31, 43)] * 2
