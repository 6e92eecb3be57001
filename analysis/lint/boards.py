"""What the boards said of their own state: clocks, heat, memory. All of it warns, nothing invalidates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.lint.rule import Check, Rule
from analysis.run import Run

DRIFT_C = 10.0
CLOCK_SPREAD = 0.1
_IDLE = 0x1
_SLOWED = {
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""nvmlClocksEventReason* of nvml.h. Its power cap (0x4) is how a loaded board normally runs."""
_STATE = "docs/lint.md, What goes wrong, 10"

SLOWED = Check("clocks-lowered", "neither heat nor the power supply lowered the clocks", "1", _STATE)
SPREAD = Check("clock-spread", "the SM clock kept its level while the board was busy", "1", _STATE)
WARMED = Check("temperature-drift", "the board was thermally steady", "C", _STATE)
MEMORY = Check("memory-errors", "no uncorrected memory errors", "errors", _STATE)
CHECKS = (SLOWED, SPREAD, WARMED, MEMORY)


def rules(run: Run) -> Iterator[Rule]:
    """In the order of CHECKS, board by board where one trips."""
    if run.end_s is None or not len(run.boards):
        why = "no request ended" if run.end_s is None else "the boards' states were not read"
        yield from (check.not_judged(why) for check in CHECKS)
        return
    inside = run.boards[(run.boards["t_s"] >= 0) & (run.boards["t_s"] <= run.end_s)]
    boards = [(str(name), states) for name, states in inside.groupby("domain")]
    every = [(str(name), states) for name, states in run.boards.groupby("domain")]
    yield from _slowed(boards)
    yield from _spread(boards)
    yield from _warmed(boards, run.end_s)
    yield from _memory(every)


def _slowed(boards: list[tuple[str, pd.DataFrame]]) -> Iterator[Rule]:
    looks, tripped = 0, False
    for name, states in boards:
        told = states["event_reasons"].dropna().astype(np.int64)
        looks += len(told)
        for bit, what in _SLOWED.items():
            share = float(((told & bit) != 0).mean()) if len(told) else 0.0
            if share > 0:
                tripped = True
                yield SLOWED.warns(
                    f"{name}: clocks lowered by {what} in {100 * share:.3g} % of {len(told)} looks", share, 0
                )
    if not tripped:
        yield (
            SLOWED.holds(f"in none of {looks} looks", 0, 0)
            if looks
            else SLOWED.not_judged("the boards do not tell why their clocks are lowered")
        )


def _spread(boards: list[tuple[str, pd.DataFrame]]) -> Iterator[Rule]:
    spreads: list[float] = []
    for name, states in boards:
        told = states["event_reasons"].dropna().astype(np.int64)
        busy = states.loc[told.index[(told & _IDLE) == 0], "sm_clock_mhz"].dropna()
        if len(busy) < 2:
            continue
        low, middle, high = np.quantile(busy, [0.05, 0.5, 0.95])
        spreads.append(float((high - low) / middle) if middle else 0.0)
        if spreads[-1] > CLOCK_SPREAD:
            yield SPREAD.warns(
                f"{name}: the SM clock ran from {low:.0f} to {high:.0f} MHz (p5 to p95) while it was busy",
                spreads[-1],
                CLOCK_SPREAD,
            )
    if not spreads:
        yield SPREAD.not_judged("no board told its SM clock twice while it was busy")
    elif max(spreads) <= CLOCK_SPREAD:
        yield SPREAD.holds(f"p5 to p95 within {100 * max(spreads):.3g} %", max(spreads), CLOCK_SPREAD)


def _warmed(boards: list[tuple[str, pd.DataFrame]], end_s: float) -> Iterator[Rule]:
    drifts: list[float] = []
    for name, states in boards:
        first = float(states.loc[states["t_s"] < end_s / 2, "temperature_c"].mean())
        second = float(states.loc[states["t_s"] >= end_s / 2, "temperature_c"].mean())
        if np.isnan(second - first):
            continue
        drifts.append(second - first)
        if abs(second - first) > DRIFT_C:
            yield WARMED.warns(
                f"{name}: {second - first:+.0f} C from the first half of the window to the second: "
                "not thermally steady, and leakage grows with heat",
                second - first,
                DRIFT_C,
            )
    widest = max(drifts, key=abs, default=None)
    if widest is None:
        yield WARMED.not_judged("no board told its temperature in both halves of the window")
    elif abs(widest) <= DRIFT_C:
        yield WARMED.holds(f"{widest:+.3g} C from the first half to the second", widest, DRIFT_C)


def _memory(boards: list[tuple[str, pd.DataFrame]]) -> Iterator[Rule]:
    told, tripped = False, False
    for name, states in boards:
        errors = states["ecc_errors"].dropna()
        told = told or len(errors) > 1
        if len(errors) and errors.iloc[-1] > errors.iloc[0]:
            tripped = True
            more = float(errors.iloc[-1] - errors.iloc[0])
            yield MEMORY.warns(f"{name}: {more:.0f} uncorrected memory errors during the run", more, 0)
    if not tripped:
        yield (
            MEMORY.holds("none during the run", 0, 0)
            if told
            else MEMORY.not_judged("the boards do not count memory errors")
        )
