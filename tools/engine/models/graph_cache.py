"""Graphs for onnxruntime, kept beside their checkpoint: the next prediction needs neither MXNet nor an
export. Nothing here imports MXNet.

A file holds a SHA-256 of what follows, what the graph was made from (its key), the checkpoint's size
and time, what the live network gave for a generated image, and the graph. It is used where checksum
and key are right, the checkpoint has the digest in the key, and onnxruntime gives what the live
network gave; else the network is exported again and the file replaced. A checkpoint of that size
and time is not read again.
"""
from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import json
import math
import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

import numpy as np

import cian.symbols
from cian.errors import InputError, PathLike
from cian.files import atomic_write, read_bytes, sha256_of
from cian.tools.engine.models.agreement import ExportError, Network, compare, generated_images
from cian.tools.engine.models.onnx_model import check_model, run_session, start_session

# Largest difference of a value, relative to the root mean square of all: where rounding grows from
# layer to layer, MXNet's own values are as far from those of float64.
MAX_ERROR = 1e-3
SUFFIX = ".graph"
MXNET = "mxnet"  # the other engine


@dataclass(frozen=True)
class Graph:
    """A network that onnxruntime runs.

    Attributes
    ----------
    run : raw RGB (N, 3, H, W) float32 to logits (N, C, (H-1)//8+1, (W-1)//8+1).
    network : the arguments that build the live network.
    num_classes : C.
    """

    run: Network
    network: Dict[str, Any]
    num_classes: int


class GraphCache:
    """The graph of one checkpoint.

    Parameters
    ----------
    checkpoint : path of the file with the weights.
    made_from : JSON-able: ``checkpoint``, the digest that the file should have, and how its network
        is built.

    Attributes
    ----------
    network : the arguments that build the live network, to be kept with the graph.
    """

    def __init__(self, checkpoint: PathLike, made_from: Mapping[str, Any]) -> None:
        self.path, self._checkpoint = os.fspath(checkpoint) + SUFFIX, checkpoint
        there = os.stat(checkpoint)
        self._seen = [there.st_size, there.st_mtime_ns]
        self.network: Mapping[str, Any] = {}
        self._key = {**made_from, "onnxruntime": onnxruntime_version(), "code": _code_digest()}

    def read(self, passes: int = 1) -> Optional[Graph]:
        """The graph, for so many passes at a time; None where there is none that can be trusted."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError, ExportError), \
                open(self.path, "rb") as stream:
            digest, header = stream.readline(65), stream.readline()
            found = json.loads(header)
            logits = stream.read(4 * math.prod(found["shape"]))
            content = stream.read(os.fstat(stream.fileno()).st_size)  # to the end without a copy
            if found["key"] == self._key and digest == _digest(header, logits, content) and (
                    found["seen"] == self._seen or sha256_of(self._checkpoint) == self._key["checkpoint"]):
                check_model(content, self.path)  # whoever gave the folder can write a checksum
                session = start_session(content, self.path, passes)
                graph = Graph(lambda images: run_session(session, images, self.path), found["network"],
                              found["shape"][1])
                hold_against(np.frombuffer(logits, np.float32).reshape(found["shape"]), graph.run)
                return graph
        return None

    def write(self, content: bytes, logits: np.ndarray) -> None:
        """Keep a graph; where the folder cannot be written there is none.

        Parameters
        ----------
        content : the ONNX file.
        logits : what the live network gives for the image of :func:`probe`.
        """
        header = json.dumps({"key": self._key, "seen": self._seen, "shape": logits.shape,
                             "network": self.network})
        parts = f"{header}\n".encode(), logits.astype(np.float32).tobytes(), content
        with contextlib.suppress(InputError), atomic_write(self.path) as stream:
            stream.writelines([_digest(*parts), *parts])


def probe() -> np.ndarray:
    """The generated image, (1, 3, 65, 81) raw RGB: small, for every start looks at it."""
    return generated_images(count=1)[0][..., :65, :81]


def hold_against(logits: np.ndarray, network: Network) -> None:
    """:class:`ExportError` unless a network gives these logits for the image of :func:`probe`."""
    compare(lambda _: logits, network, [probe()], MAX_ERROR, least_labels=0)


def onnxruntime_version() -> str:
    """Of the installed package; empty where there is none."""
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode() + b"\n"


@functools.cache
def _code_digest() -> str:
    """Of the files that decide what a network's graph is."""
    files = [os.path.join(os.path.dirname(__file__), name)
             for name in ("to_onnx.py", "onnx_folding.py", "symbol_graph.py")]
    for folder in cian.symbols.__path__:
        files += sorted(glob.glob(os.path.join(folder, "*.py")))
    return _digest(*map(read_bytes, files)).decode().strip()
