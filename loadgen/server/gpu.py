"""The simulated board: its power history, exact energy, and what NVML would show.

Pure: every instant is passed in, on one clock chosen by the caller. Between
steps the board draws its idle power with a model loaded. No decay tail: no
public figure for these boards separates one from that idle level.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import floor

from loadgen.physics.hardware import Gpu

PUBLISH_S = 0.1
"""Period of NVML's counter and sensor updates on A100 and H100 (arXiv 2312.02741)."""
INSTANT_WINDOW_S = 0.025
"""What the part-time sensor integrates before each update (arXiv 2312.02741)."""
AVERAGE_WINDOW_S = 1.0
"""The window of nvmlDeviceGetPowerUsage on Ampere and newer."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the driver reports now: values of the latest publication instant.

    ``energy_j`` is the cumulative counter, truncated to whole millijoules;
    ``instant_w`` the mean of the 25 ms and ``average_w`` of the 1 s before the
    publication at ``at_s``.
    """

    at_s: float
    energy_j: float
    instant_w: float
    average_w: float


class Board:
    """A piecewise-constant power history from ``start_s`` on.

    ``busy`` and ``advance`` extend it; what they return sums, over the whole
    run, to ``energy_j`` at its end. Only the last ``history_s`` seconds are
    kept, so memory does not grow. Past the recorded end the board is taken to
    be idle until something else is recorded. Before ``start_s`` it was idle
    too, with the counter at 0.
    """

    def __init__(self, gpu: Gpu, start_s: float, *, history_s: float = 5.0) -> None:
        self.gpu = gpu
        self.start_s = start_s
        self.history_s = history_s
        self._idle_w = gpu.context_idle_w
        # Segment i draws powers[i] from starts[i] to the next start (the last: to end_s);
        # before[i] is the cumulative energy at starts[i].
        self._starts: list[float] = [start_s]
        self._powers: list[float] = [self._idle_w]
        self._before: list[float] = [0.0]
        self._end_s = start_s
        self._end_j = 0.0

    @property
    def end_s(self) -> float:
        """The instant up to which the history is recorded."""
        return self._end_s

    def advance(self, until_s: float) -> float:
        """Records idleness up to ``until_s`` (nothing if that is past); its energy in joules."""
        if until_s <= self._end_s:
            return 0.0
        return self._extend(until_s, self._idle_w)

    def busy(self, start_s: float, duration_s: float, power_w: float) -> float:
        """Records a step, idle before it if there is a gap; the step's energy in joules.

        Raises ValueError when the step begins before the recorded end, or when
        its power is not between the board's bare idle power and its TDP.
        """
        if start_s < self._end_s - 1e-9:
            raise ValueError(f"busy: starts at {start_s} s, the history already reaches {self._end_s} s")
        if not self.gpu.bare_idle_w <= power_w <= self.gpu.tdp_w * (1 + 1e-12):
            raise ValueError(
                f"busy: {power_w} W is outside {self.gpu.bare_idle_w}..{self.gpu.tdp_w} W of {self.gpu.id}"
            )
        self.advance(start_s)
        return self._extend(self._end_s + duration_s, power_w)

    def energy_j(self, t_s: float) -> float:
        """Exact energy from ``start_s`` to ``t_s``; 0 before the start.

        Raises ValueError for an instant older than the kept history.
        """
        if t_s >= self._end_s:
            return self._end_j + (t_s - self._end_s) * self._idle_w
        if t_s <= self.start_s:
            return 0.0
        i = bisect_right(self._starts, t_s) - 1
        if i < 0:
            raise ValueError(f"energy_j: {t_s} s is older than the history kept ({self.history_s} s)")
        return self._before[i] + (t_s - self._starts[i]) * self._powers[i]

    def mean_power_w(self, from_s: float, to_s: float) -> float:
        """Mean power over ``from_s < to_s``, idle before the start. Raises as ``energy_j``."""
        idle_j = max(0.0, min(to_s, self.start_s) - from_s) * self._idle_w
        return (self.energy_j(to_s) - self.energy_j(from_s) + idle_j) / (to_s - from_s)

    def published(self, t_s: float) -> Published:
        """What reading the driver at ``t_s`` returns. Publications at start_s + k * 100 ms."""
        # The small bias keeps a read exactly at a publication from seeing the one before it.
        k = max(0, floor((t_s - self.start_s) / PUBLISH_S + 1e-6))
        at_s = self.start_s + k * PUBLISH_S
        return Published(
            at_s=at_s,
            energy_j=floor(self.energy_j(at_s) * 1e3 + 1e-6) / 1e3,
            instant_w=self.mean_power_w(at_s - INSTANT_WINDOW_S, at_s),
            average_w=self.mean_power_w(at_s - AVERAGE_WINDOW_S, at_s),
        )

    def _extend(self, until_s: float, power_w: float) -> float:
        joules = (until_s - self._end_s) * power_w
        if power_w != self._powers[-1]:
            self._starts.append(self._end_s)
            self._powers.append(power_w)
            self._before.append(self._end_j)
        self._end_s = until_s
        self._end_j += joules
        # Forgetting in batches keeps the cost of a step constant.
        if len(self._starts) > 4096 and (until_s - self._starts[2048]) > self.history_s:
            keep = bisect_right(self._starts, until_s - self.history_s) - 1
            del self._starts[:keep], self._powers[:keep], self._before[:keep]
        return joules
