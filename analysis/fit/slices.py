"""Joules of prefill and decode of requests that were alone, from slices of the energy that was read.

A phase shorter than a few updates of the sensor cannot be read off it: what is read at its edges is
partly its neighbours', always to the same side. Over slices that hold several phases it need not be:

    E_k - P_idle (gaps in k) = sum over requests of f_prefill (A s + B) + f_decode (C n + D s n + E),

f being the part of a phase within slice k. Least squares over the slices gives the constants of both
phases at once, without a prior. Slices begin and end where a value was published: there the energy
is what was read, not what lies between. When that was is known to a part of an update; what is
left is taken to be one shift for a board in a run, that with the least squares (a shift of 10 ms
moves 4 J at 400 W, more than many a prefill). What ends in a gap (a tail of power) counts as the
request's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import energy
from analysis.energy.publication import is_continuous, publications
from analysis.fit.estimate import FEWEST, Ints, Matrix, Solution, solve
from analysis.fit.model import FitError
from analysis.fit.sample import ALONE, Sample
from analysis.run import Run, Series
from loadgen.types import Floats

Bools = npt.NDArray[np.bool_]
TERMS = ("A", "B", "C", "D", "E")
_FIRST = ("C", "B", "A", "E", "D")
_ORDER = tuple(TERMS.index(name) for name in _FIRST)
PREFILL, DECODE = slice(0, 2), slice(2, 5)
SLICE_S = 0.5
MOST_SLICES = 20_000
_SHIFTS = 21
"""Shifts that are tried to either side of none within an update, then around the best of them."""


@dataclass(frozen=True, slots=True)
class Joint:
    """The five constants, idle power included (``total``) and above it (``active``), from ``n`` slices.

    ``slice_s``: their mean length.
    """

    total: Solution
    active: Solution
    n: int
    slice_s: float

    def part(self, which: slice, *, active: bool = False) -> Solution:
        """The constants of one phase."""
        found = self.active if active else self.total
        return replace(
            found,
            value=found.value[which],
            half=found.half[which],
            covariance=found.covariance[which, which],
            kept=found.kept[which],
            tangled=(),
        )


@dataclass(frozen=True, slots=True)
class _Slices:
    """Of one board in one run: what it read in each slice (K,), and regressors (K, 5)."""

    x: Matrix
    total_j: Floats
    active_j: Floats
    width_s: Floats


def joint(samples: Sequence[Sample]) -> Joint:
    """Fits the slices of all runs that have energy, board by board, and adds the boards.

    Raises FitError when they are too few.
    """
    by_run = [_boards(s) for s in samples]
    boards = [[run[k] for run in by_run if len(run) > k] for k in range(max(map(len, by_run), default=0))]
    solved = [_solved(parts) for parts in boards]
    count = sum(len(part.total_j) for part in boards[0])
    widths_s = np.concatenate([part.width_s for part in boards[0]])
    return Joint(
        _summed([s[0] for s in solved]), _summed([s[1] for s in solved]), count, float(widths_s.mean())
    )


def _solved(parts: Sequence[_Slices]) -> tuple[Solution, Solution]:
    x = np.concatenate([part.x for part in parts])
    if len(x) < FEWEST:
        raise FitError(f"{len(x)} slices of energy hold requests that were alone, {FEWEST} are needed")
    series: Ints = np.repeat(np.arange(len(parts)), [len(part.x) for part in parts])
    totals_j, actives_j = (
        np.concatenate(j) for j in zip(*((p.total_j, p.active_j) for p in parts), strict=True)
    )
    return solve(x, totals_j, _ORDER, series), solve(x, actives_j, _ORDER, series)


def _summed(boards: Sequence[Solution]) -> Solution:
    """Constants of all boards together; their errors may go together, so they are added as they are."""
    first = boards[0]
    if len(boards) == 1:
        return first
    return replace(
        first,
        value=np.sum([b.value for b in boards], axis=0),
        half=np.sum([b.half for b in boards], axis=0),
        covariance=len(boards) * np.sum([b.covariance for b in boards], axis=0),
        freedom=min(b.freedom for b in boards),
        short=any(b.short for b in boards),
    )


def _boards(sample: Sample) -> list[_Slices]:
    run, attribution = sample.run, sample.attribution
    if attribution is None or run.end_s is None:
        return []
    phases = sample.phases
    lonely = phases["in_flight"].to_numpy(dtype=np.float64) <= ALONE
    known = phases[lonely & (phases["end_s"] > phases["begin_s"])].sort_values("begin_s", kind="stable")
    boards = energy.measure(run, np.array([0.0, run.end_s]))["gpu"].boards
    return [
        _slices(run, run.series[b.domain], float(attribution.idle_w[k]), b.update_s, known, sample.others)
        for k, b in enumerate(boards)
    ]


def _slices(
    run: Run,
    series: Series,
    idle_w: float,
    update_s: float | None,
    phases: pd.DataFrame,
    others: pd.DataFrame,
) -> _Slices:
    """Slices with work of requests that were alone, and of no others, at the shift that fits best."""
    assert run.end_s is not None
    at_s, value_j = _published(series)
    apart_s = float(np.median(np.diff(at_s))) if len(at_s) > 1 else 0.0
    reach_s = max(update_s or 0.0, apart_s)
    inside = (at_s >= reach_s) & (at_s <= run.end_s - reach_s)
    at_s, value_j = at_s[inside], value_j[inside]
    if len(at_s) < 2 or not len(phases):
        return _Slices(np.empty((0, 5)), np.empty(0), np.empty(0), np.empty(0))
    length_s = max(SLICE_S, float(at_s[-1] - at_s[0]) / MOST_SLICES)
    some = np.unique(np.searchsorted(at_s, np.arange(at_s[0], at_s[-1], length_s)))
    edges_s, width_s, read_j = at_s[some], np.diff(at_s[some]), np.diff(value_j[some])
    use = ~_touched(edges_s, others, reach_s)
    work = _Work(phases)

    def at(shift_s: float) -> tuple[float, _Slices]:
        x, busy_s = work.within(edges_s + shift_s)
        kept = use & (busy_s > 0)
        total_j = (read_j - idle_w * (width_s - busy_s))[kept]
        left = total_j - x[kept] @ np.linalg.lstsq(x[kept], total_j, rcond=None)[0]
        found = _Slices(x[kept], total_j, (read_j - idle_w * width_s)[kept], width_s[kept])
        return float(np.mean(left**2)) if len(left) else np.inf, found

    best_s, step_s = 0.0, reach_s / _SHIFTS
    for _ in range(2):
        tried = [best_s + k * step_s for k in range(-_SHIFTS, _SHIFTS + 1)]
        best_s, step_s = min(tried, key=lambda shift_s: at(shift_s)[0]), step_s / _SHIFTS
    return at(best_s)[1]


def _published(series: Series) -> tuple[Floats, Floats]:
    """Instants at which the cumulative energy is known, and it: as published, or at each reading."""
    update_s = series.domain.update_s
    if series.cumulative and not is_continuous(series.t_s, series.value, update_s):
        return publications(series.t_s, series.value, update_s)
    curve = energy.curve(series)
    return curve.t_s, curve.energy_j


class _Work:
    """What phases did by any instant, cumulated."""

    def __init__(self, phases: pd.DataFrame) -> None:
        begin_s, end_s, s, n, fills, decodes = (
            phases[name].to_numpy(dtype=np.float64)
            for name in ("begin_s", "end_s", "s", "n", "fills", "decodes")
        )
        self._knots_s = np.maximum.accumulate(np.stack([begin_s, end_s], axis=1).ravel())
        columns = (fills * s, fills, decodes * n, decodes * s * n, decodes, end_s - begin_s)
        nothing = np.zeros(len(s))
        self._sums = [np.cumsum(np.stack([nothing, column], axis=1).ravel()) for column in columns]

    def within(self, edges_s: Floats) -> tuple[Matrix, Floats]:
        """Regressors (K, 5) of the slices between the edges (K + 1,), and seconds with work in each."""
        found = [np.diff(np.interp(edges_s, self._knots_s, summed)) for summed in self._sums]
        return np.stack(found[:5], axis=1), found[5]


def _touched(edges_s: Floats, others: pd.DataFrame, reach_s: float) -> Bools:
    """Which slices, (K,), may hold something of requests that were not alone, failed or are not known."""
    change = np.zeros(len(edges_s) + 1)
    begin_s = others["begin_s"].to_numpy(dtype=np.float64) - reach_s
    end_s = others["end_s"].to_numpy(dtype=np.float64) + reach_s
    first = np.clip(np.searchsorted(edges_s, begin_s, side="right") - 1, 0, len(edges_s))
    last = np.clip(np.searchsorted(edges_s, end_s, side="left"), 0, len(edges_s))
    np.add.at(change, first, 1)
    np.add.at(change, last, -1)
    touched: Bools = np.cumsum(change)[: len(edges_s) - 1] > 0
    return touched
