"""Shaping policies: when demand is released. Causal: nothing is released before it is demanded.

Latency counts from demand, so what a policy holds back is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadgen.types import Floats


@dataclass(frozen=True, slots=True)
class NoShaping:
    """due = demand."""

    def release(self, demand_s: Floats) -> Floats:
        return demand_s


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that opens at every multiple of D = ``interval_s``: due = D ceil(demand / D).

    Demand at an opening goes straight through. For arrivals spread evenly over
    the interval the mean hold is D / 2.
    """

    interval_s: float

    def release(self, demand_s: Floats) -> Floats:
        openings = np.ceil(demand_s / self.interval_s - 1e-9)
        return np.maximum(openings * self.interval_s, demand_s)
