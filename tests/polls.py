"""Polls of a counter whose truth is known, made without any driver."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loadgen.types import Floats


def polled(
    true_j: Callable[[Floats], Floats],
    *,
    seconds: float = 60.0,
    period_s: float = 0.05,
    publish_s: float = 0.1,
    phase_s: float = 0.03,
    jitter_s: float = 2e-3,
    seed: int = 1,
) -> tuple[Floats, Floats, Floats]:
    """Polls of a counter: instants, values in whole mJ, and when each value was published."""
    rng = np.random.default_rng(seed)
    t_s = np.arange(-2.0, seconds + 2.0, period_s)
    t_s = np.sort(t_s + rng.normal(0.0, jitter_s, len(t_s)))
    at_s = phase_s + np.floor((t_s - phase_s) / publish_s) * publish_s
    return t_s, np.floor(1e3 * (true_j(at_s) + 5e6)) / 1e3, at_s
