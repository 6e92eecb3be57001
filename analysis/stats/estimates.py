"""Ratios, means and deviations with intervals from joint time blocks, sized by the measured autocorrelation.

A ratio R of two sums over the time blocks (`analysis.stats.blocks`) is the root of
sum e_k(R) = 0 with e_k = top_k - R bottom_k. The series is tested against its own long-run
variance with Student's t, whose degrees of freedom its autocorrelation allows
(`analysis.stats.autocorrelation`), and the interval is what the test does not reject:
(sum e(R) / sqrt(K))**2 <= t**2 mean_j L_j(R)**2 is quadratic in R, Fieller's interval (1954,
J. R. Stat. Soc. B 16) with dependent terms. A mean is the ratio of a sum and a count; of
clumped values it has fewer degrees of freedom and is even on the scale of 1 / mean.

Quantiles and shares are in `analysis.stats.ranks`. An effective sample that is too small gives
no interval, and the reason with the run it would take. ``benchmarks/coverage.py`` prints how
often the intervals hold the truth of simulated queues.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from analysis.stats import autocorrelation, student
from analysis.stats.blocks import LEVEL, Blocks, Ints
from analysis.stats.ends import Ends, needs, none
from loadgen.types import Estimate, Floats

CLUMPED = 2.0
"""Design effect from which a mean's large values count as clumps: their squares vary far more than they."""
KURTOSES_PER_FREEDOM = 6.0
FEWEST_FREEDOM = 3
"""The variance of n independent values is known like that of 2 n / (kurtosis - 1) normal ones; of values
in clumps, whose lengths vary as well, by ``benchmarks/coverage.py`` like n_eff / (6 (kurtosis - 1))."""
WIDEST = 0.9
"""Half an interval over what it is of, a mean or a quantile's tail; a wider one reaches almost to 0."""
_ROUNDING = 1e-10
"""Relative size of what floating point leaves of equal values and of differences of equal stamps."""
WORTH_NEEDED = 32
"""Independent blocks that `autocorrelation.FEWEST_WAVES` flat waves take."""
LEAST_WORTH = 2.0
"""Of a series worth less, slow swings and a drift look alike, and no length of run can be named."""


def missing(unit: str, reason: str, n: int = 0) -> Estimate:
    """A value that does not exist, and why."""
    return Estimate(None, unit, None, None, LEVEL, n, f"unavailable: {reason}")


def reason_of(method: str) -> str:
    """What a method gives as the reason why there is no value, or no interval; itself if it gives none."""
    return method.rpartition("no interval: ")[2].removeprefix("unavailable: ")


def exact(value: float, unit: str, n: int, method: str) -> Estimate:
    """A value without an interval, by design."""
    return Estimate(value, unit, None, None, LEVEL, n, method)


def scaled(estimate: Estimate, factor: float, unit: str) -> Estimate:
    """The same estimate in another unit (``factor > 0``)."""

    def times(x: float | None) -> float | None:
        return None if x is None else x * factor

    return replace(
        estimate,
        value=times(estimate.value),
        low=times(estimate.low),
        high=times(estimate.high),
        unit=unit,
    )


def estimate_of(value: float, ends: Ends, blocks: Blocks, unit: str, n: int, what: str) -> Estimate:
    """The estimate with these ends, which lie on both sides of ``value`` but for rounding."""
    low, high = ends.low, ends.high
    if low is not None and high is not None:
        low, high = min(low, value), max(high, value)
    return Estimate(value, unit, low, high, blocks.level, n, f"{what}; {ends.how}")


def ratio(
    numerator: Floats, denominator: Floats, blocks: Blocks, unit: str, n: int, what: str = "ratio of sums"
) -> Estimate:
    """sum(numerator) / sum(denominator) over the blocks; both of shape (K,).

    Both sums vary together, block by block. A zero denominator gives no value.
    """
    top, bottom = float(numerator.sum()), float(denominator.sum())
    if not (math.isfinite(top) and math.isfinite(bottom)):
        return missing(unit, f"{what}: not every value is a finite number", n)
    if bottom == 0:
        return missing(unit, f"{what}: the denominator is 0", n)
    value = top / bottom
    if numerator.any():
        size = float(np.abs(numerator).max())
        ends = _fieller(value, numerator - value * denominator, denominator, size, blocks)
    else:
        ends = none("of what was never seen, the blocks tell no spread")
    return estimate_of(value, ends, blocks, unit, n, what)


def mean(values: Floats, block: Ints, blocks: Blocks, unit: str) -> Estimate:
    """The arithmetic mean of ``values`` (n,), whose blocks are ``block`` (n,)."""
    unusable = unusable_values(values, unit)
    if unusable is not None:
        return unusable
    ends = _of_mean(values, block, blocks)
    return estimate_of(_mean(values), ends, blocks, unit, len(values), "arithmetic mean")


def std(values: Floats, block: Ints, blocks: Blocks, unit: str) -> Estimate:
    """The sample standard deviation (n - 1) of ``values``.

    The interval is that of the mean squared deviation from the sample's mean, whose own
    error enters only in second order.
    """
    unusable = unusable_values(values, unit)
    n = len(values)
    if unusable is not None or n < 2:
        return unusable or missing(unit, "a standard deviation needs 2 values", n)
    squares = (values - _mean(values)) ** 2 * (n / (n - 1))
    value = math.sqrt(float(squares.mean()))
    ends = _of_mean(squares, block, blocks)
    low, high = (None if end is None else math.sqrt(max(end, 0.0)) for end in (ends.low, ends.high))
    return estimate_of(value, Ends(low, high, ends.how), blocks, unit, n, "sample standard deviation")


def unusable_values(values: Floats, unit: str) -> Estimate | None:
    """Why ``values`` have no statistics: there are none, or some are not numbers."""
    if not len(values):
        return missing(unit, "no values")
    lost = int(np.count_nonzero(~np.isfinite(values)))
    return missing(unit, f"{lost} of {len(values)} values are not finite", len(values)) if lost else None


def _mean(values: Floats) -> float:
    """Exact for equal values, whose plain mean is rounded."""
    return float(values[0]) + float(np.mean(values - values[0]))


def _of_mean(values: Floats, block: Ints, blocks: Blocks) -> Ends:
    """Ends of the mean of values; with fewer degrees of freedom where they come in few clumps."""
    n, value = len(values), _mean(values)
    centred = values - value
    largest, power = float(np.abs(values).max()), float(np.mean(centred**2))
    sums, counts = blocks.sums(centred, block), blocks.counts(block)
    size = largest * float(counts.max())
    if blocks.waves is None or not math.sqrt(power) > _ROUNDING * largest:
        return _fieller(value, sums, counts, size, blocks)
    spread = blocks.waves[: autocorrelation.MOST_WAVES] @ sums
    design = float(np.mean(spread**2)) * blocks.count / (n * power)
    if design < CLUMPED:
        return _fieller(value, sums, counts, size, blocks)
    excess = float(np.mean(centred**4)) / power**2 - 1
    degrees = max(FEWEST_FREEDOM, math.floor(n / design / (KURTOSES_PER_FREEDOM * excess)))
    ends = _fieller(value, sums, counts, size, blocks, degrees)
    if ends.low is None or ends.high is None or not value > 0 or float(values.min()) < 0:
        return ends
    # A congested queue's standard error grows with the square of its mean wait (both fall with the
    # spare capacity), so that of 1 / mean does not: ends even on that scale.
    half = (ends.high - ends.low) / (2 * value)
    if half > WIDEST:
        why = f"the large values come in clumps, so all {n:,} are worth {n / design:.2g} independent ones"
        return none(f"{why}; {needs((half / WIDEST) ** 2, blocks.requests)}")
    return Ends(value / (1 + half), value / (1 - half), ends.how)


def _fieller(
    value: float,
    residual: Floats,
    bottom: Floats,
    size: float,
    blocks: Blocks,
    most: int = autocorrelation.MOST_WAVES,
) -> Ends:
    """Ends of ``value`` = sum(top) / sum(bottom) from ``residual`` = top - value x bottom, (K,).

    ``size``: of the terms of ``top``, against which a residual is rounding. ``most``: degrees of freedom.
    """
    if blocks.waves is None:
        return none(str(blocks.reason))
    k = blocks.count
    if float(np.abs(residual).max()) <= _ROUNDING * size:
        return Ends(value, value, f"the same in all {k} joint time blocks")
    coefficient = autocorrelation.lag_one_upper(residual)
    freedom = autocorrelation.freedom(coefficient, k)
    if freedom < autocorrelation.FEWEST_WAVES:
        return too_slow(coefficient, blocks)
    freedom = min(freedom, autocorrelation.MOST_WAVES)
    degrees = min(freedom, most)
    t2 = student.two_sided(blocks.level, degrees) ** 2
    # Around the estimate: the test's own terms would cancel badly when the ratio hardly varies.
    top_waves, bottom_waves = blocks.waves[:freedom] @ residual, blocks.waves[:freedom] @ bottom
    total = float(bottom.sum()) / math.sqrt(k)
    a = total**2 - t2 * float(np.mean(bottom_waves**2))
    b = t2 * float(np.mean(top_waves * bottom_waves))
    c = -t2 * float(np.mean(top_waves**2))
    if a <= 0:
        return none("the denominator itself varies so much that it is not told from 0")
    # a d**2 + 2 b d + c <= 0 for the distance d from the estimate; c <= 0, so it holds at d = 0.
    centre, half = -b / a, math.sqrt(max(b * b - a * c, 0.0)) / a
    return Ends(value + centre - half, value + centre + half, how(blocks, freedom, degrees))


def how(blocks: Blocks, freedom: int, degrees: int) -> str:
    """The method of an interval from so many waves with so many degrees of freedom."""
    return (
        f"t({degrees}) interval from the {freedom} slowest waves over {blocks.count} joint time blocks "
        f"of {blocks.length_s:.3g} s"
    )


def too_slow(coefficient: float, blocks: Blocks) -> Ends:
    """No interval of a series whose lag-one autocorrelation leaves too few waves flat.

    ``count`` blocks of a first-order autoregression are worth count (1 - a) / (1 + a) independent
    ones, and 12 flat waves take 32 of those whatever the count (`autocorrelation.freedom`).
    """
    worth = blocks.count * (1 - coefficient) / (1 + coefficient)
    if worth < LEAST_WORTH:
        return none("the values drift, or swing as slowly as the run is long: effective sample too small")
    return none(
        f"effective sample too small: requests near each other fare alike, so the run is worth {worth:.2g} "
        f"independent stretches of time, {WORTH_NEEDED} are needed; "
        + needs(max(1.1, WORTH_NEEDED / worth), blocks.requests)
    )
