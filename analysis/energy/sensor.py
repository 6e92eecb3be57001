"""What a power sensor does, found from polls of it: how often it publishes, over which window it averages.

A sensor publishes at instants ``t_k`` about a period ``P`` apart a value ``v_k``: the mean power over
``[t_k - lag - W, t_k - lag]``. With ``W < P`` it is blind for ``P - W`` of every period (A100 and
H100: 25 of 100 ms; Yang et al., SC24, arXiv 2312.02741, whose square-wave method this is); with
``W > P`` it smooths. A poll sees ``v_k`` late by up to a poll's gap.

Pure functions over polls: ``t_s`` (n,) increasing, ``value`` (n,), NaN where the poll failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis.energy.integral import power_curve
from loadgen.types import Floats

FEWEST_CHANGES = 8
POLLS_PER_PERIOD = 3.0
"""Fewer, and a change cannot be told from the poll grid: the rounding to whole periods would alias."""
LONGEST_WINDOW_S, LONGEST_LAG_S = 3.0, 0.5
_SHORTEST_WINDOW_S = 1e-3
_CHI2_95 = 3.84
_MOST_MISSED = 5.5


@dataclass(frozen=True, slots=True)
class Update:
    """How often a value is renewed; ``period_s`` is None exactly when ``reason`` says why.

    ``median_s``, ``p5_s``, ``p95_s``: of the gaps between changes as seen, which are multiples of the
    period where a renewed value equals the last. ``error_s``: twice the standard error of
    ``period_s``. ``jitter_s``: 95 % of the gaps lie as close to a multiple. ``poll_s``: median gap of polls.
    """

    changes: int
    poll_s: float
    period_s: float | None = None
    error_s: float | None = None
    median_s: float | None = None
    p5_s: float | None = None
    p95_s: float | None = None
    jitter_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The averaging window; ``window_s`` is None exactly when ``reason`` says why.

    ``low_s``, ``high_s``: 95 % by the profile of the least squares, widened by a poll on either side.
    ``lag_s``: from the window's end to the poll that sees the value. ``off_w``, ``on_w``: the
    fitted powers without and with load; ``residual_w``: root mean square of what the fit leaves.
    """

    n: int
    window_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    lag_s: float | None = None
    off_w: float | None = None
    on_w: float | None = None
    residual_w: float | None = None
    reason: str | None = None


def change_instants(t_s: Floats, value: Floats) -> Floats:
    """The polls at which the value differs from the poll before, (m,); failed polls are passed over."""
    known = ~np.isnan(value)
    t_s, value = t_s[known], value[known]
    seen_s: Floats = t_s[1:][np.diff(value) != 0]
    return seen_s


def update_period(t_s: Floats, value: Floats) -> Update:
    """The period between renewals, from the instants at which polls saw the value change.

    Gaps are rounded to whole multiples ``m`` of their 5th percentile, then ``P = sum gaps / sum m``
    and again: missed renewals (equal values) do not lengthen the period.
    """
    known = ~np.isnan(value)
    seen_s = change_instants(t_s, value)
    if known.sum() < 2:
        return Update(0, float("nan"), reason="no reading")
    poll_s = float(np.median(np.diff(t_s[known])))
    if len(seen_s) < FEWEST_CHANGES:
        over_s = float(t_s[known][-1] - t_s[known][0])
        return Update(len(seen_s), poll_s, reason=f"changed {len(seen_s)} times in {over_s:.3g} s")
    gap_s = np.diff(seen_s)
    p5_s, median_s, p95_s = (float(q) for q in np.percentile(gap_s, (5, 50, 95)))
    if p5_s < POLLS_PER_PERIOD * poll_s:
        return Update(
            len(seen_s),
            poll_s,
            median_s=median_s,
            p5_s=p5_s,
            p95_s=p95_s,
            reason=f"renewed about as often as it was polled: at most every {p95_s:.3g} s, "
            f"polls were {poll_s:.3g} s apart",
        )
    period_s = p5_s
    for _ in range(4):
        count = np.maximum(1.0, np.round(gap_s / period_s))
        used = gap_s < _MOST_MISSED * period_s
        period_s = float(gap_s[used].sum() / count[used].sum())
    left_s = gap_s[used] - count[used] * period_s
    error_s = 2 * float(np.std(left_s)) * np.sqrt(len(left_s)) / float(count[used].sum())
    return Update(
        len(seen_s),
        poll_s,
        period_s,
        max(float(error_s), poll_s / float(count[used].sum())),
        median_s,
        p5_s,
        p95_s,
        float(np.percentile(np.abs(left_s), 95)),
    )


def renewals(t_s: Floats, value: Floats, period_s: float) -> tuple[Floats, Floats]:
    """Instants (m,) and values (m,) of the renewals, those with an equal value put back in at equal gaps."""
    known = ~np.isnan(value)
    t_s, value = t_s[known], value[known]
    at = np.flatnonzero(np.diff(value) != 0) + 1
    instants: list[Floats] = []
    values: list[Floats] = []
    for start, end in pairwise(at):
        count = max(1, round((t_s[end] - t_s[start]) / period_s))
        instants.append(np.linspace(t_s[start], t_s[end], count, endpoint=False))
        values.append(np.full(count, value[start]))
    if not instants:
        return np.empty(0), np.empty(0)
    return np.concatenate(instants), np.concatenate(values)


def averaging_window(at_s: Floats, power_w: Floats, loaded_s: Floats, poll_s: float) -> Window:
    """The window of a sensor that published ``power_w`` (m,) at ``at_s`` (m,) under a known square wave.

    ``loaded_s`` (k, 2): begin and end of each stretch with load. For every window ``W`` and lag the
    loaded share ``x`` of ``[t - lag - W, t - lag]`` is known, and ``v = off + (on - off) x`` is a
    straight line: the pair with the least squares is taken. Several periods of the wave, none a
    multiple of the update period, make it unique: of one alone, ``T``, the windows W and T - W look alike.
    """
    if len(at_s) < 4 * FEWEST_CHANGES or not len(loaded_s):
        return Window(len(at_s), reason=f"{len(at_s)} values of {len(loaded_s)} loaded stretches are too few")
    spread = float(((power_w - power_w.mean()) ** 2).sum())
    if spread == 0:
        return Window(len(at_s), reason="the power did not move")
    windows = np.geomspace(_SHORTEST_WINDOW_S, LONGEST_WINDOW_S, 70)
    lags = np.linspace(0.0, LONGEST_LAG_S, 101)
    for zoom in range(5):
        left = _left_over(at_s, power_w, loaded_s, windows, lags)
        w, g = np.unravel_index(int(np.argmin(left)), left.shape)
        best_s, lag_s = float(windows[w]), float(lags[g])
        if zoom == 4:
            break
        reach = 1.25 ** (0.5**zoom)
        windows = np.geomspace(best_s / reach, best_s * reach, 41)
        around_s = 0.04 * 0.4**zoom
        lags = np.linspace(max(0.0, lag_s - around_s), lag_s + around_s, 41)
    least = float(left[w, g])
    share = _share(at_s, loaded_s, best_s, np.array([lag_s]))[0]
    slope, off_w = (float(c) for c in np.polyfit(share, power_w, 1))
    if least > 0.5 * spread:
        return Window(len(at_s), reason="the power does not follow the load: more than half of it is other")
    low_s, high_s = _profile(at_s, power_w, loaded_s, best_s, lag_s, least)
    return Window(
        len(at_s),
        best_s,
        max(0.0, low_s - poll_s),
        high_s + poll_s,
        lag_s,
        off_w,
        off_w + slope,
        float(np.sqrt(least / len(at_s))),
    )


def seen_share(window: Window, update: Update) -> float | None:
    """The share of time that a sensor sees, at most 1: window over period. None when either is unknown."""
    if window.window_s is None or update.period_s is None:
        return None
    return min(1.0, window.window_s / update.period_s)


def counter_power(t_s: Floats, energy_j: Floats, period_s: float) -> tuple[Floats, Floats]:
    """Mean power (m,) between renewals of a counter, at the later one's instant (m,).

    Of a counter that sees all the time, `averaging_window` of this is its period; less
    if what it adds up is a part-time sensor.
    """
    known = ~np.isnan(energy_j)
    t_s, energy_j = t_s[known], energy_j[known]
    at = np.flatnonzero(np.diff(energy_j) != 0) + 1
    at_s, gap_s = t_s[at], np.diff(t_s[at])
    plain = (gap_s > 0.5 * period_s) & (gap_s < 1.5 * period_s)
    return at_s[1:][plain], (np.diff(energy_j[at]) / gap_s)[plain]


def counter_step_mj(energy_mj: Floats) -> tuple[int, int] | None:
    """(greatest common divisor, least) of a counter's steps in whole millijoules; None without one."""
    known = energy_mj[~np.isnan(energy_mj)].astype(np.int64)
    steps = np.abs(np.diff(known))
    steps = steps[steps > 0]
    return (int(np.gcd.reduce(steps)), int(steps.min())) if len(steps) else None


def counter_window(
    t_s: Floats, energy_j: Floats, start_s: float, end_s: float
) -> tuple[float, float, float] | None:
    """(start, end, joules) between the first and the last renewal of a counter inside [start, end].

    At a renewal the counter is fresh, so the energy belongs to these instants. None with fewer than 2.
    """
    known = ~np.isnan(energy_j) & (t_s >= start_s) & (t_s <= end_s)
    t_s, energy_j = t_s[known], energy_j[known]
    at = np.flatnonzero(np.diff(energy_j) != 0) + 1
    if len(at) < 2:
        return None
    return float(t_s[at[0]]), float(t_s[at[-1]]), float(energy_j[at[-1]] - energy_j[at[0]])


def held_integral_j(t_s: Floats, power_w: Floats, start_s: float, end_s: float) -> float | None:
    """Joules of [start, end], each polled power held until the next poll; None where polls do not reach."""
    known = ~np.isnan(power_w)
    t_s, power_w = t_s[known], power_w[known]
    if len(t_s) < 2 or t_s[0] > start_s or t_s[-1] < end_s:
        return None
    return power_curve(t_s, power_w).between(start_s, end_s)


def _share(at_s: Floats, loaded_s: Floats, window_s: float, lags_s: Floats) -> Floats:
    """The loaded share of the window that ends each lag before each instant, (lags, m)."""
    knots_s = loaded_s.ravel()
    held = np.diff(knots_s) * (np.arange(len(knots_s) - 1) % 2 == 0)
    total_s = np.concatenate([[0.0], np.cumsum(held)])
    end_s = at_s[None, :] - lags_s[:, None]
    share: Floats = (
        np.interp(end_s, knots_s, total_s) - np.interp(end_s - window_s, knots_s, total_s)
    ) / window_s
    return share


def _left_over(at_s: Floats, power_w: Floats, loaded_s: Floats, windows_s: Floats, lags_s: Floats) -> Floats:
    """Sum of squares that the line leaves, (windows, lags)."""
    moved_w = power_w - power_w.mean()
    left = np.empty((len(windows_s), len(lags_s)))
    for index, window_s in enumerate(windows_s):
        share = _share(at_s, loaded_s, float(window_s), lags_s)
        share -= share.mean(axis=1, keepdims=True)
        square = (share**2).sum(axis=1)
        explained = np.divide(
            np.maximum(0.0, share @ moved_w) ** 2, square, out=np.zeros_like(square), where=square > 0
        )
        left[index] = (moved_w**2).sum() - explained
    return np.maximum(left, 0.0)


def _profile(
    at_s: Floats, power_w: Floats, loaded_s: Floats, best_s: float, lag_s: float, least: float
) -> tuple[float, float]:
    """The windows whose best fit is not worse than chance allows (95 %, 4 fitted numbers)."""
    allowed = least * (1 + _CHI2_95 / max(1, len(at_s) - 4))
    # The grids need not meet the best pair again, so it is put in.
    lags = np.append(np.linspace(max(0.0, lag_s - 0.05), lag_s + 0.05, 101), lag_s)
    inside = np.array([best_s])
    for reach in (0.5, 0.1, 0.02, 0.004):
        windows = best_s * np.linspace(1 - reach, 1 + reach, 81)
        left = _left_over(at_s, power_w, loaded_s, windows, lags).min(axis=1)
        inside = np.append(windows[left <= allowed], best_s)
        if len(inside) > 6:
            break
    return float(inside.min()), float(inside.max())
