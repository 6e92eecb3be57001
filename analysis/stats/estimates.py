"""Estimates with intervals from joint time blocks, sized by the measured autocorrelation.

Every statistic is the root of a sum over time blocks (`analysis.stats.blocks`): a ratio R of two
sums solves sum(top_k - R bottom_k) = 0, a q-quantile x solves sum(above_k(x) - (1 - q)
count_k) = 0. The series under the sum is tested against its own long-run variance with
Student's t, whose degrees of freedom its autocorrelation allows (`analysis.stats.autocorrelation`),
and the interval is what the test does not reject:

- **ratios and means**: (sum e(R) / sqrt(K))**2 <= t**2 mean_j L_j(R)**2 is quadratic in R:
  Fieller's interval (1954, J. R. Stat. Soc. B 16) with dependent terms;
- **quantiles**: the share above x has an interval p -+ t se, read as a rank on both sides
  (Woodruff 1952, J. Am. Stat. Assoc. 47). se**2 = p (1 - p) D / n with D the design effect:
  how many times the long-run variance exceeds that of independent values. High latencies
  come in clumps, one per congestion, and the few values above p99 may be one or two of them
  that say nothing of how often clumps come. So D is the largest of the quantile's own and
  those of the levels with five and ten times its tail;
- **means** of clumped values: fewer degrees of freedom, and even on the scale of 1 / mean.

An effective sample too small for any of them gives no interval, and the reason with its size.
``benchmarks/coverage.py`` prints how often the intervals hold the truth of simulated queues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats import autocorrelation, student
from analysis.stats.blocks import LEVEL, Blocks, Ints
from loadgen.types import Estimate, Floats

BEYOND_QUANTILE = 5
"""Values that must lie beyond a quantile before its interval is believed."""
TAILS = (1.0, 5.0, 10.0)
"""Multiples of a quantile's tail whose design effects are compared."""
CLUMPED = 2.0
"""Design effect from which a mean's large values count as clumps: their squares vary far more than they."""
KURTOSES_PER_FREEDOM = 6.0
FEWEST_FREEDOM = 3
"""The variance of n independent values is known like that of 2 n / (kurtosis - 1) normal ones; of values
in clumps, whose lengths vary as well, by ``benchmarks/coverage.py`` like n_eff / (6 (kurtosis - 1))."""
_WIDEST = 0.9
"""Of a quantile's tail: a wider half-interval would end among the sample's last few values."""


@dataclass(frozen=True, slots=True)
class _Ends:
    """An interval and how it came about; without one, ``how`` says why."""

    low: float | None
    high: float | None
    how: str


def missing(unit: str, reason: str, n: int = 0) -> Estimate:
    """A value that does not exist, and why."""
    return Estimate(None, unit, None, None, LEVEL, n, f"unavailable: {reason}")


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


def ratio(
    numerator: Floats, denominator: Floats, blocks: Blocks, unit: str, n: int, what: str = "ratio of sums"
) -> Estimate:
    """sum(numerator) / sum(denominator) over the blocks; both of shape (K,).

    Both sums vary together, block by block. A zero denominator gives no value.
    """
    total = float(denominator.sum())
    if total == 0:
        return missing(unit, f"{what}: the denominator is 0", n)
    ends = _fieller(numerator, denominator, blocks)
    value = float(numerator.sum()) / total
    return Estimate(value, unit, ends.low, ends.high, blocks.level, n, f"{what}; {ends.how}")


def mean(values: Floats, block: Ints, blocks: Blocks, unit: str) -> Estimate:
    """The arithmetic mean of ``values`` (n,), whose blocks are ``block`` (n,)."""
    if not len(values):
        return missing(unit, "no values")
    ends = _of_mean(values, block, blocks)
    return Estimate(
        float(values.mean()),
        unit,
        ends.low,
        ends.high,
        blocks.level,
        len(values),
        f"arithmetic mean; {ends.how}",
    )


def std(values: Floats, block: Ints, blocks: Blocks, unit: str) -> Estimate:
    """The sample standard deviation (n - 1) of ``values``.

    The interval is that of the mean squared deviation from the sample's mean, whose own
    error enters only in second order.
    """
    n = len(values)
    if n < 2:
        return missing(unit, "a standard deviation needs 2 values", n)
    value = float(np.std(values, ddof=1))
    squares = (values - values.mean()) ** 2 * (n / (n - 1))
    ends = _of_mean(squares, block, blocks)
    low, high = (None if end is None else math.sqrt(max(end, 0.0)) for end in (ends.low, ends.high))
    return Estimate(value, unit, low, high, blocks.level, n, f"sample standard deviation; {ends.how}")


def quantiles(values: Floats, block: Ints, qs: Sequence[float], blocks: Blocks, unit: str) -> list[Estimate]:
    """The q-quantiles of ``values`` (n,), one Estimate for each of ``qs``, 0 < q < 1.

    Point values interpolate linearly (numpy's default, type 7 of Hyndman and Fan). A
    quantile with fewer than 5 values beyond it gets no interval.
    """
    n = len(values)
    if not n:
        return [missing(unit, "no values") for _ in qs]
    ordered = np.sort(values)
    counts = blocks.counts(block)
    level = blocks.sums(values, block) - float(values.mean()) * counts
    slowest = autocorrelation.lag_one_upper(level)
    above: dict[float, Floats] = {}

    def series(q: float) -> Floats:
        """Values above the sample's q-quantile less their share of each block's, shape (K,)."""
        if q not in above:
            beyond = (values > _at_rank(ordered, q)).astype(np.float64)
            above[q] = blocks.sums(beyond, block) - float(beyond.mean()) * counts
        return above[q]

    found = []
    for q in qs:
        tail = min(q, 1 - q)
        if blocks.waves is None:
            ends = _Ends(None, None, f"no interval: {blocks.reason}")
        elif n * tail < BEYOND_QUANTILE * (1 - 1e-12):
            ends = _Ends(None, None, f"no interval: fewer than {BEYOND_QUANTILE} values beyond p{100 * q:g}")
        else:
            tails = sorted({min(0.5, multiple * tail) for multiple in TAILS})
            levels = [t if q < 0.5 else 1 - t for t in tails]
            ends = _woodruff(q, ordered, [(p, series(p)) for p in levels], slowest, blocks)
        method = f"quantile, linear; {ends.how}"
        found.append(Estimate(_at_rank(ordered, q), unit, ends.low, ends.high, blocks.level, n, method))
    return found


def _at_rank(ordered: Floats, q: float) -> float:
    """Quantile of sorted values, interpolated linearly (type 7)."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def _of_mean(values: Floats, block: Ints, blocks: Blocks) -> _Ends:
    """Ends of the mean of values; with fewer degrees of freedom where they come in few clumps."""
    top, bottom = blocks.sums(values, block), blocks.counts(block)
    n, power = len(values), float(values.var())
    if blocks.waves is None or not power > 0:
        return _fieller(top, bottom, blocks)
    centred = values - values.mean()
    spread = blocks.waves[: autocorrelation.MOST_WAVES] @ blocks.sums(centred, block)
    design = float(np.mean(spread**2)) * blocks.count / (n * power)
    if design < CLUMPED:
        return _fieller(top, bottom, blocks)
    excess = float(np.mean(centred**4)) / power**2 - 1
    most = math.floor(n / design / (KURTOSES_PER_FREEDOM * excess))
    ends = _fieller(top, bottom, blocks, max(FEWEST_FREEDOM, min(most, autocorrelation.MOST_WAVES)))
    mean = float(values.mean())
    if ends.low is None or ends.high is None or not mean > 0 or float(values.min()) < 0:
        return ends
    # A congested queue's standard error grows with the square of its mean wait (both fall with the
    # spare capacity), so that of 1 / mean does not: ends even on that scale.
    half = (ends.high - ends.low) / (2 * mean)
    if half > _WIDEST:
        return _Ends(None, None, _too_small(f"n_eff {n / design:.3g} of {n}"))
    return _Ends(mean / (1 + half), mean / (1 - half), ends.how)


def _fieller(top: Floats, bottom: Floats, blocks: Blocks, most: int = autocorrelation.MOST_WAVES) -> _Ends:
    """Ends of sum(top) / sum(bottom), the latter not zero, with at most ``most`` degrees of freedom."""
    if blocks.waves is None:
        return _Ends(None, None, f"no interval: {blocks.reason}")
    k = blocks.count
    residual = top - float(top.sum()) / float(bottom.sum()) * bottom
    coefficient = autocorrelation.lag_one_upper(residual)
    freedom = autocorrelation.freedom(coefficient, k)
    if freedom < autocorrelation.FEWEST_WAVES:
        return _Ends(None, None, _too_small(_worth(coefficient, k)))
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
        return _Ends(None, None, _too_small("the denominator is not told from 0"))
    # a d**2 + 2 b d + c <= 0 for the distance d from the estimate; c <= 0, so it holds at d = 0.
    centre, half = -b / a, math.sqrt(max(b * b - a * c, 0.0)) / a
    value = float(top.sum()) / float(bottom.sum())
    return _Ends(value + centre - half, value + centre + half, _how(blocks, freedom, degrees))


def _woodruff(
    q: float, ordered: Floats, levels: Sequence[tuple[float, Floats]], slowest: float, blocks: Blocks
) -> _Ends:
    """Ends of a quantile from the series above its own and higher-tailed ``levels``.

    ``slowest``: lag-one autocorrelation of the values themselves; the largest counts.
    """
    assert blocks.waves is not None
    n, k = len(ordered), blocks.count
    coefficient = max(slowest, *(autocorrelation.lag_one_upper(series) for _, series in levels))
    freedom = autocorrelation.freedom(coefficient, k)
    if freedom < autocorrelation.FEWEST_WAVES:
        return _Ends(None, None, _too_small(_worth(coefficient, k)))
    design = max(_design_effect(p, series, n, blocks.waves[:freedom]) for p, series in levels)
    tail = min(q, 1 - q)
    # The variance of clumps is known no better than their number allows; 2 a clump held 95 to 96 % in
    # queues of 10 to 60 clumps, 1 held 97, none 94 to 95.
    clumps = n * tail / max(design, 1.0)
    degrees = max(1, min(freedom, math.floor(2 * clumps)))
    half = student.two_sided(blocks.level, degrees) * math.sqrt(q * (1 - q) * design / n)
    size = f"n_eff {n / max(design, 1.0):.3g} of {n}"
    if half > _WIDEST * tail:
        return _Ends(None, None, _too_small(f"{size}, {clumps:.2g} of them beyond p{100 * q:g}"))
    low, high = _at_rank(ordered, q - half), _at_rank(ordered, q + half)
    return _Ends(low, high, f"{_how(blocks, freedom, degrees)}, {size}")


def _design_effect(p: float, series: Floats, n: int, waves: Floats) -> float:
    """Long-run variance of the number above the p-quantile over that of n independent values."""
    return float(np.mean((waves @ series) ** 2)) * len(series) / (n * p * (1 - p))


def _how(blocks: Blocks, freedom: int, degrees: int) -> str:
    return (
        f"t({degrees}) interval from the {freedom} slowest waves over {blocks.count} joint time blocks "
        f"of {blocks.length_s:.3g} s"
    )


def _worth(coefficient: float, count: int) -> str:
    """Blocks of a first-order autoregression, as independent ones; 12 flat waves take about 32."""
    worth = count * (1 - coefficient) / (1 + coefficient)
    return f"{count} time blocks are worth {worth:.2g} independent ones, about 32 are needed"


def _too_small(size: str) -> str:
    return f"no interval: effective sample too small ({size})"
