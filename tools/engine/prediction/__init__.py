"""Prediction: the network over scales, the dense CRF, the files that are written and pictures of them."""
