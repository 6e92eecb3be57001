"""The systematic parts of a window's energy: each board's gain, the meter's clock, the readings at the edges.

None of them shrinks with more requests, so they are in no interval and are printed apart.
The arithmetic is `analysis.stats.systematic`; here is where a run tells the parts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.energy.certainty import clock_bound_s
from analysis.energy.measured import BoardEnergy
from analysis.energy.meter import Meter
from analysis.energy.parts import board_of
from analysis.run import Run
from analysis.served import gpu_of
from analysis.stats.systematic import Board, Systematic, of_energy

EDGE_S = 0.5
"""Beside an edge, over which its power is read: five publications of an NVML counter."""
UPDATES = 5
SIMULATED = "the simulated board's constants (loadgen run --uncertainty)"


def of_window(
    run: Run, meter: Meter, start_s: float, end_s: float, *, gains: bool = True
) -> Systematic | str:
    """Of the meter's energy of [start, end], joules; or why that is not known.

    ``gains``: with each measured board's, or only what is the readings' and the clock's.
    """
    why = meter.why_not(start_s, end_s)
    if why is not None or meter.measured is None:
        return why or "nothing was done in this run"
    own = meter.measured.boards
    boards = []
    for board, joules in zip(own, meter.by_board_j(start_s, end_s), strict=True):
        if gains and board.label == "measured":
            name, uuid, gain_error = identity(run, board.domain)
            boards.append(Board(uuid or name, joules, gain_error))
    found = of_energy(
        boards,
        clock_bound_s=_clock_bound_s(run, own),
        power_step_w=_power_step_w(meter, start_s, end_s),
        edges_j=meter.bound_j(start_s, end_s, clock=False),
    )
    simulated = any(board.label == "simulated" for board in own)
    return replace(found, missing=(*found.missing, SIMULATED)) if simulated else found


def identity(run: Run, domain: str) -> tuple[str, str | None, float | None]:
    """Of a series: its board's name and UUID, and its sensor's largest relative error, if they are known."""
    name = board_of(domain) or domain
    uuids = [row.get("uuid") for row in run.manifest.get("gpus") or () if row.get("domain") == name]
    gpu = gpu_of(run)
    return name, uuids[0] if uuids else None, None if gpu is None else gpu.sensor_gain_error


def _clock_bound_s(run: Run, boards: tuple[BoardEnergy, ...]) -> float | None:
    """How far off the clock of any of the boards' sidecars may be; None when one is not known."""
    found = [clock_bound_s(run, board.domain) for board in boards]
    return None if any(why for _, why in found) else max((bound_s for bound_s, _ in found), default=0.0)


def _power_step_w(meter: Meter, start_s: float, end_s: float) -> float:
    """The largest difference between the power beside one edge and beside the other, either side of each."""
    width_s = max(EDGE_S, UPDATES * meter.update_s)
    near = [
        meter.joules(np.array([edge_s - width_s, edge_s, edge_s + width_s])) / width_s
        for edge_s in (start_s, end_s)
    ]
    return float(np.abs(near[0][:, None] - near[1][None, :]).max())
