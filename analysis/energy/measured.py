"""What was read of a window: each series, and the parts they add up to.

What cannot be known is None with a reason, never 0 J.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.types import Floats, Method

Part = Literal["gpu", "cpu", "ram"]
Label = Literal["measured", "estimated", "simulated"]
PARTS: tuple[Part, ...] = ("gpu", "cpu", "ram")


@dataclass(frozen=True, slots=True)
class BoardEnergy:
    """One energy series over the window.

    ``total_j`` is None exactly when ``reason`` is set. ``block_j``: joules of
    each time block, (K,), summing to ``total_j``; None with ``block_reason`` where
    the sensor is too slow for blocks. ``within_j``: least and most that the window
    can have cost by these readings, the sensor's gain aside; None with
    ``bound_reason``. ``checks``: (domain, joules) of the same window from each
    power series that was not chosen. ``idle_w``: mean power before the first and
    after the last request. ``coverage``: share of the window near a reading.
    ``update_s``: how often a new value appeared, documented or seen, the longer.
    ``passed_over``: why a better series of this board was not used. ``cumulative``:
    it is a counter's.
    """

    domain: str
    method: Method
    label: Label
    total_j: float | None
    reason: str | None
    block_j: Floats | None = None
    block_reason: str | None = None
    within_j: tuple[float, float] | None = None
    bound_reason: str | None = None
    checks: tuple[tuple[str, float], ...] = ()
    idle_w: tuple[float | None, float | None] = (None, None)
    coverage: float = 0.0
    update_s: float | None = None
    passed_over: str | None = None
    cumulative: bool = False


@dataclass(frozen=True, slots=True)
class PartEnergy:
    """GPU, CPU or RAM: the explicit sum of its boards or packages.

    One unavailable board makes the part unavailable, and one host that does not read the
    part (then without ``boards``): a sum that leaves one out would be too small without looking it.
    """

    part: Part
    boards: tuple[BoardEnergy, ...]
    window_s: float
    reason: str | None

    @property
    def total_j(self) -> float | None:
        return _sum([b.total_j for b in self.boards])

    @property
    def block_j(self) -> Floats | None:
        parts = [b.block_j for b in self.boards if b.block_j is not None]
        if not parts or len(parts) < len(self.boards):
            return None
        total: Floats = np.add.reduce(parts)
        return total

    @property
    def block_reason(self) -> str | None:
        """Why there is no energy of blocks though there is one of the window."""
        return next((b.block_reason for b in self.boards if b.block_reason is not None), None)

    @property
    def within_j(self) -> tuple[float, float] | None:
        """Least and most joules of the window: the sums over the boards; None if one is not known."""
        known = [b.within_j for b in self.boards if b.within_j is not None]
        if not known or len(known) < len(self.boards):
            return None
        return sum(low for low, _ in known), sum(high for _, high in known)

    @property
    def bound_j(self) -> float | None:
        """How far the true total can be from ``total_j`` at most, sensor gain aside."""
        if self.within_j is None or self.total_j is None:
            return None
        return max(self.total_j - self.within_j[0], self.within_j[1] - self.total_j)

    @property
    def bound_reason(self) -> str | None:
        return self.reason or next((b.bound_reason for b in self.boards if b.bound_reason is not None), None)

    @property
    def coverage(self) -> float | None:
        """The worst covered board's share of the window; None without boards."""
        return min((b.coverage for b in self.boards), default=None)

    @property
    def idle_power_w(self) -> float | None:
        """The lower of the idle stretches before and after: the other may hold a tail of work."""
        return min((w for w in (self.idle_before_w, self.idle_after_w) if w is not None), default=None)

    @property
    def static_j(self) -> float | None:
        """What the idle boards would have cost: idle power x window; None of a constant estimate."""
        if self.idle_power_w is None or self._constant:
            return None
        return self.idle_power_w * self.window_s

    @property
    def active_j(self) -> float | None:
        """What the work added: total - static."""
        return None if self.total_j is None or self.static_j is None else self.total_j - self.static_j

    @property
    def _constant(self) -> bool:
        """Whether it is a constant estimate, which does not tell what the work added."""
        mean_w, idle_w = self.mean_power_w, self.idle_power_w
        if self.label != "estimated" or mean_w is None or idle_w is None:
            return False
        return math.isclose(mean_w, idle_w, rel_tol=1e-6)  # a table keeps the stamps of a row to 1e-7

    @property
    def mean_power_w(self) -> float | None:
        """Total over window, all boards together."""
        return None if self.total_j is None else self.total_j / self.window_s

    @property
    def idle_before_w(self) -> float | None:
        return _sum([b.idle_w[0] for b in self.boards])

    @property
    def idle_after_w(self) -> float | None:
        return _sum([b.idle_w[1] for b in self.boards])

    @property
    def label(self) -> Label | None:
        """The weakest of the boards' labels: one simulated board makes the sum simulated."""
        labels = {b.label for b in self.boards}
        order: tuple[Label, ...] = ("simulated", "estimated", "measured")
        return next((label for label in order if label in labels), None)

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(sorted({b.method for b in self.boards}))


def _sum(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(sum(known)) if known and len(known) == len(values) else None
