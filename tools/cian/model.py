"""Trained networks for other people's programs: open a model file, give it an image, take labels.

::

    from cian import load_model
    model = load_model("resnet101_largefov.onnx")
    labels = model.predict("street.jpg")
"""
from __future__ import annotations

import os
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import numpy as np
import PIL.Image

from cian.data.classes import ClassTable, load_classes, palette
from cian.data.pictures import pil_rgb
from cian.errors import InputError, PathLike
from cian.tools.engine.config import Config, PredictConfig
from cian.tools.engine.devices import needed_contexts
from cian.tools.engine.images import read_image
from cian.tools.engine.models.model_files import ModelFile, open_model
from cian.tools.engine.prediction.predictor import Predictor
from cian.tools.engine.prediction.scales import passes_at_a_time

Image = Union[PathLike, np.ndarray, Any]


class Model:
    """A network ready to predict; :func:`load_model` makes one.

    Images are a path, a PIL image, or an (H, W, 3) uint8 array in RGB.

    Attributes
    ----------
    classes : names of the classes; their position is the value of a pixel, and 0 is the background.
    kind : 'checkpoint', 'symbol' or 'onnx'.
    metadata : what the file carries: how it was trained, by which versions, what an exported file computes.
    settings : scales, mirror, fit and size in use.
    """

    def __init__(self, source: ModelFile, settings: PredictConfig, device: Any = None) -> None:
        self.path, self.kind, self.metadata = source.path, source.kind, source.metadata
        self.classes: Tuple[str, ...] = source.classes.names
        self.settings = source.settings(settings)
        self._predictor = Predictor(source.network, self.settings, device, self.classes, source.cache)
        self._predictor.open()

    def __repr__(self) -> str:
        return f"Model({self.path!r}, {self.kind}, {len(self.classes)} classes)"

    @property
    def colours(self) -> np.ndarray:
        """(256, 3) uint8 RGB: the colour of each label, those of PASCAL VOC."""
        return palette()

    def logits(self, image: Image) -> np.ndarray:
        """(C, H, W) float32 logits at the image's size; logarithms of probabilities where an
        exported file gives those.
        """
        return self._predictor.logits(as_rgb(image))

    def probabilities(self, image: Image, crf: str = "none") -> np.ndarray:
        """(C, H, W) float32 class probabilities, refined by the dense CRF preset ``crf`` unless it
        is 'none'.
        """
        found = self._predictor.predict(as_rgb(image), crf=crf).probabilities
        assert found is not None
        return found

    def predict(self, image: Image, crf: str = "none") -> np.ndarray:
        """(H, W) uint8 labels, refined by the dense CRF preset ``crf`` ('test', 'retrain',
        'deeplab') unless it is 'none'.
        """
        return self._predictor.predict(as_rgb(image), crf=crf).best


def load_model(path: PathLike, *, classes: Union[PathLike, Sequence[str], None] = None, model: str = "",
               device: str = "cpu:0", scales: Optional[Sequence[float]] = None,
               add_max: Optional[bool] = None, mirror: Optional[bool] = None, fit: Optional[str] = None,
               size_px: Optional[int] = None) -> Model:
    """Open a trained network.

    Parameters
    ----------
    path : a snapshot folder of training, a ``.params`` file, the ``-symbol.json`` or ``.onnx`` file
        of tools/export.py.
    classes : class names, 'voc', or a file with a name a line; for a file that does not carry them.
    model : model name such as 'resnet101_largefov'; for a ``.params`` file without metadata.
    device : 'cpu:0' or 'gpu:0'.
    scales, add_max, mirror, fit, size_px : see :class:`~cian.tools.engine.config.PredictConfig`;
        default the original's test procedure, except that images are padded no more than the network
        needs (fit 'tight') unless a size is given. An exported file has its own scales and mirror
        inside.

    Raises
    ------
    InputError
        Naming the file and what is wrong with it, or what it does not carry and must be given.
    """
    table = None
    if classes is not None:
        table = load_classes(classes) if isinstance(classes, (str, os.PathLike)) else ClassTable(classes)
    chosen: Dict[str, Any] = {"scales": None if scales is None else tuple(float(scale) for scale in scales),
                              "add_max": add_max, "mirror": mirror, "size_px": size_px,
                              "fit": fit or ("tight" if size_px is None else None)}
    settings = Config().replace(predict={key: value
                                         for key, value in chosen.items() if value is not None}).predict
    context = needed_contexts([device])[0]
    source = open_model(path, ctx=context, model=model, classes=table, engine=settings.engine,
                        passes=passes_at_a_time(settings.scales, settings.mirror))
    if source.procedure is not None and (chosen["scales"], add_max, mirror) != (None, None, None):
        raise InputError("has scales and mirror inside it, and they cannot be changed", file=path,
                         field="scales, add_max, mirror", remedy="leave them out, or load the checkpoint")
    return Model(source, settings, context)


def as_rgb(image: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, a PIL image or an array; files and PIL images as a viewer shows
    them (see :mod:`cian.data.pictures`), arrays as they are.

    Raises
    ------
    InputError
        For a file that is no image, for an array of another shape or type, and for a depth that
        says nothing about the brightness.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    if isinstance(image, PIL.Image.Image):
        return pil_rgb(image)
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise InputError(f"an image must be (height, width, 3) uint8 in RGB, not {array.shape} {array.dtype}",
                         field="image", remedy="give a path, a PIL image or such an array")
    return array
