"""Many images at once: batches, worker processes, errors that name the image, and what is left
after an interruption.
"""
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass

import cv2
import mxnet as mx
import numpy as np
import pytest

from cian.data.classes import read_label_png
from cian.errors import InputError
from cian.tools.engine.fitting import Fit
from cian.tools.engine.images import Sample, find_images, read_image
from cian.tools.engine.prediction import inference
from cian.tools.engine.prediction.crf import CRF_PRESETS
from cian.tools.engine.prediction.finishing import Task, finish
from cian.tools.engine.prediction.inference import FinishingPool, predict_samples
from cian.tools.engine.prediction.outputs import Outputs

CLASSES = ("background", "cat", "dog")


@dataclass
class Running:
    images: list
    fits: list
    coarse: mx.nd.NDArray


class ColourPredictor:
    """Logits are the image's colours at every eighth pixel; remembers its batches."""

    def __init__(self):
        self.batches = []

    def fit(self, image):
        return Fit.of(image.shape[:2], "native")

    def start(self, images, names=()):
        self.batches.append(len(images))
        if images[0].shape[0] == 3:
            raise InputError("is too small", remedy="enlarge it")
        coarse = np.stack([image[::8, ::8].transpose(2, 0, 1) / np.float32(16) for image in images])
        return Running(list(images), [self.fit(image) for image in images], mx.nd.array(coarse))


@pytest.fixture
def folder(tmp_path):
    random = np.random.RandomState(0)
    for k, size in enumerate([(17, 25), (17, 25), (17, 25), (25, 17), (17, 25)]):
        cv2.imwrite(str(tmp_path / f"{k}.png"), random.randint(0, 256, (*size, 3), np.uint8))
    return tmp_path


def outputs_of(folder, crf="test"):
    return Outputs(folder / "out", {"checkpoint": "abc"}, CLASSES, crf=CRF_PRESETS[crf])


def test_files_hold_what_one_image_alone_gives(folder):
    samples = find_images([str(folder)])
    report = predict_samples([ColourPredictor()], samples, outputs_of(folder), workers=2)
    assert sorted(report.predicted) == ["0", "1", "2", "3",
                                        "4"] and not report.problems and not report.skipped
    for sample in samples:
        image = read_image(sample.path)
        running = ColourPredictor().start([image])
        expected = finish(Task(sample.name, image, running.coarse.asnumpy()[0], running.fits[0],
                               crf=CRF_PRESETS["test"]))
        np.testing.assert_array_equal(read_label_png(folder / "out" / "pred" / f"{sample.name}.png"),
                                      expected.labels)
        np.testing.assert_array_equal(read_label_png(folder / "out" / "pred_crf" / f"{sample.name}.png"),
                                      expected.labels_crf)


def test_neighbours_of_one_size_share_a_pass_and_predictors_take_turns(folder):
    predictors = [ColourPredictor(), ColourPredictor()]
    predict_samples(predictors, find_images([str(folder)]), outputs_of(folder), batch_size=2, workers=1)
    assert predictors[0].batches == [2, 1] and predictors[1].batches == [1, 1]


def test_what_is_done_is_skipped_and_what_is_missing_is_made_again(folder):
    samples = find_images([str(folder)])
    predict_samples([ColourPredictor()], samples[:3], outputs_of(folder), workers=1)
    (folder / "out" / "pred_crf" / "1.png").unlink()
    report = predict_samples([ColourPredictor()], samples, outputs_of(folder), workers=1)
    assert report.skipped == ["0", "2"] and sorted(report.predicted) == ["1", "3", "4"]
    again = ColourPredictor()
    report = predict_samples([again], samples, outputs_of(folder), workers=1)
    assert len(report.skipped) == 5 and again.batches == []


def test_a_bad_image_is_reported_and_the_others_are_predicted(folder):
    (folder / "1.png").write_bytes(b"no image")
    cv2.imwrite(str(folder / "2.png"), np.zeros((3, 9, 3), np.uint8))
    report = predict_samples([ColourPredictor()], find_images([str(folder)]), outputs_of(folder), workers=1)
    assert sorted(report.predicted) == ["0", "3", "4"]
    problems = "\n".join(map(str, report.problems))
    assert "1.png: is no image" in problems and "2.png: is too small; enlarge it" in problems


def test_an_image_that_another_process_refuses_is_reported_too(folder):
    class Refusing(ColourPredictor):
        def start(self, images, names=()):
            running = super().start(images)
            if len(self.batches) == 2:
                running.coarse = Refused()
            return running

    class Refused:
        def asnumpy(self):
            raise InputError("is too small", remedy="enlarge it")

    report = predict_samples([Refusing()], find_images([str(folder)]), outputs_of(folder), workers=1)
    assert sorted(report.predicted) == ["0", "2", "3",
                                        "4"] and "1.png: is too small; enlarge it" in str(report.problems[0])


def test_logits_that_are_not_finite_stop_the_run_and_name_the_image(folder):
    class Diverged(ColourPredictor):
        def start(self, images, names=()):
            running = super().start(images)
            return Running(running.images, running.fits, running.coarse * float("nan"))

    with pytest.raises(InputError, match="0: the network's logits are not finite"):
        predict_samples([Diverged()], find_images([str(folder)]), outputs_of(folder), workers=1)


def test_a_failure_in_a_worker_surfaces_with_the_images_name():
    task = Task("photo", np.zeros((2, 5, 3), np.uint8), np.zeros((3, 1, 1), np.float32),
                Fit.of((3, 5), "native"), crf=CRF_PRESETS["test"])
    with pytest.raises(RuntimeError, match="photo: ValueError: the image is"), FinishingPool(1) as pool:
        list(pool.submit(task))
        list(pool.drain())


def test_one_image_alone_is_finished_without_a_process(folder, monkeypatch):
    monkeypatch.setattr(inference, "pool_context", lambda way: pytest.fail("starts a process"))
    report = predict_samples([ColourPredictor()], find_images([str(folder / "0.png")]), outputs_of(folder))
    assert report.predicted == ["0"]


def test_a_worker_that_is_killed_is_told_with_the_images_under_way():
    task = Task("photo", np.zeros((400, 400, 3), np.uint8), np.zeros((9, 50, 50), np.float32),
                Fit.of((400, 400), "native"), crf=CRF_PRESETS["retrain"])
    with pytest.raises(RuntimeError, match="died .*photo"), FinishingPool(1) as pool:
        list(pool.submit(task))
        for process in pool._pool._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        list(pool.drain())


def test_the_processes_leave_precedence_and_threads_to_the_network():
    code = (
        "import os, numpy, threadpoolctl; from cian.tools.engine.prediction.finishing import prepare_worker\n"
        "numbers = lambda: {library['num_threads'] for library in threadpoolctl.threadpool_info()}\n"
        "threadpoolctl.threadpool_limits(2)\n"
        "print(os.nice(0), max(numbers())); prepare_worker(); print(os.nice(0), max(numbers()))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    before, after = (tuple(map(int, line.split())) for line in run.stdout.splitlines())
    assert before[1] == 2 and after == (min(before[0] + 10, 19), 1)
    with FinishingPool(1) as pool:
        assert pool._pool.submit(os.nice, 0).result() == min(os.nice(0) + 10, 19)


def test_the_processes_never_load_mxnet():
    with FinishingPool(1) as pool:
        list(pool.submit(TINY_TASK))
        pool._pool.submit(exec, "import sys; assert 'cian.tools.engine.prediction.finishing' in "
                          "sys.modules and 'mxnet' not in sys.modules").result()


KILLED = """
import os, signal, sys
from concurrent.futures import wait

if __name__ == "__main__":
    from cian.tools.engine.prediction.inference import FinishingPool

    with FinishingPool(2) as pool:
        wait([pool._pool.submit(os.getpid), pool._pool.submit(os.getpid)])
        print(*pool._pool._processes, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_end_with_a_run_that_is_killed(outliving):
    assert outliving(KILLED) == []


TINY_TASK = Task("photo", np.zeros((9, 9, 3), np.uint8), np.zeros((3, 2, 2), np.float32),
                 Fit.of((9, 9), "native"))


def hold_results(pool, monkeypatch, count):
    """Futures that the test completes, in place of those of the pool's processes."""
    held = [Future() for _ in range(count)]
    futures = iter(held)
    monkeypatch.setattr(pool._pool, "submit", lambda *_: next(futures))
    return held


def test_the_tasks_in_memory_are_bounded():
    most = done = 0
    with FinishingPool(1) as pool:
        for _ in range(12):
            done += len(list(pool.submit(TINY_TASK)))
            most = max(most, len(pool._waiting))
        left = len(list(pool.drain()))
    assert most <= 2 and done + left == 12


def test_a_task_waits_until_there_is_room_for_the_next(monkeypatch):
    with FinishingPool(1) as pool:
        first, second = hold_results(pool, monkeypatch, 2)
        assert list(pool.submit(TINY_TASK)) == []
        threading.Timer(0.2, first.set_result, ["first"]).start()
        assert list(pool.submit(TINY_TASK)) == ["first"]  # two wait, so it comes back when one is done
        second.set_result("second")
        assert list(pool.drain()) == ["second"]


def test_results_that_are_ready_together_come_in_the_images_order(monkeypatch):
    with FinishingPool(5) as pool:
        held = hold_results(pool, monkeypatch, 8)
        for _ in held:
            assert list(pool.submit(TINY_TASK)) == []
        for number, future in reversed(list(enumerate(held))):
            future.set_result(number)
        assert list(pool.drain()) == list(range(8))


def test_restrictions_travel_with_the_sample(folder):
    sample = find_images([str(folder / "0.png")])[0]
    predict_samples([ColourPredictor()], [Sample(sample.name, sample.path, (0, 2))], outputs_of(folder),
                    workers=1)
    assert set(np.unique(read_label_png(folder / "out" / "pred" / "0.png"))) <= {0, 2}
