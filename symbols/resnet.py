"""Pre-activation ResNet at output stride 8, with the parameter names of MXNet's model zoo.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; dilated as the released CIAN
code does: strides (1, 2, 1, 1) and dilations (1, 1, 2, 4), both from the first unit of each stage
on.
"""
from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from mxnet.gluon import HybridBlock, nn

from cian.errors import InputError

from .layers import Backbone, BatchNorm, Part, convolution

# depth: (units of the four stages, channels of the stem and of the four stages, whether units are
# bottlenecks)
DEPTHS: Dict[int, Tuple[Tuple[int, ...], Tuple[int, ...], bool]] = {
    18: ((2, 2, 2, 2), (64, 64, 128, 256, 512), False),
    34: ((3, 4, 6, 3), (64, 64, 128, 256, 512), False),
    50: ((3, 4, 6, 3), (64, 256, 512, 1024, 2048), True),
    101: ((3, 4, 23, 3), (64, 256, 512, 1024, 2048), True),
}
STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)


class ResidualUnit(HybridBlock):
    """``x + branch(relu(bn1(x)))``; a projected unit takes its shortcut after the activation:
    ``sc(relu(bn1(x)))``.

    Inputs (N, in_channels, H, W), outputs (N, channels, (H-1)//stride+1, (W-1)//stride+1). The
    stride is in the 3x3 convolution; the second 3x3 of a basic (not bottleneck) unit is not
    dilated, as in the original code.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, bottleneck: bool,
                 projected: bool, use_global_stats: bool, prefix: str) -> None:
        super().__init__(prefix=prefix)
        inner = channels // 4 if bottleneck else channels
        # (input channels, output channels, kernel, stride, dilation) of each convolution of the branch
        table = [(in_channels, inner, 1, 1, 1), (inner, inner, 3, stride, dilation),
                 (inner, channels, 1, 1, 1)] if bottleneck else [(in_channels, channels, 3, stride, dilation),
                                                                 (channels, channels, 3, 1, 1)]
        with self.name_scope():
            self.norms = nn.HybridSequential(prefix="")
            self.convolutions = nn.HybridSequential(prefix="")
            for i, (c_in, c_out, kernel, step, rate) in enumerate(table, 1):
                self.norms.add(BatchNorm(c_in, f"bn{i}_", use_global_stats=use_global_stats))
                self.convolutions.add(convolution(c_out, c_in, kernel, f"conv{i}_", stride=step,
                                                  dilation=rate))
            self.shortcut = convolution(channels, in_channels, 1, "sc_", stride=stride) if projected else None

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        shortcut = x
        branch = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convolutions)):
            branch = F.Activation(norm(branch), act_type="relu")
            if i == 0 and self.shortcut is not None:
                shortcut = self.shortcut(branch)
            branch = conv(branch)
        return branch + shortcut


class ResNet(Backbone):
    """Features of a pre-activation ResNet: (N, 3, H, W) raw RGB to (N, out_channels, (H-1)//8+1, (W-1)//8+1).

    The input is normalised by ``bn_data``, whose statistics come with the weights.

    Parameters
    ----------
    depth : 18, 34, 50 or 101
    units, widths : optional
        Other numbers of units (4) and of channels (stem, 4 stages) under the same names; tests use tiny ones.
    use_global_stats : bool
        Batch norms always use their moving statistics (the original code, and what small batches need).

    Raises
    ------
    InputError
        When there is no such depth, or the tables do not fit.
    """

    head: Dict[str, Any] = {"name": "fc1", "kernel": 3, "dilation": 12, "use_bias": False}
    new_layers = ("fc1_",)

    def __init__(self, depth: int = 101, *, units: Optional[Sequence[int]] = None,
                 widths: Optional[Sequence[int]] = None, use_global_stats: bool = True) -> None:
        super().__init__(prefix="")
        if depth not in DEPTHS:
            raise InputError(f"there is no ResNet-{depth}", field="depth",
                             remedy=f"use one of: {', '.join(map(str, DEPTHS))}")
        units, widths, bottleneck = units or DEPTHS[depth][0], widths or DEPTHS[depth][1], DEPTHS[depth][2]
        if len(units) != 4 or len(widths) != 5:
            raise InputError(f"needs 4 stages and 5 widths, not {len(units)} and {len(widths)}",
                             field="units, widths")
        self.out_channels = widths[-1]
        self.bn_data = BatchNorm(3, "bn_data_", fix_gamma=True, use_global_stats=use_global_stats)
        self.conv0 = convolution(widths[0], 3, 7, "conv0_", stride=2)
        self.bn0 = BatchNorm(widths[0], "bn0_", use_global_stats=use_global_stats)
        self.stages = nn.HybridSequential(prefix="")
        for stage, count in enumerate(units):
            c_in, c_out = widths[stage], widths[stage + 1]
            for unit in range(count):
                first = unit == 0
                self.stages.add(ResidualUnit(c_in if first else c_out, c_out, STRIDES[stage] if first else 1,
                                             DILATIONS[stage], bottleneck, first, use_global_stats,
                                             f"stage{stage + 1}_unit{unit + 1}_"))
        self.bn1 = BatchNorm(widths[-1], "bn1_", use_global_stats=use_global_stats)

    @property
    def branch_ends(self) -> Tuple[str, ...]:
        """Names of the weights that end a residual branch; random initialisation scales them down."""
        return tuple(unit.convolutions[-1].weight.name for unit in self.stages)

    def parts(self) -> List[HybridBlock]:
        """The stem, the residual units, and the last activation."""
        return [Part(self._stem, self.bn_data, self.conv0, self.bn0), *self.stages, Part(self._end, self.bn1)]

    def _stem(self, F: Any, x: Any) -> Any:
        x = F.Activation(self.bn0(self.conv0(self.bn_data(x))), act_type="relu")
        return F.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")

    def _end(self, F: Any, x: Any) -> Any:
        return F.Activation(self.bn1(x), act_type="relu")
