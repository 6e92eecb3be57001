"""All arrivals of a window, for processes that are asked for a count."""

from __future__ import annotations

import numpy as np

from loadgen.types import ArrivalProcess, Floats


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
