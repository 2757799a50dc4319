"""Gluon HybridBlocks of CIAN: backbones, the affinity module, the siamese network, CAM classifiers and losses."""
