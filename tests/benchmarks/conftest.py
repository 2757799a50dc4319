"""Benchmarks are programs beside each other, not a package."""
import os
import sys

FOLDER = os.path.join(os.path.dirname(__file__), "..", "..", "benchmarks")
sys.path.insert(0, os.path.abspath(FOLDER))
