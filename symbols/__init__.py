"""Gluon HybridBlocks of CIAN: backbones, the affinity module, the siamese network, CAM classifiers and losses."""
from .affinity import MERGES, CrossImageAffinity
from .backbones import BACKBONES, build_backbone
from .cian import CIAN, MODELS, build_model
from .layers import IGNORE
from .losses import CIANLoss, CompletionLoss, SeedLoss
from .metadata import metadata_path, read_metadata, write_metadata
from .params import LoadReport, configure_training, initialize, load_params, save_params
from .params_file import read_params, write_params

__all__ = [
    "BACKBONES", "CIAN", "IGNORE", "MERGES", "MODELS", "CIANLoss", "CompletionLoss", "CrossImageAffinity", "LoadReport", "SeedLoss",
    "build_backbone", "build_model", "configure_training", "initialize", "load_params", "metadata_path", "read_metadata", "read_params",
    "save_params", "write_metadata", "write_params",
]
