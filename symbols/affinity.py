"""The cross-image affinity module (paper, "Cross-Image Affinity Module" and "Multiple Pairs").

With x_i a pixel's feature in the query image and x_j one in a reference image::

    k_ij = exp(phi_q(x_i) . phi_r(x_j))     Eq. 1   phi_q: conv_embed_q; phi_r: conv_embed_k, pooling
    m_ij = (k_ij / sum_j k_ij) phi_c(x_j)   Eq. 2   phi_c: conv_embed_v and pooling
    m_i  = sum_j m_ij                       Eq. 3   the message of one reference to a query pixel
    x^_i = x_i + phi_o(m_i)                 Eq. 4   phi_o: conv_out and bn_out
    m_i  = max_h m_i^(h)                    Eq. 5   over the references h and the image itself,
                                                    before phi_o

This module returns the residual phi_o(m_i).
The matrix of the normalised k_ij is ``affinity``, (N, K, Q): each column, a query pixel, sums to 1.
"""
from __future__ import annotations

from functools import partial, reduce
from typing import Any, Callable, Dict, List, Optional, Tuple

import mxnet as mx
from mxnet.gluon import HybridBlock

from cian.errors import InputError

from .layers import BatchNorm, convolution

# A residual (N, C, H, W) as what it comes from: the centred message (N, E, H, W), columns (1, C, E, 1), slope
# and shift (1, C, 1, 1): residual = slope * (sum over e of message_e * columns_e) + shift.
Folded = Tuple[Any, Any, Any, Any]

# Pixels of a batch, for each channel of the embedding, from which folding costs less than it saves
# (benchmarks/profile_step.py; the break-even of ResNet-50 is at about five).
FOLDING_PIXELS = 6

MERGES: Dict[str, Callable[[Any, List[Any]], Any]] = {
    "max": lambda F, messages: reduce(F.maximum, messages),
    "avg": lambda F, messages: sum(messages[1:], messages[0]) / len(messages),
}


class CrossImageAffinity(HybridBlock):
    """Residuals of self- and cross-image affinity over groups of images.

    With ``reordered`` set (:func:`~cian.symbols.layers.reorder_sums`) it computes each affinity
    transposed: MXNet's softmax is slow on CPUs unless it goes along the last axis.

    Parameters
    ----------
    channels : int
        Channels of the features, and of the residuals.
    embed_channels : int
        Channels of query, key and value; 0 is half of ``channels`` (paper, "CIAN Module").
    group_size : int
        G. 1 is self-affinity alone. A batch holds all first partners, then all second partners,
        ...: image i refers to i + N/G, i + 2N/G, ... modulo N, and is itself a reference of the
        others.
    merge_type : 'max' or 'avg'
    merge_self : bool
        The message of the image to itself takes part in the merge.
    shared : CrossImageAffinity, optional
        A module whose layers are used in place of new ones.

    Inputs: features (N, C, H, W), N a multiple of G. Outputs: a list, [self residual] for G = 1,
    else [self residual, cross residual], each (N, C, H, W), or with ``folded`` what ``Folded`` says.
    """

    def __init__(self, channels: int, embed_channels: int = 0, group_size: int = 2, merge_type: str = "max",
                 merge_self: bool = True, shared: Optional[CrossImageAffinity] = None) -> None:
        super().__init__(prefix="")
        if merge_type not in MERGES:
            raise InputError(f"there is no merge {merge_type!r}", field="merge_type",
                             remedy=f"use one of: {', '.join(MERGES)}")
        if group_size < 1:
            raise InputError(f"a group needs at least 1 image, not {group_size}", field="group_size")
        embed_channels = embed_channels or channels // 2
        self.group_size, self.merge_self = group_size, merge_self
        self.reordered = False
        self.foldable = True  # whether a network may take folded residuals
        self._merge = MERGES[merge_type]
        if shared is None:
            self.query = convolution(embed_channels, channels, 1, "conv_embed_q_")
            self.key = convolution(embed_channels, channels, 1, "conv_embed_k_")
            self.value = convolution(embed_channels, channels, 1, "conv_embed_v_")
            self.out = convolution(channels, embed_channels, 1, "conv_out_")
            self.norm = BatchNorm(channels, "bn_out_")
        else:
            self.query, self.key, self.value, self.out, self.norm = (shared.query, shared.key, shared.value,
                                                                     shared.out, shared.norm)

    def hybrid_forward(self, F: Any, feat: Any, folded: bool = False) -> List[Any]:
        residual = partial(self._folded, F) if folded else lambda message: self.norm(self.out(message))
        query, key, value, like = self._embed(F, feat)
        message_self = self._message(F, query, key, value, like)
        residual_self = residual(message_self)
        if self.group_size == 1:
            return [residual_self]
        # Split once, as in the original: with three or more images the sums of gradients are
        # rounded in the same order.
        keys, values = (list(F.split(x, num_outputs=self.group_size, axis=0)) for x in (key, value))
        messages = []
        for shift in range(1, self.group_size):
            messages.append(self._message(F, query, self._rolled(F, keys, shift),
                                          self._rolled(F, values, shift), like))
        if self.merge_self:
            messages.append(message_self)
        return [residual_self, residual(self._merge(F, messages))]

    def _folded(self, F: Any, message: Any) -> Folded:
        """phi_o(message) without its map of C channels: out and norm are linear in the message once
        the norm has its statistics, which follow from the message's own mean and covariance.
        """
        width = self.out._in_channels
        unit = F.reshape(F.one_hot(F.arange(width), depth=width), shape=(1, width, width, 1))
        columns = self.out(unit)  # (1, C, E, 1)
        matrix = F.reshape(columns, shape=(-1, width))
        flat = F.reshape(message, shape=(0, 0, -1))  # (N, E, Q)
        mean = F.mean(F.mean(flat, axis=2), axis=0, keepdims=True)  # (1, E)
        fixed = F.BlockGrad(mean)
        # The sum of what is centred is 0, and so is what the mean's gradient would add to its square.
        centred = flat - F.broadcast_like(F.expand_dims(fixed, axis=2), flat)
        pixels = F.sum(F.ones_like(F.slice_axis(flat, axis=1, begin=0, end=1)))
        covariance = F.broadcast_div(F.sum(F.batch_dot(centred, centred, transpose_b=True), axis=0), pixels)
        variance = F.reshape(F.sum(F.dot(matrix, covariance) * matrix, axis=1), shape=(1, -1))  # (1, C)
        std = F.sqrt(F.maximum(variance, 1e-12))
        # Two pixels of the map's mean and variance: what the norm makes of them is its line.
        middle = F.dot(mean, matrix, transpose_b=True)
        points = F.concat(middle + std, middle - std, dim=0)
        above, below = F.split(F.reshape(self.norm(F.reshape(points, shape=(2, -1, 1, 1))), shape=(2, -1)),
                               num_outputs=2, axis=0)
        upper, lower = F.split(points, num_outputs=2, axis=0)
        slope = (above - below) / F.maximum(upper - lower, 1e-12)  # 2 std as it was rounded
        # what the mean adds to the centred map is 0, its gradient is not
        shift = (above + below) / 2 - slope * F.dot(mean - fixed, matrix, transpose_b=True)
        return (F.reshape_like(centred, message), columns, F.reshape(slope, shape=(1, -1, 1, 1)),
                F.reshape(shift, shape=(1, -1, 1, 1)))

    def choose_folding(self, pixels: int) -> None:
        """Fold residuals where it is faster for a batch of so many pixels of features; before the
        first forward pass of a graph.
        """
        self.foldable = pixels >= FOLDING_PIXELS * self.out._in_channels

    def compare(self, feat_query: mx.nd.NDArray, feat_reference: mx.nd.NDArray) -> Dict[str, mx.nd.NDArray]:
        """What one query takes from itself and from one reference, for pictures (Fig. 3); runs imperatively.

        Parameters
        ----------
        feat_query, feat_reference : (1, C, H, W) and (1, C, H', W')

        Returns
        -------
        dict
            ``affinity_self`` (K, Q) and ``affinity_cross`` (K', Q), normalised over their rows;
            ``residual_self`` and ``residual_cross`` (1, C, H, W), the latter with the merge of the
            training network.
        """
        query, key, value, like = self._embed(mx.nd, feat_query)
        _, key_reference, value_reference, _ = self._embed(mx.nd, feat_reference)
        affinity_self = self._affinity(mx.nd, query, key)
        affinity_cross = self._affinity(mx.nd, query, key_reference)
        message_self = self._gathered(mx.nd, affinity_self, value, like)
        messages = [self._gathered(mx.nd, affinity_cross, value_reference,
                                   like)] + ([message_self] if self.merge_self else [])
        return {"affinity_self": affinity_self[0], "affinity_cross": affinity_cross[0],
                "residual_self": self.norm(self.out(message_self)),
                "residual_cross": self.norm(self.out(self._merge(mx.nd, messages)))}

    def _embed(self, F: Any, feat: Any) -> Tuple[Any, Any, Any, Any]:
        """Query (N, E, Q); key and value, pooled to ((H-1)//2+1, (W-1)//2+1), (N, E, K); and the
        query as a map, (N, E, H, W).
        """
        pooling = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "pool_type": "max"}
        maps = self.query(feat), F.Pooling(self.key(feat), **pooling), F.Pooling(self.value(feat), **pooling)
        query, key, value = (F.reshape(x, shape=(0, 0, -1)) for x in maps)
        return query, key, value, maps[0]

    def _message(self, F: Any, query: Any, key: Any, value: Any, like: Any) -> Any:
        """Eq. 1 to 3, in the shape of ``like``: (N, E, H, W)."""
        if self.reordered:
            affinity = F.softmax(F.batch_dot(query, key, transpose_a=True), axis=2)  # (N, Q, K)
            return F.reshape_like(F.batch_dot(value, affinity, transpose_b=True), like)
        return self._gathered(F, self._affinity(F, query, key), value, like)

    @staticmethod
    def _affinity(F: Any, query: Any, key: Any) -> Any:
        """Eq. 1 and the normalisation of Eq. 2: (N, K, Q)."""
        return F.softmax(F.batch_dot(key, query, transpose_a=True), axis=1)

    @staticmethod
    def _gathered(F: Any, affinity: Any, value: Any, like: Any) -> Any:
        """Eq. 2 and 3 from an affinity (N, K, Q), in the shape of ``like``: (N, E, H, W)."""
        return F.reshape_like(F.batch_dot(value, affinity), like)

    @staticmethod
    def _rolled(F: Any, parts: List[Any], shift: int) -> Any:
        """The partners ``shift`` places on: row i of the result is row i + shift * N / G, modulo N."""
        return F.concat(*parts[shift:], *parts[:shift], dim=0)
