"""Where a run becomes steady, by a rule fixed before the run, with "not stationary" as an answer.

MSER-5 (White 1997, "An effective truncation heuristic for bias reduction in simulation
output", Simulation 69; White, Cobb and Spratt 2000): with the means Z_1..Z_m of groups of
five values, leave out the first d that minimise the squared standard error of the rest,

    MSER(d) = sum_{i > d} (Z_i - mean of Z_{d+1..m})**2 / (m - d)**2.

A minimum in the second half of the run is no warm-up: the series has not settled. A slow
drift passes MSER, so what is kept must also pass a test for a linear trend at 1 % against
its own long-run variance (`analysis.stats.autocorrelation`).

Series are means over equal time bins, so they are of equal length for in-flight requests,
power and latency; the steady window begins where the last of them has settled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.stats import autocorrelation, student
from loadgen.types import Floats

GROUP = 5
FEWEST_GROUPS = 10
TREND_LEVEL = 0.99
FEWEST_TREND_WAVES = 3
"""Waves a retained series must leave flat before a trend can be told from its own slow swings."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Index of the first value kept, or None, and then ``reason`` says why."""

    first: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Window:
    """The steady window, in the series' clock; both ends None when there is none, with the reason.

    ``rule``: the declared rule, as a report prints it.
    """

    start_s: float | None
    end_s: float | None
    rule: str
    reason: str | None


def mser5(series: Floats) -> Settled:
    """How many leading values of ``series`` (n,) are warm-up, a multiple of 5.

    Groups are counted from the end, so up to 4 values at the very start belong to none; they
    are left out whenever anything is.
    """
    groups = len(series) // GROUP
    if groups < FEWEST_GROUPS:
        return Settled(None, f"{len(series)} values are too few: {GROUP * FEWEST_GROUPS} needed")
    odd = len(series) - GROUP * groups
    means = series[odd:].reshape(groups, GROUP).mean(axis=1)
    # Centred first: the two-sums formula cancels badly when the level is large. Sums from the end.
    centred = means - means.mean()
    kept = np.arange(groups, 0, -1)
    total = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum((centred**2)[::-1])[::-1]
    error = np.maximum(squares - total**2 / kept, 0.0) / kept**2
    # The last groups alone are alike by chance (White: no minimum is sought there).
    first = int(np.argmin(error[: groups - GROUP]))
    if first > groups // 2:
        return Settled(
            None, f"not stationary: MSER-5 would leave out {first} of {groups} groups, more than half"
        )
    return Settled(odd + GROUP * first if first else 0, None)


def trend(series: Floats) -> float | None:
    """Two-sided p value of no linear trend; None where slow swings and a trend look alike.

    The projection on a straight line, over the long-run standard error of what remains without
    the line, as Student's t; the least squares slope of a stationary series has this limit.
    """
    n = len(series)
    line = np.arange(n) - (n - 1) / 2
    line /= math.sqrt(float(line @ line))
    centred = series - series.mean()
    slope = float(line @ centred)
    rest = centred - slope * line
    if not float(rest @ rest) > 1e-24 * float(series @ series):
        return 1.0 if abs(slope) <= 1e-9 * math.sqrt(float(series @ series)) else 0.0
    freedom = min(autocorrelation.freedom(autocorrelation.lag_one_upper(rest), n), autocorrelation.MOST_WAVES)
    if freedom < FEWEST_TREND_WAVES:
        return None
    # The line takes nearly all of the first wave with it, so the variance is read from the next ones.
    spread = autocorrelation.waves(n)[1 : freedom + 1] @ rest
    return student.probability(slope / math.sqrt(float(np.mean(spread**2))), len(spread))


def settled(series: Floats) -> Settled:
    """`mser5`, and then `trend` over what it keeps."""
    if not np.isfinite(series).all():
        return Settled(None, "values are missing in the series")
    found = mser5(series)
    if found.first is None:
        return found
    p = trend(series[found.first :])
    if p is None:
        return Settled(None, "not stationary: it swings as slowly as the run is long")
    if p < 1 - TREND_LEVEL:
        return Settled(
            None, f"not stationary: a trend remains after the first {found.first} values (p {p:.2g})"
        )
    return found


def steady_window(edges_s: Floats, series: Mapping[str, Floats]) -> Window:
    """The part of ``edges_s`` (K + 1,) in which every series, (K,) each, has settled."""
    rule = f"MSER-5 and no trend at {100 * (1 - TREND_LEVEL):.0f} %, over {', '.join(series)}"
    first = 0
    for name, values in series.items():
        found = settled(values)
        if found.first is None:
            return Window(None, None, rule, f"{name}: {found.reason}")
        first = max(first, found.first)
    return Window(float(edges_s[first]), float(edges_s[-1]), rule, None)


def in_flight(sent_s: Floats, done_s: Floats, edges_s: Floats) -> Floats:
    """Mean number of requests between ``sent_s`` and ``done_s`` (n,) in each bin, shape (K,).

    Exact: the time summed over requests, sum_i (t - sent_i)+ - (t - done_i)+, at the edges.
    """

    def elapsed_s(since_s: Floats) -> Floats:
        ordered = np.sort(since_s - edges_s[0])
        before = np.concatenate([[0.0], np.cumsum(ordered)])
        t_s = edges_s - edges_s[0]
        n = np.searchsorted(ordered, t_s)
        return np.asarray(n * t_s - before[n], dtype=np.float64)

    return np.asarray(np.diff(elapsed_s(sent_s) - elapsed_s(done_s)) / np.diff(edges_s), dtype=np.float64)


def binned(at_s: Floats, values: Floats, edges_s: Floats) -> Floats:
    """Mean of the values (n,) in each bin, shape (K,); a bin without any repeats the one before it.

    Bins before the first value take that of the first with any; NaN everywhere without values.
    """
    count = len(edges_s) - 1
    index = np.searchsorted(edges_s, at_s, side="right") - 1
    inside = (index >= 0) & (index < count)
    n = np.bincount(index[inside], minlength=count)
    total = np.bincount(index[inside], weights=values[inside], minlength=count)
    filled = np.flatnonzero(n)
    if not len(filled):
        return np.full(count, np.nan)
    last = np.maximum(np.searchsorted(filled, np.arange(count), side="right") - 1, 0)
    return np.asarray((total[filled] / n[filled])[last], dtype=np.float64)
