"""How sharp an affinity is, and whether it finds the query's class in another image."""
from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import mxnet as mx
import numpy as np

from cian.data.classes import IGNORE
from cian.symbols.cian import CIAN

QUERY_STRIDE, REFERENCE_STRIDE = 8, 16


def effective_share(affinity: np.ndarray) -> float:
    """Of an affinity (K, Q) that sums to 1 over K: the mean over queries of exp(entropy) / K."""
    entropy = -(affinity * np.log(np.maximum(affinity, np.finfo(np.float32).tiny))).sum(axis=0)
    return float(np.exp(entropy).mean() / len(affinity))


def class_gain(affinity: np.ndarray, query: np.ndarray, reference: np.ndarray) -> Optional[float]:
    """How many times as much weight as by chance the queries of an object give to their own class.

    Parameters
    ----------
    affinity : (K, Q), sums to 1 over K.
    query, reference : (Q,) and (K,) class indices; background, ignored pixels, and classes that the
        reference has not take no part.

    Returns None where no query pixel takes part.
    """
    gains: List[float] = []
    for label in np.unique(query[(query != 0) & (query != IGNORE)]):
        there = reference == label
        if there.any():
            gains.extend(affinity[np.ix_(there, query == label)].sum(axis=0) / there.mean())
    return float(np.mean(gains)) if gains else None


def pair_figures(net: CIAN, images: Sequence[np.ndarray],
                 masks: Sequence[np.ndarray]) -> Dict[str, Optional[float]]:
    """Figures of a query and a reference: ``effective`` of the cross affinity, and the class gain of
    ``self`` and ``cross``.

    Parameters
    ----------
    images : two of (H, W, 3) uint8 RGB.
    masks : their (H, W) class indices, for measurement alone.
    """
    maps = net.visual(*(mx.nd.array(image.transpose(2, 0, 1)[None].astype(np.float32)) for image in images))
    found: Dict[str, Optional[float]] = {}
    for branch, mask in (("self", masks[0]), ("cross", masks[1])):
        rows, columns, queries = maps[f"affinity_{branch}"].shape
        affinity = maps[f"affinity_{branch}"].asnumpy().reshape(rows * columns, queries)
        found[branch] = class_gain(affinity, masks[0][::QUERY_STRIDE, ::QUERY_STRIDE].ravel(),
                                   mask[::REFERENCE_STRIDE, ::REFERENCE_STRIDE][:rows, :columns].ravel())
    return {**found, "effective": effective_share(affinity)}
