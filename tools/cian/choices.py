"""The values that settings allow, and the numbers that all of the code agrees on, each once.

Standard library only, so that the configuration and the networks can both read them here.
"""
from __future__ import annotations

IGNORE = 255  # label of a pixel that takes part in no loss and no score
STRIDE = 8  # pixels of the image a pixel of logits
PIXEL_MEAN = (123.68, 116.779, 103.939)  # of ImageNet's RGB; the model zoo's weights expect it subtracted

# Networks (cian.symbols)
AFFINITIES = ("none", "self", "cross")
MERGES = ("max", "avg")
COMPLETION_LABELS = ("seed", "image")
COMPLETION_TARGETS = ("cross", "own")
NORMALISATIONS = ("device", "image")

# Samples (cian.data)
LABEL_RESIZES = ("bilinear", "nearest")
LABEL_PADDINGS = ("background", "ignore")
PAIRINGS = ("common", "even", "random")
ORDERS = ("original", "counter")
LONELY = ("end", "skip")
JPEG_WARNINGS = ("refuse", "harmless", "accept")
