"""Did B differ from A: two estimates of independent runs, and runs as samples.

What two runs have in common is taken out in `analysis.stats.paired`. Within one pair of runs the
interval is a sampling interval of those two runs. Temperature and clocks make a run one sample,
so a claim about configurations rests on several pairs run in turn; five or more are preferred, and
with one the result says so. Several metrics compared at once are corrected by Holm's step-down rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis import stats
from analysis.stats import autocorrelation, student
from analysis.stats.blocks import LEVEL
from loadgen.types import Estimate, Floats

ENOUGH_PAIRS = 5
ALPHA = 0.05
"""An adjusted p value up to this marks a difference as told from none."""
ROUNDING = 1e-12
"""Two values nearer than this share of the larger are the same one, summed in another order."""
ONE_PAIR = (
    "one pair of runs: the interval holds for these two runs; how far a repetition would differ is not known"
)
_MOVER = "unpaired, MOVER of both intervals"
_DEGREES = re.compile(r"\bt\((\d+)\) interval")


@dataclass(frozen=True, slots=True)
class Compared:
    """B against A in one metric. ``p``: two-sided, of no difference; None where it cannot be told."""

    difference: Estimate
    ratio: Estimate
    p: float | None
    notes: tuple[str, ...] = ()


def unpaired(a: Estimate, b: Estimate) -> Compared:
    """b - a and b / a of two independent estimates, from their own intervals.

    Squares of the distances to the ends add (MOVER: Zou and Donner 2008, "Construction of
    confidence limits about effect measures", Stat. Med. 27, eq. 6; Newcombe 1998), so
    asymmetric intervals keep their shape; the ratio on the logarithm's scale.
    """
    if a.unit != b.unit:
        raise ValueError(f"expected estimates of one unit, got {a.unit} and {b.unit}")
    n = min(a.n, b.n)
    if same(a.value, b.value):
        low, high = (a.value if end == b.value else end for end in (b.low, b.high))
        b = replace(b, value=a.value, low=low, high=high)
    if a.value is None or b.value is None:
        why = (a if a.value is None else b).method
        return Compared(stats.missing(a.unit, why, n), stats.missing("1", why, n), None)
    value, times = b.value - a.value, b.value / a.value if a.value > 0 else None
    if a.low is None or a.high is None or b.low is None or b.high is None:
        why = f"unpaired; no interval: one side has none ({(a if a.low is None else b).method})"
        return Compared(stats.exact(value, a.unit, n, why), _quotient(times, n, why), None, (ONE_PAIR,))
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    difference = Estimate(value, a.unit, low, high, a.level, n, _MOVER)
    if times is None or min(a.low, b.low) <= 0:
        ratio = _quotient(times, n, "unpaired; no interval: one side's reaches 0")
    else:
        down = math.hypot(math.log(b.value / b.low), math.log(a.high / a.value))
        up = math.hypot(math.log(b.high / b.value), math.log(a.value / a.low))
        ends = (times * math.exp(-down), times * math.exp(up))
        ratio = Estimate(times, "1", *ends, a.level, n, f"{_MOVER}, logarithms")
    freedom = _welch(_error_of(a), _error_of(b))
    return Compared(difference, ratio, p_of(difference, 0.0, freedom), (ONE_PAIR,))


def same(a: float | None, b: float | None) -> bool:
    """Whether two values differ by no more than `ROUNDING`."""
    return a is not None and b is not None and abs(b - a) <= ROUNDING * max(abs(a), abs(b))


def _quotient(value: float | None, n: int, why: str) -> Estimate:
    if value is None:
        return stats.missing("1", "the denominator is not positive", n)
    return stats.exact(value, "1", n, why)


def over_runs(a: Sequence[float], b: Sequence[float], unit: str, *, interleaved: bool) -> Compared:
    """Runs as samples: one value a run, A and B of a pair at the same place.

    Student's t over the pairs' differences, and over the logarithms of their ratios when all
    values are positive. One pair has values and no interval.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"expected as many runs of A as of B and at least one, got {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    pairs = len(first)
    notes = []
    if pairs == 1:
        notes.append(ONE_PAIR)
    elif pairs < ENOUGH_PAIRS:
        notes.append(f"{pairs} pairs of runs: {ENOUGH_PAIRS} or more are preferred")
    if pairs > 1 and not interleaved:
        notes.append(
            "the runs of A and B were not taken in turn: a drift of the board counts as a difference"
        )
    difference, p = _t_over(second - first, unit, "mean of the pairs' differences")
    if (first > 0).all() and (second > 0).all():
        logs, _ = _t_over(np.log(second / first), "1", "geometric mean of the pairs' ratios")
        ratio = _exponential(logs)
    else:
        ratio = stats.missing("1", "not all values are positive", pairs)
    return Compared(difference, ratio, p, tuple(notes))


def independent_runs(a: Sequence[float], b: Sequence[float], unit: str) -> Compared:
    """Runs as samples that make no pairs, one value a run: Welch's t, for ratios on logarithms.

    A side of one run has no spread: values, no interval.
    """
    if not a or not b:
        raise ValueError(f"expected at least one run on each side, got {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference, p = _welch_over(first, second, unit, "difference of means over runs")
    if (first > 0).all() and (second > 0).all():
        logs, _ = _welch_over(np.log(first), np.log(second), "1", "ratio of geometric means over runs")
        ratio = _exponential(logs)
    else:
        ratio = stats.missing("1", "not all values are positive", min(len(a), len(b)))
    return Compared(
        difference, ratio, p, (f"{len(a)} and {len(b)} runs make no pairs: compared as independent",)
    )


def mean_of_runs(
    values: Sequence[float], unit: str, what: str = "mean over runs", of: str = "runs"
) -> Estimate:
    """Mean over runs, one value each, with Student's interval from two runs on.

    ``what`` and ``of`` name the mean and the samples in its method; ``n`` is the number of samples.
    """
    return _t_over(np.asarray(values, dtype=np.float64), unit, what, of)[0]


def taken_in_turn(started_a_s: Sequence[float], started_b_s: Sequence[float]) -> bool:
    """Whether, in order of time, each two runs are one of A and one of B (ABAB, ABBA, ...)."""
    order = sorted([(t, "a") for t in started_a_s] + [(t, "b") for t in started_b_s])
    sides = [side for _, side in order]
    even = len(sides) % 2 == 0
    return even and all(sides[i] != sides[i + 1] for i in range(0, len(sides), 2))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values (Holm 1979, Scand. J. Stat. 6): max over j <= i of (m - j + 1) p_(j), at most 1.

    Reject where the adjusted value is at most the level; the chance of any false rejection is
    then at most the level, whatever the dependence between the metrics.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def _exponential(logs: Estimate) -> Estimate:
    value, low, high = (None if x is None else math.exp(x) for x in (logs.value, logs.low, logs.high))
    return replace(logs, value=value, low=low, high=high)


def _t_over(values: Floats, unit: str, what: str, of: str = "pairs of runs") -> tuple[Estimate, float | None]:
    """Student's interval for the mean of independent values, and p of a zero mean."""
    n, value = len(values), float(values.mean())
    if n < 2:
        return stats.exact(value, unit, n, f"{what}; no interval: one of the {of}"), None
    error = float(values.std(ddof=1)) / math.sqrt(n)
    return _student(value, unit, error, n - 1, n, f"{what}; t({n - 1}) interval over {n} {of}")


def _welch_over(a: Floats, b: Floats, unit: str, what: str) -> tuple[Estimate, float | None]:
    value, n = float(b.mean() - a.mean()), min(len(a), len(b))
    if n < 2:
        return stats.exact(value, unit, n, f"{what}; no interval: one side is a single run"), None
    errors = [(float(x.std(ddof=1)) / math.sqrt(len(x)), len(x) - 1) for x in (a, b)]
    freedom = _welch(errors[0], errors[1])
    how = f"{what}; t({freedom}) interval over {len(a)} and {len(b)} runs (Welch)"
    return _student(value, unit, math.hypot(errors[0][0], errors[1][0]), freedom, n, how)


def _student(
    value: float, unit: str, error: float, freedom: int, n: int, how: str
) -> tuple[Estimate, float | None]:
    half = student.two_sided(LEVEL, freedom) * error
    p = student.probability(value / error, freedom) if error > 0 else float(value == 0)
    return Estimate(value, unit, value - half, value + half, LEVEL, n, how), p


def degrees_of(estimate: Estimate) -> int:
    """Degrees of freedom behind an interval, as its ``method`` says; else the fewest of a ratio's."""
    found = _DEGREES.search(estimate.method)
    return int(found[1]) if found else autocorrelation.FEWEST_WAVES


def p_of(estimate: Estimate, null: float, freedom: int) -> float | None:
    """Two-sided p of ``null``: the level at which the interval, Student's with ``freedom``, would end there.

    Below 0.05 exactly when the 95 % interval leaves ``null`` out. None without an interval.
    """
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    distance = null - estimate.value
    half = estimate.high - estimate.value if distance > 0 else estimate.value - estimate.low
    if half <= 0:
        return float(distance == 0)
    return student.probability(abs(distance) / half * student.two_sided(estimate.level, freedom), freedom)


def _welch(a: tuple[float, int], b: tuple[float, int]) -> int:
    """Degrees of freedom of a sum of two independent errors, each (error, its degrees); rounded down.

    Welch 1947 and Satterthwaite 1946: (u + v)**2 / (u**2 / f + v**2 / g) for squared errors u, v.
    """
    (u, f), (v, g) = ((error * error, freedom) for error, freedom in (a, b))
    below = u * u / f + v * v / g
    return max(1, math.floor((u + v) ** 2 / below * (1 + 1e-12))) if below > 0 else f + g


def _error_of(estimate: Estimate) -> tuple[float, int]:
    """Standard error behind an interval, and its degrees of freedom."""
    assert estimate.low is not None and estimate.high is not None
    freedom = degrees_of(estimate)
    return (estimate.high - estimate.low) / 2 / student.two_sided(estimate.level, freedom), freedom
