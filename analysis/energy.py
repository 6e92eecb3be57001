"""Energy of the window from power readings: the counter first, the integral as its check.

Both kinds of reading become one thing, a *cumulative* curve of joules with knots
at the readings: a counter is one already; of power, a published value holds until
the next one, so the curve is piecewise linear and exact between knots
(`docs/method.md`). Energy of [a, b] is curve(b) - curve(a), the edges interpolated
between far-apart readings, never a sum of tiny differences. Samples are never
deduplicated. A negative step of a counter makes it unusable; it is not clamped.

What cannot be known is None with a reason, never 0 J.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.floor import gpu_of
from analysis.load import Run, Series
from loadgen.types import Floats, Method

Part = Literal["gpu", "cpu", "ram"]
Label = Literal["measured", "estimated", "simulated"]
PARTS: tuple[Part, ...] = ("gpu", "cpu", "ram")

AGREEMENT = 0.05
"""How far counter and integral may differ, as a share of the counter."""
SHORT_WINDOW_S = 5.0
"""Below this a 100 ms sensor says too little (SC24, arXiv 2312.02741)."""
_IDLE_MARGIN_S = 0.5
_EDGE_MARGIN_S = 0.2
_SHORTEST_IDLE_S = 0.3
LEAST_BASELINE_S = 1.0
"""Of a stretch after work and its tail, so that idle power can be read in it."""
_BOARD = re.compile(r"^(gpu\d+)(\.instant|\.average)?$")


@dataclass(frozen=True, slots=True)
class Curve:
    """Cumulative joules ``energy_j`` at instants ``t_s``, both (n,); piecewise linear between."""

    t_s: Floats
    energy_j: Floats

    def at(self, t_s: Floats) -> Floats:
        """Cumulative joules at each instant; constant outside the knots."""
        return np.interp(t_s, self.t_s, self.energy_j)

    def between(self, start_s: float, end_s: float) -> float:
        """Joules of [start, end]."""
        low, high = self.at(np.array([start_s, end_s]))
        return float(high - low)


@dataclass(frozen=True, slots=True)
class BoardEnergy:
    """One energy series over the window.

    ``total_j`` is None exactly when ``reason`` is set. ``block_j``: joules of
    each time block, (K,), summing to ``total_j``. ``checks``: (domain, joules) of
    the same window from each power series, where the total is a counter's.
    ``idle_w``: mean power before the first and after the last request.
    ``passed_over``: why a better series of this board was not used.
    """

    domain: str
    method: Method
    label: Label
    total_j: float | None
    block_j: Floats | None
    checks: tuple[tuple[str, float], ...]
    idle_w: tuple[float | None, float | None]
    reason: str | None
    passed_over: str | None = None


@dataclass(frozen=True, slots=True)
class PartEnergy:
    """GPU, CPU or RAM: the explicit sum of its boards or packages.

    One unavailable board makes the part unavailable: a sum that leaves one out
    would be too small without looking it.
    """

    part: Part
    boards: tuple[BoardEnergy, ...]
    window_s: float
    reason: str | None

    @property
    def total_j(self) -> float | None:
        return _sum([b.total_j for b in self.boards])

    @property
    def block_j(self) -> Floats | None:
        parts = [b.block_j for b in self.boards if b.block_j is not None]
        if not parts or len(parts) < len(self.boards):
            return None
        total: Floats = np.add.reduce(parts)
        return total

    @property
    def mean_power_w(self) -> float | None:
        """Total over window, all boards together."""
        return None if self.total_j is None else self.total_j / self.window_s

    @property
    def idle_before_w(self) -> float | None:
        return _sum([b.idle_w[0] for b in self.boards])

    @property
    def idle_after_w(self) -> float | None:
        return _sum([b.idle_w[1] for b in self.boards])

    @property
    def label(self) -> Label | None:
        """The weakest of the boards' labels: one simulated board makes the sum simulated."""
        labels = {b.label for b in self.boards}
        order: tuple[Label, ...] = ("simulated", "estimated", "measured")
        return next((label for label in order if label in labels), None)

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(sorted({b.method for b in self.boards}))


def measure(run: Run, edges_s: Floats) -> dict[Part, PartEnergy]:
    """Energy of the window ``[edges_s[0], edges_s[-1]]`` and of its blocks, for each part.

    ``edges_s``: (K + 1,), run time, increasing.
    """
    idle = idle_stretches(run)
    found: dict[Part, PartEnergy] = {}
    for part in PARTS:
        boards = tuple(
            _board(run, name, supports, edges_s, idle) for name, supports in _grouped(run, part).items()
        )
        reason = next((b.reason for b in boards if b.reason is not None), None)
        if not boards:
            reason = run.power.get("reason") if part == "gpu" else None
            reason = reason or f"no {part} power source was read"
        found[part] = PartEnergy(part, boards, float(edges_s[-1] - edges_s[0]), reason)
    return found


def curve(series: Series) -> Curve:
    """The cumulative curve of a series (module docstring). Needs at least 2 readings to be of use."""
    if series.cumulative:
        return Curve(series.t_s, series.value)
    held_j = series.value[:-1] * np.diff(series.t_s)
    return Curve(series.t_s, np.concatenate([np.zeros(min(1, len(series.t_s))), np.cumsum(held_j)]))


def unusable(series: Series, start_s: float, end_s: float, period_s: float | None) -> str | None:
    """Why a series cannot give the energy of [start, end]; None when it can."""
    name = series.domain.name
    if len(series.t_s) < 2:
        return f"{name}: {len(series.t_s)} readings"
    slack_s = 3 * (period_s or 0.0)
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
    return None


def ran_backwards(series: Series) -> bool:
    """Whether a cumulative counter ever decreased (driver reset, wrap)."""
    return series.cumulative and bool(np.any(np.diff(series.value) < 0))


def widest_gap_s(series: Series, start_s: float, end_s: float) -> float:
    """The longest stretch of [start, end] without a reading, seconds."""
    inside = series.t_s[(series.t_s > start_s) & (series.t_s < end_s)]
    before, after = series.t_s[series.t_s <= start_s], series.t_s[series.t_s >= end_s]
    first = before[-1] if len(before) else start_s
    last = after[0] if len(after) else end_s
    return float(np.max(np.diff(np.concatenate([[first], inside, [last]]))))


def idle_stretches(run: Run) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """The longest requestless stretches before the first and after the last measured request.

    0.5 s (at most a quarter) is cut off after work: averages and the 100 ms
    publication lag behind it; and a known board's tail, if more is left. 0.2 s is
    cut off at the end, where a reading may straddle the next work, or be the odd
    last one, whose published value has another age. None when under 0.3 s remain.
    """
    t_s = [s.t_s for s in run.series.values() if len(s.t_s)]
    if not t_s:
        return None, None
    gpu = gpu_of(run)
    tail_s = 0.0 if gpu is None else gpu.tail_s
    first_s, last_s = min(float(t[0]) for t in t_s), max(float(t[-1]) for t in t_s)
    start_s = min(0.0, float(run.requests["sent_s"].min())) if len(run.requests) else 0.0
    busy = run.warmups[["sent_s", "done_s"]].dropna().sort_values("sent_s").to_numpy(dtype=np.float64)
    edges = [first_s, *busy.ravel().tolist(), start_s]
    free = [
        (edges[i], edges[i + 1], i > 0, i + 2 < len(edges))
        for i in range(0, len(edges), 2)
        if edges[i + 1] > edges[i]
    ]
    before = max(free, key=lambda s: s[1] - s[0], default=None)
    ended_s = run.requests["done_s"].max() if len(run.requests) else np.nan
    return (
        None if before is None else _trimmed(before[0], before[1], before[2], tail_s),
        None if np.isnan(ended_s) else _trimmed(float(ended_s), last_s, True, tail_s),
    )


def _trimmed(start_s: float, end_s: float, after_work: bool, tail_s: float) -> tuple[float, float] | None:
    quarter_s = max(0.0, end_s - start_s) / 4
    if after_work:
        outlasts_tail = end_s - start_s >= tail_s + LEAST_BASELINE_S
        start_s += min(_IDLE_MARGIN_S, quarter_s) + (tail_s if outlasts_tail else 0.0)
    end_s -= min(_EDGE_MARGIN_S, quarter_s)
    return (start_s, end_s) if end_s - start_s >= _SHORTEST_IDLE_S else None


def _grouped(run: Run, part: Part) -> dict[str, list[Series]]:
    """The series of each board of a part, energy counter first, then instant, then average."""
    groups: dict[str, list[Series]] = {}
    for name, series in run.series.items():
        board = _BOARD.match(name)
        if part == "gpu" and board is not None:
            groups.setdefault(board[1], []).append(series)
        elif (part == "cpu" and re.match(r"^cpu\d+\.package$", name)) or (part == "ram" and name == "ram"):
            groups.setdefault(name, []).append(series)
    rank = {"": 0, ".instant": 1, ".average": 2}
    for name, supports in groups.items():
        supports.sort(key=lambda s, name=name: rank.get(s.domain.name.removeprefix(name), 3))  # type: ignore[misc]
    return groups


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
        return BoardEnergy(name, method, label_of(method), None, None, (), (None, None), reason)
    chosen = usable[0]
    total = curve(chosen)
    others = [s for s in usable[1:] if not s.cumulative] if chosen.cumulative else []
    before_w, after_w = (None if s is None else _mean_power_w(chosen, total, *s) for s in idle)
    return BoardEnergy(
        domain=chosen.domain.name,
        method=chosen.domain.method,
        label=label_of(chosen.domain.method),
        total_j=total.between(start_s, end_s),
        block_j=np.diff(total.at(edges_s)),
        checks=tuple((s.domain.name, curve(s).between(start_s, end_s)) for s in others),
        idle_w=(before_w, after_w),
        reason=None,
        passed_over=None if chosen is supports[0] else faults[id(supports[0])],
    )


def _mean_power_w(series: Series, total: Curve, start_s: float, end_s: float) -> float | None:
    start_s, end_s = max(start_s, float(series.t_s[0])), min(end_s, float(series.t_s[-1]))
    return total.between(start_s, end_s) / (end_s - start_s) if end_s - start_s >= _SHORTEST_IDLE_S else None


def label_of(method: Method) -> Label:
    """What a reader may call a value of this method."""
    labels: Mapping[Method, Label] = {"simulated": "simulated", "estimated": "estimated"}
    return labels.get(method, "measured")


def _sum(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(sum(known)) if known and len(known) == len(values) else None
