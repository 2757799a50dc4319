"""Prediction of a list from stored features: what lies below the layers that were trained is computed
once for all networks that share it, and a network adds what lies above.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, List, Sequence

import mxnet as mx
import numpy as np

from cian.data.records import RecordSet
from cian.errors import InputError
from cian.symbols.cian import CIAN, Branches
from cian.symbols.layers import constant_parts
from cian.symbols.params import trains
from cian.tools.engine.config import PredictConfig, RunConfig
from cian.tools.engine.fitting import Fit, scaled_side
from cian.tools.engine.models.features import Below, View, stored_features
from cian.tools.engine.prediction.predictor import Predictor, Running


@dataclass(frozen=True)
class TestView(View):
    """How the network sees the images at test time: fitted, mirrored, scaled with aligned corners."""

    __test__ = False  # not a test case, whatever pytest makes of the name
    fit: str = "native"
    size_px: int = 0

    def sizes(self, sizes: np.ndarray) -> np.ndarray:
        """As :meth:`View.sizes`."""
        return np.array([[scaled_side(side, self.scale)
                          for side in Fit.of((height, width), self.fit, self.size_px).network_size]
                         for height, width in sizes.tolist()], np.int64).reshape(-1, 2)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """As :meth:`View.apply`."""
        fit = Fit.of((len(image), len(image[0])), self.fit, self.size_px)
        pixels = fit.apply(image[..., ::-1]).transpose(2, 0, 1).astype(np.float32)
        pixels = np.ascontiguousarray(pixels[..., ::-1] if self.mirror else pixels)
        if self.scale == 1:
            return pixels
        height, width = (scaled_side(side, self.scale) for side in fit.network_size)
        scaled = mx.nd.contrib.BilinearResize2D(mx.nd.array(pixels[None]), height=height, width=width)
        return scaled.asnumpy()[0]

    def key(self, sizes: np.ndarray) -> List[Any]:
        """As :meth:`View.key`; images that are left as they are share features with training."""
        if self.scale == 1 and (self.sizes(sizes) == sizes).all():
            return View(1.0, self.mirror).key(sizes)
        return [self.fit, self.size_px, self.scale, self.mirror]


class StoredPredictor(Predictor):
    """A predictor of the images of a set by name.

    Parameters
    ----------
    live : the predictor of a checkpoint.
    images : the set.
    run : features_root and features_gb are used.

    Raises
    ------
    InputError
        The model is no checkpoint, or its first layers were trained; as
        :func:`~cian.tools.engine.models.features.stored_features`.
    """

    def __init__(self, live: Predictor, images: RecordSet, run: RunConfig) -> None:
        net = live.net
        if not isinstance(net, CIAN):
            raise InputError("only checkpoints predict from stored features", field="predict.features",
                             remedy="leave it out")
        device = live.device or mx.cpu()
        super().__init__(net, live.settings, device, live.class_names)
        parts = constant_parts(net.backbone, lambda param: trains(param.name, live.frozen))
        settings: PredictConfig = self.settings
        views = [TestView(scale, mirror, fit=settings.fit,
                          size_px=settings.size_px if settings.fit in ("pad", "warp") else 0)
                 for scale in settings.scales for mirror in ((False, True) if settings.mirror else (False,))]
        below = Below(net.backbone, parts, device, settings.engine)
        self._files = stored_features(below, images, views, run)
        self._above = Branches(net, parts)
        self._above.hybridize()
        self._rows = {name: row for row, name in enumerate(images.names)}
        self._path = images.path

    def start(self, images: Sequence[np.ndarray], names: Sequence[str] = ()) -> Running:
        """As :meth:`Predictor.start`, of images of the set."""
        missing = [name for name in names if name not in self._rows]
        if missing or len(names) != len(images):
            raise InputError(f"is not among the images: {', '.join(missing)}", file=self._path,
                             remedy="pack the list that is to be predicted")
        coarse = self._coarse(names, False)
        if self.settings.mirror:
            coarse = (coarse + mx.nd.reverse(self._coarse(names, True), axis=3)) / 2
        return Running(list(images), self.check(images), coarse)

    def _coarse(self, names: Sequence[str], mirror: bool) -> mx.nd.NDArray:
        """(N, C, h, w): the mean over the scales and their maximum."""
        maps: List[mx.nd.NDArray] = []
        for scale in self.settings.scales:
            features = np.stack([self._files[scale, mirror][self._rows[name]] for name in names])
            features = features.transpose(0, 3, 1, 2).astype(np.float32)
            logits, = self._above(mx.nd.array(features, ctx=self.device))
            maps.append(mx.nd.contrib.BilinearResize2D(logits, maps[0], mode="like") if maps else logits)
        if self.settings.add_max:
            maps.append(reduce(mx.nd.maximum, maps))
        return mx.nd.add_n(*maps) / len(maps)
