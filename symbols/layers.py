"""The shape alphabet of this package, and the few layers that differ from Gluon's own.

Shapes are written with these letters everywhere below ``symbols/``:

====  =================================================================
N     images of a batch
C     channels (of features), or classes (of logits) with background
H, W  rows and columns of a map
E     channels of the embedding (query, key and value)
Q     query pixels, ``H * W``
K     reference pixels after the 3x3/2 pooling
G     images of a group that share a class; ``N`` is a multiple of it
L     foreground classes
====  =================================================================

Images enter every network as raw RGB, float32, 0..255, (N, 3, H, W); each network normalises them itself.
"""
from __future__ import annotations

from typing import Any, Callable, List, Sequence

from mxnet.gluon import HybridBlock, Parameter, nn


class BatchNorm(HybridBlock):
    """Batch normalisation with the parameter names of MXNet's symbols: gamma, beta, moving_mean, moving_var.

    Gluon's own layer calls the last two ``running_*``, which would keep the files of the model zoo
    and of the original code from loading.

    Parameters
    ----------
    channels : int
    fix_gamma : bool
        Compute with a gamma of 1; the parameter keeps its value, as in the original's files.
    use_global_stats : bool
        Normalise with the moving statistics while training too, and never change them. Outside of
        training they are used always.
    eps, momentum : float
        ``moving = momentum * moving + (1 - momentum) * batch``, with the biased variance. MXNet
        does this in the backward pass.
    prefix : str
        Prefix of the four names, with the underscore.

    Inputs and outputs are (N, C, H, W).
    """

    def __init__(self, channels: int, prefix: str, *, fix_gamma: bool = False, use_global_stats: bool = False,
                 eps: float = 1e-5, momentum: float = 0.9) -> None:
        super().__init__(prefix=prefix)
        self._settings = {"fix_gamma": fix_gamma, "use_global_stats": use_global_stats, "eps": eps,
                          "momentum": momentum}
        shape = (channels,)
        self.gamma = self.params.get("gamma", shape=shape, init="ones")
        self.beta = self.params.get("beta", shape=shape, init="zeros")
        self.moving_mean = self.params.get("moving_mean", shape=shape, init="zeros", grad_req="null",
                                           differentiable=False)
        self.moving_var = self.params.get("moving_var", shape=shape, init="ones", grad_req="null",
                                          differentiable=False)

    def hybrid_forward(self, F: Any, x: Any, gamma: Any, beta: Any, moving_mean: Any, moving_var: Any) -> Any:
        if self._settings["fix_gamma"]:
            gamma = F.identity(gamma)  # MXNet writes 1 into the array that it is given
        return F.BatchNorm(x, gamma, beta, moving_mean, moving_var, name="fwd", **self._settings)


class Part(HybridBlock):
    """A step of a backbone as a block of its own, on the backbone's layers.

    Parameters
    ----------
    function : (F, x) to the result, a method of the backbone.
    layers : those that it calls.
    """

    def __init__(self, function: Callable[[Any, Any], Any], *layers: HybridBlock) -> None:
        super().__init__(prefix="")
        self._function = function
        for layer in layers:
            self.register_child(layer)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self._function(F, x)


class Backbone(HybridBlock):
    """A chain of :meth:`parts`: what can be cut between any two of them."""

    def parts(self) -> List[HybridBlock]:
        """The backbone's steps in order, blocks on its parameters."""
        raise NotImplementedError

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        for part in self.parts():
            x = part(x)
        return x  # (N, C, H, W)


def chain(parts: Sequence[HybridBlock]) -> nn.HybridSequential:
    """Some of a backbone's parts, one after the other."""
    chained = nn.HybridSequential(prefix="")
    chained.add(*parts)
    return chained


def _has_gradient(param: Parameter) -> bool:
    return param.grad_req != "null"


def constant_parts(backbone: Backbone, trains: Callable[[Parameter], bool] = _has_gradient) -> int:
    """Number of parts from the first on whose features of an image are the same in every step of a
    training: no parameter of theirs trains, none drops out, and batch norms do not follow the
    batch.
    """
    parts = backbone.parts()
    return next((number for number, part in enumerate(parts) if not _is_constant(part, trains)), len(parts))


def _is_constant(part: HybridBlock, trains: Callable[[Parameter], bool]) -> bool:
    changing: List[HybridBlock] = []

    def look(layer: HybridBlock) -> None:
        if isinstance(layer, nn.Dropout) or (isinstance(layer, BatchNorm)
                                             and not layer._settings["use_global_stats"]):
            changing.append(layer)

    part.apply(look)
    return not (changing or any(map(trains, part.collect_params().values())))


class DepthwiseConvolution(nn.Conv2D):
    """A convolution of each channel by itself, padded as :func:`convolution`.

    With ``blocked`` set it is computed as a grouped convolution of ``BLOCK`` channels a group whose
    weights are zero between channels: the same values (gradients up to rounding) from a graph that
    costs ``BLOCK`` times the arithmetic. MXNet 1.9's kernels for the gradients of dilated depthwise
    convolutions are so slow on CPUs that this takes a third of their time.
    """

    BLOCK = 16

    def __init__(self, channels: int, kernel: int, prefix: str, *, stride: int = 1,
                 dilation: int = 1) -> None:
        super().__init__(channels, kernel, strides=stride, padding=dilation * (kernel // 2),
                         dilation=dilation, groups=channels, use_bias=False, in_channels=channels,
                         prefix=prefix)
        self.blocked = False
        self.blockable = dilation > 1 and channels % self.BLOCK == 0  # where it is faster

    def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
        if not self.blocked:
            return super().hybrid_forward(F, x, weight)
        # (C, BLOCK): the channel's place in its group
        own = F.one_hot(F.contrib.arange_like(weight, axis=0) % self.BLOCK, self.BLOCK)
        # (C, 1, k, k) -> (C, BLOCK, k, k)
        weight = F.broadcast_mul(weight, F.reshape(own, shape=(0, 0, 1, 1)))
        return F.Convolution(x, weight, **{**self._kwargs, "num_group": self._channels // self.BLOCK})


def block_depthwise(net: HybridBlock) -> None:
    """Compute the dilated depthwise convolutions below ``net`` in blocks; for training on CPUs,
    before its first forward pass.
    """
    def set_blocked(layer: HybridBlock) -> None:
        if isinstance(layer, DepthwiseConvolution):
            layer.blocked = layer.blockable

    net.apply(set_blocked)


class TapConvolution(nn.Conv2D):
    """A convolution of stride 1 with few filters for many channels, padded as :func:`convolution`.

    With ``reordered`` set (:func:`reorder_sums`) it is computed as a 1x1 convolution to a map for
    every filter and place in the kernel, which are shifted and added: the same values up to
    rounding, in two fifths of the time on a CPU, where oneDNN's direct kernels for few filters are
    slow.

    Inputs: x (N, in_channels, H, W), and where it is reordered also a list of
    :data:`~cian.symbols.affinity.Folded` residuals. Outputs: (N, channels, H, W); with residuals the
    list of those of x + residual for each.
    """

    def __init__(self, channels: int, in_channels: int, kernel: int, prefix: str, *, dilation: int = 1,
                 use_bias: bool = False) -> None:
        super().__init__(channels, kernel, padding=dilation * (kernel // 2), dilation=dilation,
                         use_bias=use_bias, in_channels=in_channels, prefix=prefix)
        self.reordered = False

    def hybrid_forward(self, F: Any, x: Any, residuals: Sequence[Any] = (), *, weight: Any,
                       bias: Any = None) -> Any:
        if not residuals and (not self.reordered or self._kwargs["kernel"] == (1, 1)):
            return super().hybrid_forward(F, x, weight, bias)
        # row by row of the kernel
        weight = F.reshape(F.transpose(weight, axes=(2, 3, 0, 1)), shape=(-1, self._in_channels, 1, 1))
        taps = {"kernel": (1, 1), "num_filter": self._kwargs["kernel"][0] ** 2 * self._channels}
        maps = F.Convolution(x, weight, **taps, no_bias=True)
        if not residuals:
            return self._gathered(F, maps, bias)
        results = []
        for message, columns, slope, shift in residuals:
            folded = F.Convolution(columns, F.broadcast_mul(weight, slope), **taps, no_bias=True)
            folded = F.expand_dims(F.reshape(folded, shape=(-3, 0, 0)), axis=3)  # (maps, E, 1, 1)
            shift = F.reshape(F.Convolution(shift, weight, **taps, no_bias=True), shape=(-1,))
            results.append(self._gathered(F, maps + F.Convolution(message, folded, shift, **taps), bias))
        return results

    def _gathered(self, F: Any, maps: Any, bias: Any) -> Any:
        """The maps of all places in the kernel, shifted and added."""
        (kernel, _), (padding, _), (dilation, _) = (self._kwargs[key] for key in ("kernel", "pad", "dilate"))
        if kernel == 1:
            return maps if bias is None else F.broadcast_add(maps, F.reshape(bias, shape=(1, -1, 1, 1)))
        maps = F.pad(maps, mode="constant", pad_width=(0, 0, 0, 0, *4 * (padding,)))
        # None: to the end
        shifts = [(place * dilation, place * dilation - 2 * padding or None) for place in range(kernel)]
        places = [(rows, columns) for rows in shifts for columns in shifts]
        shifted = [F.slice(part, begin=(None, None, rows[0], columns[0]),
                           end=(None, None, rows[1], columns[1]))
                   for part, (rows, columns) in zip(F.split(maps, num_outputs=kernel ** 2, axis=1), places)]
        result = F.add_n(*shifted)
        return result if bias is None else F.broadcast_add(result, F.reshape(bias, shape=(1, -1, 1, 1)))


def reorder_sums(net: HybridBlock, reordered: bool = True) -> None:
    """Compute the layers below ``net`` that know a faster order of sums for CPUs
    (:class:`TapConvolution` and the affinity module) in that
    order, or as the paper and the original write them. Equal up to rounding; before the first
    forward pass of a graph."""
    def set_reordered(layer: HybridBlock) -> None:
        if hasattr(layer, "reordered"):
            layer.reordered = reordered

    net.apply(set_reordered)


def convolution(channels: int, in_channels: int, kernel: int, prefix: str, *, stride: int = 1,
                dilation: int = 1, use_bias: bool = False) -> nn.Conv2D:
    """A convolution of odd kernel padded by ``dilation * (kernel - 1) / 2``: an input of S pixels
    gives ``(S - 1) // stride + 1``.

    All its shapes are known at once, so that parameters can be checked against a file before any
    image was seen.
    """
    return nn.Conv2D(channels, kernel, strides=stride, padding=dilation * (kernel // 2), dilation=dilation,
                     use_bias=use_bias, in_channels=in_channels, prefix=prefix)
