"""Shares and quantiles with intervals from joint time blocks.

A share p of n values has the standard error sqrt(p (1 - p) D / n), D the design effect: how many
times the long-run variance of its series over the blocks exceeds that of independent values. A
quantile's interval is p -+ t standard errors of the share above it, read as a rank on both sides
(Woodruff 1952, J. Am. Stat. Assoc. 47).

High latencies come in clumps, one per congestion, and the few values above p99 may be one or two
of them that say nothing of how often clumps come. So D is the largest of the quantile's own and
those of the levels with five and ten times its tail, and the degrees of freedom are at most
twice the number of independent values, n_eff = n / D, beyond it. Of equal values both the share
above and the share not below are looked at: where a quarter of the values are equal, one of the
two may not vary at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from analysis.stats import autocorrelation, student
from analysis.stats.autocorrelation import lag_one_upper
from analysis.stats.blocks import Blocks, Ints
from analysis.stats.ends import Ends, needs, none
from analysis.stats.estimates import WIDEST, estimate_of, how, missing, too_slow, unusable_values
from loadgen.types import Estimate, Floats

BEYOND = 5
"""Values that must lie beyond a quantile, and exceptions to a share, before an interval is believed."""
TAILS = (1.0, 5.0, 10.0)
"""Multiples of a quantile's tail whose design effects are compared."""


@dataclass(frozen=True, slots=True)
class _Half:
    """Half an interval of a share and how it came about; without one ``how`` says why."""

    width: float | None
    how: str


def share(part: Floats, whole: Floats, blocks: Blocks, what: str, behind: Sequence[Floats] = ()) -> Estimate:
    """sum(part) / sum(whole): counts of each block, (K,), the first ones among the second.

    ``behind``: series (K,) of the quantities that decide it, such as latencies less their
    mean; a rare case shows their slow swings less than they do. The interval is even in
    log(p / (1 - p)), so within (0, 1). With fewer than 5 cases of either outcome there is none.
    """
    n, found = int(whole.sum()), int(part.sum())
    if not n:
        return missing("1", f"{what}: the denominator is 0")
    p, fewer = found / n, min(found, n - found)
    if blocks.waves is not None and not fewer:
        rare = f"at most {300 / n:.2g} % if its cases are independent"
        why = f"each of {n:,} had the same outcome, which does not tell how often another comes: {rare}"
        half = _Half(None, none(why).how)
    else:
        levels, slowest = [(p * (1 - p), part - p * whole)], max(map(lag_one_upper, behind), default=0.0)
        half = _half_width(p, n, levels, slowest, blocks, "cases of the rarer outcome", 1)
    ends = Ends(None, None, half.how)
    if half.width is not None:
        factor = math.exp(half.width / (p * (1 - p)))
        ends = Ends(p / (p + (1 - p) * factor), p / (p + (1 - p) / factor), half.how)
    return estimate_of(p, ends, blocks, "1", n, what)


def quantiles(values: Floats, block: Ints, qs: Sequence[float], blocks: Blocks, unit: str) -> list[Estimate]:
    """The q-quantiles of ``values`` (n,), one Estimate for each of ``qs``, 0 < q < 1.

    Point values interpolate linearly (numpy's default, type 7 of Hyndman and Fan). A
    quantile with fewer than 5 values beyond it gets no interval.
    """
    unusable = unusable_values(values, unit)
    if unusable is not None:
        return [unusable for _ in qs]
    n, ordered, counts = len(values), np.sort(values), blocks.counts(block)
    slowest = lag_one_upper(blocks.sums(values - values.mean(), block))
    known: dict[float, list[tuple[float, Floats]]] = {}

    def beyond(q: float) -> list[tuple[float, Floats]]:
        """p (1 - p) and series (K,) of the share above the q-quantile; of equal values, that of those not
        below it as well."""
        if q not in known:
            x = _at_rank(ordered, q)
            equal = int(np.diff([np.searchsorted(ordered, x, side) for side in ("left", "right")])[0])
            known[q] = []
            for chosen in (values > x, values >= x) if equal > 1 else (values > x,):
                p = float(np.count_nonzero(chosen)) / n
                known[q].append((p * (1 - p), blocks.counts(block[chosen]) - p * counts))
        return known[q]

    found = []
    for q in qs:
        tail = min(q, 1 - q)
        levels = [(q * (1 - q), series) for _, series in beyond(q)]
        for multiple in TAILS[1:] if blocks.waves is not None else ():
            p = min(0.5, multiple * tail)
            levels += beyond(p if q < 0.5 else 1 - p)
        half = _half_width(q, n, levels, slowest, blocks, f"the values beyond p{100 * q:g}")
        ends = Ends(None, None, half.how)
        if half.width is not None:
            ends = Ends(_at_rank(ordered, q - half.width), _at_rank(ordered, q + half.width), half.how)
        found.append(estimate_of(_at_rank(ordered, q), ends, blocks, unit, n, "quantile, linear"))
    return found


def _at_rank(ordered: Floats, q: float) -> float:
    """Quantile of sorted values, interpolated linearly (type 7)."""
    at = min(max(q, 0.0), 1.0) * (len(ordered) - 1)
    below = min(int(at), len(ordered) - 2) if len(ordered) > 1 else 0
    above = min(below + 1, len(ordered) - 1)
    low, high = float(ordered[below]), float(ordered[above])
    return low + (at - below) * (high - low)


def _half_width(
    q: float,
    n: int,
    levels: Sequence[tuple[float, Floats]],
    slowest: float,
    blocks: Blocks,
    what: str,
    per_clump: int = 2,
) -> _Half:
    """Half the interval of a share ``q`` of n values, from p (1 - p) and the series of each of ``levels``.

    ``slowest``: a lag-one autocorrelation beside the levels' own; the largest counts. ``what``: the rarer
    side in words. ``per_clump``: degrees of freedom of an independent value beyond.
    """
    if blocks.waves is None:
        return _Half(None, none(str(blocks.reason)).how)
    tail = min(q, 1 - q)
    if n * tail < BEYOND * (1 - 1e-12):
        few = f"{what} are only {n * tail:.3g}, {BEYOND} are needed"
        return _Half(None, none(f"{few}; {needs(BEYOND / (n * tail), blocks.requests)}").how)
    coefficient = max(slowest, *(lag_one_upper(series) for _, series in levels))
    freedom = autocorrelation.freedom(coefficient, blocks.count)
    if freedom < autocorrelation.FEWEST_WAVES:
        return _Half(None, too_slow(coefficient, blocks).how)
    waves, scale = blocks.waves[:freedom], blocks.count / n
    design = max(
        (scale * float(np.mean((waves @ series) ** 2)) / spread for spread, series in levels if spread > 0),
        default=0.0,
    )
    clumps = n * tail / max(design, 1.0)
    # The variance of clumps is known no better than their number allows; of quantiles 2 a clump held 95 to
    # 96 % in queues of 10 to 60 clumps, 1 held 97, none 94 to 95; of shares, with one design effect only,
    # 2 held 92 and 1 held 94 at 7 clumps.
    degrees = max(1, min(freedom, math.floor(per_clump * clumps * (1 + 1e-9))))
    width = student.two_sided(blocks.level, degrees) * math.sqrt(q * (1 - q) * design / n)
    if width > WIDEST * tail:
        clumped = "come in clumps and " if design > 1 else ""
        why = f"effective sample too small: {what} {clumped}are worth {clumps:.2g} independent ones"
        needed = _clumps_needed(tail, blocks.level)
        return _Half(None, none(f"{why}, {needed} are needed; {needs(needed / clumps, blocks.requests)}").how)
    return _Half(width, f"{how(blocks, freedom, degrees)}, n_eff {n / max(design, 1.0):.3g} of {n}")


@cache
def _clumps_needed(tail: float, level: float) -> int:
    """Independent values beyond a quantile with which its interval is narrow enough to be given."""
    clumps = 1
    while student.two_sided(level, 2 * clumps) ** 2 * (1 - tail) / clumps > WIDEST**2:
        clumps += 1
    return clumps
