"""Durations counted in bins whose widths grow with them: quantiles of any number in fixed memory."""

from __future__ import annotations

import math

_LEAST_S = 1e-6
_PER_OCTAVE = 8
_BINS = 27 * _PER_OCTAVE  # up to 134 s
RESOLUTION = 2 ** (1 / _PER_OCTAVE)
"""A quantile is at most this factor above the true one."""


class Histogram:
    """Counts of durations between 1 us and 134 s; what lies outside falls into the outer bins."""

    def __init__(self) -> None:
        self._counts = [0] * (_BINS + 1)
        self.count = 0
        self.max_s: float | None = None

    def add(self, duration_s: float) -> None:
        octaves = math.log2(max(duration_s, _LEAST_S) / _LEAST_S)
        self._counts[min(_BINS, math.ceil(octaves * _PER_OCTAVE))] += 1
        self.count += 1
        self.max_s = duration_s if self.max_s is None else max(self.max_s, duration_s)

    def quantile(self, share: float) -> float | None:
        """The upper edge of the bin that holds the ``share`` quantile; None without durations."""
        if self.max_s is None:
            return None
        left = share * self.count
        for index, count in enumerate(self._counts):
            left -= count
            if left <= 0:
                return min(self.max_s, _LEAST_S * RESOLUTION**index)
        return self.max_s
