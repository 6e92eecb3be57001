"""What a series of arrivals looks like."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from loadgen.types import Floats


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
