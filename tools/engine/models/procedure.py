"""What an exported file does with an image, as its metadata records it."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Dict, Mapping, Tuple

if TYPE_CHECKING:
    from mxnet.gluon import HybridBlock

    from cian.symbols.testtime import TestTimeNetwork


@dataclass(frozen=True)
class Procedure:
    """What an exported file computes of an image.

    Attributes
    ----------
    scales, add_max, mirror : see :class:`~cian.symbols.MultiScale`; the mean over them is inside the file.
    resolution : 'input' or 'stride8'.
    output : 'logits' or 'probabilities'.
    size_px : side of the square that the file is fixed to; 0 is any size.
    """

    scales: Tuple[float, ...] = (1.0,)
    add_max: bool = False
    mirror: bool = False
    resolution: str = "input"
    output: str = "logits"
    size_px: int = 0

    @classmethod
    def recorded(cls, export: Mapping[str, Any]) -> Procedure:
        """The procedure that a file's metadata records; what is absent or of a wrong type is as the
        defaults.
        """
        kept: Dict[str, Any] = {key.name: export[key.name]
                                for key in fields(cls) if type(export.get(key.name)) is type(key.default)}
        scales = export.get("scales")
        if isinstance(scales, list) and all(isinstance(scale, (int, float)) for scale in scales):
            kept["scales"] = tuple(scales)
        return cls(**kept)

    def network(self, net: HybridBlock) -> TestTimeNetwork:
        """The live network that does this, sharing the parameters of ``net``, which returns [logits]."""
        from cian.symbols.testtime import TestTimeNetwork
        return TestTimeNetwork(net, self.scales, self.add_max, self.mirror, self.resolution, self.output)
