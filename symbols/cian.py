"""The segmentation network: DeepLab-LargeFOV, with self-affinity, or with cross-image affinity (CIAN)."""
from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Union

import mxnet as mx
from mxnet.gluon import HybridBlock

from cian.choices import AFFINITIES
from cian.errors import InputError

from .affinity import CrossImageAffinity
from .backbones import BACKBONES, TINY, build_backbone
from .layers import TapConvolution, chain

SUFFIX = "_largefov"
MODELS = tuple(name + SUFFIX for name in BACKBONES)


class CIAN(HybridBlock):
    """Cross-Image Affinity Net, its self-affinity baseline, and vanilla DeepLab-LargeFOV: one
    network with settings.

    Parameters
    ----------
    model : str
        ``<backbone>_largefov``, see ``MODELS``.
    num_classes : int
        Classes with the background, C below.
    affinity : 'none', 'self' or 'cross'
        Vanilla DeepLab, the paper's baseline, or CIAN.
    group_size, merge_type, merge_self, embed_channels
        See :class:`~cian.symbols.affinity.CrossImageAffinity`.
    backbone_options : mapping, optional
        Options of the backbone's class.
    shared : CIAN, optional
        A network whose layers are used in place of new ones (see :meth:`for_prediction`).

    Inputs: raw RGB (N, 3, H, W); with 'cross', N a multiple of the group size, all first partners
    before all second partners, ... Outputs: a list of logits (N, C, (H-1)//8+1, (W-1)//8+1): [self,
    cross] with 'cross', else one entry.

    Raises
    ------
    InputError
        For an unknown model or setting, and in the forward pass for a batch that does not split into groups.
    """

    def __init__(self, model: str = "resnet101_largefov", num_classes: int = 21, affinity: str = "cross",
                 group_size: int = 2, merge_type: str = "max", merge_self: bool = True,
                 embed_channels: int = 0, backbone_options: Optional[Mapping[str, Any]] = None,
                 shared: Optional[CIAN] = None) -> None:
        super().__init__(prefix="")
        if affinity not in AFFINITIES:
            raise InputError(f"there is no affinity {affinity!r}", field="affinity",
                             remedy=f"use one of: {', '.join(AFFINITIES)}")
        if model not in MODELS:
            raise InputError(f"there is no model {model!r}", field="model",
                             remedy=f"use one of: {', '.join(MODELS)}")
        if affinity == "cross" and group_size < 2:
            raise InputError(f"cross-image affinity needs groups of at least 2, not {group_size}",
                             field="group_size")
        if num_classes < 2:
            raise InputError(f"needs the background and at least one class, not {num_classes}",
                             field="num_classes")
        #: The arguments that build this network again; they belong into a model file's metadata.
        self.settings: Dict[str, Any] = {"model": model, "num_classes": num_classes, "affinity": affinity,
                                         "group_size": group_size, "merge_type": merge_type,
                                         "merge_self": merge_self, "embed_channels": embed_channels,
                                         "backbone_options": dict(backbone_options or {})}
        self._group_size = group_size if affinity == "cross" else 1
        if shared is None:
            self.backbone = build_backbone(model[:-len(SUFFIX)], **self.settings["backbone_options"])
            head = self.backbone.head
            self.head = TapConvolution(num_classes, self.backbone.out_channels, head["kernel"], head["name"]
                                       + "_", dilation=head["dilation"], use_bias=head["use_bias"])
        else:
            self.backbone, self.head = shared.backbone, shared.head
        self.affinity: Optional[CrossImageAffinity] = None
        if affinity != "none":
            self.affinity = CrossImageAffinity(self.backbone.out_channels, embed_channels, self._group_size,
                                               merge_type, merge_self,
                                               None if shared is None else shared.affinity)
        #: Prefixes of the layers that train at the multiplied learning rate.
        self.fast_layers = ("conv_embed_", "conv_out_", "bn_out_", self.backbone.head["name"] + "_")
        #: Prefixes of the layers that ImageNet weights do not hold, or hold in another shape.
        self.new_layers = (*self.fast_layers, *self.backbone.new_layers)

    def forward(self, x: Any, *args: Any) -> List[Any]:
        if isinstance(x, mx.nd.NDArray) and x.shape[0] % self._group_size:
            raise InputError(
                f"a batch of {x.shape[0]} images does not split into groups of {self._group_size}",
                field="batch_size", remedy=f"use a multiple of {self._group_size} on every device")
        return super().forward(x, *args)

    def hybrid_forward(self, F: Any, x: Any) -> List[Any]:
        return _branch_logits(F, self, self.backbone(x))

    def for_prediction(self) -> CIAN:
        """A network on the same parameters that returns [logits] of single images, by self-affinity
        (paper, "The Overall Loss").
        """
        return CIAN(**{**self.settings, "affinity": "none" if self.affinity is None else "self"}, shared=self)

    def visual(self, query: mx.nd.NDArray, reference: mx.nd.NDArray) -> Dict[str, mx.nd.NDArray]:
        """What Fig. 3 shows of a query and a reference image; batch norms use their moving statistics.

        Parameters
        ----------
        query, reference : (1, 3, H, W) and (1, 3, H', W')

        Returns
        -------
        dict
            ``affinity_self`` (h, w, Q) and ``affinity_cross`` (h', w', Q): the weight of each
            pooled reference pixel for each query pixel; ``raw``, ``residual_self``,
            ``residual_cross``, ``augmented_self``, ``augmented_cross``: logits (C, H, W) that the
            head gives for the feature, the residual and their sum.
        """
        if self.affinity is None:
            raise InputError("a network without affinity has no affinity maps", field="affinity",
                             remedy="use 'self' or 'cross'")
        feat, feat_reference = self.backbone(query), self.backbone(reference)
        found = self.affinity.compare(feat, feat_reference)
        maps = {"raw": self.head(feat)[0]}
        for branch, source in (("self", feat), ("cross", feat_reference)):
            height, width = ((side - 1) // 2 + 1 for side in source.shape[2:])
            maps[f"affinity_{branch}"] = found[f"affinity_{branch}"].reshape((height, width, -1))
            maps[f"residual_{branch}"] = self.head(found[f"residual_{branch}"])[0]
            maps[f"augmented_{branch}"] = self.head(feat + found[f"residual_{branch}"])[0]
        return maps


class Branches(HybridBlock):
    """What a :class:`CIAN` does behind its backbone, on the same parameters: features (N, C, H, W)
    to the network's list of logits. With ``cut``, what it does behind so many parts of the backbone.
    """

    def __init__(self, net: CIAN, cut: Optional[int] = None) -> None:
        super().__init__(prefix="")
        self.above = chain([] if cut is None else net.backbone.parts()[cut:])
        self.head, self.affinity = net.head, net.affinity

    def hybrid_forward(self, F: Any, feat: Any) -> List[Any]:
        return _branch_logits(F, self, self.above(feat))


def _branch_logits(F: Any, net: Union[CIAN, Branches], feat: Any) -> List[Any]:
    """Logits of the features alone, or of each branch's features with its residual (Eq. 4)."""
    if net.affinity is None:
        return [net.head(feat)]
    if net.affinity.reordered and net.affinity.foldable and net.head.reordered:
        return net.head(feat, net.affinity.hybrid_forward(F, feat, folded=True))
    return [net.head(feat + residual) for residual in net.affinity(feat)]


def build_model(name: str = "resnet101_largefov", *, tiny: bool = False, **settings: Any) -> CIAN:
    """:class:`CIAN` by model name; ``tiny`` gives a network of the same parameter names that a test
    can afford.
    """
    if tiny and name in MODELS:
        settings["backbone_options"] = {**TINY[name[:-len(SUFFIX)]], **settings.get("backbone_options", {})}
    return CIAN(name, **settings)
