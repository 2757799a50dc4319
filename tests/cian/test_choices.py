"""Every allowed value has code that does it."""
from cian import choices
from cian.data.transforms import PADDED
from cian.symbols.affinity import MERGES
from cian.symbols.backbones import BACKBONES


def test_what_is_allowed_is_what_can_be_done():
    assert tuple(MERGES) == choices.MERGES and tuple(PADDED) == choices.LABEL_PADDINGS
    assert tuple(BACKBONES) == choices.BACKBONES
