"""When a counter's values were published: what repeated readings tell about it.

A driver publishes a counter every U seconds, and what is read lags by 0..U behind
the energy, so a line through all readings is a staircase that is late by U/2 on
average. Only a *new* value carries an instant: first seen at reading k, it was
published within ``(t[k-1], t[k]]``. One such interval is as wide as the sampling
period. But publications are regular, a comb ``phase + n U``, so hundreds of them
pin both numbers down: an interval with a new value holds a tooth, one that repeats
the value holds none. `publications` finds the comb that contradicts fewest readings
of each stretch of 400, and takes from it where inside its interval a value stands.

Nothing is lost where that fails: every instant stays inside its own interval
(the middle, where the values move irregularly or every phase is possible), so the
bounds of `analysis.energy.integral` hold whatever is found here.
"""

from __future__ import annotations

import numpy as np

from loadgen.types import Floats

Combs = dict[int, tuple[float, float] | None]

PASSED_ON_S = 0.5
"""Drivers publish more often than this; a slower value came through an exporter, which held it."""
_STRETCH = 400
"""Readings that share one comb: 20 s at 20 Hz, in which a crystal drifts by microseconds."""
_MARGIN_S = 1.0
"""Values this near to an instant may bound the line through it."""
_FEWEST = 10
"""New values that a comb is fitted to at least."""
_PHASES = 128
_PERIODS = 151
_CONTRADICTED = 0.1
"""The share of readings that may contradict a comb (late stamps) before it is no comb."""
_NEGLIGIBLE = 0.1
"""An update period below this share of the sampling period is as good as continuous: RAPL's 1 ms."""
_SKIPPING = 0.8
"""Below this share, several values are published between readings, and no reading tells their phase."""


def publications(
    t_s: Floats,
    value: Floats,
    update_s: float | None = None,
    near_s: Floats | None = None,
    combs: Combs | None = None,
) -> tuple[Floats, Floats]:
    """Instants ``(m,)`` at which the ``(m,)`` values that were first seen after the first reading appeared.

    ``t_s``, ``value``: readings in time order, (n,), stamped when they were read, values
    nondecreasing. ``update_s``: the documented period, which counts where the readings are too
    rare to show it. ``near_s``: instants whose surroundings are wanted, if not all are: of the
    rest no comb is sought, which in a run of a day saves minutes. ``combs``: those found before in
    these same readings, by the reading that their stretch begins with; what is found is added.
    """
    combs = {} if combs is None else combs
    new = np.flatnonzero(np.diff(value) > 0) + 1
    earliest_s, latest_s = t_s[new - 1], t_s[new]
    if is_continuous(t_s, value, update_s):
        return latest_s, value[new]
    width_s = float(np.median(np.diff(latest_s))) if len(new) >= _FEWEST else np.inf
    width_s = width_s if update_s is None else min(width_s, update_s)
    middle_s = (np.maximum(earliest_s, latest_s - width_s) + latest_s) / 2
    sampling_s = float(np.median(np.diff(t_s)))
    if update_s is not None and update_s < _SKIPPING * sampling_s:
        return middle_s, value[new]
    found_s = middle_s.copy()
    for start in range(0, max(1, len(t_s) - _STRETCH // 2), _STRETCH):
        end = start + _STRETCH if start + 3 * _STRETCH // 2 < len(t_s) else len(t_s)
        if near_s is not None:
            from_s, to_s = t_s[start] - _MARGIN_S, t_s[end - 1] + _MARGIN_S
            if not np.any((near_s >= from_s) & (near_s <= to_s)):
                continue
        if start not in combs:
            combs[start] = _comb(t_s[max(0, start - 1) : end], value[max(0, start - 1) : end])
        comb = combs[start]
        inside = slice(*np.searchsorted(new, [start, end]))
        if comb is not None:
            phase_s, period_s = comb
            tooth_s = phase_s + np.floor((latest_s[inside] - phase_s) / period_s + 1e-9) * period_s
            agrees = tooth_s > earliest_s[inside]
            found_s[inside] = np.where(agrees, np.minimum(tooth_s, latest_s[inside]), middle_s[inside])
    return found_s, value[new]


def is_continuous(t_s: Floats, value: Floats, update_s: float | None) -> bool:
    """Whether readings show a counter as it was when read, by its period or by never repeating."""
    steps = np.diff(value)
    if update_s is not None:
        return update_s <= _NEGLIGIBLE * float(np.median(np.diff(t_s)))
    return bool(np.count_nonzero(steps == 0) <= 0.01 * len(steps))


def update_period_s(t_s: Floats, value: Floats, *, least: int = 20) -> float | None:
    """How often the value really changed: the shortest decile of the times between changes.

    A decile, since a constant power repeats its value though it was published anew.
    None with fewer than ``least`` changes, which say nothing.
    """
    changed_s = t_s[1:][np.diff(value) != 0]
    return float(np.quantile(np.diff(changed_s), 0.1)) if len(changed_s) > least else None


def _comb(t_s: Floats, value: Floats) -> tuple[float, float] | None:
    """Phase and period of the comb that fewest readings contradict; None when they tell none.

    With period U, a new value in an interval of width w < U forbids the phases of the
    ``U - w`` after it, a repeated one those of the interval itself. Forbidden arcs are
    counted on a grid of phases and of periods around the mean; of what is forbidden
    least often the middle is taken.
    """
    is_new = np.diff(value) > 0
    new = np.flatnonzero(is_new) + 1
    if len(new) < _FEWEST:
        return None
    gaps_s = np.diff(t_s[new])
    about_s = float(np.mean(gaps_s[gaps_s <= 2.5 * np.median(gaps_s)]))
    middle_s = float(t_s[0] + t_s[-1]) / 2
    # Over n periods the mean is off by at most one and a half of them; steps keep both ends within a bin.
    periods_s = about_s * (1 + np.linspace(-1.5, 1.5, _PERIODS) / len(new))[:, None]
    width_s = np.diff(t_s)[None, :]
    starts_s = np.where(is_new, t_s[1:], t_s[:-1])[None, :] - middle_s
    share = np.where(is_new, 1 - width_s / periods_s, width_s / periods_s)
    telling = (share > 0) & (share < 1)
    if not telling.any():
        return None
    phases = starts_s / periods_s % 1.0
    first = np.ceil(phases * _PHASES - 0.5)
    last = np.floor((phases + np.where(telling, share, 0.0)) * _PHASES - 0.5)
    forbidden = _covered(first.astype(np.intp), last.astype(np.intp), telling & (last >= first))
    fewest = int(forbidden.min())
    if fewest > _CONTRADICTED * len(value):
        return None
    begins, lengths = _longest_runs(forbidden == fewest)
    row = round(float((np.arange(_PERIODS) * lengths).sum() / lengths.sum()))
    begin, length = int(begins[row]), int(lengths[row])
    if length in (0, _PHASES):
        return None
    period_s = float(periods_s[row, 0])
    return middle_s + (begin + length / 2) / _PHASES * period_s, period_s


def _covered(first: np.ndarray, last: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many circular arcs of bins ``first..last`` (last may exceed the circle once) cover each bin."""
    wide = 2 * _PHASES + 1
    rows = np.broadcast_to(np.arange(len(first))[:, None] * wide, first.shape)[counts]
    size = len(first) * wide
    steps = np.bincount(rows + first[counts], minlength=size) - np.bincount(
        rows + last[counts] + 1, minlength=size
    )
    total = np.cumsum(steps.reshape(len(first), wide), axis=1)
    return total[:, :_PHASES] + total[:, _PHASES : 2 * _PHASES]


def _longest_runs(good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of each row's longest circular run of true bins, (P,); the first after a false one."""
    twice = np.concatenate([good, good], axis=1)
    place = np.arange(twice.shape[1])
    false = np.maximum.accumulate(np.where(twice, -1, place), axis=1)
    behind = np.where(false >= 0, place - false, 0)
    end = np.argmax(behind, axis=1)
    lengths = behind[np.arange(len(good)), end]
    every = good.all(axis=1)
    return np.where(every, 0, (end - lengths + 1) % _PHASES), np.where(every, _PHASES, lengths)
