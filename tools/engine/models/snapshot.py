"""Checkpoints of a training run: what is written, in which order, and how it is found again.

A run's folder (its snapshot) holds

* ``<model>-<epoch>.params`` with ``.params.json``: the network after an epoch (from 0000), readable
  by the original code too, and what is needed to build it again; the last ones are kept;
* ``<model>.state``: all that the run needs to go on as if it had never stopped; one file, replaced at once.

A kill between the two leaves an older state, from which the epoch's last steps are done again with
the same result.
"""
from __future__ import annotations

import contextlib
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np

from cian.errors import InputError, PathLike
from cian.files import locked, remove_abandoned
from cian.symbols.metadata import metadata_path, read_metadata
from cian.tools.engine.config import NetworkConfig
from cian.tools.engine.models.graph_cache import SUFFIX
from cian.tools.engine.models.run_state import read_state, write_state

if TYPE_CHECKING:
    from cian.symbols.cian import CIAN
    from cian.symbols.params import Contexts

STATE_VERSION = 1
_NAME = re.compile(r"(?P<model>.+)-(?P<epoch>\d{4,})\.params")


class Checkpoint(NamedTuple):
    """One ``<model>-<epoch>.params``."""

    model: str
    epoch: int
    path: str


def find_checkpoints(snapshot: PathLike, model: str = "") -> List[Checkpoint]:
    """Checkpoints in a folder, of ``model`` or of any, by epoch; empty where there is no such folder."""
    snapshot = os.fspath(snapshot)
    found = [_NAME.fullmatch(name) for name in (os.listdir(snapshot) if os.path.isdir(snapshot) else ())]
    checkpoints = [Checkpoint(match["model"], int(match["epoch"]), os.path.join(snapshot, match.group()))
                   for match in found if match]
    return sorted((c for c in checkpoints if model in ("", c.model)), key=lambda c: (c.epoch, c.model))


def resolve_checkpoint(path: PathLike, model: str = "") -> str:
    """A ``.params`` file as it is; of a snapshot folder the last epoch's.

    Raises
    ------
    InputError
        Neither file nor folder, a folder without a checkpoint (of that model), or with checkpoints
        of several models.
    """
    path = os.fspath(path)
    if os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        raise InputError("does not exist", file=path,
                         remedy="name a .params file or the snapshot folder of a training run")
    every = find_checkpoints(path)
    models = sorted({checkpoint.model for checkpoint in every})
    chosen = [checkpoint for checkpoint in every if model in ("", checkpoint.model)]
    if not chosen:
        raise InputError(f"holds no checkpoint of {model}" if model else "holds no checkpoint", file=path,
                         remedy=f"it has those of {', '.join(models)}" if models else "train first")
    if len({checkpoint.model for checkpoint in chosen}) > 1:
        raise InputError(f"holds checkpoints of several models: {', '.join(models)}", file=path,
                         remedy="name one with --model")
    return chosen[-1].path


@contextlib.contextmanager
def described_by(path: PathLike, kind: str, writer: str) -> Iterator[None]:
    """What building a network from the metadata of ``path`` finds wrong is told of their file."""
    import mxnet as mx

    try:
        yield
    except InputError as error:
        if error.file:
            raise
        raise InputError(error.problem, file=metadata_path(path), field=f"network.{error.field}",
                         remedy=error.remedy) from error
    except (TypeError, ValueError, mx.MXNetError) as error:
        raise InputError(f"does not describe a {kind}", file=metadata_path(path), field="network",
                         remedy=f"name a {writer} wrote") from error


def load_network(path: PathLike, *, for_prediction: bool = True, ctx: Contexts = None,
                 network: Optional[NetworkConfig] = None,
                 classes: Sequence[str] = ()) -> Tuple[CIAN, Dict[str, Any]]:
    """Build the network of a checkpoint and load it.

    Parameters
    ----------
    path : ``.params`` file, or snapshot folder (its last epoch).
    for_prediction : the network that returns [logits] by self-affinity, without memory for
        gradients; else the one that was trained.
    ctx : device or devices of the parameters, default the CPU.
    network, classes : for a file without metadata, as the original code writes it: how to build its
        network, and its class names.

    Returns
    -------
    (network, metadata)

    Raises
    ------
    InputError
        Naming the file and what is wrong: missing, damaged, without metadata, of another network.
    """
    import mxnet as mx

    from cian.symbols.cian import CIAN
    from cian.symbols.params import load_params
    path = resolve_checkpoint(path)
    if os.path.exists(metadata_path(path)) or network is None:
        metadata = read_metadata(path)
        with described_by(path, "segmentation network", "checkpoint that tools/train.py"):
            net = CIAN(**metadata["network"])
    else:
        net = build_network(network, len(classes))
        metadata = {"network": net.settings, "classes": list(classes)}
    if for_prediction:
        net.collect_params().setattr("grad_req", "null")
    load_params(net, path, ctx=ctx or mx.cpu())
    return (net.for_prediction() if for_prediction else net), metadata


def build_network(network: NetworkConfig, num_classes: int,
                  backbone_options: Optional[Mapping[str, Any]] = None) -> CIAN:
    """The network of a configuration, without values."""
    from cian.symbols.cian import CIAN
    return CIAN(network.model, num_classes, network.affinity, network.group_size, network.merge_type,
                network.merge_self, network.embed_channels, backbone_options)


class Snapshot:
    """The folder of a run while it trains; a context manager that holds a lock on it, and clears
    away what a killed run left half written.

    Parameters
    ----------
    folder : made where it is missing.
    model : model name, the beginning of its files' names.
    keep : checkpoints to keep.

    Raises
    ------
    InputError
        On entering, when another process trains in this folder or it cannot be written.
    """

    def __init__(self, folder: PathLike, model: str, keep: int = 5) -> None:
        self.folder, self.model, self.keep = os.fspath(folder), model, keep
        self.state_path = os.path.join(self.folder, f"{model}.state")
        self._stack = contextlib.ExitStack()
        self._begun: Optional[Future[None]] = None

    def __enter__(self) -> Snapshot:
        self._stack.enter_context(locked(os.path.join(self.folder, ".lock"), "this snapshot"))
        remove_abandoned(self.folder)
        self._writer = self._stack.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._stack.close()
        if kind is None or issubclass(kind, OSError):  # of a full disk the error that names the file is told
            self._finish()

    def path(self, name: str) -> str:
        """Path of a file in the folder."""
        return os.path.join(self.folder, name)

    def epoch_path(self, epoch: int) -> str:
        """Path of the network after an epoch."""
        return self.path(f"{self.model}-{epoch:04d}.params")

    def save_epoch(self, epoch: int, values: Mapping[str, np.ndarray], metadata: Mapping[str, Any],
                   state: Optional[Dict[str, Any]] = None) -> str:
        """Write the network after ``epoch``, and at the same time do as :meth:`save_state` with
        ``state``, which is put in place after the
        network; returns the network's path."""
        from cian.symbols.params import save_values
        path = self.epoch_path(epoch)
        self._begin(save_values, values, path, metadata)
        if state is not None:
            self._replace_state(state, self._finish)
        self._finish()
        return path

    def save_state(self, state: Dict[str, Any], *, wait: bool = True) -> None:
        """Replace the run's state, and only then remove checkpoints beyond the last ``keep``.
        Without ``wait`` it returns at once: what
        ``state`` holds must not change any more, and the error of a failure is raised by
        :meth:`poll`, the next call, or on leaving."""
        self._begin(self._replace_state, state)
        if wait:
            self._finish()

    def poll(self) -> None:
        """Raise the error of what was not waited for and has failed meanwhile."""
        if self._begun is not None and self._begun.done():
            self._finish()

    def _begin(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do ``work`` beside the caller, once what was begun before is done."""
        self._finish()
        self._begun = self._writer.submit(work, *arguments)

    def _finish(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.result()

    def _replace_state(self, state: Dict[str, Any], before: Optional[Callable[[], Any]] = None) -> None:
        write_state(self.state_path, {"version": STATE_VERSION, **state}, before)
        for old in find_checkpoints(self.folder, self.model)[:-self.keep]:
            _remove(old.path)

    def load_state(self) -> Optional[Dict[str, Any]]:
        """The run's state, or None where it has none yet.

        Raises
        ------
        InputError
            It is damaged, or of another version.
        """
        if not os.path.exists(self.state_path):
            return None
        state = read_state(self.state_path)
        if state.get("version") != STATE_VERSION:
            raise InputError(f"has version {state.get('version')!r}, and this code reads {STATE_VERSION}",
                             file=self.state_path, remedy="start anew with --fresh")
        return state

    def clear(self) -> None:
        """Remove the model's state and checkpoints."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.state_path)
        for old in find_checkpoints(self.folder, self.model):
            _remove(old.path)


class OthersSnapshot(Snapshot):
    """The folder of a run whose files another process writes: it is read, and not locked."""

    def __enter__(self) -> Snapshot:
        return self

    def save_epoch(self, epoch: int, values: Mapping[str, np.ndarray], metadata: Mapping[str, Any],
                   state: Optional[Dict[str, Any]] = None) -> str:
        return self.epoch_path(epoch)

    def save_state(self, state: Dict[str, Any], *, wait: bool = True) -> None:
        pass

    def clear(self) -> None:
        pass


def _remove(path: str) -> None:
    for name in (path, metadata_path(path), path + SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
