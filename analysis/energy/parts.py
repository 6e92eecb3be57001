"""Energy of the window from power readings: the counter first, the integral as its check.

A board has up to three series: its energy counter, its instant and its average
power. The best usable one gives the energy, the others check it. How a series
becomes joules: `analysis.energy.integral`; what is certain about them: `analysis.energy.certainty`.
A counter that ran backwards makes its board unusable; it is not clamped. A sensor that
publishes too seldom for a window, or for the blocks of one, is refused for it.

What cannot be known is None with a reason, never 0 J.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from analysis.energy import certainty, integral
from analysis.energy.idle import SHORTEST_S, idle_stretches
from analysis.energy.integral import Curve
from analysis.energy.measured import PARTS, BoardEnergy, Label, Part, PartEnergy
from analysis.energy.publication import PASSED_ON_S, update_period_s
from analysis.run import Run, Series
from analysis.stats.blocks import FEWEST_BLOCKS
from loadgen.types import Floats, Method

UNREAD_SHARE = 0.005
"""Of a window, at each end, that may lie beyond the readings: its energy is not counted."""
COVERED_PERIODS = 3.0
"""A reading speaks for so many times `spacing_s` to each side."""
LEAST_UPDATES = 10.0
"""Published values that a window must hold before its energy is believed."""
_HOST = r"^((?:[A-Za-z0-9_.-]+/)?"
_BOARD = re.compile(_HOST + r"gpu\d+)(\.instant|\.average)?$")
_PACKAGE = re.compile(_HOST + r"cpu\d+\.package)$")
_RAM = re.compile(_HOST + r"ram)$")
_PATTERNS: Mapping[Part, re.Pattern[str]] = {"gpu": _BOARD, "cpu": _PACKAGE, "ram": _RAM}
_RANK = {None: 0, ".instant": 1, ".average": 2}


def measure(run: Run, edges_s: Floats) -> dict[Part, PartEnergy]:
    """Energy of the window ``[edges_s[0], edges_s[-1]]`` and of its blocks, for each part.

    ``edges_s``: (K + 1,), run time, increasing.
    """
    idle = idle_stretches(run)
    found: dict[Part, PartEnergy] = {}
    for part in PARTS:
        # Of several hosts, one that does not read a part would be left out of its sum without a trace.
        reason = _declared(run, part) if any("/" in name for name in run.series) else None
        boards = tuple(
            _board(run, name, supports, edges_s, idle)
            for name, supports in (_grouped(run, part).items() if reason is None else ())
        )
        if reason is None and boards:
            reason = next((b.reason for b in boards if b.reason is not None), None)
        elif reason is None:
            reason = _declared(run, part) or f"no {part} power source was read"
        found[part] = PartEnergy(part, boards, float(edges_s[-1] - edges_s[0]), reason)
    return found


def apart(run: Run, start_s: float, end_s: float) -> dict[str, float | None]:
    """Joules of [start, end] by each series that is in no sum, None where it cannot tell.

    ``cpuN.dram`` (on AMD a part of the package), ``gpuN.memory`` (a part of the
    board), ``gpuN.module`` (the board and the CPU beside it), ``ane0`` (Apple's
    Neural Engine), ``soc0`` (a whole Jetson module).
    """
    summed = {s.domain.name for part in PARTS for group in _grouped(run, part).values() for s in group}
    return {
        name: None
        if unusable(series, start_s, end_s, run.period_s)
        else curve(series, np.array([start_s, end_s])).between(start_s, end_s)
        for name, series in run.series.items()
        if name not in summed
    }


def curve(series: Series, near_s: Floats | None = None) -> Curve:
    """The cumulative curve of a series, of use from 2 readings on. ``near_s``: where it will be asked."""
    t_s, value = integral.in_order(series.t_s, series.value)
    if series.cumulative:
        return integral.counter_curve(t_s, value, series.domain.update_s, near_s, series.combs)
    window_s, update_s = series.domain.averaging_s, series.domain.update_s
    lag_s = 0.0 if window_s is None or update_s is None else (window_s + update_s) / 2
    return integral.power_curve(t_s, value, lag_s)


def unusable(series: Series, start_s: float, end_s: float, period_s: float | None) -> str | None:
    """Why a series cannot give the energy of [start, end]; None when it can."""
    name = series.domain.name
    if len(series.t_s) < 2:
        return f"{name}: {len(series.t_s)} readings"
    slack_s = min(COVERED_PERIODS * spacing_s(series, period_s), UNREAD_SHARE * (end_s - start_s))
    if series.t_s[0] > start_s + slack_s or series.t_s[-1] < end_s - slack_s:
        return (
            f"{name}: readings cover {series.t_s[0]:.3f} to {series.t_s[-1]:.3f} s, "
            f"the window is {start_s:.3f} to {end_s:.3f} s"
        )
    if series.cumulative:
        if ran_backwards(series):
            return f"{name}: the energy counter ran backwards"
        if series.value[-1] == series.value[0]:
            return f"{name}: the energy counter never advanced"
    update_s = update_of(series, period_s)
    if update_s is not None and end_s - start_s < LEAST_UPDATES * update_s * (1 - 1e-9):
        return (
            f"{name}: a new value every {update_s:.3g} s cannot tell the energy of {end_s - start_s:.3g} s, "
            f"at least {LEAST_UPDATES * update_s:.3g} s are needed"
        )
    return None


def update_of(series: Series, period_s: float | None) -> float | None:
    """How often a series shows a new value: as documented, or as seen if that is longer; None: unknown.

    Values that change as often as they are read tell the sampling period, not the sensor's.
    """
    seen_s = update_period_s(series.t_s, series.value) if len(series.t_s) > 1 else None
    if seen_s is not None and seen_s <= 1.5 * (period_s or 0.0):
        seen_s = None
    return max((u for u in (series.domain.update_s, seen_s) if u is not None), default=None)


def spacing_s(series: Series, period_s: float | None) -> float:
    """How far apart the stamps of a series are when none is missing.

    The sampling period; or, if that is longer, the update period of a driver, which may
    stamp what it publishes itself: reads in between then repeat the stamp.
    """
    update_s = series.domain.update_s or 0.0
    return max(period_s or 0.0, update_s if update_s < PASSED_ON_S else 0.0)


def ran_backwards(series: Series) -> bool:
    """Whether a cumulative counter ever decreased (driver reset, wrap)."""
    return series.cumulative and bool(np.any(np.diff(series.value) < 0))


def board_of(domain: str) -> str | None:
    """The board that an energy or power series is of: ``gpu0`` of ``gpu0.instant``; None: of none."""
    match = _BOARD.match(domain)
    return None if match is None else match[1]


def _declared(run: Run, part: Part) -> str | None:
    """Why the manifest says that a part was not read."""
    reason = (run.power.get("reasons") or {}).get(part)
    return reason or (run.power.get("reason") if part == "gpu" else None)


def _grouped(run: Run, part: Part) -> dict[str, list[Series]]:
    """The series of each board of a part, energy counter first, then instant, then average.

    A board of another host, ``node1/gpu0``, is a board of its own. Other series of a
    board, such as its memory's, are in no sum.
    """
    groups: dict[str, list[tuple[int, Series]]] = {}
    for name, series in run.series.items():
        match = _PATTERNS[part].match(name)
        if match is not None:
            rank = _RANK[match[2]] if part == "gpu" else 0
            groups.setdefault(match[1], []).append((rank, series))
    return {name: [s for _, s in sorted(found, key=lambda pair: pair[0])] for name, found in groups.items()}


def _board(
    run: Run,
    name: str,
    supports: list[Series],
    edges_s: Floats,
    idle: tuple[tuple[float, float] | None, tuple[float, float] | None],
) -> BoardEnergy:
    start_s, end_s = float(edges_s[0]), float(edges_s[-1])
    backwards = any(ran_backwards(s) for s in supports)
    faults = {id(s): unusable(s, start_s, end_s, run.period_s) for s in supports}
    # A counter that ran backwards is not quietly replaced by its power readings: the board
    # or its driver was reset, and nothing of this window can be trusted.
    usable = [] if backwards else [s for s in supports if faults[id(s)] is None]
    if not usable:
        reason = next(f for f in faults.values() if f is not None)
        method = supports[0].domain.method
        return BoardEnergy(name, method, label_of(method), None, reason)
    chosen = usable[0]
    total = curve(chosen, np.concatenate([edges_s, *(s for s in idle if s is not None)]))
    before_w, after_w = (None if s is None else _mean_power_w(chosen, total, *s) for s in idle)
    update_s = update_of(chosen, run.period_s)
    shortest_s = float(np.min(np.diff(edges_s)))
    too_slow = update_s is not None and len(edges_s) > 2 and update_s > shortest_s * (1 + 1e-9)
    within_j, bound_reason = certainty.within(run, chosen, start_s, end_s)
    return BoardEnergy(
        domain=chosen.domain.name,
        method=chosen.domain.method,
        label=label_of(chosen.domain.method),
        total_j=total.between(start_s, end_s),
        reason=None,
        block_j=None if too_slow else np.diff(total.at(edges_s)),
        block_reason=f"{chosen.domain.name} shows a new value every {update_s:.3g} s, a block is "
        f"{shortest_s:.3g} s; it takes a run of {FEWEST_BLOCKS * (update_s or 0.0):,.0f} s or more"
        if too_slow
        else None,
        within_j=within_j,
        bound_reason=bound_reason,
        checks=tuple(
            (s.domain.name, curve(s).between(start_s, end_s)) for s in usable[1:] if not s.cumulative
        ),
        idle_w=(before_w, after_w),
        coverage=integral.coverage(
            chosen.t_s, start_s, end_s, COVERED_PERIODS * spacing_s(chosen, run.period_s)
        ),
        update_s=update_s,
        cumulative=chosen.cumulative,
        passed_over=None if chosen is supports[0] else faults[id(supports[0])],
    )


def _mean_power_w(series: Series, total: Curve, start_s: float, end_s: float) -> float | None:
    start_s, end_s = max(start_s, float(series.t_s[0])), min(end_s, float(series.t_s[-1]))
    return total.between(start_s, end_s) / (end_s - start_s) if end_s - start_s >= SHORTEST_S else None


def label_of(method: Method) -> Label:
    """What a reader may call a value of this method."""
    labels: Mapping[Method, Label] = {"simulated": "simulated", "estimated": "estimated"}
    return labels.get(method, "measured")
