"""ImageNet weights of other zoos under this package's names, by exact arithmetic.

Their networks see images in 0..1, less a mean, divided by a deviation; ours see 0..255 and normalise
by ``bn_data`` (ResNets) or subtract :data:`~cian.choices.PIXEL_MEAN` (VGG16). The difference
goes into the statistics of ``bn_data``, or into ``conv1_1``.
"""
from __future__ import annotations

import re
from typing import Dict, Mapping, NamedTuple, Optional

import numpy as np

from cian.choices import PIXEL_MEAN

from .vgg import BLOCKS

Arrays = Dict[str, np.ndarray]
MEAN, STD = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))  # of RGB in 0..1
EPS = 1e-5  # of the batch norms on both sides
CLASSIFIERS = {"output": "fc1", "fc": "fc1"}


class Layout(NamedTuple):
    """How a zoo names the layers of a network."""

    variant: str  # of the ResNet, or vgg16
    mark: str  # pattern that only its names have
    unit: str  # pattern of a unit's layers: stage, unit, layer
    first: int  # number of the first stage
    layers: Mapping[str, str]  # of a unit: theirs to ours, where they differ
    others: Mapping[str, str]


def _vgg_layers() -> Dict[str, str]:
    """Convolutions by their place among convolutions, ReLUs and poolings."""
    places, place = {}, 0
    for block, (count, _, _) in enumerate(BLOCKS, 1):
        for i in range(1, count + 1):
            places[f"features.{place}"], place = f"conv{block}_{i}", place + 2
        place += 1
    return places


GLUON_UNIT = r"features\.(\d+)\.(\d+)\.(.+)"
PROJECTION = {"downsample.0": "sc", "downsample.1": "sc_bn"}
VGG = _vgg_layers()
LAYOUTS = (
    Layout("v2", r"features\.\d+\.\d+\.bn1\.", GLUON_UNIT, 5, {"downsample": "sc"},
           {"features.0": "bn_data", "features.1": "conv0", "features.2": "bn0", "features.9": "bn1",
            **CLASSIFIERS}),
    Layout("v1", r"features\.\d+\.\d+\.body\.", GLUON_UNIT, 4,
           {**{f"body.{3 * i}": f"conv{i + 1}" for i in range(3)},
            **{f"body.{3 * i + 1}": f"bn{i + 1}" for i in range(3)}, **PROJECTION},
           {"features.0": "conv0", "features.1": "bn0", **CLASSIFIERS}),
    Layout("v1b", r"layer1\.0\.", r"layer(\d+)\.(\d+)\.(.+)", 1, PROJECTION,
           {"conv1": "conv0", "bn1": "bn0", **CLASSIFIERS}),
    # fully connected layers of Gluon, torchvision and timm
    Layout("vgg16", r"features\.0\.weight", r"(?!)", 0, {},
           {**VGG, "features.31": "fc6", "features.33": "fc7", "output": "fc8", "classifier.0": "fc6",
            "classifier.3": "fc7", "classifier.6": "fc8", "pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7",
            "head.fc": "fc8"}),
)


def find_layout(arrays: Arrays) -> Optional[Layout]:
    """The layout that the names have; None for this package's own, the symbol zoo's and unknown ones."""
    return next((layout for layout in LAYOUTS
                 if any(re.match(layout.mark, name) for name in arrays)), None)


def our_names(arrays: Arrays, layout: Layout) -> Arrays:
    """The arrays under our names; counters are left out, names that the layout does not have stay."""
    return {_our_name(name, arrays, layout): array for name, array in arrays.items()
            if not name.endswith("num_batches_tracked")}


def _our_name(name: str, arrays: Arrays, layout: Layout) -> str:
    layer, _, kind = name.rpartition(".")
    if f"{layer}.running_mean" in arrays:
        kind = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
                "running_var": "moving_var"}.get(kind, kind)
    inside = re.fullmatch(layout.unit, layer)
    if inside:
        stage, unit = int(inside[1]) - layout.first + 1, int(inside[2]) + 1
        return f"stage{stage}_unit{unit}_{layout.layers.get(inside[3], inside[3])}_{kind}"
    return f"{layout.others[layer]}_{kind}" if layer in layout.others else name


def our_values(values: Arrays, layout: Layout) -> Arrays:
    """Weights under our names for our input: raw RGB in 0..255. Float64 where something changes.

    ResNets: the normalisation, and the batch norm without scale that v2 begins with, are one affine
    map of each channel, which ``bn_data`` computes; exact, borders included, since padding comes
    after it. Biases before a batch norm (v1) go into its mean.

    VGG16: ``conv1_1`` takes the deviation, and its bias the difference of the means. At the border
    padding is 0 in both networks, but stands for our mean here and for theirs there (up to half of
    a grey level): an error in the outermost pixels of ``conv1_1`` alone, and in what they reach.
    """
    values = dict(values)
    if layout.variant == "vgg16":
        weight, bias = (values[f"conv1_1_{kind}"].astype(np.float64) for kind in ("weight", "bias"))
        values["conv1_1_weight"] = weight / (255 * STD)[:, None, None]
        values["conv1_1_bias"] = bias + weight.sum(axis=(2, 3)) @ ((np.array(PIXEL_MEAN) / 255 - MEAN) / STD)
        return values
    mean, variance = (values.get(f"bn_data_moving_{kind}", np.full(3, start)).astype(np.float64)
                      for kind, start in (("mean", 0), ("var", 1 - EPS)))
    values["bn_data_moving_mean"] = 255 * (MEAN + STD * mean)
    values["bn_data_moving_var"] = (255 * STD) ** 2 * (variance + EPS) - EPS
    values.setdefault("bn_data_gamma", np.ones(3))
    values.setdefault("bn_data_beta", np.zeros(3))
    for name in [name for name in values if re.search(r"_conv\d_bias$", name)]:
        norm = name.replace("_conv", "_bn").replace("_bias", "_moving_mean")
        values[norm] = values[norm].astype(np.float64) - values.pop(name)
    return values


def describe(arrays: Arrays) -> str:
    """What a file of weights looks like, by its names."""
    layout = find_layout(arrays)
    if any(name.startswith(("head.block", "head.aspp", "auxlayer.", "backbone.")) for name in arrays):
        return "a segmentation network of GluonCV or torchvision"
    publisher = "Gluon's zoo" if any(name.endswith((".gamma", "output.weight")) for name in arrays) \
        else "torchvision or timm"
    if layout is not None and layout.variant == "vgg16":
        convolutions = sum(array.ndim == 4 for array in arrays.values())
        norms = "_bn" if any(name.endswith(".running_mean") for name in arrays) else ""
        return f"vgg{convolutions + 3}{norms} of {publisher}"
    names = arrays if layout is None else our_names(arrays, layout)
    units = {match[0] for match in (re.match(r"stage\d_unit\d+_", name) for name in names) if match}
    depth = 2 + len(units) * (3 if "stage1_unit1_conv3_weight" in names else 2)
    if layout is not None:
        return f"resnet{depth}_{layout.variant} of {publisher}"
    if units:
        return f"a ResNet-{depth} by the names of MXNet's symbol zoo"
    return "VGG16 by the names of MXNet's symbol zoo" if "conv1_1_weight" in names \
        else "no network known here"
