"""How far dependent values determine their sum: long-run variance, and how well that is known.

For a stationary series e_1..e_K the variance of sum(e) / sqrt(K) tends to the spectrum at
frequency zero. It is read off the lowest frequencies of the series' cosine transform

    L_j = sqrt(2 / K) sum_k e_k cos(pi j (k - 1/2) / K),    S = mean of L_j**2 over j = 1..m

(equal-weighted cosine estimator: Mueller 2007, "A theory of robust long-run variance
estimation", J. Econometrics 141; Lazarus, Lewis, Stock and Watson 2018, "HAR inference:
recommendations for practice", J. Bus. Econ. Stat. 36, eq. 5-7). Each L_j is a contrast of
the whole series, like the differences of batch means, and nearly independent of the others
and of the sum, so S is S_true chi2(m) / m and Student's t with m degrees of freedom holds
however small m is. Its bias falls with (m / K)**2; that of m + 1 batch means with m / K.

m is sized from the measured autocorrelation: as many waves as leave the spectrum of a
first-order autoregression with the series' own lag-one coefficient flat to 10 % on average.
The coefficient is taken at its upper end: corrected for its small-sample bias, (1 + 3 a) / K
(Marriott and Pope 1954; Kendall 1954), plus one standard error.
"""

from __future__ import annotations

import math

import numpy as np

from loadgen.types import Floats

FLATNESS = 0.90
"""Mean of the fitted spectrum over the waves used, relative to its value at frequency zero."""
FEWEST_WAVES = 12
"""Fewer flat waves give no interval: a run of few correlation times underrates them (at utilisation
0.95 and 7 correlation times, where a third of the runs pass 5 waves, their intervals for the mean wait
held it in a tenth of the cases)."""
MOST_WAVES = 15
"""For ratios: energy spent for an earlier block's requests is a difference of states, whose spectrum
rises with frequency, so more waves would overrate the variance. t is 2.13 instead of 1.96."""
SERIES_PER_WAVE = 3
"""Blocks for every wave: at shorter periods a wave samples the blocks' own noise."""


def waves(count: int) -> Floats:
    """Rows of cosines, shape (count // 3, count): orthonormal, each of sum zero."""
    j = np.arange(1, count // SERIES_PER_WAVE + 1)
    k = np.arange(count) + 0.5
    return np.asarray(np.sqrt(2 / count) * np.cos(np.pi * np.outer(j, k) / count), dtype=np.float64)


def lag_one(series: Floats) -> float:
    """Lag-one autocorrelation of a series (K,); 0 where it does not vary."""
    centred = series - series.mean()
    power = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / power if power > 0 else 0.0


def lag_one_upper(series: Floats) -> float:
    """Upper end of the lag-one autocorrelation: bias-corrected, plus one standard error, within [0, 1]."""
    k = len(series)
    a = lag_one(series)
    a += (1 + 3 * a) / k
    return min(1.0, max(0.0, a + math.sqrt(max(1 - a * a, 0.0) / k)))


def freedom(coefficient: float, count: int) -> int:
    """Waves that an autoregression with this coefficient leaves flat; 0 if it leaves none.

    Its spectrum, relative to frequency zero: (1 - a)**2 / (1 - 2 a cos w + a**2).
    """
    a = min(coefficient, 1 - 1e-9)
    j = np.arange(1, count // SERIES_PER_WAVE + 1)
    relative = (1 - a) ** 2 / (1 - 2 * a * np.cos(np.pi * j / count) + a * a)
    return int(np.count_nonzero(np.cumsum(relative) / j >= FLATNESS))
