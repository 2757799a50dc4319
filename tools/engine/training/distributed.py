"""One training round by several processes: what they share over MXNet's parameter server.

Each worker computes its part of every batch on its own devices, as if all devices were those of one
process. Gradients are summed by the store; whatever else the processes must agree on is gathered
over it too.
"""
from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import sys
import time
from typing import Any, Dict, Iterator, Mapping, Optional

import mxnet as mx
import numpy as np

from cian.errors import InputError
from cian.tools.engine.config import Config, RunConfig
from cian.tools.engine.training.watch import HELP, KVSTORE_ALONE, Member

KEYS = 10 ** 6  # of the store, from here on; below are the parameters, by their index
SLOW = 1.2  # times the others' time: from here on a worker is called slow


class Workers(contextlib.AbstractContextManager["Workers"]):
    """The processes that train together, seen from one of them; a context manager that ends its part.

    Parameters
    ----------
    run : kvstore is used.
    member : from :func:`~cian.tools.engine.training.watch.join`; None for a process alone.

    Attributes
    ----------
    store : for a Gluon trainer.
    rank, num : this worker's number, from 0, and how many there are.
    """

    def __init__(self, run: Optional[RunConfig] = None, member: Optional[Member] = None) -> None:
        run = run or RunConfig()
        if member is None and run.kvstore != KVSTORE_ALONE:
            raise InputError(f"is {run.kvstore}, but this process has joined no job", field="run.kvstore",
                             remedy=HELP)
        self.rank, self.num = 0, 1
        self.store: Any = KVSTORE_ALONE
        self._member = member
        self._keys: Dict[str, int] = {}
        if member is not None:
            self.store = mx.kv.create(run.kvstore)
            self.rank, self.num = self.store.rank, self.store.num_workers
            member.number(self.rank)
        self.start_clock()
        self._forget_times()

    def __exit__(self, kind: Optional[type], error: object, _: object) -> None:
        if self._member is None:
            return
        if kind is None:
            handle, self.store.handle = self.store.handle, ctypes.c_void_p()
            mx.base.check_call(mx.base._LIB.MXKVStoreFree(handle))  # returns when all workers are here
            self._member.leave()
            return
        # The store's end would wait for the others for ever.
        atexit.register(_leave, {InputError: 2, KeyboardInterrupt: 130}.get(kind, 1))
        self._member.fail(str(error) or kind.__name__)

    def as_one(self, config: Config) -> Config:
        """The configuration of one process with the devices of all workers, which computes the same."""
        if self._member is None:
            return config
        kinds = [device.split(":")[0] for device in config.run.devices] * self.num
        return config.replace(run={"devices": [f"{kind}:{number}" for number, kind in enumerate(kinds)]})

    def gather(self, name: str, values: np.ndarray) -> np.ndarray:
        """The values of all workers, ``(num, *shape)`` float32; one ``name`` has one shape."""
        values = np.asarray(values, np.float32)
        if self._member is None:
            return values[None]
        rows = np.zeros((self.num, values.size), np.float32)  # the store sums, and x + 0 is x
        rows[self.rank] = values.ravel()
        shared = mx.nd.array(rows)
        if name not in self._keys:
            self._keys[name] = KEYS + len(self._keys)
            self.store.init(self._keys[name], mx.nd.zeros(rows.shape))
        self.store.pushpull(self._keys[name], shared)
        return shared.asnumpy().reshape(self.num, *values.shape)

    @contextlib.contextmanager
    def in_turn(self, name: str) -> Iterator[None]:
        """Worker 0 does what is in the block, and then the others do: for what it leaves in files."""
        if self.rank:
            self.gather(name, np.zeros(1))
        yield
        if not self.rank:
            self.gather(name, np.zeros(1))

    def refuse_others(self, described: Mapping[str, object]) -> None:
        """Raise :class:`InputError` on every worker where one describes itself in another way than
        worker 0, naming it and what differs. Digests are compared, 48 bits of each.
        """
        names = [str(value) for value in self.gather("described", _digest(list(described)))]
        if len(set(names)) > 1:
            raise InputError("the workers are of different versions", field="run.kvstore",
                             remedy="install the same version on all machines")
        digests = self.gather("description", np.stack([_digest(value) for value in described.values()]))
        for rank in range(1, self.num):
            differs = [name for name, first, other in zip(described, digests[0], digests[rank])
                       if (first != other).any()]
            if differs:
                raise InputError(f"worker {rank} has another {', '.join(differs)} than worker 0",
                                 field="run.kvstore",
                                 remedy="start all workers with one command, one version and the same files")

    def start_clock(self) -> None:
        """A step begins."""
        self._begun = time.monotonic()

    def share_losses(self, values: np.ndarray) -> np.ndarray:
        """The (devices, values) of all workers' devices, in their order; takes the time until
        here as this worker's own, and that until all are here as waited.
        """
        own = time.monotonic() - self._begun
        gathered = self.gather("losses", np.append(values, np.float32(own)))
        self._waited += time.monotonic() - self._begun - own
        self._own += gathered[:, -1]
        self._steps += 1
        return gathered[:, :-1].reshape(-1, values.shape[1])

    def report(self) -> str:
        """What this worker has waited for since the last report; empty for one alone."""
        if self._member is None:
            return ""
        steps = max(self._steps, 1)
        waited, slow = self._waited / steps, slow_worker(self._own / steps)
        self._forget_times()
        return f"; worker {self.rank} waited {waited:.2f} s a step{slow}"

    def _forget_times(self) -> None:
        self._own, self._waited, self._steps = np.zeros(self.num), 0.0, 0


def slow_worker(own: np.ndarray) -> str:
    """Names the worker that took longest, of the seconds a step that each took by itself, where it
    is beyond :data:`SLOW` of the others' median; else empty.
    """
    slowest = int(own.argmax())
    others = float(np.median(np.delete(own, slowest))) if len(own) > 1 else np.inf
    return (f"; worker {slowest} is slow: {own[slowest]:.2f} s a step of its own, where the others take "
            f"{others:.2f} s") if own[slowest] > SLOW * others else ""


def source_digest() -> str:
    """Of this package's Python files."""
    import cian.data
    import cian.symbols
    import cian.tools.engine

    found = hashlib.sha256()
    for package in (cian, cian.symbols, cian.data, cian.tools):
        for folder, folders, names in os.walk(package.__path__[0]):
            folders.sort()
            for name in sorted(name for name in names if name.endswith(".py")):
                with open(os.path.join(folder, name), "rb") as stream:
                    found.update(name.encode() + stream.read())
    return found.hexdigest()


def values_digest(values: Mapping[str, np.ndarray]) -> str:
    """Of named arrays."""
    found = hashlib.sha256()
    for name, value in sorted(values.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def _digest(value: object) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(repr(value).encode()).digest()[:6], np.uint8).astype(np.float32)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
