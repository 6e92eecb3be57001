"""Figures of runs, fits and comparisons, for a page (`svg`) or a file (`save`); see docs/report.md.

Each function takes what it draws and gives a `Drawn`, or None with nothing to draw.
"""

from analysis.figures.compare import forest, shaping_bars
from analysis.figures.energy import energy_histogram, phase_components
from analysis.figures.fits import residuals
from analysis.figures.in_flight import in_flight_timeline
from analysis.figures.latency import latency_ecdf, lateness
from analysis.figures.lengths import energy_by_length
from analysis.figures.power import power_timeline
from analysis.figures.style import Drawn
from analysis.figures.svg import FORMATS, save, svg

__all__ = [
    "Drawn",
    "FORMATS",
    "energy_by_length",
    "energy_histogram",
    "forest",
    "in_flight_timeline",
    "lateness",
    "latency_ecdf",
    "phase_components",
    "power_timeline",
    "residuals",
    "save",
    "shaping_bars",
    "svg",
]
