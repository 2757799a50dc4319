"""Logits of one image at several scales, as the original code's test network gives them."""
from __future__ import annotations

from functools import reduce
from typing import Any, List, Sequence

from mxnet.gluon import HybridBlock

from cian.choices import check_scales


class MultiScale(HybridBlock):
    """A network's logits at several scales of its input, all at the size of the logits at scale 1.

    The graph takes any size. Scales that float32 does not hold exactly (0.7) may come out a pixel off
    ``int((side - 1) * scale) + 1`` where the product is a whole number.

    Parameters
    ----------
    net : HybridBlock
        Returns a list of one logits map; see :meth:`cian.symbols.CIAN.for_prediction`.
    scales : sequence of float
        1 first.
    add_max : bool
        Append the pixelwise maximum of the scales.
    mirror : bool
        Average each map with the mirrored image's.

    Inputs: images (N, 3, H, W). Outputs: a list of (N, C, (H-1)//8+1, (W-1)//8+1), a map a scale,
    then the maximum.
    """

    def __init__(self, net: HybridBlock, scales: Sequence[float] = (1.0, 0.75, 1.25), add_max: bool = True,
                 mirror: bool = False) -> None:
        super().__init__(prefix="")
        check_scales(scales)
        self.net = net
        self._scales, self._add_max, self._mirror = tuple(scales), add_max, mirror

    def hybrid_forward(self, F: Any, x: Any) -> List[Any]:
        maps = self._maps(F, x)
        if self._mirror:
            mirrored = self._maps(F, F.flip(x, axis=3))
            maps = [(plain + F.flip(other, axis=3)) / 2 for plain, other in zip(maps, mirrored)]
        return maps

    def _maps(self, F: Any, x: Any) -> List[Any]:
        maps = [self.net(x)[0]]
        for scale in self._scales[1:]:
            logits = self.net(self._resize(F, x, scale))[0]
            maps.append(F.contrib.BilinearResize2D(logits, maps[0], mode="like"))
        return maps + [reduce(F.maximum, maps)] if self._add_max else maps

    def _resize(self, F: Any, x: Any, scale: float) -> Any:
        """``x`` at ``scale``, corners aligned, sides of ``int((side - 1) * scale) + 1``."""
        # MXNet has no such size for even sides, so a map of that size is made: 2 (side - 1) is
        # even, for which 'odd_scale' truncates.
        plane = F.slice(x, begin=(0, 0, 1, 1), end=(1, 1, None, None))  # (1, 1, H-1, W-1)
        plane = F.concat(plane, plane, dim=2)
        plane = F.concat(plane, plane, dim=3)  # (1, 1, 2(H-1), 2(W-1))
        plane = F.contrib.BilinearResize2D(plane, scale_height=scale / 2, scale_width=scale / 2,
                                           mode="odd_scale")
        plane = F.pad(plane, mode="constant", pad_width=(0, 0, 0, 0, 0, 1, 0, 1))
        return F.contrib.BilinearResize2D(x, plane, mode="like")
