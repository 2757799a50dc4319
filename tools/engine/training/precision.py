"""Mixed precision on GPUs, by MXNet's automatic mixed precision (AMP). It was never measured: there
was no GPU to do it on.

Convolutions and matrix products compute in float16; softmax, logarithms and the losses' sums in
float32; parameters, gradients and the optimiser stay float32. The loss is scaled up so that small
gradients do not vanish: a step whose gradients overflow is left out and the scale halved. The scale
is no part of a saved state, so a resumed run begins with AMP's first one.
"""
from __future__ import annotations

from typing import Sequence

import mxnet as mx
from mxnet.contrib import amp

from cian.errors import InputError


def refuse_cpus(contexts: Sequence[mx.Context], field: str, remedy: str) -> None:
    """Raise :class:`InputError` for what only GPUs can do."""
    if any(context.device_type != "gpu" for context in contexts):
        raise InputError(f"is for GPUs only, and the devices are {', '.join(map(str, contexts))}",
                         field=field, remedy=remedy)


def begin_mixed(contexts: Sequence[mx.Context]) -> None:
    """Make networks that are built from now on in this process compute in mixed precision;
    ``Trainer(..., mixed=True)`` trains them.

    Raises
    ------
    InputError
        A device is not a GPU.
    """
    refuse_cpus(contexts, "run.precision", "use run.precision=float32")
    amp.init()
