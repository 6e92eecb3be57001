"""Which constraint ends the rate: what breaks just above it, and how much each one relaxed would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.capacity.fluid import little
from analysis.capacity.plan import CapacityPlan, Slo
from analysis.capacity.replica import Fared, Looser, Replica, ReplicaType, deploy
from analysis.capacity.search import Found, quick

ABOVE, BY = 1.05, 1.25
"""Where it is looked at, over the highest rate; and the factor by which each constraint is relaxed."""
_TELLS = 0.01
_RESOURCES = ("compute", "bandwidth", "overhead")


@dataclass(frozen=True, slots=True)
class Binding:
    """``limit``: the constraint whose relaxing raises the rate most (ttft, tpot, e2e, kv, admission);
    throughput where none does by 1 %, stability where the SLO holds up to what can be sustained.
    ``resource``: likewise of compute, bandwidth and overhead (time a step costs besides).

    ``gains``: relative rise of the highest rate when a constraint is a quarter looser, one stream of
    1,000 requests under equal luck. At the highest rate: shares of the KV cache and of peak bandwidth
    and FLOP rate while busy, and of time that is busy; most requests in flight; the decode batch by
    Little's law. ``above``: what became of requests at 1.05 times it.
    """

    limit: str
    resource: str | None
    gains: Mapping[str, float]
    kv_peak: float
    memory_utilisation: float
    compute_utilisation: float
    busy: float
    most_in_flight: int
    little_batch: float | None
    above: Fared

    @property
    def sentence(self) -> str:
        """One line."""
        said = _LIMITS[self.limit]
        if self.limit in self.gains:
            said += f" (25 % looser: {self.gains[self.limit]:+.0%})"
        if self.resource is not None:
            said += f"; {_RESOURCE[self.resource]} (25 % more: {self.gains[self.resource]:+.0%})"
        broke = [f"{count / self.above.n:.0%} {name.upper()}" for name, count in self.above.late.items()]
        broke += [f"{self.above.refused / self.above.n:.1%} refused"] if self.above.refused else []
        return f"{said}; 5 % above it break: {', '.join(broke)}"


_LIMITS = {
    "ttft": "the SLO's TTFT binds",
    "tpot": "the SLO's TPOT binds",
    "e2e": "the SLO's E2E binds",
    "kv": "KV memory binds",
    "admission": "the admission limit binds",
    "stability": "stability binds: the SLO holds up to what can be sustained",
    "throughput": "throughput itself binds: no looser limit would help",
}
_RESOURCE = {
    "compute": "step time is mostly compute",
    "bandwidth": "step time is mostly bandwidth",
    "overhead": "step time is mostly dispatch overhead",
}


def binding(plan: CapacityPlan, kind: ReplicaType, replica: Replica, found: Found) -> Binding:
    """What binds the type at the highest rate that was found."""
    n = plan.search.requests // 2
    base = quick(replica, start_rps=found.rate_rps)
    gains: dict[str, float] = {}
    if base is not None:
        for name, looser in _relaxed(plan, kind, replica).items():
            raised = quick(looser, start_rps=found.rate_rps)
            gains[name] = 0.0 if raised is None else raised.rate_rps / base.rate_rps - 1
    served = replica.serve(found.rate_rps, n, 1, record=True)
    works = served.works
    assert works is not None
    weight = works.duration_s / works.duration_s.sum()
    limits = {name: gain for name, gain in gains.items() if name not in _RESOURCES}
    limit = max(limits, key=lambda name: limits[name], default="throughput")
    if found.stable:
        limit = "stability"
    elif not limits or limits[limit] < _TELLS:
        limit = "throughput"
    resources = {name: gains[name] for name in _RESOURCES if name in gains}
    resource = max(resources, key=lambda name: resources[name], default=None)
    if resource is not None and resources[resource] < _TELLS:
        resource = None
    batch = float(little(replica.deployment, served.jobs.lengths, np.array([found.rate_rps]))[0])
    return Binding(
        limit,
        resource,
        gains,
        served.kv_peak_blocks / served.kv_blocks,
        float(weight @ works.memory_utilisation),
        float(weight @ works.compute_utilisation),
        served.busy_s / served.end_s,
        served.most_in_flight,
        batch if np.isfinite(batch) else None,
        replica.fare(found.rate_rps * ABOVE, n, 1),
    )


def _relaxed(plan: CapacityPlan, kind: ReplicaType, replica: Replica) -> dict[str, Replica]:
    workload, slo = replica.workload, replica.slo
    relaxed = {
        name: Replica(replica.deployment, workload, _with(slo, name, limit_s * BY))
        for name, limit_s in slo.limits_s.items()
    }
    for name in ("kv", "admission", *_RESOURCES):
        if name == "admission" and replica.deployment.limits.max_concurrent_requests is None:
            continue
        deployment = deploy(plan, kind, Looser(**{name: BY}))
        relaxed[name] = Replica(deployment, workload, slo)
    return relaxed


def _with(slo: Slo, name: str, limit_s: float) -> Slo:
    return slo.model_copy(update={f"{name}_s": limit_s})
