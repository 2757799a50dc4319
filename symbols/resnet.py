"""ResNets at output stride 8: the pre-activation one of the paper's code, and the published variants
whose ImageNet weights are at hand.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, dilated as the released CIAN
code does: strides (1, 2, 1, 1) and dilations (1, 1, 2, 4), both from the first unit of each stage
on; names of MXNet's symbol zoo. He et al., "Deep Residual Learning", CVPR 2016: v1 and v1b.
"""
from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

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
# output stride: strides and dilations of the four stages; 32 is the classification network's own
STRIDES: Dict[int, Tuple[Tuple[int, ...], Tuple[int, ...]]] = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)), 32: ((1, 2, 2, 2), (1, 1, 1, 1))}


class Variant(NamedTuple):
    """What the published ResNets differ in."""

    preactivated: bool  # norm and ReLU before each convolution, not after it
    strided: int  # the convolution of a bottleneck that has the stride
    all_projected: bool  # the first unit of every stage projects its shortcut, also where it fits as it is
    first_dilated: bool  # the 3x3 of a stage's first unit has the stage's dilation, not the one before's


# The symbol zoo's and the paper's; Gluon's v2 (of depth 50 and 101 the same network); v1, whose
# strided 1x1 leaves the first unit's 3x3 at the stage's own dilation; v1b, as GluonCV dilates it.
VARIANTS: Dict[str, Variant] = {
    "zoo": Variant(True, 2, True, True),
    "v2": Variant(True, 2, False, True),
    "v1": Variant(False, 1, False, True),
    "v1b": Variant(False, 2, False, False),
}


class ResidualUnit(HybridBlock):
    """Pre-activated: ``x + branch(relu(bn1(x)))``, where a projected unit takes its shortcut after
    the activation: ``sc(relu(bn1(x)))``. Else ``relu(x + branch(x))``, or ``relu(sc_bn(sc(x)) + branch(x))``.

    Inputs (N, in_channels, H, W), outputs (N, channels, (H-1)//stride+1, (W-1)//stride+1). The
    second 3x3 of a basic (not bottleneck) unit is not dilated, as in the original code.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int, bottleneck: bool,
                 projected: bool, use_global_stats: bool, prefix: str,
                 variant: Variant = VARIANTS["zoo"]) -> None:
        super().__init__(prefix=prefix)
        inner = channels // 4 if bottleneck else channels
        strides = (stride, 1) if variant.strided == 1 else (1, stride)
        # (input channels, output channels, kernel, stride, dilation) of each convolution of the branch
        table = [(in_channels, inner, 1, strides[0], 1), (inner, inner, 3, strides[1], dilation),
                 (inner, channels, 1, 1, 1)] if bottleneck else [(in_channels, channels, 3, stride, dilation),
                                                                 (channels, channels, 3, 1, 1)]
        self._preactivated = variant.preactivated
        with self.name_scope():
            self.norms = nn.HybridSequential(prefix="")
            self.convolutions = nn.HybridSequential(prefix="")
            for i, (c_in, c_out, kernel, step, rate) in enumerate(table, 1):
                self.norms.add(BatchNorm(c_in if variant.preactivated else c_out, f"bn{i}_",
                                         use_global_stats=use_global_stats))
                self.convolutions.add(convolution(c_out, c_in, kernel, f"conv{i}_", stride=step,
                                                  dilation=rate))
            self.shortcut = convolution(channels, in_channels, 1, "sc_", stride=stride) if projected else None
            self.shortcut_norm: Any = BatchNorm(channels, "sc_bn_", use_global_stats=use_global_stats) \
                if projected and not variant.preactivated else None

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        shortcut = branch = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convolutions)):
            if self._preactivated:
                branch = F.Activation(norm(branch), act_type="relu")
                if i == 0 and self.shortcut is not None:
                    shortcut = self.shortcut(branch)
                branch = conv(branch)
            else:
                branch = norm(conv(branch if i == 0 else F.Activation(branch, act_type="relu")))
        if self._preactivated:
            return branch + shortcut
        if self.shortcut is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        return F.Activation(branch + shortcut, act_type="relu")


class ResNet(Backbone):
    """Features of a ResNet: (N, 3, H, W) raw RGB to (N, out_channels, (H-1)//s+1, (W-1)//s+1) at output
    stride s.

    The input is normalised by ``bn_data``, whose statistics come with the weights.

    Parameters
    ----------
    depth : 18, 34, 50 or 101
    variant : of ``VARIANTS``
    units, widths : optional
        Other numbers of units (4) and of channels (stem, 4 stages) under the same names; tests use tiny ones.
    use_global_stats : bool
        Batch norms always use their moving statistics (the original code, and what small batches need).
    output_stride : 8, or 32 for the classification network's own

    Raises
    ------
    InputError
        When there is no such depth, variant or stride, or the tables do not fit.
    """

    head: Dict[str, Any] = {"name": "fc1", "kernel": 3, "dilation": 12, "use_bias": False}
    new_layers = ("fc1_",)

    def __init__(self, depth: int = 101, variant: str = "zoo", *, units: Optional[Sequence[int]] = None,
                 widths: Optional[Sequence[int]] = None, use_global_stats: bool = True,
                 output_stride: int = 8) -> None:
        super().__init__(prefix="")
        for field, value, known in (("depth", depth, DEPTHS), ("variant", variant, VARIANTS),
                                    ("output_stride", output_stride, STRIDES)):
            if value not in known:
                raise InputError(f"there is no ResNet of {field} {value}", field=field,
                                 remedy=f"use one of: {', '.join(map(str, known))}")
        units, widths, bottleneck = units or DEPTHS[depth][0], widths or DEPTHS[depth][1], DEPTHS[depth][2]
        if len(units) != 4 or len(widths) != 5:
            raise InputError(f"needs 4 stages and 5 widths, not {len(units)} and {len(widths)}",
                             field="units, widths")
        self.out_channels = widths[-1]
        self.bn_data = BatchNorm(3, "bn_data_", fix_gamma=True, use_global_stats=use_global_stats)
        self.conv0 = convolution(widths[0], 3, 7, "conv0_", stride=2)
        self.bn0 = BatchNorm(widths[0], "bn0_", use_global_stats=use_global_stats)
        self.stages = nn.HybridSequential(prefix="")
        kind, (strides, dilations) = VARIANTS[variant], STRIDES[output_stride]
        for stage, count in enumerate(units):
            c_in, c_out = widths[stage], widths[stage + 1]
            for unit in range(count):
                first = unit == 0
                stride = strides[stage] if first else 1
                self.stages.add(ResidualUnit(
                    c_in if first else c_out, c_out, stride,
                    dilations[stage if kind.first_dilated or not first else max(stage - 1, 0)], bottleneck,
                    first and (kind.all_projected or stride > 1 or c_in != c_out), use_global_stats,
                    f"stage{stage + 1}_unit{unit + 1}_", kind))
        self.bn1: Any = BatchNorm(widths[-1], "bn1_", use_global_stats=use_global_stats) \
            if kind.preactivated else None

    @property
    def branch_ends(self) -> Tuple[str, ...]:
        """Names of the weights that end a residual branch; random initialisation scales them down."""
        return tuple(unit.convolutions[-1].weight.name for unit in self.stages)

    def parts(self) -> List[HybridBlock]:
        """The stem, the residual units, and the last activation where units do not end in it."""
        end = [] if self.bn1 is None else [Part(self._end, self.bn1)]
        return [Part(self._stem, self.bn_data, self.conv0, self.bn0), *self.stages, *end]

    def _stem(self, F: Any, x: Any) -> Any:
        x = F.Activation(self.bn0(self.conv0(self.bn_data(x))), act_type="relu")
        return F.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")

    def _end(self, F: Any, x: Any) -> Any:
        return F.Activation(self.bn1(x), act_type="relu")
