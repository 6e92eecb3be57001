"""Estimates with intervals, and what they rest on."""

from analysis.stats.blocks import LEVEL, Blocks, Ints, choose_blocks
from analysis.stats.ends import requests_needed
from analysis.stats.estimates import exact, mean, missing, ratio, reason_of, scaled, std
from analysis.stats.ranks import quantiles, share

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
    "reason_of",
    "requests_needed",
    "scaled",
    "share",
    "std",
]
