"""Gluon HybridBlocks of CIAN: backbones, the affinity module, the siamese network, CAM classifiers
and losses. A name's module, and with it MXNet, is loaded when the name is asked for.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from cian.choices import IGNORE
from cian.environment import later_names

if TYPE_CHECKING:
    from .affinity import MERGES, CrossImageAffinity
    from .backbones import BACKBONES, build_backbone
    from .cam import CAMClassifier
    from .cian import CIAN, MODELS, build_model
    from .losses import CIANLoss, CompletionLoss, SeedLoss
    from .metadata import metadata_path, read_metadata, write_metadata
    from .multiscale import MultiScale
    from .params import LoadReport, configure_training, initialize, load_params, save_params
    from .params_file import read_params, write_params
    from .pretrained import load_pretrained

_MODULES = {"affinity": "MERGES CrossImageAffinity", "backbones": "BACKBONES build_backbone",
            "cam": "CAMClassifier", "cian": "CIAN MODELS build_model",
            "losses": "CIANLoss CompletionLoss SeedLoss",
            "metadata": "metadata_path read_metadata write_metadata", "multiscale": "MultiScale",
            "params": "LoadReport configure_training initialize load_params save_params",
            "params_file": "read_params write_params", "pretrained": "load_pretrained"}
_PLACES = {name: f".{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = ["BACKBONES", "CIAN", "IGNORE", "MERGES", "MODELS", "CAMClassifier", "CIANLoss", "CompletionLoss",
           "CrossImageAffinity", "LoadReport", "MultiScale", "SeedLoss", "build_backbone", "build_model",
           "configure_training", "initialize", "load_params", "load_pretrained", "metadata_path",
           "read_metadata", "read_params", "save_params", "write_metadata", "write_params"]

__getattr__, __dir__ = later_names(__name__, _PLACES)
