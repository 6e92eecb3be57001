"""Renewal processes: independent gaps of one law, and the two that have none.

Every renewal process starts with t_0 = 0, so n arrivals span n - 1 gaps whatever
the law, and two laws of equal mean gap offer equal load over equal counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loadgen.types import Floats


def renewal(gaps_s: Floats) -> Floats:
    """t_0 = 0, t_i = g_1 + ... + g_i for gaps of shape (n - 1,)."""
    return np.asarray(np.concatenate([[0.0], np.cumsum(gaps_s)]), dtype=np.float64)


def positive(n: int) -> int:
    """n itself. Raises ValueError below 1."""
    if n < 1:
        raise ValueError(f"arrivals: expected n >= 1, got {n}")
    return n


@dataclass(frozen=True, slots=True)
class Constant:
    """t_i = i * interval_s. Gap CV 0; products, not sums, so no rounding builds up."""

    interval_s: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return np.asarray(np.arange(positive(n)) * self.interval_s, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Renewal with g_i ~ U(low_s, high_s); gap CV (high - low) / (sqrt(3) (high + low))."""

    low_s: float
    high_s: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return renewal(rng.uniform(self.low_s, self.high_s, positive(n) - 1))


@dataclass(frozen=True, slots=True)
class Poisson:
    """Renewal with exponential gaps of mean 1 / rate_rps; CV 1, index of dispersion 1."""

    rate_rps: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return renewal(rng.exponential(1 / self.rate_rps, positive(n) - 1))


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
        return renewal(rng.gamma(self.burstiness, scale_s, positive(n) - 1))


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """t_i = 0."""

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        return np.zeros(positive(n))


class ClosedLoop(AllAtOnce):
    """t_i = 0: a closed loop has no timetable, the plan's ``max_in_flight`` paces it."""

    __slots__ = ()
