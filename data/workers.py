"""Batches made by processes, in order, in shared memory of a fixed size. Nothing here imports
MXNet: workers never touch it.
"""
from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import traceback
from typing import Any, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from cian.data.records import RecordSet
from cian.data.transforms import CropTransform, Draw
from cian.errors import InputError, MachineError
from cian.processes import end_with_parent

Sample = Tuple[int, Draw]  # position of the image, what is random about it


class BatchMaker:
    """Reads, decodes and cuts the samples of a batch, as arrays of ``dtype``.

    Parameters
    ----------
    images : record set of the images
    transform : what to do with them
    seeds : record set of the label maps, or None
    seed_positions : position in ``seeds`` of each image's label map
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, images: RecordSet, transform: CropTransform, seeds: Optional[RecordSet] = None,
                 seed_positions: Optional[np.ndarray] = None) -> None:
        self.images, self.transform, self.seeds, self.seed_positions = (images, transform, seeds,
                                                                        seed_positions)

    @property
    def image_shape(self) -> Tuple[int, int, int]:
        """(3, S, S) of a crop."""
        return (3, self.transform.crop_px, self.transform.crop_px)

    def pool(self, workers: int, image_shape: Tuple[int, ...], label_shape: Tuple[int, ...]) -> Any:
        """What makes batches ahead of use: processes."""
        return WorkerPool(self, workers, image_shape, label_shape)

    def __call__(self, samples: Sequence[Sample], images: np.ndarray, labels: Optional[np.ndarray]) -> None:
        """Fill ``images`` (B, 3, S, S) uint8 and ``labels`` (B, s, s) uint8.

        Raises
        ------
        InputError, RuntimeError
            Naming the image: a damaged record, or any other failure.
        """
        for row, (index, draw) in enumerate(samples):
            try:
                self.transform.image(self._picture(index, draw), draw, images[row])
                if self.seeds is not None and self.seed_positions is not None and labels is not None:
                    self.transform.label(self.seeds.label(int(self.seed_positions[index])), draw, labels[row])
            except InputError:
                raise
            except Exception as error:
                raise RuntimeError(
                    f"image {self.images.names[index]}: {type(error).__name__}: {error}") from error

    def _picture(self, index: int, draw: Draw) -> np.ndarray:
        """What the transform cuts out of."""
        return self.images.image(index)


class WorkerDied(MachineError):
    """A loader process ended without being asked to."""


class SharedBatches:
    """``slots`` batches of uint8 images and labels in memory that processes share; it vanishes with
    the last of them.
    """

    def __init__(self, context: Any, slots: int, image_shape: Tuple[int, ...],
                 label_shape: Tuple[int, ...]) -> None:
        self._shapes = (slots, *image_shape), (slots, *label_shape)
        self._memory = [context.RawArray("B", int(np.prod(shape, dtype=np.int64))) for shape in self._shapes]

    def arrays(self) -> Tuple[np.ndarray, np.ndarray]:
        """The memory as two arrays, (slots, B, 3, S, S) and (slots, B, s, s)."""
        images, labels = (np.frombuffer(memory, np.uint8).reshape(shape)
                          for memory, shape in zip(self._memory, self._shapes))
        return images, labels

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(len(memory) for memory in self._memory)


class WorkerPool:
    """Processes that make batches ahead of use; results come in the order of the tasks.

    Task t goes to process t mod ``workers``, so nothing depends on which process is faster.

    Parameters
    ----------
    maker : makes a batch; the processes, which are forked, inherit it
    workers : number of processes
    image_shape, label_shape : (B, 3, S, S) and (B, s, s)
    """

    def __init__(self, maker: BatchMaker, workers: int, image_shape: Tuple[int, ...],
                 label_shape: Tuple[int, ...]) -> None:
        context: Any = multiprocessing.get_context("fork")
        self.capacity = 2 * workers  # batches in flight
        self._memory = SharedBatches(context, self.capacity, image_shape, label_shape)
        self._images, self._labels = self._memory.arrays()
        self._sent = self._received = 0
        self._pipes: List[Any] = []
        self._processes: List[Any] = []
        self._tasks: List[Sequence[Sample]] = [()] * self.capacity
        self._names = maker.images.names
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # before the fork: a child cannot stop the threads that OpenCV has in its parent
        try:
            for number in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, name=f"loader-{number}", daemon=True,
                                          args=(theirs, maker, self._memory))
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise
        finally:
            cv2.setNumThreads(threads)

    @property
    def pending(self) -> int:
        """Tasks whose results were not taken yet; at most ``capacity``."""
        return self._sent - self._received

    @property
    def nbytes(self) -> int:
        """Size of the shared memory, bytes."""
        return self._memory.nbytes

    @property
    def pids(self) -> List[int]:
        """Process numbers of the workers."""
        return [process.pid for process in self._processes]

    def submit(self, samples: Sequence[Sample]) -> None:
        """Queue a batch; ValueError when ``capacity`` are pending."""
        if self.pending >= self.capacity:
            raise ValueError(f"{self.pending} batches are pending already")
        slot = self._sent % self.capacity
        self._tasks[slot] = samples
        try:
            self._pipes[self._sent % len(self._pipes)].send((slot, list(samples)))
        except OSError as error:
            raise self._died(self._sent, samples) from error
        self._sent += 1

    def ready(self) -> bool:
        """Whether :meth:`result` would return without waiting."""
        return bool(self.pending) and self._pipes[self._received % len(self._pipes)].poll()

    def result(self) -> Tuple[np.ndarray, np.ndarray]:
        """Images (B, 3, S, S) and labels (B, s, s) of the oldest pending task, uint8, valid until
        the next :meth:`submit`.

        Raises
        ------
        InputError, RuntimeError
            As the maker; RuntimeError naming the batch's images when the process has died.
        """
        number = self._received % len(self._pipes)
        slot = self._received % self.capacity
        pipe, process = self._pipes[number], self._processes[number]
        multiprocessing.connection.wait([pipe, process.sentinel])
        try:
            error = pipe.recv() if pipe.poll() else EOFError()
        except (EOFError, OSError) as gone:
            error = gone
        if isinstance(error, (EOFError, OSError)):
            raise self._died(self._received, self._tasks[slot]) from error
        self._received += 1
        if error is not None:
            raise error
        return self._images[slot], self._labels[slot]

    def drain(self) -> None:
        """Wait for the pending tasks and forget their results and errors, but not the death of a process."""
        while self.pending:
            try:
                self.result()
            except WorkerDied:
                raise
            except (InputError, RuntimeError):
                continue  # the result is not wanted, so neither is its error

    def close(self) -> None:
        """End the processes; harmless to call again."""
        for process in self._processes:
            process.terminate()  # a worker holds no lock and writes no file
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._pipes, self._processes = [], []

    def _died(self, task: int, samples: Sequence[Sample]) -> WorkerDied:
        process = self._processes[task % len(self._processes)]
        process.join(1)
        names = ", ".join(self._names[index] for index, _ in samples)
        return WorkerDied(f"loader process {process.pid} has died (exit code {process.exitcode}) over the "
                          f"batch of images {names}")


def _work(pipe: Any, maker: BatchMaker, memory: SharedBatches) -> None:
    """Serve tasks until the pipe closes or the parent is gone."""
    end_with_parent()
    # Ctrl-C reaches the whole group; the parent closes its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the handler that the parent may have
    cv2.setNumThreads(1)
    images, labels = memory.arrays()
    try:
        while True:
            slot, samples = pipe.recv()
            error: Optional[Exception] = None
            try:
                maker(samples, images[slot], labels[slot])
            except InputError as problem:
                error = problem
            except Exception as problem:
                error = RuntimeError(f"{problem}\n(in a loader process)\n{traceback.format_exc()}")
            pipe.send(error)
    except (EOFError, OSError):
        return
