"""Arrival processes: pure, seeded laws of the times at which requests are wanted.

Notation: t_0 <= t_1 <= ... are arrival instants in seconds, g_i = t_i - t_{i-1}
the gaps, U(a, b) the uniform law. Every renewal process starts with t_0 = 0, so
n arrivals span n - 1 gaps whatever the law, and two laws of equal mean gap offer
equal load over equal counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.types import ArrivalProcess, Floats


def _renewal(gaps_s: Floats) -> Floats:
    """t_0 = 0, t_i = g_1 + ... + g_i for gaps of shape (n - 1,)."""
    return np.asarray(np.concatenate([[0.0], np.cumsum(gaps_s)]), dtype=np.float64)


def _checked(n: int) -> int:
    if n < 1:
        raise ValueError(f"arrivals: expected n >= 1, got {n}")
    return n


@dataclass(frozen=True, slots=True)
class Constant:
    """t_i = i * interval_s. Gap CV 0; products, not sums, so no rounding builds up."""

    interval_s: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return np.asarray(np.arange(_checked(n)) * self.interval_s, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Renewal with g_i ~ U(low_s, high_s); gap CV (high - low) / (sqrt(3) (high + low))."""

    low_s: float
    high_s: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return _renewal(rng.uniform(self.low_s, self.high_s, _checked(n) - 1))


@dataclass(frozen=True, slots=True)
class UniformScript:
    """What the thank-you study's published script sends, sorted.

    Request i = 1..n sleeps for the sum of i draws of its own,
    t_i = sum_{j=1..i} U_ij(low_s, high_s), instead of sharing one cumulative sum.
    The t_i are independent with mean i m and variance i (high - low)^2 / 12
    (m = (low + high) / 2): a lattice whose jitter grows, so requests overtake each
    other and, far out, neighbours look Poisson (gap CV 0.92 over 100
    requests, 0.99 over 5,000 at U(0.05, 0.3)). The first arrival is moved to 0.

    Up to 400 requests every draw is made. Beyond, the sum of i > 400 uniforms is
    drawn from its normal limit, whose distribution function is off by the first
    Edgeworth term of a symmetric law: excess kurtosis 1.2 / i over 24 times 0.55,
    below 1e-4. Exact draws would be n^2 / 2 numbers.
    """

    low_s: float
    high_s: float

    _EXACT_UP_TO = 400

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        exact = min(_checked(n), self._EXACT_UP_TO)
        draws = rng.uniform(self.low_s, self.high_s, (exact, exact))
        head = np.array([draws[i, : i + 1].sum() for i in range(exact)])
        i = np.arange(exact + 1, n + 1)
        spread_s = (self.high_s - self.low_s) * np.sqrt(i / 12)
        tail = rng.normal(i * (self.low_s + self.high_s) / 2, spread_s)
        times_s = np.sort(np.concatenate([head, tail]))
        return np.asarray(times_s - times_s[0], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Poisson:
    """Renewal with exponential gaps of mean 1 / rate_rps; CV 1, index of dispersion 1."""

    rate_rps: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return _renewal(rng.exponential(1 / self.rate_rps, _checked(n) - 1))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Renewal with gamma gaps of mean 1 / rate_rps and shape ``burstiness``; CV 1 / sqrt(burstiness).

    1 is Poisson, below 1 burstier, infinity constant: the shape, never its inverse.
    """

    rate_rps: float
    burstiness: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        if math.isinf(self.burstiness):
            return Constant(1 / self.rate_rps).times(n, rng)
        scale_s = 1 / (self.rate_rps * self.burstiness)
        return _renewal(rng.gamma(self.burstiness, scale_s, _checked(n) - 1))


@dataclass(frozen=True, slots=True)
class Stage:
    """A rate held for a time; rate 0 is a pause."""

    rate_rps: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Steps:
    """Stages of constant rate lambda_k over [T_k, T_{k+1}), one after another.

    A unit-rate process u_i (``constant``: u_i = i; ``poisson``: exponential gaps)
    is mapped through the inverse of the cumulative rate
    Lambda(t) = integral of lambda, t_i = Lambda^{-1}(u_i). So no stage starts with
    a gap of its own and no arrival is lost or doubled at a boundary. Ends with the
    last stage: `times` may return fewer than n.
    """

    stages: tuple[Stage, ...]
    law: Literal["constant", "poisson"] = "constant"

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        unit = Constant(1.0) if self.law == "constant" else Poisson(1.0)
        u = unit.times(_checked(n), rng)
        edges_s = np.concatenate([[0.0], np.cumsum([s.duration_s for s in self.stages])])
        # Rounded, because 0.07 * 100 is 7.000000000000001: one arrival too many before the boundary.
        mass = np.round(np.cumsum([0.0, *(s.rate_rps * s.duration_s for s in self.stages)]), 9)
        u = u[u < mass[-1] - 1e-9]
        stage = np.searchsorted(mass, u, side="right") - 1
        rates_rps = np.array([s.rate_rps for s in self.stages])
        return np.asarray(edges_s[stage] + (u - mass[stage]) / rates_rps[stage], dtype=np.float64)

    @property
    def expected_count(self) -> int:
        """About how many arrivals all stages hold."""
        return math.ceil(sum(s.rate_rps * s.duration_s for s in self.stages))


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """t_i = 0."""

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return np.zeros(_checked(n))


class ClosedLoop(AllAtOnce):
    """t_i = 0: a closed loop has no timetable, the plan's ``max_in_flight`` paces it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Replay of recorded times, ``time_scale`` * (t_i - t_0), thinned and cut.

    ``thin`` keeps each arrival with that probability, independently (seeded); a
    thinned Poisson process is Poisson. Then the first ``max_requests`` within
    ``max_duration_s`` (of scaled time) are kept.
    """

    recorded_s: Floats
    time_scale: float = 1.0
    thin: float = 1.0
    max_requests: int | None = None
    max_duration_s: float | None = None

    def rows(self, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Indices of the recorded arrivals that are replayed, shape (m,), ascending."""
        scaled_s = (self.recorded_s - self.recorded_s[0]) * self.time_scale
        keep = rng.random(len(scaled_s)) < self.thin if self.thin < 1 else np.ones(len(scaled_s), bool)
        if self.max_duration_s is not None:
            keep &= scaled_s < self.max_duration_s
        return np.flatnonzero(keep)[: self.max_requests]

    def at(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
        """Replay times of those rows, shape (m,), seconds, the first at 0."""
        chosen_s = self.recorded_s[rows]
        if len(chosen_s) == 0:
            return chosen_s
        return np.asarray((chosen_s - chosen_s[0]) * self.time_scale, dtype=np.float64)

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return self.at(self.rows(rng)[: _checked(n)])


def count_within(
    process: ArrivalProcess, duration_s: float, rng: np.random.Generator, limit: int | None = None
) -> Floats:
    """All arrivals before ``duration_s``, at most ``limit``; shape (m,), seconds.

    The generator is copied and replayed with a doubled count until half of the
    arrivals lie beyond the duration, so that they are a prefix of what `times` gives
    for the same stream, and no later request of `UniformScript`, where requests
    overtake, is missed. With a ``limit`` they are the early ones of ``limit`` requests.
    Raises ValueError for a process that never gets there.
    """
    bits = type(rng.bit_generator)
    n = min(limit, 256) if limit is not None else 256
    while True:
        again = bits()
        again.state = rng.bit_generator.state
        times_s = process.times(n, np.random.Generator(again))
        inside = times_s[times_s < duration_s]
        if len(times_s) < n or 2 * len(inside) <= n or n == limit:
            return inside
        if n > 10**8:
            raise ValueError(f"arrivals: more than {n} before {duration_s} s")
        n = 2 * n if limit is None else min(2 * n, limit)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a series of arrivals looks like; None where it is too short to say.

    ``rate_rps`` = (count - 1) / duration; ``gap_cv`` = std / mean of gaps (needs 2);
    ``dispersion`` = variance / mean of counts in whole 1 s bins (needs 10);
    ``lag1`` = autocorrelation of neighbouring gaps (needs 10 gaps that vary).
    """

    count: int
    duration_s: float
    rate_rps: float | None
    gap_cv: float | None
    dispersion: float | None
    lag1: float | None


def describe(times_s: Floats) -> Shape:
    """The shape of sorted arrival times, shape (n,), seconds."""
    count = len(times_s)
    duration_s = float(times_s[-1] - times_s[0]) if count else 0.0
    if count < 2 or duration_s == 0:
        return Shape(count, duration_s, None, None, None, None)
    gaps_s = np.diff(times_s)
    mean_s, std_s = float(gaps_s.mean()), float(gaps_s.std())
    varies = std_s > 1e-9 * mean_s
    cv = None if len(gaps_s) < 2 else std_s / mean_s if varies else 0.0
    seconds = math.floor(duration_s)
    dispersion = lag1 = None
    if seconds >= 10:
        # Bins open a hair early, so that rounding of i * 0.05 does not move arrivals between them.
        bins = np.floor(times_s - times_s[0] + 1e-9).astype(int)
        counts = np.unique(bins[bins < seconds], return_counts=True)[1]  # a second without any adds nothing
        total = int(counts.sum())
        spread = (float(np.sum(counts**2)) - total**2 / seconds) / (seconds - 1)
        dispersion = spread * seconds / total if total else None
    if len(gaps_s) >= 10 and varies:
        d = gaps_s - mean_s
        lag1 = float(np.mean(d[1:] * d[:-1]) / std_s**2)
    return Shape(count, duration_s, (count - 1) / duration_s, cv, dispersion, lag1)
