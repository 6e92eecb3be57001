"""Recorded arrival times, played again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadgen.arrivals.renewal import positive
from loadgen.types import Floats


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
        return self.at(self.rows(rng)[: positive(n)])
