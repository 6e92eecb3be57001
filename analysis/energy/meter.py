"""The energy of a part of the system between any two instants of a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.energy import certainty
from analysis.energy.measured import PARTS, Part, PartEnergy
from analysis.energy.parts import curve, unusable
from analysis.run import Run
from loadgen.types import Floats


class Meter:
    """The energy of one part.

    ``measured``: of the run's window, None when nothing was done. ``reason``: why there is no energy.
    ``update_s``: of the slowest series.
    """

    def __init__(self, run: Run, part: Part, measured: PartEnergy | None) -> None:
        self.run, self.part, self.measured = run, part, measured
        self.reason = "nothing was done in this run" if self.measured is None else self.measured.reason
        boards = () if self.measured is None or self.reason is not None else self.measured.boards
        self._series = [run.series[board.domain] for board in boards]
        self._curves = [curve(series) for series in self._series]
        self.update_s = max((b.update_s or 0.0 for b in boards), default=0.0)

    def joules(self, edges_s: Floats) -> Floats:
        """Between consecutive edges, (K,), all boards together."""
        total: Floats = np.sum([np.diff(energy_j.at(edges_s)) for energy_j in self._curves], axis=0)
        return total

    def why_not(self, start_s: float, end_s: float) -> str | None:
        """Why the energy of [start, end] is not known; None when it is."""
        if self.reason is not None:
            return self.reason
        faults = (unusable(series, start_s, end_s, self.run.period_s) for series in self._series)
        return next((fault for fault in faults if fault is not None), None)

    def by_board_j(self, start_s: float, end_s: float) -> list[float]:
        """Joules of [start, end] of each board, in the order of ``measured.boards``."""
        return [energy_j.between(start_s, end_s) for energy_j in self._curves]

    def bound_j(self, start_s: float, end_s: float, *, clock: bool = True) -> float | None:
        """How far `joules` of [start, end] can be from the truth by these readings, sensor gain aside.

        ``clock``: with the bound of a sidecar's clock in it, or as if that were exact.
        """
        off_j = 0.0
        for series, energy_j in zip(self._series, self._curves, strict=True):
            within_j, _ = certainty.within(self.run, series, start_s, end_s, clock=clock)
            if within_j is None:
                return None
            read_j = energy_j.between(start_s, end_s)
            off_j += max(read_j - within_j[0], within_j[1] - read_j)
        return off_j

    @property
    def count(self) -> int:
        """Of the series summed."""
        return len(self._series)

    @property
    def how(self) -> str:
        """``measured (counter)``."""
        assert self.measured is not None
        return f"{self.measured.label} ({', '.join(self.measured.methods)})"


def meters(run: Run, parts: Mapping[Part, PartEnergy]) -> dict[Part, Meter]:
    """One for each part. ``parts``: the window's energies, of `analysis.energy.measure_window`."""
    return {part: Meter(run, part, parts.get(part)) for part in PARTS}
