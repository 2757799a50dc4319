"""CIAN: Cross-Image Affinity Net for weakly supervised semantic segmentation (AAAI 2020), in MXNet/Gluon."""
from . import environment

environment.prepare()

__version__ = "0.1.0"
