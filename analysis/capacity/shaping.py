"""Would holding requests back help? Policies at the operating rate, and the other lever: fewer replicas.

Every policy sees the same demand (common random numbers), and latency counts from demand. So a policy
that saves energy by letting requests wait for company pays for it in the SLO.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.capacity.fleet import per_good
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.replica import AT_ONCE, Fared, Hold, Replica
from analysis.capacity.search import Found, over_streams
from loadgen.shaping import Gate, TokenBucket
from loadgen.types import Estimate

POLICY_N = 3_000


@dataclass(frozen=True, slots=True)
class Tried:
    """A policy at the operating rate: good share, mean hold, energy per good request over that of none.

    ``ratio``: paired by stream, None where no request was good; ``keeps``: the SLO.
    """

    name: str
    share: float
    hold_s: float
    per_good_j: float | None
    ratio: Estimate | None
    keeps: bool


@dataclass(frozen=True, slots=True)
class Shaped:
    """``best``: the policy that keeps the SLO and costs least energy, if that is told from none.

    ``at_max``: energy per good request at the highest rate over that at the operating rate: what fewer
    replicas, and no headroom, would give.
    """

    rate_rps: float
    tried: tuple[Tried, ...]
    best: str
    at_max: float | None

    @property
    def sentence(self) -> str:
        """One line."""
        said = "release at once" if self.best == AT_ONCE.name else f"shape by {self.best}"
        if self.best == AT_ONCE.name:
            saving = [t for t in self.tried if t.ratio is not None and _below(t.ratio)]
            lost = [t.name for t in saving if not t.keeps]
            if lost:
                said += f": {', '.join(lost)} would save energy and break the SLO"
            else:
                said += ": no policy tried saves energy that can be told from none"
        else:
            ratio = next(t.ratio for t in self.tried if t.name == self.best)
            assert ratio is not None and ratio.value is not None
            said += f": {ratio.value - 1:+.1%} energy per good request"
        if self.at_max is not None:
            said += (
                f"; fewer replicas, each at its highest rate and without headroom, would give "
                f"{self.at_max - 1:+.1%}"
            )
        return said


def holds(plan: CapacityPlan, rate_rps: float) -> list[Hold]:
    """The policies to try at this rate of a replica."""
    policies = plan.shaping
    refill_rps = rate_rps / (1 - plan.headroom)
    return [
        *(Hold(f"gate {d:g} s", Gate(d)) for d in policies.gate_s),
        *(Hold(f"cap {c}", cap=c) for c in policies.caps),
        *(
            Hold(f"bucket {b:g} at {refill_rps:.3g}/s", TokenBucket(refill_rps, b))
            for b in policies.buckets
            if plan.headroom > 0
        ),
    ]


def shaping(plan: CapacityPlan, replica: Replica, found: Found, rate_rps: float) -> Shaped:
    """Tries the plan's policies on one replica at the rate it is to be operated at."""
    plain = _fared(replica, AT_ONCE, rate_rps)
    tried = [
        _tried(hold, plain, _fared(replica, hold, rate_rps), replica.slo.share)
        for hold in [AT_ONCE, *holds(plan, rate_rps)]
    ]
    able = [t for t in tried if t.keeps and t.ratio is not None and _below(t.ratio)]
    best = min(able, key=lambda t: t.ratio.value or 0.0 if t.ratio else 0.0, default=None)
    here, there = _mean_j(plain), _mean_j(found.fared)
    at_max = None if here is None or there is None else there / here
    return Shaped(rate_rps, tuple(tried), AT_ONCE.name if best is None else best.name, at_max)


def _fared(replica: Replica, hold: Hold, rate_rps: float) -> tuple[Fared, ...]:
    look = replica.workload.plan.search
    n = min(POLICY_N, look.requests)
    return tuple(replica.fare(rate_rps, n, stream, hold) for stream in range(1, look.seeds + 1))


def _tried(hold: Hold, plain: tuple[Fared, ...], fared: tuple[Fared, ...], wanted: float) -> Tried:
    share = float(np.mean([f.share for f in fared]))
    pairs = [(per_good(a), per_good(b)) for a, b in zip(fared, plain, strict=True)]
    ratios = [a / b for a, b in pairs if a is not None and b is not None]
    ratio = None
    if len(ratios) == len(pairs):
        what = "simulated: energy per good request over that without shaping, paired"
        ratio = over_streams(ratios, "1", sum(f.n for f in fared), what)
    hold_s = float(np.mean([f.hold_s for f in fared]))
    return Tried(hold.name, share, hold_s, _mean_j(fared), ratio, share >= wanted)


def _mean_j(fared: tuple[Fared, ...]) -> float | None:
    good = sum(f.good for f in fared)
    return sum(f.energy_j for f in fared) / good if good else None


def _below(ratio: Estimate) -> bool:
    return ratio.high is not None and ratio.high < 1
