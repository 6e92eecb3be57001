"""Readings of the thank-you study's "random" arrivals that are no renewal process.

The study says t_i = i Delta with Delta ~ U(0, 1) and publishes a script. `Uniform`
is what was probably meant, `UniformScript` what the script does, `UniformLiteral`
what the sentence says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadgen.arrivals.renewal import positive
from loadgen.types import Floats


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
        exact = min(positive(n), self._EXACT_UP_TO)
        draws = rng.uniform(self.low_s, self.high_s, (exact, exact))
        head = np.array([draws[i, : i + 1].sum() for i in range(exact)])
        i = np.arange(exact + 1, n + 1)
        spread_s = (self.high_s - self.low_s) * np.sqrt(i / 12)
        tail = rng.normal(i * (self.low_s + self.high_s) / 2, spread_s)
        times_s = np.sort(np.concatenate([head, tail]))
        return np.asarray(times_s - times_s[0], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class UniformLiteral:
    """The sentence as it stands, sorted: t_i = i Delta_i, Delta_i ~ U(low_s, high_s), for i = 0 .. n - 1.

    So t_i ~ U(i low, i high), one draw a request. The mean of all times is that of
    the renewal process, m (n - 1) / 2 with m = (low + high) / 2, but the load is
    front-loaded: with low = 0 the expected rate at time t is
    (1 / high) sum_{t/high < i < n} 1 / i, about ln(n high / t) / high. It grows with n
    without bound, so a duration means nothing without a count.
    """

    low_s: float
    high_s: float

    def times(self, n: int, rng: np.random.Generator) -> Floats:
        gaps_s = rng.uniform(self.low_s, self.high_s, positive(n))
        return np.asarray(np.sort(np.arange(n) * gaps_s), dtype=np.float64)
