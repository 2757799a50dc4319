"""Worker processes: order, errors with the image's name, and endings of every kind."""
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from cian.data.transforms import CropTransform, Draw
from cian.data.workers import BatchMaker, WorkerDied, WorkerPool
from cian.errors import InputError

SHAPES = (2, 3, 23, 23), (2, 3, 3)


class Fakes:
    """Stands in for both record sets: picture i is i everywhere; some numbers fail in a way of their own."""

    names = [f"picture-{number}" for number in range(100)]

    def image(self, index):
        if index == 60:
            raise InputError("does not match its checksum", field="record 60 (picture-60)")
        if index == 70:
            raise ZeroDivisionError("no reason")
        if index == 80:
            os._exit(7)
        if index == 90:
            time.sleep(60)
        time.sleep(0.02 * (index % 3))
        return np.full((31, 29, 3), index, np.uint8)

    def label(self, index):
        return np.full((31, 29), index, np.uint8)


def make_pool(workers=2, **options):
    fakes = Fakes()
    maker = BatchMaker(fakes, CropTransform(crop_px=23), fakes, np.arange(100)[::-1])
    return WorkerPool(maker, workers, *SHAPES, **options)


def samples(*indices):
    return [(index, Draw(1.0, False, 0, 0)) for index in indices]


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def all_end_within(pids, seconds):
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and any(map(is_running, pids)):
        time.sleep(0.05)
    return not any(map(is_running, pids))


@pytest.fixture
def pool():
    made = make_pool()
    yield made
    made.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_tasks(workers):
    pool = make_pool(workers)
    done = []
    for task in range(12):
        if pool.pending == pool.capacity:
            done.append([array.copy() for array in pool.result()])
        pool.submit(samples(task, task + 1))
    while pool.pending:
        done.append([array.copy() for array in pool.result()])
    pool.close()
    for task, (images, labels) in enumerate(done):
        assert (images[0] == task).all()
        assert (images[1] == task + 1).all()
        assert (labels[0] == 99 - task).all()
    assert len(done) == 12


def test_memory_and_tasks_ahead_are_bounded(pool):
    assert pool.nbytes == 4 * (2 * 3 * 23 * 23 + 2 * 3 * 3)
    for _ in range(4):
        pool.submit(samples(1, 2))
    with pytest.raises(ValueError, match="4 batches are pending"):
        pool.submit(samples(1, 2))


def test_wrong_input_surfaces_as_itself_and_the_pool_goes_on(pool):
    for task in (samples(1, 60), samples(2, 3)):
        pool.submit(task)
    with pytest.raises(InputError, match=r"record 60 \(picture-60\): does not match its checksum"):
        pool.result()
    assert pool.result()[0][0, 0, 0, 0] == 2


def test_any_other_exception_names_the_image(pool):
    pool.submit(samples(1, 70))
    with pytest.raises(RuntimeError, match="image picture-70: ZeroDivisionError: no reason"):
        pool.result()


def test_a_dead_process_is_noticed_and_its_batch_named(pool):
    for task in (samples(1, 80), samples(2, 3)):
        pool.submit(task)
    with pytest.raises(WorkerDied,
                       match=r"has died \(exit code 7\) over the batch of images picture-1, picture-80"):
        pool.result()


def test_a_killed_process_is_noticed(pool):
    os.kill(pool.pids[0], signal.SIGKILL)
    assert all_end_within(pool.pids[:1], 5)
    with pytest.raises(WorkerDied, match=r"exit code -9"):
        pool.submit(samples(1, 2))
        pool.result()


def test_draining_forgets_errors_but_not_a_death(pool):
    for task in (samples(1, 60), samples(2, 70)):
        pool.submit(task)
    pool.drain()
    assert pool.pending == 0
    pool.submit(samples(80, 1))
    with pytest.raises(WorkerDied):
        pool.drain()


def test_close_ends_busy_processes_at_once_and_may_come_twice(pool):
    pool.submit(samples(90, 90))
    pids = pool.pids
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 4
    assert not any(map(is_running, pids))
    pool.close()


@pytest.mark.timeout(120)
def test_processes_start_after_opencv_has_used_its_threads():
    import mxnet  # noqa: F401 - a fork hangs only in processes that have loaded it

    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        cv2.resize(np.zeros((1100, 1300, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        pool = make_pool()
        pool.submit(samples(5, 6))
        assert pool.result()[0][0, 0, 0, 0] == 5
        pool.close()
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)


def test_workers_import_no_mxnet():
    code = "import cian.data.workers, sys; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# A program with a pool. It prints the workers' process numbers, waits for a slow task (or leaves
# its workers idle), and ends.
PROGRAM = """
import sys, time
sys.path.insert(0, {folder!r})
from test_workers import make_pool, samples
pool = make_pool()
print(*pool.pids, flush=True)
try:
    if {busy}:
        pool.submit(samples(90, 90))
        pool.result()
    time.sleep(60)
except KeyboardInterrupt:
    {on_interrupt}
    sys.exit(130)
"""


@pytest.mark.parametrize("number, busy, on_interrupt, code",
                         [(signal.SIGINT, True, "pool.close()", 130), (signal.SIGINT, True, "pass", 130),
                          (signal.SIGTERM, False, "pass", -15), (signal.SIGKILL, False, "pass", -9)])
def test_no_worker_outlives_its_program(number, busy, on_interrupt, code):
    program = PROGRAM.format(folder=os.path.dirname(os.path.abspath(__file__)), busy=busy,
                             on_interrupt=on_interrupt)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(is_running, pids))
    time.sleep(0.3)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the whole group
    else:
        os.kill(process.pid, number)
    ended = all_end_within(pids, 10)
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    _, complaints = process.communicate(timeout=20)
    assert ended
    assert process.returncode == code
    assert "Traceback" not in complaints
