"""The classifier whose class activation maps become seeds (paper, "Initial Seeds"; Zhou et al.,
CVPR 2016).
"""
from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from mxnet.gluon import HybridBlock

from cian.errors import InputError

from .backbones import build_backbone
from .layers import chain, convolution

# What a classifier changes of its backbone: VGG16 ends with its convolutions.
CLASSIFIER_OPTIONS: Dict[str, Dict[str, Any]] = {"vgg16": {"top": False}}


class CAMClassifier(HybridBlock):
    """Global average pooling of a stride-8 backbone and one linear layer without bias, so that the
    mean of a class's map is its logit.

    Parameters
    ----------
    backbone : str
        Name in ``BACKBONES``.
    num_foreground : int
        L, classes without the background.
    backbone_options : mapping, optional
        Options of the backbone's class.

    Inputs: raw RGB (N, 3, H, W). Outputs: logits (N, L), for a sigmoid each.
    """

    fast_layers = ("fc_cam_",)

    def __init__(self, backbone: str = "vgg16", num_foreground: int = 20,
                 backbone_options: Optional[Mapping[str, Any]] = None) -> None:
        super().__init__(prefix="")
        if num_foreground < 1:
            raise InputError(f"needs at least one class, not {num_foreground}", field="num_foreground")
        #: The arguments that build this network again; they belong into a model file's metadata.
        self.settings: Dict[str, Any] = {"backbone": backbone, "num_foreground": num_foreground,
                                         "backbone_options": dict(backbone_options or {})}
        self.backbone = build_backbone(backbone, **{**CLASSIFIER_OPTIONS.get(backbone, {}),
                                                    **self.settings["backbone_options"]})
        self.classifier = convolution(num_foreground, self.backbone.out_channels, 1, "fc_cam_")
        #: Prefixes of the layers that ImageNet weights do not hold, or that only they hold.
        self.new_layers = (*self.fast_layers, *self.backbone.new_layers)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.flatten(self.classifier(F.mean(self.backbone(x), axis=(2, 3), keepdims=True)))

    def maps(self) -> HybridBlock:
        """The network of raw class activation maps (N, L, (H-1)//8+1, (W-1)//8+1) of images (N, 3,
        H, W), neither rectified nor normalised, on the same parameters.
        """
        return chain([self.backbone, self.classifier])
