"""The backbones by name."""
from __future__ import annotations

import difflib
from functools import partial
from typing import Any, Callable, Dict

from mxnet.gluon import HybridBlock

from cian.choices import RESNETS
from cian.errors import InputError

from .efficientnet import EfficientNetLite0
from .resnet import ResNet
from .vgg import VGG16

BACKBONES: Dict[str, Callable[..., HybridBlock]] = {
    **{name: partial(ResNet, *arguments) for name, arguments in RESNETS.items()},
    "vgg16": VGG16,
    "efficientnet_lite0": EfficientNetLite0,
}
# Options that make a backbone small enough for a test, under the same parameter names.
_TINY_WIDTHS = {"zoo": (4, 8), "v2": (8, 8), "v1": (4, 16), "v1b": (4, 16)}  # v2: a unit not projected
TINY: Dict[str, Dict[str, Any]] = {**{name: {"units": (2, 1, 1, 1),
                                             "widths": (*_TINY_WIDTHS[variant], 12, 16, 20)}
                                      for name, (_, variant) in RESNETS.items()},
                                   "vgg16": {"widths": (3, 4, 5, 6, 7), "top_channels": 10},
                                   "efficientnet_lite0": {"repeats": (1, 1, 1, 2, 1, 2, 1),
                                                          "widths": (4, 3, 3, 4, 5, 5, 6, 7, 14)}}


def build_backbone(name: str, *, tiny: bool = False, **options: Any) -> HybridBlock:
    """The feature extractor ``name``, with the options of its class; ``tiny`` takes those of a
    test's network.

    Every backbone maps raw RGB (N, 3, H, W) to features (N, ``out_channels``, (H-1)//8+1, (W-1)//8+1).

    Raises
    ------
    InputError
        When there is no such backbone; lists those that there are.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, 1)
        raise InputError(f"there is no backbone {name!r}" + (f", did you mean {close[0]!r}?" if close
                                                             else ""), field="model",
                         remedy=f"use one of: {', '.join(BACKBONES)}")
    return BACKBONES[name](**{**(TINY[name] if tiny else {}), **options})
