"""Prepares the process (NumPy's aliases, threads) before any test file imports MXNet."""
import cian  # noqa: F401
