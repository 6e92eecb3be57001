"""Processes whose rate changes with time, exact and without thinning.

A unit-rate process u_0 = 0 <= u_1 <= ... (law ``constant``: u_i = i; ``poisson``:
exponential gaps) is mapped through the inverse of the cumulative rate
Lambda(t) = integral of lambda from 0 to t: t_i = Lambda^{-1}(u_i) (the time change;
Cinlar, Introduction to Stochastic Processes, 1975, section 4.7, pp. 94-101). Under ``poisson``
the arrivals after the first are an inhomogeneous Poisson process of rate lambda;
under ``constant`` the count up to t is Lambda(t) rounded up. So no part starts with
a gap of its own, and no arrival is lost or doubled at a boundary.

Rates are requests per second, times seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.arrivals.renewal import Constant, Poisson, positive
from loadgen.types import Floats

Law = Literal["constant", "poisson"]
Dwell = Literal["constant", "exponential"]

# Requests. Sums of rate times time are off by rounding (0.07 * 100 > 7): an arrival this near to a
# boundary belongs behind it.
_HAIR = 1e-9


def _unit(law: Law, n: int, rng: np.random.Generator) -> Floats:
    process = Constant(1.0) if law == "constant" else Poisson(1.0)
    return process.times(positive(n), rng)


def _through_stages(u: Floats, durations_s: Floats, rates_rps: Floats) -> Floats:
    """Lambda^{-1}(u) of stages of constant rate; what lies beyond the last stage is cut."""
    edges_s = np.concatenate([[0.0], np.cumsum(durations_s)])
    mass = np.round(np.cumsum(np.concatenate([[0.0], rates_rps * durations_s])), 9)
    u = u[u < mass[-1] - _HAIR]
    stage = np.searchsorted(mass, u, side="right") - 1
    return np.asarray(edges_s[stage] + (u - mass[stage]) / rates_rps[stage], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Stage:
    """A rate held for a time; rate 0 is a pause."""

    rate_rps: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Steps:
    """Stages of constant rate lambda_k over [T_k, T_{k+1}), one after another.

    Ends with the last stage: `times` may return fewer than n.
    """

    stages: tuple[Stage, ...]
    law: Law = "constant"

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        durations_s = np.array([s.duration_s for s in self.stages], dtype=np.float64)
        rates_rps = np.array([s.rate_rps for s in self.stages], dtype=np.float64)
        return _through_stages(_unit(self.law, n, rng), durations_s, rates_rps)


@dataclass(frozen=True, slots=True)
class Ramp:
    """Rate linear from a = ``start_rps`` at 0 to b = ``end_rps`` at T = ``duration_s``, where it ends.

    Lambda(t) = a t + (b - a) t^2 / (2 T); its inverse is written without the
    difference of near numbers, t = 2 u / (a + sqrt(a^2 + 2 u (b - a) / T)). `times` may
    return fewer than n.
    """

    start_rps: float
    end_rps: float
    duration_s: float
    law: Law = "constant"

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        u = _unit(self.law, n, rng)
        u = u[u < self._mass - _HAIR]
        slope = (self.end_rps - self.start_rps) / self.duration_s
        at_u_rps = np.sqrt(np.maximum(self.start_rps**2 + 2 * u * slope, 0.0))
        below = self.start_rps + at_u_rps
        return np.divide(2 * u, below, out=np.zeros_like(u), where=below > 0)

    @property
    def _mass(self) -> float:
        return (self.start_rps + self.end_rps) / 2 * self.duration_s


@dataclass(frozen=True, slots=True)
class Sine:
    """A day: lambda(t) = m (1 + A sin(2 pi t / P + phi)), endless.

    m = ``mean_rps``, A = ``amplitude`` in [0, 1], P = ``period_s``, phi = ``phase_rad``
    (-pi/2 starts in the trough). Each period holds m P requests, whatever the phase, so
    u is reduced to whole periods and a rest; the rest is Kepler's equation,

        theta + A (cos phi - cos(theta + phi)) = 2 pi u / (m P),  theta = 2 pi t / P,

    solved by Newton steps that fall back to bisection, to 1e-9 s. Where the rate
    touches 0 (A = 1), rounding of the cosine bounds t instead: u is met to 1e-9.
    """

    mean_rps: float
    amplitude: float
    period_s: float
    phase_rad: float = 0.0
    law: Law = "constant"

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        u = _unit(self.law, n, rng)
        per_period = self.mean_rps * self.period_s
        whole = np.floor(u / per_period)
        rest = np.clip(u / per_period - whole, 0.0, 1.0) * 2 * np.pi
        times_s = (whole + self._angle(rest) / (2 * np.pi)) * self.period_s
        return np.maximum.accumulate(times_s)

    def _angle(self, mean: Floats) -> Floats:
        """theta of theta + A (cos phi - cos(theta + phi)) = ``mean``, both (n,) in [0, 2 pi]."""
        a, phi = self.amplitude, self.phase_rad
        low, high = np.maximum(mean - 2 * a, 0.0), np.minimum(mean + 2 * a, 2 * np.pi)
        theta = mean.copy()
        enough = max(1e-10 * 2 * np.pi / self.period_s, 2e-15)
        for _ in range(100):
            off = theta + a * (math.cos(phi) - np.cos(theta + phi)) - mean
            low, high = np.where(off <= 0, theta, low), np.where(off >= 0, theta, high)
            slope = 1 + a * np.sin(theta + phi)
            newton = theta - np.divide(off, slope, out=np.full_like(off, np.inf), where=slope > 0)
            inside = (newton > low) & (newton < high)
            following = np.where(inside, newton, (low + high) / 2)
            moved = float(np.max(np.abs(following - theta), initial=0.0))
            theta = following
            if moved <= enough:
                break
        return theta


@dataclass(frozen=True, slots=True)
class OnOff:
    """Bursts: ``rate_rps`` for an on time, then ``off_rate_rps`` for an off time, again and again.

    Starts on. ``dwell``: ``constant``, times of exactly on_s and off_s, or
    ``exponential`` of these means, with law ``poisson`` a two-state Markov-modulated
    Poisson process (off_rate_rps 0: an interrupted one). Mean rate
    (rate on + off_rate off) / (on + off). Over long windows the counts of the
    Markov-modulated process have variance / mean
    1 + 2 (r1 - r2)^2 q1 q2 / ((q1 + q2)^2 (r1 q2 + r2 q1)), q = 1 / mean dwell
    (Fischer and Meier-Hellstern, Perf. Eval. 18, 1993). Endless.
    """

    rate_rps: float
    on_s: float
    off_s: float
    off_rate_rps: float = 0.0
    dwell: Dwell = "constant"
    law: Law = "constant"

    @property
    def per_cycle(self) -> float:
        """Mean requests of an on and an off time."""
        return self.rate_rps * self.on_s + self.off_rate_rps * self.off_s

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        if self.dwell == "constant":
            return self._even(_unit(self.law, n, rng))
        # The dwell times have a stream of their own, so that asking for more arrivals moves none.
        draw = np.random.default_rng(rng.integers(2**63))
        u = _unit(self.law, n, rng)
        dwells_s = np.empty((0, 2))
        rates_rps = np.array([self.rate_rps, self.off_rate_rps])
        while (mass := float((dwells_s @ rates_rps).sum())) <= u[-1] + 1:
            more = math.ceil((u[-1] + 1 - mass) / self.per_cycle * 1.1) + 16
            fresh_s = draw.standard_exponential((more, 2)) * np.array([self.on_s, self.off_s])
            dwells_s = np.concatenate([dwells_s, fresh_s])
        return _through_stages(u, dwells_s.ravel(), np.tile(rates_rps, len(dwells_s)))

    def _even(self, u: Floats) -> Floats:
        """Lambda^{-1}(u) by whole cycles and a rest, so that nothing adds up over the cycles."""
        whole = np.floor(u / self.per_cycle + _HAIR)
        rest = np.maximum(u - whole * self.per_cycle, 0.0)
        on = self.rate_rps * self.on_s
        within_s = rest / self.rate_rps
        if self.off_rate_rps > 0:
            off_s = self.on_s + (rest - on) / self.off_rate_rps
            within_s = np.where(rest < on - _HAIR, within_s, off_s)
        return np.asarray(whole * (self.on_s + self.off_s) + within_s, dtype=np.float64)
