"""Readings to joules: curves, what is certain about them, and how much they cover.

Pure: arrays in, numbers out; instants in seconds on one clock. Both kinds of
reading become one thing, a *cumulative* curve, whose difference is the energy of a
window. It is piecewise linear with knots

- of a counter at the instants at which its values were published
  (`analysis.energy.publication`), not at those at which they were read, which lag, and where
  the power switched between two of them;
- of power at every reading: a published value holds until the next one, so that
  nothing is deduplicated and a constant power is not 0 J.

So any split of a window adds up to the whole, by construction.

**What is certain of a counter.** It never decreases, and what it shows was
published at or before the reading. So at any instant t the energy is at least the
value last read by t, and at most the first value that was certainly published after
t: one first seen at reading k was not there at reading k-1. The width is about
power x (update + sampling period) at each edge of a window, and no assumption about
periods, phases or the load is in it. A constant gain of the sensor is: it is a
property of the board and stated apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.energy.publication import Combs, is_continuous, publications
from loadgen.types import Floats

READ_S = 5e-3
"""How far a stamp may be from the driver's look at the value, either way: a call takes milliseconds."""
RESOLUTION_J = 1e-3
"""NVML counts whole millijoules: the energy may be up to one above what is shown."""


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


def in_order(t_s: Floats, value: Floats) -> tuple[Floats, Floats]:
    """Readings by time; of several at one instant the lowest value first, whatever order they came in."""
    order = np.lexsort((value, t_s))
    return t_s[order], value[order]


def power_curve(t_s: Floats, power_w: Floats, lag_s: float = 0.0) -> Curve:
    """The curve of power readings in time order; each holds until the next. Of use from 2 readings on.

    ``lag_s``: how late the held values are on average. A mean over the last w seconds,
    published every U and held as long, is late by (w + U) / 2: the middle of where it
    stands less the middle of what it is the mean of.
    """
    if lag_s > 0 and len(t_s):
        t_s, power_w = np.append(t_s - lag_s, t_s[-1]), np.append(power_w, power_w[-1])
    held_j = power_w[:-1] * np.diff(t_s)
    return Curve(t_s, np.concatenate([np.zeros(min(1, len(t_s))), np.cumsum(held_j)]))


def counter_curve(
    t_s: Floats,
    energy_j: Floats,
    update_s: float | None = None,
    near_s: Floats | None = None,
    combs: Combs | None = None,
) -> Curve:
    """The curve of a counter's readings in time order, joules since the first; see the module.

    ``update_s``: how often it publishes, where that is documented. Before the first
    publication seen and after the last, the curve goes on at the neighbouring slope,
    after it for no longer than one more publication. ``near_s``: where the curve will be
    asked; None: anywhere. ``combs``: see `analysis.energy.publication.publications`.
    """
    counted_j = energy_j - energy_j[:1]
    steps = np.diff(counted_j)
    if not np.any(steps > 0) or np.any(steps < 0) or is_continuous(t_s, counted_j, update_s):
        return Curve(t_s, counted_j)
    at_s, value_j = publications(t_s, counted_j, update_s, near_s, combs)
    if len(at_s) < 2:
        return Curve(np.append(t_s[:1], at_s), np.append(counted_j[:1], value_j))
    slope_w = np.diff(value_j[[0, 1, -2, -1]])[[0, 2]] / np.maximum(
        np.diff(at_s[[0, 1, -2, -1]])[[0, 2]], 1e-9
    )
    before_j = np.clip(value_j[0] - slope_w[0] * (at_s[0] - t_s[0]), 0.0, value_j[0])
    beyond_s = min(float(t_s[-1] - at_s[-1]), float(at_s[-1] - at_s[-2]))
    return _with_switches(
        np.concatenate([t_s[:1], at_s, [at_s[-1] + beyond_s]]),
        np.concatenate([[before_j], value_j, [value_j[-1] + slope_w[1] * beyond_s]]),
    )


def _with_switches(t_s: Floats, energy_j: Floats) -> Curve:
    """The curve through these knots, and through one more where the power switched between two.

    A mean power that lies between those of both neighbours is taken for a switch from the one to
    the other, at the only instant that keeps the energy (subcell resolution: Harten, J. Comput.
    Phys. 83, 1989): power steps when requests come and go. Not after a gap, whose neighbours
    say nothing of it.
    """
    width_s = np.maximum(np.diff(t_s), 1e-9)
    before_w, here_w, after_w = ((p := np.diff(energy_j) / width_s)[:-2], p[1:-1], p[2:])
    between = (here_w - before_w) * (after_w - here_w) > 0
    inside = np.flatnonzero(between & (width_s[1:-1] <= width_s[:-2] + width_s[2:])) + 1
    before_w, here_w, after_w = before_w[inside - 1], here_w[inside - 1], after_w[inside - 1]
    first_s = width_s[inside] * (after_w - here_w) / (after_w - before_w)
    return Curve(
        np.insert(t_s, inside + 1, t_s[inside] + first_s),
        np.insert(energy_j, inside + 1, energy_j[inside] + before_w * first_s),
    )


def certain_j(
    t_s: Floats, energy_j: Floats, start_s: float, end_s: float, *, clock_s: float = 0.0
) -> tuple[float, float] | None:
    """Least and most joules of [start, end] by a counter's readings in time order (module docstring).

    ``clock_s``: how far off the readings' clock may be, either way. None where there is
    no reading before the window, or no newer value after it.
    """
    off_s = READ_S + clock_s
    low_j = [_least(t_s + off_s, energy_j, edge_s) for edge_s in (start_s, end_s)]
    high_j = [_most(t_s - off_s, energy_j, edge_s) for edge_s in (start_s, end_s)]
    if low_j[0] is None or low_j[1] is None or high_j[0] is None or high_j[1] is None:
        return None
    return max(0.0, low_j[1] - high_j[0]), high_j[1] - low_j[0]


def _least(t_s: Floats, energy_j: Floats, at_s: float) -> float | None:
    read = int(np.searchsorted(t_s, at_s, side="right"))
    return float(energy_j[read - 1]) if read else None


def _most(t_s: Floats, energy_j: Floats, at_s: float) -> float | None:
    new = np.flatnonzero(np.diff(energy_j) > 0) + 1
    first = int(np.searchsorted(t_s[new - 1], at_s, side="left"))
    return float(energy_j[new[first]]) + RESOLUTION_J if first < len(new) else None


def coverage(t_s: Floats, start_s: float, end_s: float, reach_s: float) -> float:
    """The share of [start, end] that is within ``reach_s`` of a reading."""
    if not len(t_s) or end_s <= start_s:
        return 0.0
    near = t_s[(t_s > start_s - reach_s) & (t_s < end_s + reach_s)]
    if not len(near):
        return 0.0
    begins, ends = np.maximum(near - reach_s, start_s), np.minimum(near + reach_s, end_s)
    # Stretches of equal reach are in order of begin and of end, so each overlaps only its neighbours.
    covered_s = float(np.sum(ends - np.maximum(begins, np.append(start_s, ends[:-1]))))
    return min(1.0, covered_s / (end_s - start_s))


def widest_gap_s(t_s: Floats, start_s: float, end_s: float) -> float:
    """The longest stretch of [start, end] without a reading, seconds."""
    inside = t_s[(t_s > start_s) & (t_s < end_s)]
    before, after = t_s[t_s <= start_s], t_s[t_s >= end_s]
    first = before[-1] if len(before) else start_s
    last = after[0] if len(after) else end_s
    return float(np.max(np.diff(np.concatenate([[first], inside, [last]]))))
