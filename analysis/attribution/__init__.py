"""Whose energy it was: the energy of a window divided among its requests."""

from analysis.attribution.shares import (
    CLOSED,
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
    "CLOSED",
    "METHODS",
    "Method",
    "PARTS",
    "WHOLE",
]
