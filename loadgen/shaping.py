"""Shaping policies: when demand is released. Causal: nothing is released before it is demanded.

Latency counts from demand, so what a policy holds back is in it. All times are
seconds from the first demand, shape (n,), sorted; what is released is sorted too.
"""

from __future__ import annotations

import bisect
import math
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


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket of b = ``burst`` tokens, full at first, refilled at r = ``rate_rps``; a request takes one.

    First in, first out, at the earliest instant a token is there: no window of
    length w releases more than b + r w requests. As the virtual schedule of the generic
    cell rate algorithm (ITU-T I.371): with c = 1 / r the i-th release, i = 0, 1, ..., is

        due_i = max(demand_i, (i + 1 - b) c + max_{k <= i} (demand_k - k c)),

    a running maximum, so no recursion rounds. ``burst`` may be any number >= 1; 1
    spaces requests at least c apart.
    """

    rate_rps: float
    burst: float

    def release(self, demand_s: Floats) -> Floats:
        i = np.arange(len(demand_s))
        ahead_s = np.maximum.accumulate(demand_s - i / self.rate_rps)
        conforming_s = (i + 1 - self.burst) / self.rate_rps + ahead_s
        return np.asarray(np.maximum(demand_s, conforming_s), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Throttle:
    """What asyncio-throttle 1.0.2 does: ``Throttler(rate_limit, period, retry_interval)``.

    A request may start when fewer than L = ``rate_limit`` started within the last
    ``period_s``; one that may not asks again every ``retry_interval_s``. So the j-th start
    is the first poll, demand + k * retry, of any waiting request at or after
    max(start_{j-1}, start_{j-L} + period). It is a sliding window over polls: the L
    requests of a window may all go at once, and with one start a window the rate is
    L / period only if the period is much longer than the retry interval.

    The library compares with ``>``, but a timer fires late, never early, so a poll
    due at the very end of the window counts as after it. Of the waiting requests the
    library lets go whoever polls first; here the instants are the library's and
    the order is first in, first out. Timers of a real loop are late at every poll
    (about 0.2 ms each); these are exact.

    n starts cost O(n log n) comparisons, however long they wait.
    """

    rate_limit: int
    period_s: float = 1.0
    retry_interval_s: float = 0.01

    def release(self, demand_s: Floats) -> Floats:
        demands, retry_s = demand_s.tolist(), self.retry_interval_s
        hair_s = min(1e-9, retry_s / 1000)  # rounding of demand + k * retry, far below any timer

        def phase(at_s: float) -> float:
            rest_s = at_s % retry_s
            return 0.0 if rest_s > retry_s - hair_s else rest_s

        starts: list[float] = []
        waiting: list[tuple[float, float]] = []  # (phase of its polls, demand), sorted
        arrived = 0
        for j in range(len(demands)):
            free_s = starts[-1] if starts else -math.inf
            if j >= self.rate_limit:
                free_s = max(free_s, starts[j - self.rate_limit] + self.period_s)
            while arrived < len(demands) and demands[arrived] <= free_s:
                bisect.insort(waiting, (phase(demands[arrived]), demands[arrived]))
                arrived += 1
            start_s, taken = math.inf, -1
            if waiting:
                taken = bisect.bisect_left(waiting, (phase(free_s) - hair_s, -math.inf)) % len(waiting)
                since_s = waiting[taken][1]
                polls = max(math.ceil((free_s - since_s - hair_s) / retry_s), 0)
                start_s = max(since_s + polls * retry_s, free_s)
            if arrived < len(demands) and demands[arrived] < start_s:
                start_s = demands[arrived]
                arrived += 1
            else:
                del waiting[taken]
            starts.append(start_s)
        return np.maximum(np.array(starts, dtype=np.float64), demand_s)
