"""Predicts many images: the network in this process, enlarging and CRF in processes beside it,
files written as they come.
"""
from __future__ import annotations

from collections import deque
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
from tqdm import tqdm

from cian.data.pictures import UPRIGHT
from cian.environment import usable_cores
from cian.errors import InputError, MachineError, is_out_of_memory
from cian.processes import pool_context
from cian.tools.engine.images import Sample, read_picture
from cian.tools.engine.ledger import Mark, mark
from cian.tools.engine.prediction.finishing import Finished, Task, finish, prepare_worker
from cian.tools.engine.prediction.outputs import Outputs

if TYPE_CHECKING:
    from cian.tools.engine.fitting import Fit
    from cian.tools.engine.prediction.predictor import Running


class Predicts(Protocol):
    """What :func:`predict_samples` asks of a network, in this process or in another one."""

    def fit(self, image: np.ndarray) -> Fit:
        """How this (H, W, 3) image goes to the network."""

    def start(self, images: Sequence[np.ndarray], names: Sequence[str] = ()) -> Running:
        """Set the network to work on images of one network size; does not wait for it."""


# What an image was read from: the sample, its file as it was then, and what is to be kept of it.
Read = Tuple[Sample, Mark, Dict[str, Any]]


@dataclass
class InferenceReport:
    """Names that were predicted and that were there before, what was wrong with the others, and the
    pixels of what was predicted by value, (256,).
    """

    predicted: List[str] = field(default_factory=list)
    skipped: List[str] = field(default_factory=list)
    problems: List[InputError] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))


class FinishingPool:
    """Processes that run :func:`~cian.tools.engine.prediction.finishing.finish`, with a bound on
    the tasks that wait in memory.

    The processes are spawned, never forked: MXNet's threads do not survive a fork. Each imports the
    program's main module, so entry points import MXNet inside of functions.

    Parameters
    ----------
    workers : processes; 0 is one a core.
    images : how many there will be; one alone does not wait for a process to start.
    """

    def __init__(self, workers: int = 0, images: int = 2) -> None:
        workers = workers or usable_cores()
        self._bound = 2 * workers
        self._pool: Executor = ThreadPoolExecutor(1) if images == 1 else ProcessPoolExecutor(
            workers, mp_context=pool_context("spawn"), initializer=prepare_worker)
        self._waiting: Dict[Future[Finished], str] = {}

    def __enter__(self) -> FinishingPool:
        return self

    def __exit__(self, kind: Optional[type], *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, task: Task) -> Iterator[Union[Finished, InputError]]:
        """Add a task and yield what is ready; waits while too many are under way."""
        self._waiting[self._pool.submit(finish, task)] = task.name
        yield from self._ready(self._bound)

    def drain(self) -> Iterator[Union[Finished, InputError]]:
        """Yield the rest."""
        yield from self._ready(1)

    def _ready(self, bound: int) -> Iterator[Union[Finished, InputError]]:
        while self._waiting:
            done, _ = wait(self._waiting, timeout=None if len(self._waiting) >= bound else 0,
                           return_when=FIRST_COMPLETED)
            if not done:
                return
            # the images' order, whichever was sooner
            for future in [future for future in self._waiting if future in done]:
                yield self._result(future, self._waiting.pop(future))

    def _result(self, future: Future[Finished], name: str) -> Union[Finished, InputError]:
        try:
            return future.result()
        except InputError:
            raise
        except BrokenProcessPool as error:
            names = ", ".join([name, *self._waiting.values()])
            raise MachineError(
                f"a CRF process died (out of memory?) while these were under way: {names}") from error
        except Exception as error:
            if is_out_of_memory(error):
                return InputError("there is not enough memory to finish it", field=name,
                                  remedy="use fewer processes (run.workers), or make it smaller")
            raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error


def predict_samples(predictors: Sequence[Predicts], samples: Sequence[Sample], outputs: Outputs, *,
                    batch_size: int = 1, workers: int = 0, progress: bool = False,
                    jpeg_warnings: str = "harmless") -> InferenceReport:
    """Predict every sample that is not done and write its files.

    While the network of each predictor (one a device) works, images before it are read and images
    after it are refined in processes. An image that cannot be read is reported and left out;
    anything else stops the run, naming the image.

    Parameters
    ----------
    batch_size : images of equal network size that go through the network together.
    jpeg_warnings : see :func:`~cian.data.pictures.decode_jpeg`.
    workers : processes for enlarging and CRF; 0 is one a core.
    """
    done = [outputs.done(sample) for sample in samples]
    report = InferenceReport(skipped=[sample.name for sample, is_done in zip(samples, done) if is_done])
    left = [sample for sample, is_done in zip(samples, done) if not is_done]
    if not left:
        return report
    with FinishingPool(min(workers or usable_cores(), len(left)), len(left)) as pool, \
            tqdm(total=len(left), unit="image", disable=not progress) as bar:

        read: Dict[str, Read] = {}

        def store(results: Iterable[Union[Finished, InputError]]) -> None:
            for finished in results:
                bar.update()
                if isinstance(finished, InputError):
                    report.problems.append(finished)
                    continue
                outputs.write(finished, *read.pop(finished.name))
                report.predicted.append(finished.name)
                report.pixels += np.bincount(finished.best.ravel(), minlength=256)

        for group, running in _through_network(predictors, left, batch_size, report.problems, read,
                                               jpeg_warnings):
            try:
                coarse = running.coarse.asnumpy()
            except Exception as error:  # of another process, or of a lack of memory
                report.problems.extend(_problems(error, group))
                continue
            for at, sample in enumerate(group):
                store(pool.submit(Task(sample.name, running.images[at], coarse[at], running.fits[at],
                                       sample.allowed, outputs.crf, bool(outputs.probabilities))))
        store(pool.drain())
    for name in {sample.name for sample in left}.difference(report.predicted):
        outputs.remove(name)  # of another image
    return report


def _through_network(predictors: Sequence[Predicts], samples: Iterable[Sample], batch_size: int,
                     problems: List[InputError], read: Dict[str, Read],
                     jpeg_warnings: str) -> Iterator[Tuple[List[Sample], Running]]:
    """Batches with their running network, in order. Twice as many are under way as there are
    predictors, of which none waits for an image
    to be read, nor for another one."""
    under_way: Deque[Tuple[List[Sample], Running]] = deque()
    batches = _batches(predictors[0], samples, batch_size, problems, read, jpeg_warnings)
    for turn, (group, images) in enumerate(batches):
        try:
            names = [sample.name for sample in group]
            under_way.append((group, predictors[turn % len(predictors)].start(images, names)))
        except Exception as error:
            problems.extend(_problems(error, group))
        if len(under_way) == 2 * len(predictors):
            yield under_way.popleft()
    yield from under_way


def _problems(error: Exception, samples: Sequence[Sample]) -> List[InputError]:
    """An error of a pass for each of its images; what is none of the images' is raised again."""
    if is_out_of_memory(error):
        error = InputError("there is not enough memory for an image of this size",
                           remedy="make it smaller, or use predict.fit=warp")
    if not isinstance(error, InputError):
        raise error
    return [InputError(error.problem, file=sample.path, remedy=error.remedy) for sample in samples]


def _batches(predictor: Predicts, samples: Iterable[Sample], batch_size: int,
             problems: List[InputError], read: Dict[str, Read],
             jpeg_warnings: str) -> Iterator[Tuple[List[Sample], List[np.ndarray]]]:
    """Neighbouring samples that read well and whose network sizes agree, up to ``batch_size`` together;
    ``read`` gets what each was read from.
    """
    group: List[Sample] = []
    images: List[np.ndarray] = []
    for sample in samples:
        try:
            source = mark(sample.path)
            picture = read_picture(sample.path, jpeg_warnings)
        except InputError as error:
            problems.append(error)
            continue
        image = picture.pixels
        notes = {key: value for key, value in (("orientation", picture.orientation),
                                               ("warning", picture.warning)) if value not in (UPRIGHT, "")}
        read[sample.name] = sample, source, notes
        if group and (len(group) == batch_size
                      or predictor.fit(image).network_size != predictor.fit(images[0]).network_size):
            yield group, images
            group, images = [], []
        group.append(sample)
        images.append(image)
    if group:
        yield group, images
