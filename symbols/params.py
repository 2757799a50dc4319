"""Parameters of networks: initialisation, what trains and how, loading and saving. File layouts are
in ``params_file.py``.
"""
from __future__ import annotations

import math
import zlib
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, ParameterDict

from cian.choices import PIXEL_MEAN
from cian.errors import InputError, PathLike

from .metadata import write_metadata
from .params_file import read_params, write_params

Contexts = Union[None, mx.Context, Sequence[mx.Context]]
NEW_LAYER_STD = 0.01  # paper, "Reproducibility"
# Mean and variance of ImageNet's RGB, 0..255: where bn_data starts when no file brings its statistics.
PIXEL_VARIANCE = (58.4 ** 2, 57.1 ** 2, 57.4 ** 2)
AUXILIARY = ("_moving_mean", "_moving_var")


class LoadReport(NamedTuple):
    """What loading a file did; the three tuples hold only names that were declared new."""

    loaded: Tuple[str, ...]
    missing: Tuple[str, ...]  # of the network, not in the file
    extra: Tuple[str, ...]  # in the file, not of the network
    mismatched: Tuple[str, ...]  # of another shape in the file

    def __str__(self) -> str:
        kept = [f"{kind}: {', '.join(names)}" for kind, names in self._asdict().items() if names
                and kind != "loaded"]
        return "; ".join([f"loaded {len(self.loaded)} parameters", *kept])


def initialize(net: HybridBlock, seed: int = 0, *, zero_gamma: bool = True, ctx: Contexts = None,
               missing: bool = False) -> None:
    """Give every parameter a value that depends on the seed and its name alone.

    New layers are Normal(0, 0.01) (paper, "Reproducibility"); other weights are He-normal, those
    that end a residual branch scaled down by the root of the number of branches; biases 0; batch
    norms the identity, ``bn_data`` with the statistics of ImageNet's pixels.

    Parameters
    ----------
    net : a network of this package (it names its ``new_layers``)
    zero_gamma : start ``bn_out_gamma`` at 0 (paper, "CIAN Module"; the first round only)
    ctx : device or devices
    missing : only the parameters that have no value yet
    """
    branch_ends = getattr(getattr(net, "backbone", net), "branch_ends", ())
    new_layers = tuple(net.new_layers)
    parameters = net.collect_params()
    for name, param in parameters.items():
        if missing and param._data is not None:
            continue
        value: Any = np.zeros(param.shape, np.float32)
        if name.endswith("_weight"):
            std = math.sqrt(2 / math.prod(param.shape[1:])) / (math.sqrt(len(branch_ends))
                                                               if name in branch_ends else 1)
            normal = np.random.RandomState([seed, zlib.crc32(name.encode())]).standard_normal(param.shape)
            value = normal * (NEW_LAYER_STD if name.startswith(new_layers) else std)
        elif name.startswith("bn_data_moving_"):
            value = PIXEL_MEAN if name.endswith("_mean") else PIXEL_VARIANCE
        elif name.endswith(("_gamma", "_moving_var")) and not (zero_gamma and name == "bn_out_gamma"):
            value += 1
        _set(parameters, name, np.asarray(value, np.float32), ctx)


def configure_training(net: HybridBlock, *, lr_mult_new: float = 10.0, decay_beta: bool = False,
                       freeze: Iterable[str] = ()) -> None:
    """Say which parameters train, how fast, and which decay, as the original code does; a Gluon
    ``Trainer`` follows it.

    Weights and biases train; of the batch norms only ``bn_out`` does. The network's ``fast_layers``
    train at ``lr_mult_new`` times the learning rate. Weights and gammas decay; biases do not, nor
    does ``bn_out_beta`` unless ``decay_beta``.

    Raises
    ------
    InputError
        When a prefix of ``freeze`` names no parameter.
    """
    parameters = net.collect_params()
    freeze = tuple(freeze)
    for prefix in freeze:
        if not any(name.startswith(prefix) for name in parameters):
            raise InputError(f"no parameter starts with {prefix!r}", field="freeze",
                             remedy=f"they are called as {next(iter(parameters))}")
    for name, param in parameters.items():
        if name.endswith(AUXILIARY):
            continue
        param.grad_req = "write" if trains(name, freeze) else "null"
        param.lr_mult = lr_mult_new if name.startswith(tuple(net.fast_layers)) else 1.0
        param.wd_mult = 1.0 if name.endswith(("_weight", "_gamma")) or (decay_beta
                                                                        and name.endswith("_beta")) else 0.0


def trains(name: str, freeze: Tuple[str, ...] = ()) -> bool:
    """Whether a parameter trains, as :func:`configure_training` has it."""
    norm = name.endswith(("_gamma", "_beta")) and not name.startswith("bn_out_")
    return not (norm or name.endswith(AUXILIARY) or name.startswith(freeze))


def save_params(net: HybridBlock, path: PathLike, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write ``<model>-<epoch>.params`` for this package, MXNet's Module and the original code;
    moving statistics that differ between
    devices are averaged. With ``metadata``, its JSON is written beside it (see
    :mod:`cian.symbols.metadata`)."""
    save_values(named_values(net), path, metadata)


def named_values(net: HybridBlock) -> Dict[str, np.ndarray]:
    """Every parameter by name, averaged over devices; waits for all work."""
    mx.nd.waitall()  # moving statistics are written late, by the backward pass
    return {name: averaged([copy.asnumpy() for copy in param.list_data()])
            for name, param in net.collect_params().items()}


def averaged(copies: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of a parameter's values on several devices; the value itself on one."""
    return np.mean(copies, axis=0) if len(copies) > 1 else copies[0]


def save_values(values: Mapping[str, np.ndarray], path: PathLike,
                metadata: Optional[Mapping[str, Any]] = None) -> None:
    """As :func:`save_params`, of arrays by name."""
    write_params(path, {name: value for name, value in values.items() if not name.endswith(AUXILIARY)},
                 {name: value for name, value in values.items() if name.endswith(AUXILIARY)})
    if metadata is not None:
        write_metadata(path, metadata)


def load_params(net: HybridBlock, path: PathLike, *, new: Iterable[str] = (),
                ctx: Contexts = None) -> LoadReport:
    """Load a file of this package, of the original code or of MXNet's model zoo into a network.

    Parameters
    ----------
    net : network; where ``new`` lets parameters be missing, initialise it before, or those alone afterwards
    new : prefixes of the names that may be missing, extra or of another shape; those keep the value
        they have, or none
    ctx : device or devices of the parameters; default where they are, or the CPU

    Raises
    ------
    InputError
        For an unreadable file, and naming each parameter that is missing, extra or of another shape
        outside of ``new``.
    """
    arg_params, aux_params = read_params(path)
    return assign(net, {**arg_params, **aux_params}, source=path, new=new, ctx=ctx)


def assign(net: HybridBlock, values: Mapping[str, np.ndarray], *, source: PathLike, new: Iterable[str] = (),
           ctx: Contexts = None) -> LoadReport:
    """Set the parameters of a network to arrays by name; ``source`` names them in errors. Otherwise
    as :func:`load_params`.
    """
    parameters = net.collect_params()
    missing = [name for name in parameters if name not in values]
    extra = [name for name in values if name not in parameters]
    mismatched = [name for name in parameters if name in values
                  and parameters[name].shape != values[name].shape]
    problems: List[str] = []
    for kind, names in (("missing", missing), ("not of this network", extra),
                        ("of another shape", mismatched)):
        wrong = [name for name in names if not name.startswith(tuple(new))]
        if wrong:
            shown = [f"{n} {values[n].shape}, needs {parameters[n].shape}" if kind == "of another shape"
                     else n for n in wrong[:5]]
            problems.append(f"{len(wrong)} {kind}: {', '.join(shown)}{', ...' if len(wrong) > 5 else ''}")
    if problems:
        raise InputError(f"does not fit the network, {'; '.join(problems)}", file=source,
                         remedy="use a file of the same model, classes and affinity")
    loaded = tuple(name for name in parameters if name in values and name not in mismatched)
    for name in loaded:
        _set(parameters, name, np.asarray(values[name], np.float32), ctx)
    return LoadReport(loaded, tuple(missing), tuple(extra), tuple(mismatched))


def _set(parameters: ParameterDict, name: str, value: np.ndarray, ctx: Contexts) -> None:
    if ctx is not None and parameters[name]._data is not None:
        parameters[name].reset_ctx(ctx)
    parameters.load_dict({name: mx.nd.array(value, dtype=np.float32)}, ctx, allow_missing=True)
