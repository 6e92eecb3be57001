"""Quantiles of Student's t distribution for whole degrees of freedom."""

from __future__ import annotations

import math
from functools import cache


def inside(t: float, freedom: int) -> float:
    """P(|T| <= t) with ``freedom`` >= 1 degrees of freedom; Abramowitz and Stegun 26.7.3 and 26.7.4.

    With theta = atan(t / sqrt(freedom)): a finite sum of powers of cos(theta).
    """
    if math.isinf(t):
        return 1.0
    theta = math.atan(t / math.sqrt(freedom))
    cosine2 = math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for i in range(1, freedom // 2 + 1):
        total += term
        term *= cosine2 * (2 * i / (2 * i + 1) if odd else (2 * i - 1) / (2 * i))
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total


@cache
def two_sided(level: float, freedom: int) -> float:
    """t with P(|T| <= t) = ``level``, 0 < level < 1, found by bisection to about 1e-12 of the angle."""
    if freedom < 1:
        raise ValueError(f"degrees of freedom: expected at least 1, got {freedom}")
    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        if inside(math.sqrt(freedom) * math.tan(middle), freedom) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def probability(t: float, freedom: int) -> float:
    """Two-sided p value: P(|T| > |t|)."""
    return max(0.0, 1.0 - inside(abs(t), freedom))
