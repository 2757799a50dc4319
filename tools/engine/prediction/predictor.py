"""Test-time prediction: scales, their maximum and the mirrored image, averaged as logits (the
original's inference).
"""
from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from cian.choices import STRIDE
from cian.data.classes import ClassTable
from cian.environment import resident_memory, usable_memory
from cian.errors import InputError, PathLike
from cian.files import sha256_of
from cian.tools.engine.config import PredictConfig
from cian.tools.engine.fitting import Fit
from cian.tools.engine.models.graph_cache import MXNET, Graph, GraphCache
from cian.tools.engine.models.model_files import Network, open_model
from cian.tools.engine.prediction.crf import crf_preset
from cian.tools.engine.prediction.finishing import Finished, Task, finish
from cian.tools.engine.prediction.scales import Scales, passes_at_a_time

if TYPE_CHECKING:
    import mxnet as mx

WORK_BYTES = 2 ** 10  # a pixel of an image, beside the affinity: feature maps of the network, logits, the CRF


class Coarse(Protocol):
    """Logits to come: an array of MXNet, or one that another process computes."""

    def asnumpy(self) -> np.ndarray:
        """Wait for the values."""


@dataclass(frozen=True)
class Running:
    """Images that the network is at work on; the values of ``coarse``, (N, C, h, w), arrive when
    they are asked for.
    """

    images: List[np.ndarray]
    fits: List[Fit]
    coarse: Coarse


class Predictor:
    """A network with its test-time procedure.

    Logit maps of all scales, and their maximum, are brought to the size of scale 1 at stride 8. The
    original enlarges each of them to the padded image, averages, averages with the mirrored
    image's, and cuts the padding off. Enlarging is linear, so here the average is taken first and
    only what remains is enlarged: the same result, up to rounding, for a fifth of the work.

    Parameters
    ----------
    net : from raw RGB (N, 3, H, W) to a list with one entry, logits (N, C, (H-1)//8+1, (W-1)//8+1);
        a HybridBlock, its graph, or for scale 1 alone any function, with logits of any size (see
        :mod:`~cian.tools.engine.models.model_files`). MXNet is loaded unless it is a graph.
    settings : scales, add_max, mirror, fit, size_px and engine are used; the engine is for blocks alone.
    device : where the network's parameters are; None is the CPU.
    class_names : names of the C classes, for those who write predictions.
    cache : where to keep the network's graph.
    """

    def __init__(self, net: Union[Network, Graph], settings: Optional[PredictConfig] = None,
                 device: Optional[mx.Context] = None, class_names: Sequence[str] = (),
                 cache: Optional[GraphCache] = None) -> None:
        self.settings = settings or PredictConfig()
        self.device, self._cache = device, cache
        self.class_names = tuple(class_names)
        self.net = net
        self.frozen: Tuple[str, ...] = ()  # prefixes of parameters that its training left as they were
        self.sharers = 1  # processes that predict on this machine at a time
        if not (isinstance(net, Graph) or _is_block(net)) and self.settings.scales != (1.0,):
            raise ValueError("a function takes one scale; the network must be a HybridBlock for several")

    @functools.cached_property
    def _started(self) -> Union[Scales, Network]:
        """What runs the network."""
        net, settings = self.net, self.settings
        if isinstance(net, Graph):
            return Scales(net.run, settings.scales, settings.add_max, settings.mirror)
        if not _is_block(net):
            return net
        import mxnet as mx

        from cian.symbols.layers import reorder_sums
        from cian.symbols.multiscale import MultiScale
        from cian.tools.engine.models.engine import start_engine

        device = self.device or mx.cpu()
        block = MultiScale(net, scales=settings.scales, add_max=settings.add_max)
        name, network = start_engine(net, settings.engine, device, self._cache,
                                     passes_at_a_time(settings.scales, settings.mirror))
        if name != MXNET:
            return Scales(network, settings.scales, settings.add_max, settings.mirror)
        if device.device_type == "cpu":
            reorder_sums(net)
        block.hybridize()
        return block

    def open(self) -> None:
        """Start what runs the network, which the first image would do otherwise; errors as
        :func:`~cian.tools.engine.models.engine.start_engine`."""
        self._started  # noqa: B018

    def fit(self, image: np.ndarray) -> Fit:
        """How this (H, W, 3) image goes to the network."""
        height, width = image.shape[:2]
        return Fit.of((height, width), self.settings.fit, self.settings.size_px)

    def check(self, images: Sequence[np.ndarray]) -> List[Fit]:
        """How images that are to share a pass go to the network; errors as :meth:`start`."""
        fits = [self.fit(image) for image in images]
        if len({fit.network_size for fit in fits}) != 1:
            raise ValueError("images of one pass must have one size at the network")
        self._check_memory(fits[0].network_size, len(images))
        return fits

    def start(self, images: Sequence[np.ndarray], names: Sequence[str] = ()) -> Running:
        """Put images whose network sizes agree into the network, and return without waiting for it.

        Parameters
        ----------
        images : (H, W, 3) uint8 RGB each.
        names : of the images, for predictors that know them by name.

        Raises
        ------
        InputError
            For an image so large that this machine's memory cannot hold its affinity.
        """
        fits = self.check(images)
        batch = np.stack([fit.apply(image)
                          for fit, image in zip(fits, images)]).transpose(0, 3, 1, 2).astype(np.float32)
        if isinstance(self._started, Scales):
            return Running(list(images), fits, self._started.start(batch))
        import mxnet as mx
        if self.settings.mirror:
            batch = np.concatenate([batch, batch[..., ::-1]])
        maps = self._started(mx.nd.array(batch, ctx=self.device))
        coarse = mx.nd.add_n(*maps) / len(maps)
        if self.settings.mirror:
            straight, mirrored = mx.nd.split(coarse, 2, axis=0)
            coarse = (straight + mx.nd.reverse(mirrored, axis=3)) / 2
        return Running(list(images), fits, coarse)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W) float32 logits of one (H, W, 3) uint8 RGB image."""
        running = self.start([image])
        return running.fits[0].enlarge(running.coarse.asnumpy()[0])

    def predict(self, image: np.ndarray, crf: Optional[str] = None,
                allowed: Optional[Tuple[int, ...]] = None) -> Finished:
        """Label maps and class probabilities of one image.

        Parameters
        ----------
        image : (H, W, 3) uint8 RGB.
        crf : name of a CRF preset or 'none'; default is that of the settings.
        allowed : classes that a pixel may take, with background; None is all.
        """
        running = self.start([image])
        preset = crf or self.settings.crf
        return finish(Task("image", image, running.coarse.asnumpy()[0], running.fits[0], allowed,
                           None if preset == "none" else crf_preset(preset), probabilities=True))

    def _check_memory(self, size: Tuple[int, int], images: int) -> None:
        if self.device is not None and self.device.device_type != "cpu":
            return
        needed = affinity_bytes(size, max(self.settings.scales), images * (2 if self.settings.mirror else 1))
        needed += WORK_BYTES * size[0] * size[1] * images + resident_memory()
        have = usable_memory() // self.sharers
        if needed > have:
            each = f" for each of {self.sharers} processes" if self.sharers > 1 else ""
            raise InputError(f"an image of {size[1]}x{size[0]} pixels needs {needed / 2 ** 30:.1f} GiB, "
                             "most for its affinity, and this process may use "
                             f"{have / 2 ** 30:.1f}{each}", remedy=(
                "use run.processes=1, " if each else "") + "make it smaller, or use predict.fit=warp")


def _is_block(net: Any) -> bool:
    import mxnet as mx
    return isinstance(net, mx.gluon.HybridBlock)


def load_predictors(path: PathLike, settings: PredictConfig, devices: Sequence[Optional[mx.Context]], *,
                    model: str = "", classes: Optional[ClassTable] = None) -> Tuple[List[Predictor],
                                                                                    Dict[str, Any]]:
    """A predictor for every device, and what identifies the model (its file's SHA-256 and its name)
    in a manifest.

    Parameters
    ----------
    path : checkpoint, snapshot folder (its last epoch), exported symbol or ONNX file.
    settings : followed as far as the file leaves a choice, see
        :meth:`~cian.tools.engine.models.model_files.ModelFile.settings`.
    model, classes : for files without metadata, see :func:`~cian.tools.engine.models.model_files.open_model`.
    """
    predictors = []
    for device in devices:
        opened = open_model(path, ctx=device, model=model, classes=classes,
                            engine=MXNET if settings.features else settings.engine,
                            passes=passes_at_a_time(settings.scales, settings.mirror))
        predictors.append(Predictor(opened.network, opened.settings(settings), device, opened.classes.names,
                                    opened.cache))
        if not settings.features:  # what they are taken from needs no network of the whole
            predictors[-1].open()
        predictors[-1].frozen = tuple(opened.metadata.get("config", {}).get("train.freeze", ()))
    # opening has held it against the file
    recorded = opened.metadata.get("sha256") if opened.kind != "onnx" else None
    digest = recorded or sha256_of(opened.path)
    return predictors, {"model": os.path.basename(opened.path), "checkpoint": digest,
                        "network": opened.metadata.get("network", {})}


def prediction_settings(settings: PredictConfig) -> Dict[str, Any]:
    """What decides a prediction beside the model and the CRF, for a manifest."""
    found = {key: value for key, value in dataclasses.asdict(settings).items()
             if key not in ("crf", "batch_size", "engine") and not key.startswith("retrain_")}
    if not settings.features:  # folders from before the key have none
        del found["features"]
    return found


def affinity_bytes(size: Tuple[int, int], scale: float, images: int) -> int:
    """Bytes of the affinity matrix of self-affinity before and after its softmax; it grows with the
    square of the pixels.
    """
    rows, columns = (int((side - 1) * scale) // STRIDE + 1 for side in size)
    pooled = ((rows - 1) // 2 + 1) * ((columns - 1) // 2 + 1)
    return 2 * 4 * images * rows * columns * pooled
