"""The energy of a window, read from the series of a run."""

from analysis.energy.measured import PARTS, BoardEnergy, Label, Part, PartEnergy
from analysis.energy.parts import (
    COVERED_PERIODS,
    apart,
    board_of,
    curve,
    measure,
    ran_backwards,
    spacing_s,
    update_of,
)
from analysis.energy.window import blocks_of, measure_window

__all__ = [
    "BoardEnergy",
    "COVERED_PERIODS",
    "Label",
    "PARTS",
    "Part",
    "PartEnergy",
    "apart",
    "blocks_of",
    "board_of",
    "curve",
    "measure",
    "measure_window",
    "ran_backwards",
    "spacing_s",
    "update_of",
]
