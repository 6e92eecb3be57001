"""What would change the answer: the runner-up's margin against everything that is not known.

Three tests of best against next: the intervals over streams; 1,000 draws of each board's power constants,
taken at the operating rate of a replica and drawn independently; and step times with a quarter more or
less compute efficiency, on both boards or on each against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.capacity.fleet import Fleet, fleet, replicas_for
from analysis.capacity.replica import Looser, Replica, ReplicaType, deploy
from analysis.capacity.search import Found, quick
from analysis.capacity.workload import Workload
from analysis.stats import scaled
from analysis.words import number
from loadgen.emulation import power_draws, redrawn_j
from loadgen.types import Estimate, Floats

DRAWS, DRAW_N = 1_000, 3_000
COMPUTE = (0.75, 1.25)
SURE = 0.95
Rival = tuple[ReplicaType, Found, Fleet]


@dataclass(frozen=True, slots=True)
class Standing:
    """One of the two: its value under the criterion and the ends of its interval; its energy envelope.

    ``power_j``: 2.5 and 97.5 % of joules per good request over draws of the power constants.
    ``by_compute``: the criterion's value by factor on compute efficiency, None where the SLO is lost.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    power_j: tuple[float, float]
    by_compute: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """``margin``: the next one's value over the best's, less 1. ``told``: their intervals are apart.

    ``power_sure``: the share of draws of the power constants in which the best stays best by energy.
    ``compute_order``, ``compute_each``: whether it stays best by the criterion when both boards' compute
    efficiency is off alike, and when the best's is lower and the next's higher.
    """

    criterion: str
    best: Standing
    next: Standing | None
    margin: float | None = None
    told: bool | None = None
    power_sure: float | None = None
    compute_order: bool | None = None
    compute_each: bool | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """A line for each test."""
        if self.next is None or self.margin is None:
            return (f"no other candidate can serve this; {self._alone()}",)
        a, b = self.best.name, self.next.name
        lines = [f"next is {b}, {number(100 * self.margin)} % more by {self.criterion}"]
        lines.append(
            "the intervals are apart"
            if self.told
            else f"not told apart: {a} and {b} overlap in their intervals"
        )
        if self.power_sure is not None:
            sure = f"{a} needs less energy in {self.power_sure:.1%} of {DRAWS:,} draws of the power constants"
            unsure = 1 - SURE < self.power_sure < SURE
            lines.append(f"{sure}: not told apart by energy" if unsure else sure)
        turned = [f for f in self.best.by_compute if not self._holds(f, f)]
        if turned:
            lines.append(f"with the compute efficiency of all boards x {' or x '.join(turned)}, {b} is first")
        elif not self.compute_each:
            lines.append(f"the order holds unless {a} computes 25 % worse and {b} 25 % better than assumed")
        else:
            lines.append("25 % more or less compute efficiency on either board does not change the order")
        return tuple(lines)

    def _holds(self, best: str, other: str) -> bool:
        assert self.next is not None
        return _before(self.best.by_compute[best], self.next.by_compute[other])

    def _alone(self) -> str:
        lost = [factor for factor, value in self.best.by_compute.items() if value is None]
        return (
            f"with compute efficiency x {lost[0]} it could not either"
            if lost
            else "nor would 25 % slower compute stop it"
        )


def sensitivity(workload: Workload, rivals: Sequence[Rival]) -> Sensitivity:
    """Best and next (one or two of them), with all that may tell them apart."""
    criterion = workload.plan.criterion
    envelopes = [_envelope(workload, rival) for rival in rivals]
    stands = [_standing(workload, rival, envelope) for rival, envelope in zip(rivals, envelopes, strict=True)]
    best = stands[0]
    if len(stands) < 2:
        return Sensitivity(criterion, best, None)
    other = stands[1]
    order = [_before(best.by_compute[str(f)], other.by_compute[str(f)]) for f in COMPUTE]
    each = _before(best.by_compute[str(COMPUTE[0])], other.by_compute[str(COMPUTE[1])])
    return Sensitivity(
        criterion,
        best,
        other,
        other.value / best.value - 1,
        best.high is not None and other.low is not None and best.high < other.low,
        float((envelopes[0] < envelopes[1]).mean()),
        all(order),
        each,
    )


def _before(best: float | None, other: float | None) -> bool:
    return best is not None and (other is None or best <= other)


def _standing(workload: Workload, rival: Rival, envelope: Floats) -> Standing:
    kind, found, made = rival
    plan = workload.plan
    value = _by(plan.criterion, made)
    base = quick(Replica(deploy(plan, kind), workload, plan.slo), start_rps=found.rate_rps)
    by_compute: dict[str, float | None] = {}
    for factor in COMPUTE:
        replica = Replica(deploy(plan, kind, Looser(compute=factor)), workload, plan.slo)
        moved = quick(replica, start_rps=found.rate_rps)
        if moved is None or base is None:
            by_compute[str(factor)] = None
            continue
        max_rps = scaled(found.max_rps, moved.rate_rps / base.rate_rps, "1/s")
        by_compute[str(factor)] = _by(plan.criterion, fleet(plan, kind, replica, max_rps, streams=1)).value
    low, high = np.quantile(envelope, [0.025, 0.975])
    assert value.value is not None
    if plan.criterion == "boards":
        value = _boards(workload, kind, found, value)
    return Standing(
        str(kind), value.value or 0.0, value.low, value.high, (float(low), float(high)), by_compute
    )


def _by(criterion: str, made: Fleet) -> Estimate:
    if criterion == "boards":
        return replace(made.per_good_j, value=float(made.boards), unit="boards", low=None, high=None)
    return made.per_good_cost if criterion == "cost" else made.per_good_j


def _boards(workload: Workload, kind: ReplicaType, found: Found, value: Estimate) -> Estimate:
    peak = np.array([workload.demand.peak_rps])
    low, high = found.max_rps.low, found.max_rps.high
    if low is None or high is None or low <= 0:
        return value
    ends = [float(replicas_for(peak, rate, workload.plan.headroom)[0]) * kind.shards for rate in (high, low)]
    return replace(value, low=ends[0], high=ends[1])


def _envelope(workload: Workload, rival: Rival) -> Floats:
    """Joules per good request under each draw of the board's power constants, (draws,).

    Every draw re-evaluates the same steps at the operating rate; its ratio to the nominal energy is
    taken for the whole fleet.
    """
    kind, _, made = rival
    plan = workload.plan
    replica = Replica(deploy(plan, kind), workload, plan.slo)
    served = replica.serve(made.operating_rps, min(DRAW_N, plan.search.requests), 1, record=True)
    assert made.per_good_j.value is not None
    gpu = replica.deployment.gpu
    # By name: two formats on one board share its draws, two boards do not.
    stream = [plan.seed, *kind.gpu.encode()]
    seed = int(np.random.SeedSequence(stream).generate_state(1)[0])
    joules = redrawn_j(served, gpu, kind.shards, power_draws(gpu, DRAWS, seed))
    return np.asarray(made.per_good_j.value * joules / served.energy_j, dtype=np.float64)
