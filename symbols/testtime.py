"""The network as a program outside of this project runs it: images in, logits or probabilities out,
in one graph.
"""
from __future__ import annotations

from typing import Any, Sequence

from mxnet.gluon import HybridBlock

from cian.errors import InputError

from .multiscale import MultiScale

OUTPUTS = ("logits", "probabilities")
RESOLUTIONS = ("input", "stride8")


class TestTimeNetwork(HybridBlock):
    """Logits or probabilities of the test procedure as one graph that takes images of any size.

    Parameters
    ----------
    net : HybridBlock
        Returns a list of one logits map; see :meth:`cian.symbols.CIAN.for_prediction`.
    scales, add_max, mirror : see :class:`~cian.symbols.MultiScale`
        The mean is taken over all maps. The defaults are one pass over the image.
    resolution : 'input' or 'stride8'
        Enlarge the mean to the size of the images, bilinearly with aligned corners, or leave it as
        the network gives it.
    output : 'logits' or 'probabilities'
        The latter are the softmax over the classes, after the enlarging.

    Inputs: raw RGB (N, 3, H, W). Outputs: (N, C, H, W), or (N, C, (H-1)//8+1, (W-1)//8+1) with 'stride8'.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, net: HybridBlock, scales: Sequence[float] = (1.0,), add_max: bool = False,
                 mirror: bool = False, resolution: str = "input", output: str = "logits") -> None:
        super().__init__(prefix="")
        for field, value, allowed in (("resolution", resolution, RESOLUTIONS), ("output", output, OUTPUTS)):
            if value not in allowed:
                raise InputError(f"{value!r} is not allowed", field=field,
                                 remedy=f"use one of: {', '.join(allowed)}")
        self.maps = MultiScale(net, scales, add_max and len(scales) > 1, mirror)
        self._enlarge, self._output = resolution == "input", output

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        maps = self.maps(x)
        result = F.add_n(*maps) / len(maps) if len(maps) > 1 else maps[0]
        if self._enlarge:
            result = F.contrib.BilinearResize2D(result, x, mode="like")  # (N, C, H, W)
        if self._output == "probabilities":
            result = F.softmax(result, axis=1)
        return F.identity(result, name=self._output)
