"""The energy of a window, read from the series of a run."""

from analysis.energy.parts import (
    COVERED_PERIODS,
    PARTS,
    BoardEnergy,
    Label,
    Part,
    PartEnergy,
    apart,
    board_of,
    curve,
    measure,
    ran_backwards,
    spacing_s,
    update_of,
)

__all__ = [
    "BoardEnergy",
    "COVERED_PERIODS",
    "Label",
    "PARTS",
    "Part",
    "PartEnergy",
    "apart",
    "board_of",
    "curve",
    "measure",
    "ran_backwards",
    "spacing_s",
    "update_of",
]
