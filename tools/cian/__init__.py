"""CIAN: Cross-Image Affinity Net for weakly supervised semantic segmentation (AAAI 2020), in MXNet/Gluon.

::

    from cian import load_model
    model = load_model("snapshot/resnet101_largefov-0019.params")
    labels = model.predict("street.jpg")

Importing the package is cheap; MXNet is loaded by the first name that needs it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from . import environment

if TYPE_CHECKING:
    from .errors import InputError as InputError
    from .model import Model as Model
    from .model import load_model as load_model

environment.prepare()

__version__ = "0.1.0"
# Public names that are loaded when they are asked for, and where they live.
_LAZY = {"load_model": "cian.model", "Model": "cian.model", "InputError": "cian.errors"}
__all__ = ["InputError", "Model", "load_model"]

__getattr__, __dir__ = environment.later_names(__name__, _LAZY)
