"""VGG16 as DeepLab-LargeFOV uses it, at output stride 8.

Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015; Chen et al., "DeepLab", TPAMI
2018: the last two poolings at stride 1, dilation 2 in conv5, ``fc6`` a 3x3 convolution of dilation
12. Layers and names as the original code's and the model zoo's.
"""
from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any, Dict, List, Sequence, Tuple

from mxnet.gluon import HybridBlock, nn

from cian.choices import PIXEL_MEAN
from cian.errors import InputError

from .layers import Backbone, Part, convolution

# Of each of the five blocks: convolutions, their dilation, the stride of the 3x3 pooling after them.
BLOCKS: Tuple[Tuple[int, int, int], ...] = ((2, 1, 2), (2, 1, 2), (3, 1, 2), (3, 1, 1), (3, 2, 1))


class VGG16(Backbone):
    """Features of VGG16: (N, 3, H, W) raw RGB to (N, out_channels, (H-1)//8+1, (W-1)//8+1), or
    (N, out_channels, H//32, W//32) at output stride 32.

    Parameters
    ----------
    top : bool
        End with DeepLab's average pooling, ``fc6`` and ``fc7`` (each with dropout 0.5); without it,
        end with the last pooling, as the paper's CAM classifier does ("Initial Seeds").
    widths : channels of the five blocks
    top_channels : channels of fc6 and fc7
    output_stride : 8, or 32 for the classification network's own: five 2x2 poolings, no dilation
    """

    head: Dict[str, Any] = {"name": "fc8", "kernel": 1, "dilation": 1, "use_bias": True}
    new_layers = ("fc6_", "fc7_", "fc8_")

    def __init__(self, *, top: bool = True, widths: Sequence[int] = (64, 128, 256, 512, 512),
                 top_channels: int = 1024, output_stride: int = 8) -> None:
        super().__init__(prefix="")
        if output_stride not in (8, 32):
            raise InputError(f"there is no VGG16 of output_stride {output_stride}", field="output_stride",
                             remedy="use one of: 8, 32")
        self._dilated = output_stride == 8
        if len(widths) != len(BLOCKS):
            raise InputError(f"needs {len(BLOCKS)} widths, not {len(widths)}", field="widths")
        self.out_channels = top_channels if top else widths[-1]
        self.convolutions = nn.HybridSequential(prefix="")
        channels = 3
        for block, (count, dilation, _) in enumerate(BLOCKS):
            dilation = dilation if self._dilated else 1
            for i in range(count):
                name = f"conv{block + 1}_{i + 1}_"
                self.convolutions.add(convolution(widths[block], channels, 3, name, dilation=dilation,
                                                  use_bias=True))
                channels = widths[block]
        self.top = nn.HybridSequential(prefix="") if top else None
        if self.top is not None:
            self.top.add(nn.AvgPool2D(3, 1, 1), convolution(top_channels, channels, 3, "fc6_", dilation=12,
                                                            use_bias=True), nn.Activation("relu"),
                         nn.Dropout(0.5), convolution(top_channels, top_channels, 1, "fc7_", use_bias=True),
                         nn.Activation("relu"), nn.Dropout(0.5))

    def parts(self) -> List[HybridBlock]:
        """The centred pixels, each convolution and each pooling, and the layers of the top."""
        parts, convolutions = [Part(self._centred)], iter(self.convolutions)
        for count, _, stride in BLOCKS:
            parts += [Part(partial(self._convolved, layer), layer) for layer in islice(convolutions, count)]
            parts.append(Part(partial(self._pooled, *((3, stride, 1) if self._dilated else (2, 2, 0)))))
        return [*parts, *(self.top or ())]

    @staticmethod
    def _centred(F: Any, x: Any) -> Any:
        planes = F.split(x, num_outputs=3, axis=1)
        return F.concat(*[plane - mean for plane, mean in zip(planes, PIXEL_MEAN)], dim=1)

    @staticmethod
    def _convolved(layer: HybridBlock, F: Any, x: Any) -> Any:
        return F.Activation(layer(x), act_type="relu")

    @staticmethod
    def _pooled(kernel: int, stride: int, pad: int, F: Any, x: Any) -> Any:
        return F.Pooling(x, kernel=(kernel, kernel), stride=(stride, stride), pad=(pad, pad),
                         pool_type="max")
