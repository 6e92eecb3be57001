"""The highest rate at which one replica keeps the SLO: a bracketed search with common random numbers.

The share of good requests falls as the rate rises, steeply near its end. One stream of 1,000 requests
brackets the rate where it crosses the wanted share, between nothing and the fluid bound; five streams of
10,000 then each find their own crossing, whose mean and Student-t interval is the answer. 1,000 alone
would be some percent too high: a queue needs time to build up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis.capacity.fluid import Fluid, fluid
from analysis.capacity.replica import AT_ONCE, Fared, Hold, Replica
from analysis.stats.pairs import mean_of_runs
from loadgen.types import Estimate

QUICK_N = 1_000
QUICK_TOLERANCE, TOLERANCE = 0.01, 0.004
_LOWEST_SHARE_OF_BOUND = 2.0**-24
_STEP_DOWN, _STEP_AWAY = 2.0, 1.04
_QUICK_STREAM = 0
_HAIR = 1e-4


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the share of good requests crosses the wanted one: ``rate_rps`` between two that were tried.

    ``stable``: it does not cross below the bound; then the bound is the rate.
    """

    rate_rps: float
    evaluations: int
    stable: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The highest good rate of a replica type. ``share``: good requests over all at it, by stream.

    ``crossings``: one a stream. ``fared``: what each stream did at ``max_rps.value``.
    """

    max_rps: Estimate
    share: Estimate
    crossings: tuple[Crossing, ...]
    fluid: Fluid
    fared: tuple[Fared, ...]
    evaluations: int

    @property
    def rate_rps(self) -> float:
        """The value."""
        assert self.max_rps.value is not None
        return self.max_rps.value

    @property
    def stable(self) -> bool:
        """Whether stability, not the SLO, ends it."""
        return all(crossing.stable for crossing in self.crossings)


def search(replica: Replica, hold: Hold = AT_ONCE) -> Found | None:
    """The highest good rate with its interval; None when no rate is good (see `lone` for why).

    Deterministic: it depends on the plan's seed, requests and number of seeds.
    """
    if replica.share_whole(_QUICK_STREAM, QUICK_N) < replica.slo.share:
        return None
    bound = bound_of(replica)
    n, streams = replica.workload.plan.search.requests, replica.workload.plan.search.seeds
    start = quick(replica, hold)
    if start is None:
        return None
    crossings, rate = [], start.rate_rps
    for stream in range(1, streams + 1):
        share_at = _share(replica, n, stream, hold)
        crossing = crosses(
            share_at, replica.slo.share, rate, _most(bound, replica), TOLERANCE, step=_STEP_AWAY
        )
        if crossing is None:
            return None
        crossings.append(crossing)
        rate = crossing.rate_rps
    what = f"simulated: crossing of {replica.slo.percentile:g} % good, {streams} streams of {n:,} requests"
    max_rps = over_streams([crossing.rate_rps for crossing in crossings], "1/s", n * streams, what)
    assert max_rps.value is not None
    value = max_rps.value
    fared = tuple(replica.fare(value, n, stream, hold) for stream in range(1, streams + 1))
    said = "simulated: good requests over all at the highest rate"
    share = over_streams([f.share for f in fared], "1", n * streams, said)
    evaluations = start.evaluations + sum(c.evaluations for c in crossings) + streams
    return Found(max_rps, share, tuple(crossings), bound, fared, evaluations)


def bound_of(replica: Replica) -> Fluid:
    """The fluid bound for the lengths of the first stream that is confirmed."""
    lengths = replica.workload.jobs(1.0, replica.workload.plan.search.requests, 1).lengths
    return fluid(replica.deployment, lengths, replica.slo.tpot_s)


def quick(replica: Replica, hold: Hold = AT_ONCE, *, start_rps: float | None = None) -> Crossing | None:
    """The crossing of one stream of 1,000 requests at most: for brackets, and comparisons at equal luck."""
    bound = bound_of(replica)
    if start_rps is None:
        start_rps = bound.stable_rps if bound.tpot_rps is None else min(bound.tpot_rps, bound.stable_rps)
    n = min(QUICK_N, replica.workload.plan.search.requests)
    share = _share(replica, n, _QUICK_STREAM, hold)
    start_rps = max(start_rps, bound.stable_rps * _LOWEST_SHARE_OF_BOUND)
    return crosses(share, replica.slo.share, start_rps, _most(bound, replica), QUICK_TOLERANCE, step=1.3)


def _most(bound: Fluid, replica: Replica) -> float:
    """Only served requests are good, and no more can be served in the long run than the bound."""
    return bound.stable_rps / replica.slo.share


def _share(replica: Replica, n: int, stream: int, hold: Hold) -> Callable[[float], float]:
    return lambda rate_rps: replica.fare(rate_rps, n, stream, hold).share


def crosses(
    share: Callable[[float], float],
    wanted: float,
    start_rps: float,
    most_rps: float,
    tolerance: float,
    *,
    step: float,
) -> Crossing | None:
    """Where ``share`` falls through ``wanted``, to the relative ``tolerance``; None when nowhere.

    Looks around ``start_rps`` in factors of ``step``, then interpolates the log odds on a log scale, a
    tenth of the way at least. Below ``most_rps`` times 2^-24 it does not look.
    """
    evaluations = 0

    def at(rate_rps: float) -> float:
        nonlocal evaluations
        evaluations += 1
        return share(rate_rps)

    rate = min(start_rps, most_rps)
    found = at(rate)
    if found >= wanted:
        low, low_share = rate, found
        while True:
            if low >= most_rps:
                return Crossing(most_rps, evaluations, stable=True)
            high = min(low * step, most_rps)
            high_share = at(high)
            if high_share < wanted:
                break
            low, low_share = high, high_share
    else:
        high, high_share = rate, found
        while True:
            low = high / step
            if low < most_rps * _LOWEST_SHARE_OF_BOUND:
                return None
            low_share = at(low)
            if low_share >= wanted:
                break
            high, high_share = low, low_share
            step = min(step * step, _STEP_DOWN)
    while high / low > 1 + tolerance:
        part = min(max(_part(low_share, high_share, wanted), 0.1), 0.9)
        middle = low * (high / low) ** part
        middle_share = at(middle)
        if middle_share >= wanted:
            low, low_share = middle, middle_share
        else:
            high, high_share = middle, middle_share
    return Crossing(low * (high / low) ** _part(low_share, high_share, wanted), evaluations)


def _part(low_share: float, high_share: float, wanted: float) -> float:
    """How far from ``low`` to ``high`` the crossing is, 0 to 1, if the log odds fall on a straight line."""
    low, high, goal = (math.log((s + _HAIR) / (1 - s + _HAIR)) for s in (low_share, high_share, wanted))
    return min(max((low - goal) / (low - high), 0.0), 1.0)


def over_streams(values: Sequence[float], unit: str, n: int, what: str) -> Estimate:
    """Mean of one value a stream, with the Student-t interval of independent streams; ``n``: requests."""
    return replace(mean_of_runs(values, unit, what, "streams"), n=n)
