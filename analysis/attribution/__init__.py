"""Whose energy it was: the energy of a window divided among its requests."""

from analysis.attribution.shares import (
    METHODS,
    PARTS,
    WHOLE,
    Attributed,
    Attribution,
    AttributionError,
    Method,
)

__all__ = [
    "Attributed",
    "Attribution",
    "AttributionError",
    "METHODS",
    "Method",
    "PARTS",
    "WHOLE",
]
