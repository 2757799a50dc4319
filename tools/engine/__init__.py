"""What a run is made of: configuration, training, checkpoints, prediction, CRF, metrics, reports
and devices.
"""
