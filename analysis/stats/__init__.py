"""Estimates with intervals, and what they rest on."""

from analysis.stats.blocks import LEVEL, Blocks, Ints, choose_blocks
from analysis.stats.estimates import exact, mean, missing, quantiles, ratio, scaled, std

__all__ = [
    "Blocks",
    "Ints",
    "LEVEL",
    "choose_blocks",
    "exact",
    "mean",
    "missing",
    "quantiles",
    "ratio",
    "scaled",
    "std",
]
