"""The systematic parts of a window's energy: each board's gain, the meter's clock, the readings at the edges.

None of them shrinks with more requests, so they are in no interval and are printed apart.
The arithmetic is `analysis.stats.systematic`; here is where a run tells the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from analysis.energy import BoardEnergy, board_of
from analysis.floor import gpu_of
from analysis.run import Run
from analysis.stats.systematic import Board, Systematic, of_energy
from analysis.study.meter import Meter

EDGE_S = 0.5
"""Beside an edge, over which its power is read: five publications of an NVML counter."""
UPDATES = 5
SIMULATED = "the simulated board's constants (loadgen run --uncertainty)"


def of_window(run: Run, meter: Meter, start_s: float, end_s: float) -> Systematic | str:
    """Of the meter's energy of [start, end], joules; or why that is not known."""
    why = meter.why_not(start_s, end_s)
    if why is not None or meter.measured is None:
        return why or "nothing was done in this run"
    boards = [
        _board(run, board, joules)
        for board, joules in zip(meter.measured.boards, meter.by_board_j(start_s, end_s), strict=True)
        if board.label == "measured"
    ]
    clock_s = _clock_bound_s(run, meter.measured.boards)
    found = of_energy(
        boards,
        clock_bound_s=clock_s,
        power_step_w=_power_step_w(meter, start_s, end_s),
        edges_j=meter.bound_j(start_s, end_s, clock=False),
    )
    simulated = any(board.label == "simulated" for board in meter.measured.boards)
    return replace(found, missing=(*found.missing, SIMULATED)) if simulated else found


def _board(run: Run, board: BoardEnergy, joules: float) -> Board:
    name = board_of(board.domain) or board.domain
    rows: list[Mapping[str, Any]] = [r for r in run.manifest.get("gpus") or () if r.get("domain") == name]
    gpu = gpu_of(run)
    uuid = str((rows[0].get("uuid") if rows else None) or name)
    return Board(uuid, joules, None if gpu is None else gpu.sensor_gain_error)


def _clock_bound_s(run: Run, boards: tuple[BoardEnergy, ...]) -> float | None:
    """How far off the clock of any of the boards' sidecars may be; 0 for boards that this host read."""
    names = {board.domain for board in boards}
    bounds = []
    for row in run.manifest.get("sidecars") or ():
        if names & set(row.get("domains") or ()):
            bound_s = (row.get("clock") or {}).get("bound_s")
            if bound_s is None:
                return None
            bounds.append(float(bound_s))
    return max(bounds, default=0.0)


def _power_step_w(meter: Meter, start_s: float, end_s: float) -> float:
    """The largest difference between the power beside one edge and beside the other, either side of each."""
    width_s = max(EDGE_S, UPDATES * meter.update_s)
    near = [
        meter.joules(np.array([edge_s - width_s, edge_s, edge_s + width_s])) / width_s
        for edge_s in (start_s, end_s)
    ]
    return float(np.abs(near[0][:, None] - near[1][None, :]).max())
