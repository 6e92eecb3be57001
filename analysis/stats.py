"""Estimates with intervals from a block bootstrap over joint time blocks.

Neighbouring requests share a batch, a queue and a board, so they are not
independent: resampling single requests gives intervals that are too narrow. The
run's window is cut into K equal time blocks, longer than a request lives, and
whole blocks are drawn with replacement (Kuensch 1989; non-overlapping blocks as
in Carlstein 1986). One matrix of draws serves every metric of a run, so energy,
requests and tokens of a block always stay together.

A draw is kept as multiplicities ``w[r, k]`` (how often block k occurs in
resample r), never as copied data: sums are ``w @ sums_per_block`` and quantiles
are read off ``w @ histogram_per_block``.

The interval is the *expanded percentile* interval (Hesterberg 2015, "What
teachers should know about the bootstrap", section 3.4): the tails are cut at
Phi(-sqrt(K / (K - 1)) t(K - 1)) instead of 2.5 %, which corrects the percentile
interval's known narrowness with few blocks and stays inside the resampled range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from loadgen.types import Estimate, Floats

Ints = npt.NDArray[np.intp]

LEVEL = 0.95
RESAMPLES = 1000
MOST_BLOCKS = 60
FEWEST_BLOCKS = 10
LATENCIES_PER_BLOCK = 5.0
REQUESTS_PER_BLOCK = 5
PERIODS_PER_BLOCK = 10.0
BEYOND_QUANTILE = 5
"""Values that must lie beyond a quantile before its interval is believed."""
_EXACT_BINS = 4096
_CHUNK_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Blocks:
    """Equal time blocks of a window and the draws shared by all its metrics.

    ``edges_s``: shape (K + 1,). ``draws``: multiplicities, shape (R, K), each
    row summing to K; None when no interval can be given, and then ``reason``
    says why. ``level``: the intervals' confidence.
    """

    edges_s: Floats
    draws: Floats | None
    level: float
    reason: str | None

    @property
    def count(self) -> int:
        return len(self.edges_s) - 1

    @property
    def length_s(self) -> float:
        return float(self.edges_s[-1] - self.edges_s[0]) / self.count

    def index(self, t_s: Floats) -> Ints:
        """The block of each instant, shape (n,); instants outside go to the nearest block."""
        found = np.searchsorted(self.edges_s, t_s, side="right") - 1
        return np.clip(found, 0, self.count - 1).astype(np.intp)

    def sums(self, values: Floats, block: Ints) -> Floats:
        """Sum of the values of each block, shape (K,)."""
        return np.bincount(block, weights=values, minlength=self.count).astype(np.float64)

    def counts(self, block: Ints) -> Floats:
        """Number of values in each block, shape (K,)."""
        return np.bincount(block, minlength=self.count).astype(np.float64)

    def describe(self) -> str:
        """What ``Estimate.method`` says about the interval."""
        if self.draws is None:
            return f"no interval: {self.reason}"
        return (
            f"block bootstrap: {self.count} joint time blocks of {self.length_s:.3g} s, "
            f"{len(self.draws)} resamples"
        )


def choose_blocks(
    start_s: float,
    end_s: float,
    due_s: Floats,
    latency_s: Floats,
    period_s: float | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Blocks:
    """Cuts [start, end] into blocks that suit the data and draws the resamples.

    A block spans at least 5 median latencies (so that a request and its energy
    mostly share one), 10 sampling periods, and holds 5 requests on average;
    there are at most 60. With fewer than 10 blocks, or when the arrivals fill
    fewer than 10 (a burst: nothing stationary to resample), there are no draws.

    ``due_s``: shape (n,), the requests' instants; ``latency_s``: shape (m,), of
    the successful ones. Seeded: equal arguments give equal draws.
    """
    window_s = end_s - start_s
    if not window_s > 0:
        return Blocks(np.array([start_s, start_s + 1.0]), None, level, "the window is empty")
    shortest_s = max(
        LATENCIES_PER_BLOCK * float(np.median(latency_s)) if len(latency_s) else 0.0,
        PERIODS_PER_BLOCK * (period_s or 0.0),
        window_s / MOST_BLOCKS,
    )
    fitting = int(window_s / shortest_s * (1 + 1e-12))
    count = max(1, min(fitting, len(due_s) // REQUESTS_PER_BLOCK))
    blocks = Blocks(np.linspace(start_s, end_s, count + 1), None, level, None)
    if count < FEWEST_BLOCKS:
        why = (
            f"{len(due_s)} request{'s are' if len(due_s) != 1 else ' is'} too few"
            if fitting >= FEWEST_BLOCKS
            else f"the run is too short, {window_s:.3g} s is {fitting} block{'s' * (fitting != 1)} "
            f"of {shortest_s:.3g} s ({LATENCIES_PER_BLOCK:g} median latencies)"
        )
        return replace(blocks, reason=f"{why}; {FEWEST_BLOCKS} blocks needed")
    inside = due_s[(due_s >= start_s) & (due_s <= end_s)]
    filled = int(np.count_nonzero(blocks.counts(blocks.index(inside))))
    if filled < FEWEST_BLOCKS:
        return replace(blocks, reason=f"arrivals fill only {filled} of {count} time blocks")
    rng = np.random.default_rng([seed, 0x5B10C4])
    draws = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)
    return replace(blocks, draws=draws)


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

    The ratio estimator resamples both sums together, so their correlation
    within a block is kept. A zero denominator gives no value.
    """
    total = float(denominator.sum())
    if total == 0:
        return missing(unit, f"{what}: the denominator is 0", n)
    value = float(numerator.sum()) / total
    if blocks.draws is None:
        return Estimate(value, unit, None, None, blocks.level, n, f"{what}; {blocks.describe()}")
    top, bottom = blocks.draws @ numerator, blocks.draws @ denominator
    usable = bottom > 0
    low, high = _interval(top[usable] / bottom[usable], blocks)
    return Estimate(value, unit, low, high, blocks.level, n, f"{what}; {blocks.describe()}")


def mean(values: Floats, block: Ints, blocks: Blocks, unit: str) -> Estimate:
    """The arithmetic mean of ``values`` (n,), whose blocks are ``block`` (n,)."""
    if not len(values):
        return missing(unit, "no values")
    return ratio(
        blocks.sums(values, block), blocks.counts(block), blocks, unit, len(values), "arithmetic mean"
    )


def std(values: Floats, block: Ints, blocks: Blocks, unit: str) -> Estimate:
    """The sample standard deviation (n - 1) of ``values``."""
    n = len(values)
    if n < 2:
        return missing(unit, "a standard deviation needs 2 values", n)
    what = f"sample standard deviation; {blocks.describe()}"
    value = float(np.std(values, ddof=1))
    if blocks.draws is None:
        return Estimate(value, unit, None, None, blocks.level, n, what)
    # Centred first: the two-sums formula cancels badly when the mean is large.
    centred = values - values.mean()
    size = blocks.draws @ blocks.counts(block)
    first = blocks.draws @ blocks.sums(centred, block)
    second = blocks.draws @ blocks.sums(centred**2, block)
    usable = size > 1
    variance = (second[usable] - first[usable] ** 2 / size[usable]) / (size[usable] - 1)
    low, high = _interval(np.sqrt(np.maximum(variance, 0.0)), blocks)
    return Estimate(value, unit, low, high, blocks.level, n, what)


def quantiles(values: Floats, block: Ints, qs: Sequence[float], blocks: Blocks, unit: str) -> list[Estimate]:
    """The q-quantiles of ``values`` (n,), one Estimate for each of ``qs``.

    Point values interpolate linearly (numpy's default, type 7 of Hyndman and
    Fan). A quantile with fewer than 5 values beyond it gets no interval: the
    bootstrap of an extreme order statistic is inconsistent.
    """
    n = len(values)
    if not n:
        return [missing(unit, "no values") for _ in qs]
    order = np.argsort(values, kind="stable")
    ordered, block = values[order], block[order]
    points = np.quantile(ordered, list(qs))
    believed = [q for q in qs if n * min(q, 1 - q) >= BEYOND_QUANTILE]
    ends: dict[float, tuple[float | None, float | None]] = {}
    if blocks.draws is not None and believed:
        resampled = _resampled_quantiles(ordered, block, believed, blocks, blocks.draws)
        ends = {q: _interval(resampled[i], blocks) for i, q in enumerate(believed)}
    found = []
    for q, point in zip(qs, points, strict=True):
        low, high = ends.get(q, (None, None))
        if blocks.draws is None or q in ends:
            how = blocks.describe()
        else:
            how = f"no interval: fewer than {BEYOND_QUANTILE} values beyond p{100 * q:g}"
        method = f"quantile, linear; {how}"
        found.append(Estimate(float(point), unit, low, high, blocks.level, n, method))
    return found


def _resampled_quantiles(
    ordered: Floats, block: Ints, qs: Sequence[float], blocks: Blocks, draws: Floats
) -> Floats:
    """Quantiles (inverse of the weighted empirical distribution) of each resample, (len(qs), R)."""
    starts = _bin_starts(len(ordered), qs)
    widths = np.diff(np.append(starts, len(ordered)))
    bins = np.repeat(np.arange(len(starts)), widths)
    flat = np.bincount(block * len(starts) + bins, minlength=blocks.count * len(starts))
    histogram = flat.reshape(blocks.count, len(starts)).astype(np.float64)
    representative = ordered[starts + (widths - 1) // 2]
    found = np.empty((len(qs), len(draws)))
    for at in range(0, len(draws), _CHUNK_RESAMPLES):
        cumulative = np.cumsum(draws[at : at + _CHUNK_RESAMPLES] @ histogram, axis=1)
        for i, q in enumerate(qs):
            reached = cumulative >= (q * cumulative[:, -1:] - 1e-9)
            found[i, at : at + len(cumulative)] = representative[np.argmax(reached, axis=1)]
    return found


def _bin_starts(n: int, qs: Sequence[float]) -> Ints:
    """First ranks of the histogram's bins: every rank up to 4,096 values, else finest around each q.

    A resampled quantile strays by a few sqrt(q(1-q)/n) in rank; 0.2 sqrt(q(1-q))
    to each side is wide for any n > 4,096 and any dependence that leaves 10
    blocks, and a coarse grid catches the rest. 520,000 gaps cost what 5,000 do.
    """
    if n <= _EXACT_BINS:
        return np.arange(n, dtype=np.intp)
    ranks = [np.linspace(0, n, 1024, endpoint=False)]
    for q in qs:
        ranks.append(n * (q + 0.2 * math.sqrt(q * (1 - q)) * np.linspace(-1, 1, 1025)))
    joined = np.unique(np.concatenate(ranks).astype(np.intp))
    return joined[(joined >= 0) & (joined < n)]


def _interval(resampled: Floats, blocks: Blocks) -> tuple[float | None, float | None]:
    if not len(resampled):
        return None, None
    k = blocks.count
    z = NormalDist().inv_cdf((1 + blocks.level) / 2)
    tail = NormalDist().cdf(-math.sqrt(k / (k - 1)) * student_t(z, k - 1))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def student_t(z: float, freedom: int) -> float:
    """Student's t quantile with the tail of the normal quantile ``z``.

    The expansion in 1/freedom of Abramowitz and Stegun 26.7.5; four terms are
    within 2e-4 of exact for freedom >= 9 at 95 %.
    """
    v = float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
