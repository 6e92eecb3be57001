"""What a board's own sensors and states say against its energy. All of it warns, nothing invalidates.

- Two readings of one energy that differ by more than 5 %.
- A sensor that looks only part of the time, at arrivals whose spacing keeps step with
  its looks: it sees the same moments of every request. If a counter is fed by that
  sensor, instant, average and counter agree and all are wrong; only the spacing tells.
- Clocks lowered by heat or by the power supply, a board that warmed up, memory errors.

Not built: telling a part-time sensor from the spread of its values. Constant power
and a sensor locked on to the load look the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.energy import BoardEnergy, Part, PartEnergy, board_of
from analysis.run import Run

AGREEMENT = 0.05
"""How far two readings of one energy may differ."""
SHORT_WINDOW_S = 5.0
"""Below this a 100 ms sensor says too little (SC24, arXiv 2312.02741)."""
LOCK_TOLERANCE = 0.02
"""Of an update period: how near to a multiple of it a number of spacings must come to keep step."""
DRIFT_C = 10.0
CLOCK_SPREAD = 0.1
_MOST_UPDATES = 40
_IDLE = 0x1
_SLOWED = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""nvmlClocksEventReason* of nvml.h. Its power cap (0x4) is how a loaded board normally runs."""


def warnings(run: Run, parts: Mapping[Part, PartEnergy]) -> Iterator[str]:
    """One line each."""
    for part in parts.values():
        read = any(name.rpartition("/")[2].startswith(part.part) for name in run.series)
        if part.reason is not None and read and part.part != "gpu":  # the GPU's stands above the table
            yield f"energy of {part.part} is unavailable: {part.reason}"
        elif part.block_reason is not None:
            yield f"no intervals for the energy of {part.part}: {part.block_reason}"
        for board in part.boards:
            if board.passed_over is not None:
                yield f"energy: {board.passed_over}; {board.domain} was integrated instead"
            if board.total_j is not None and part.window_s >= SHORT_WINDOW_S:
                yield from _agreement(board)
    if (gpu := parts.get("gpu")) is not None:
        yield from _in_step(run, gpu)
    if run.end_s is not None and len(run.boards):
        inside = run.boards[(run.boards["t_s"] >= 0) & (run.boards["t_s"] <= run.end_s)]
        for name, states in inside.groupby("domain"):
            yield from _slowed(str(name), states)
            yield from _warmed(str(name), states, run.end_s)
        for name, states in run.boards.groupby("domain"):
            errors = states["ecc_errors"].dropna()
            if len(errors) and errors.iloc[-1] > errors.iloc[0]:
                more = errors.iloc[-1] - errors.iloc[0]
                yield f"{name}: {more:.0f} uncorrected memory errors during the run"


def _agreement(board: BoardEnergy) -> Iterator[str]:
    assert board.total_j is not None
    told = False
    kind = "counter" if board.cumulative else "integral"
    for name, integral_j in board.checks:
        off = integral_j / board.total_j - 1 if board.total_j else np.inf
        if abs(off) > AGREEMENT:
            told = True
            yield (
                f"energy: the integral of {name} is {100 * off:+.3g} % off the {kind} of "
                f"{board.domain} (a 25 ms sensor can lock on to regular arrivals)"
            )
    for (one, one_j), (other, other_j) in combinations(board.checks, 2):
        # Where one of the two is off the counter already, their difference is no news.
        if not told and one_j and abs(other_j / one_j - 1) > AGREEMENT:
            yield f"energy: the integral of {other} is {100 * (other_j / one_j - 1):+.3g} % off that of {one}"


def _in_step(run: Run, gpu: PartEnergy) -> Iterator[str]:
    """One line for all boards whose sensors are alike."""
    spacing_s = _spacing_s(run)
    if spacing_s is None:
        return
    alike: dict[tuple[float, float, int], list[str]] = {}
    for board in gpu.boards:
        if board.cumulative and board.method == "simulated":
            continue  # a simulated counter adds up what was drawn, not what a sensor saw
        for name, series in run.series.items():
            window_s, update_s = series.domain.averaging_s, series.domain.update_s
            if window_s is None or update_s is None or board_of(name) != board_of(board.domain):
                continue
            if (updates := in_step(spacing_s, update_s, window_s)) is not None:
                alike.setdefault((window_s, update_s, updates), []).append(name)
                break
    for (window_s, update_s, updates), names in alike.items():
        yield (
            f"energy: arrivals every {1e3 * spacing_s:.4g} ms keep step with the sensor of "
            f"{', '.join(names)}, which sees {1e3 * window_s:.3g} of every {1e3 * update_s:.4g} ms: "
            f"always the same {1e3 * updates * window_s:.3g} ms of each spacing, so sensor and counter "
            "may be wrong alike; vary the spacing"
        )


def in_step(spacing_s: float, update_s: float, window_s: float) -> int | None:
    """After how many updates a part-time sensor meets the arrivals at the same phase again, if it does.

    None too where the moments that it meets leave nothing unseen: k updates show k
    windows of each spacing. And where the spacing is so long that what is missed between
    two looks cannot move the mean by 5 %.
    """
    missed_s = update_s - window_s
    if missed_s <= 0 or missed_s <= AGREEMENT * spacing_s:
        return None
    for updates in range(1, _MOST_UPDATES + 1):
        if updates * window_s >= spacing_s * (1 - 1e-9):
            return None
        spacings = round(updates * update_s / spacing_s)
        if spacings and abs(spacings * spacing_s - updates * update_s) <= LOCK_TOLERANCE * update_s:
            return updates
    return None


def _spacing_s(run: Run) -> float | None:
    """The constant spacing of what is released, seconds: of arrivals or of a gate; None otherwise."""
    load: Mapping[str, Any] = (run.manifest.get("scenario") or {}).get("load") or {}
    shaping = load.get("shaping") or {}
    if shaping.get("policy") == "gate":
        return float(shaping["interval_s"])
    if run.closed_loop or load.get("pattern") != "constant":
        return None
    if load.get("interval_s") is not None:
        return float(load["interval_s"])
    return 1.0 / float(load["rate_rps"]) if load.get("rate_rps") else None


def _slowed(name: str, states: pd.DataFrame) -> Iterator[str]:
    told = states["event_reasons"].dropna().astype(np.int64)
    for bit, what in _SLOWED.items():
        share = float(((told & bit) != 0).mean()) if len(told) else 0.0
        if share > 0:
            yield f"{name}: clocks lowered by {what} in {100 * share:.3g} % of {len(told)} looks"
    busy = states.loc[told.index[(told & _IDLE) == 0], "sm_clock_mhz"].dropna()
    if len(busy) > 1:
        low, middle, high = np.quantile(busy, [0.05, 0.5, 0.95])
        if high - low > CLOCK_SPREAD * middle:
            yield f"{name}: the SM clock ran from {low:.0f} to {high:.0f} MHz (p5 to p95) while it was busy"


def _warmed(name: str, states: pd.DataFrame, end_s: float) -> Iterator[str]:
    first = states.loc[states["t_s"] < end_s / 2, "temperature_c"].mean()
    second = states.loc[states["t_s"] >= end_s / 2, "temperature_c"].mean()
    if abs(second - first) > DRIFT_C:
        yield (
            f"{name}: {second - first:+.0f} C from the first half of the window to the second: "
            "not thermally steady, and leakage grows with heat"
        )
