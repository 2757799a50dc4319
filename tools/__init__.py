"""Command-line entry points, one a stage of the pipeline; the work is done in :mod:`cian.tools.engine`."""
