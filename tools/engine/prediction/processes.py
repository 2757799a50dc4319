"""Prediction by several processes on the CPU: a network in each, and each with its share of the cores.

OpenMP's threads wait for each other at the end of every operator. Processes do not, so that two
with half of the cores each predict more images than one with all of them, for the memory of one
more network. Results do not depend on it.

Nothing here imports MXNet, which reads its number of threads when it is loaded.
"""
from __future__ import annotations

import contextlib
import os
import signal
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Sequence

import numpy as np

from cian.environment import USERS_VALUES, usable_cores
from cian.errors import InputError, MachineError
from cian.processes import end_with_parent, pool_context
from cian.tools.engine.devices import split_devices
from cian.tools.engine.fitting import Fit

if TYPE_CHECKING:
    from cian.tools.engine.prediction.predictor import Predictor, Running

MIN_BATCHES = 8  # with fewer, a second process may cost more to start than it gains
GAIN = 1.02  # of two processes against one with all cores, the least that was measured (docs/performance.md)


def choose_processes(wanted: int, devices: Sequence[str], batches: int) -> int:
    """Number of processes with a network.

    Parameters
    ----------
    wanted : the user's number. 0 chooses: two, if there is one CPU device with an even number of
        cores, its number of threads was left open (``OMP_NUM_THREADS`` is not set and MXNet not
        loaded), and there is so much to predict that a last round with one idle process costs less
        than is won.
    devices : names as 'cpu:0'.
    batches : images to predict, or batches of them.

    Raises
    ------
    InputError
        Several processes for a GPU or for several devices.
    """
    single = [kind for kind, _ in split_devices(devices)] == ["cpu"]
    if wanted > 1 and not single:
        raise InputError(f"{wanted} processes need one CPU device, not {', '.join(devices)}",
                         field="run.processes",
                         remedy="leave it out; several GPUs each get a network by themselves")
    if wanted:
        return max(1, min(wanted, batches))
    left_open = "OMP_NUM_THREADS" not in USERS_VALUES and "mxnet" not in sys.modules
    pays = batches >= MIN_BATCHES and batches + batches % 2 <= GAIN * batches
    return 2 if single and left_open and usable_cores() % 2 == 0 and pays else 1


class NetworkProcesses:
    """Processes beside this one that each open the model and predict with their share of the cores,
    or with the user's ``OMP_NUM_THREADS``.

    Make it before MXNet is loaded: the processes start at once, and this one takes a share too.
    Where MXNet is loaded already, this process keeps the threads that it has.

    Parameters
    ----------
    count : processes with a network, this one included; with 1 there are no others.
    arguments : keywords of :func:`~cian.tools.engine.prediction.predictor.load_predictors` without
        ``devices``.
    """

    def __init__(self, count: int, arguments: Mapping[str, Any]) -> None:
        threads = USERS_VALUES.get("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
        if count > 1 and "mxnet" not in sys.modules:
            os.environ["OMP_NUM_THREADS"] = threads
        spawn = pool_context("spawn")  # MXNet's threads do not survive a fork
        self._pools = [ProcessPoolExecutor(1, mp_context=spawn, initializer=_prepare)
                       for _ in range(count - 1)]
        self._opened = [pool.submit(_open, dict(arguments), threads) for pool in self._pools]

    def __enter__(self) -> NetworkProcesses:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)

    def predictors(self, own: Predictor, model: Mapping[str, Any]) -> List[ProcessPredictor]:
        """A predictor for each of the processes.

        Parameters
        ----------
        own : this process's predictor.
        model : what identifies its model; a process that found another one, because the file was
            replaced meanwhile, is refused when it is to predict.
        """
        own.sharers = 1 + len(self._pools)
        return [ProcessPredictor(own, model, pool, opened) for pool, opened in zip(self._pools, self._opened)]


class ProcessPredictor:
    """Does as a :class:`~cian.tools.engine.prediction.predictor.Predictor`, by the network of
    another process.
    """

    def __init__(self, own: Predictor, model: Mapping[str, Any], pool: ProcessPoolExecutor,
                 opened: Future[Dict[str, Any]]) -> None:
        self._own, self._model, self._pool, self._opened = own, model, pool, opened

    def fit(self, image: np.ndarray) -> Fit:
        """How this (H, W, 3) image goes to the network."""
        return self._own.fit(image)

    def start(self, images: Sequence[np.ndarray], names: Sequence[str] = ()) -> Running:
        """As that of a predictor; what the other process finds wrong with the images is raised when
        their logits are asked for.

        Raises
        ------
        InputError
            For images that are too large.
        MachineError
            When the other process has died, or has opened another model.
        """
        from cian.tools.engine.prediction.predictor import Running

        fits = self._own.check(images)
        with _told():
            error = self._opened.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            if error is not None or self._opened.result() != self._model:
                message = f"{self._model['model']} was replaced while it was opened; start again"
                raise MachineError(message) from error
            return Running(list(images), fits, _Told(self._pool.submit(_coarse, list(images))))


@dataclass(frozen=True)
class Later:
    """Logits that a thread or another process is at work on."""

    coarse: Future[np.ndarray]

    def asnumpy(self) -> np.ndarray:
        """Wait for the (N, C, h, w) values."""
        return self.coarse.result()


class _Told(Later):
    """Logits that another process is at work on."""

    def asnumpy(self) -> np.ndarray:
        """Wait for the (N, C, h, w) values."""
        with _told():
            return super().asnumpy()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise MachineError(
            "a process with a network died (out of memory?); run.processes=1 needs less") from error


_predictor: List[Predictor] = []  # of a process beside another one


def _prepare() -> None:
    """Leave Ctrl-C to the process that has started this one, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _open(arguments: Dict[str, Any], threads: str) -> Dict[str, Any]:
    """Open the model in this process; returns what identifies it."""
    os.environ["OMP_NUM_THREADS"] = threads
    from cian.tools.engine.prediction.predictor import load_predictors

    predictors, model = load_predictors(devices=[None], **arguments)
    _predictor.extend(predictors)
    return model


def _coarse(images: List[np.ndarray]) -> np.ndarray:
    return _predictor[0].start(images).coarse.asnumpy()
