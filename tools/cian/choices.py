"""The values that settings allow, and the numbers that all of the code agrees on, each once.

Nothing but the error is imported, so that the configuration and the networks can both read them here.
"""
from __future__ import annotations

from typing import Sequence

from cian.errors import InputError

IGNORE = 255  # label of a pixel that takes part in no loss and no score
STRIDE = 8  # pixels of the image a pixel of logits
PIXEL_MEAN = (123.68, 116.779, 103.939)  # of ImageNet's RGB; the model zoo's weights expect it subtracted

# Networks (cian.symbols)
# Depth and variant. Gluon's v2 of depth 50 and 101 are resnet50 and resnet101; of 18 and 34 they lack a
# projection.
RESNETS = {**{f"resnet{depth}": (depth, "zoo") for depth in (18, 34, 50, 101)},
           **{f"resnet{depth}_{variant}": (depth, variant)
              for depth, variant in ((18, "v2"), (34, "v2"), (50, "v1b"), (101, "v1b"), (101, "v1"))}}
BACKBONES = (*RESNETS, "vgg16", "efficientnet_lite0")
AFFINITIES = ("none", "self", "cross")
MERGES = ("max", "avg")
COMPLETION_LABELS = ("seed", "image")
COMPLETION_TARGETS = ("cross", "own")
NORMALISATIONS = ("device", "image")

# Samples (cian.data)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)  # of training crops
LABEL_RESIZES = ("bilinear", "nearest")
LABEL_PADDINGS = ("background", "ignore")
PAIRINGS = ("common", "even", "random")
ORDERS = ("original", "counter")
LONELY = ("end", "skip")
JPEG_WARNINGS = ("refuse", "harmless", "accept")


def check_scales(scales: Sequence[float]) -> None:
    """:class:`InputError` unless a network can predict at these scales."""
    if not scales or scales[0] != 1 or min(scales) <= 0 or len(set(scales)) != len(scales):
        raise InputError(f"{tuple(scales)} must be different positive numbers, 1 first", field="scales")
