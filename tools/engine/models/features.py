"""Features of whole images by the constant part of a backbone, computed once and shared by runs.

A file holds one view of a set: every image at one scale, straight or mirrored. Its name ends with a
digest of all that its content depends on: the images, the network below the cut with its weights,
the view, and the sizes at which the network sees the images.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import cv2
import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock
from tqdm import tqdm

from cian.choices import STRIDE
from cian.data.feature_file import FeatureFile
from cian.data.records import RecordSet
from cian.data.transforms import scaled_size
from cian.errors import InputError
from cian.files import locked
from cian.symbols.layers import Backbone, chain
from cian.tools.engine.config import RunConfig
from cian.tools.engine.models.engine import MXNET, start_engine

FORMAT = 1  # of the digest: what a change of this module must count up
PROBE_PX = 65


@dataclass(frozen=True)
class View:
    """How the network sees the images of a set, as the loader of training prepares them: mirrored,
    scaled by OpenCV, and padded with zeros below and on the right.

    Attributes
    ----------
    scale, mirror : of the images.
    least_px : sides that are shorter are padded to it.
    """

    scale: float = 1.0
    mirror: bool = False
    least_px: int = 1

    def __str__(self) -> str:
        return f"{self.scale:g}{'-mirrored' if self.mirror else ''}"

    def sizes(self, sizes: np.ndarray) -> np.ndarray:
        """(n, 2) heights and widths at the network of images of ``sizes`` (n, 2)."""
        scaled = [scaled_size(height, width, self.scale) for height, width in sizes.tolist()]
        return np.maximum(np.array(scaled, np.int64).reshape(-1, 2), self.least_px)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(3, H', W') float32 RGB of an (H, W, 3) uint8 BGR image."""
        height, width = scaled_size(image.shape[0], image.shape[1], self.scale)
        image = cv2.flip(image, 1) if self.mirror else image
        image = image if self.scale == 1 else cv2.resize(image, (width, height))
        padded = np.zeros((3, max(height, self.least_px), max(width, self.least_px)), np.float32)
        padded[:, :height, :width] = image[..., ::-1].transpose(2, 0, 1)
        return padded

    def key(self, sizes: np.ndarray) -> List[Any]:
        """What its features of images of ``sizes`` (n, 2) depend on."""
        seen = self.sizes(sizes)
        padded = bool((seen != View(self.scale).sizes(sizes)).any())
        return [self.scale, self.mirror, seen.tolist() if padded else []]


class Below:
    """The constant part of a backbone, which is computed once.

    Parameters
    ----------
    backbone : with its weights.
    parts : how many of its parts, see :func:`~cian.symbols.layers.constant_parts`.
    device : where its features are computed.
    engine : what computes them, see :func:`~cian.tools.engine.models.engine.start_engine`.

    Attributes
    ----------
    channels : of its features.
    digest : SHA-256 of its graph and weights, and of the engine where that is not MXNet.

    Raises
    ------
    InputError
        It ends above a stride of 8, because the layers from there on train.
    """

    def __init__(self, backbone: Backbone, parts: int, device: mx.Context, engine: str = "mxnet") -> None:
        self.parts, self.device = parts, device
        below = backbone.parts()[:self.parts]
        self.net: HybridBlock = chain(below)
        graph = self.net(mx.sym.var("data"))
        shape = graph.infer_shape(data=(1, 3, PROBE_PX, PROBE_PX))[1][0] if below else (1, 3, PROBE_PX)
        if shape[2] != (PROBE_PX - 1) // STRIDE + 1:
            names = [*backbone.parts()[self.parts].collect_params(), "a layer without parameters"]
            stride = PROBE_PX // (shape[2] - 1)
            raise InputError(
                f"features are stored from stride {STRIDE} on, and the first layer that trains, drops out "
                f"or follows the batch is at stride {stride}: {names[0]}", field="train.freeze",
                remedy="freeze the backbone from its first layer on up to where its features are stored")
        self.channels = int(shape[1])
        name, self._run = start_engine(self.net, engine, device)
        self.digest = _digest(graph, self.net, "" if name == MXNET else name)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """(h, w, C) float16 of (3, H, W) float32."""
        with np.errstate(over="ignore"):  # refused where they are written
            return self._run(pixels[None])[0].transpose(1, 2, 0).astype(np.float16)


def stored_features(below: Below, images: RecordSet, views: Sequence[View], run: RunConfig, *,
                    progress: bool = True) -> Dict[Tuple[float, bool], FeatureFile]:
    """The features of a set's images in each view, by scale and mirror; what is missing is computed
    first, and goes on where it stopped.

    Parameters
    ----------
    run : ``features_root`` is the folder of the files, default ``features`` beside the images'
        records; another process that fills it is waited for. ``features_gb`` bounds the folder.

    Raises
    ------
    InputError
        They would take more than the limit or the disk allows; an image's features are not finite
        in float16; a file of another size is in the way.
    """
    folder = run.features_root or os.path.join(images.folder, "features")
    files: Dict[Tuple[float, bool], FeatureFile] = {}
    for view in views:
        sizes = view.sizes(images.sizes)
        depends = json.dumps([FORMAT, images.identity, below.digest, *view.key(images.sizes)])
        key = hashlib.sha256(depends.encode()).hexdigest()[:16]
        path = os.path.join(folder, f"{images.name}-{view}-{key}.f16")
        shapes = np.column_stack([(sizes - 1) // STRIDE + 1, np.full(len(sizes), below.channels)])
        files[view.scale, view.mirror] = FeatureFile(path, shapes, np.float16, images.names)
    if any(file.missing().size for file in files.values()):
        os.makedirs(folder, exist_ok=True)
        with locked(os.path.join(folder, ".lock"), "the folder of features", wait=True):
            for file in files.values():
                file.refresh()
            _check_room(list(files.values()), folder, run.features_gb)
            for view, file in zip(views, files.values()):
                file.lay_out()
                file.write(_computed(below, images, view, file.missing(), progress))
    return files


def _computed(below: Below, images: RecordSet, view: View, missing: np.ndarray,
              progress: bool) -> Iterator[Tuple[int, np.ndarray]]:
    for index in tqdm(missing.tolist(), desc=f"features at scale {view}", unit="image",
                      initial=len(images) - len(missing), total=len(images),
                      disable=None if progress else True):
        yield index, below.features(view.apply(images.image(index)))


def _check_room(files: Sequence[FeatureFile], folder: str, limit_gb: float) -> None:
    """Print what the files take, and refuse it where that is too much."""
    room, free = sum(file.room for file in files), shutil.disk_usage(folder).free
    have = sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder) if entry.name.endswith(".f16"))
    images = max(len(file) for file in files)
    whole = sum(file.nbytes for file in files)
    print(f"features of {images} images in {len(files)} views: {whole / 1e9:.2f} GB in {folder}, "
          f"{room / 1e9:.2f} GB of it still to be computed; {free / 1e9:.0f} GB are free", flush=True)
    if room > free:
        raise InputError(f"has {free / 1e9:.1f} GB left, and the features need {room / 1e9:.1f}", file=folder,
                         remedy="make room, name another run.features_root, or use fewer scales")
    if have + room > limit_gb * 1e9:
        raise InputError(f"features would take {(have + room) / 1e9:.1f} GB there, of which "
                         f"{have / 1e9:.1f} are there already", file=folder, field="run.features_gb",
                         remedy=f"allow more than {limit_gb:g}, remove old .f16 files, or use fewer scales")


def _digest(graph: mx.sym.Symbol, net: HybridBlock, engine: str) -> str:
    """Of what a graph computes: operators, their settings and inputs, whatever their names and
    whether they train, the weights, and what decides how it rounds.
    """
    nodes = [node["name"] if node["op"] == "null" else [node["op"], node.get("attrs", {}), node["inputs"]]
             for node in json.loads(graph.tojson())["nodes"]]
    digest = hashlib.sha256(json.dumps(nodes, sort_keys=True).encode() + engine.encode())
    for name, param in sorted(net.collect_params().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(param.list_data()[0].asnumpy()).tobytes())
    return digest.hexdigest()
