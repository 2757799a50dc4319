"""The original code and ours on the same inputs and weights: what ``tools/compare_original.py`` is
made of.
"""
