"""Gluon HybridBlocks of CIAN: backbones, the affinity module, the siamese network, CAM classifiers
and losses.
"""
from cian.choices import IGNORE

from .affinity import MERGES, CrossImageAffinity
from .backbones import BACKBONES, build_backbone
from .cam import CAMClassifier
from .cian import CIAN, MODELS, build_model
from .losses import CIANLoss, CompletionLoss, SeedLoss
from .metadata import metadata_path, read_metadata, write_metadata
from .multiscale import MultiScale, scaled_side
from .params import LoadReport, configure_training, initialize, load_params, save_params
from .params_file import read_params, write_params
from .pretrained import load_pretrained

__all__ = ["BACKBONES", "CIAN", "IGNORE", "MERGES", "MODELS", "CAMClassifier", "CIANLoss", "CompletionLoss",
           "CrossImageAffinity", "LoadReport", "MultiScale", "SeedLoss", "build_backbone", "build_model",
           "configure_training", "initialize", "load_params", "load_pretrained", "metadata_path",
           "read_metadata", "read_params", "save_params", "scaled_side", "write_metadata", "write_params"]
