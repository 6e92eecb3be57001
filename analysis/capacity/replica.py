"""One replica of a type, and how its requests fare at a rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.capacity.plan import CapacityPlan, Slo
from analysis.capacity.workload import Workload
from loadgen.emulation import Jobs, Served, simulate
from loadgen.physics.transformer import StepModel
from loadgen.server.deployment import Deployment
from loadgen.types import ShapingPolicy


@dataclass(frozen=True, slots=True)
class ReplicaType:
    """What a replica is made of: ``shards`` boards, and a number format."""

    gpu: str
    dtype: str
    shards: int

    def __str__(self) -> str:
        boards = self.gpu if self.shards == 1 else f"{self.shards} x {self.gpu}"
        return f"{boards} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Hold:
    """A shaping policy: when demand is released, and how many requests may be under way at once."""

    name: str
    release: ShapingPolicy | None = None
    cap: int | None = None

    def shaped(self, jobs: Jobs) -> Jobs:
        """The same demand under the policy."""
        due_s = jobs.demand_s if self.release is None else self.release.release(jobs.demand_s)
        return replace(jobs, due_s=due_s, max_in_flight=self.cap)


AT_ONCE = Hold("none")


@dataclass(frozen=True, slots=True)
class Fared:
    """How n requests of one stream fared at a rate; simulated.

    ``good``: served within every limit, counted from demand; ``refused``: not served; ``late``: those
    served that broke a limit, by limit (one may break several). ``energy_j``: of all boards.
    """

    rate_rps: float
    n: int
    good: int
    refused: int
    late: Mapping[str, int]
    energy_j: float
    hold_s: float
    most_in_flight: int
    kv_peak: float

    @property
    def share(self) -> float:
        """Good requests over all of them."""
        return self.good / self.n

    @property
    def per_request_j(self) -> float:
        """Energy over all requests, good or not."""
        return self.energy_j / self.n


def judge(served: Served, slo: Slo, rate_rps: float) -> Fared:
    """Counts what kept the SLO. Latencies count from demand: what a policy holds back is in them."""
    demand_s, ok = served.jobs.demand_s, served.ok
    seen_s = {
        "ttft": served.first_s - demand_s,
        "tpot": np.where(served.jobs.lengths.reply_tokens > 1, served.tpot_s, 0.0),
        "e2e": served.done_s - demand_s,
    }
    good, late = ok.copy(), {}
    for name, limit_s in slo.limits_s.items():
        # A completion on the limit keeps it, whatever the rounding of a difference of instants.
        broken = ok & (seen_s[name] > limit_s * (1 + 1e-9))
        late[name] = int(broken.sum())
        good &= ~broken
    return Fared(
        rate_rps,
        len(ok),
        int(good.sum()),
        int((~ok).sum()),
        late,
        served.energy_j,
        float(np.nanmean(served.hold_s)) if ok.any() else 0.0,
        served.most_in_flight,
        served.kv_peak_blocks / served.kv_blocks,
    )


@dataclass(frozen=True, slots=True)
class Looser:
    """One constraint relaxed, or several: factors on what the hardware and the server give."""

    kv: float = 1.0
    admission: float = 1.0
    compute: float = 1.0
    bandwidth: float = 1.0
    overhead: float = 1.0


class Replica:
    """A replica type under a workload and an SLO. ``deployment`` is its own: a `Looser` one is another's."""

    def __init__(self, deployment: Deployment, workload: Workload, slo: Slo) -> None:
        self.deployment, self.workload, self.slo = deployment, workload, slo

    def serve(
        self, rate_rps: float, n: int, stream: int, hold: Hold = AT_ONCE, *, record: bool = False
    ) -> Served:
        """n requests of a stream at this rate."""
        return simulate(self.deployment, hold.shaped(self.workload.jobs(rate_rps, n, stream)), record=record)

    def fare(self, rate_rps: float, n: int, stream: int, hold: Hold = AT_ONCE) -> Fared:
        """The same, judged."""
        return judge(self.serve(rate_rps, n, stream, hold), self.slo, rate_rps)


def deploy(plan: CapacityPlan, kind: ReplicaType, looser: Looser | None = None) -> Deployment:
    """The replica type's engine, limits and step costs, with constraints relaxed.

    Raises CapacityError when it does not fit, ConfigError when the boards cannot run or split it.
    """
    deployment = Deployment(plan.launch(kind.gpu, kind.dtype, kind.shards))
    model = deployment.step_model
    if looser is None:
        return deployment
    assert isinstance(model, StepModel)
    efficiency, gpu = model.efficiency, model.gpu
    deployment.gpu = gpu = replace(gpu, bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * looser.bandwidth)
    deployment.step_model = StepModel(
        model.model,
        gpu,
        model.dtype,
        shards=kind.shards,
        efficiency=replace(
            efficiency,
            compute=efficiency.compute * looser.compute,
            graph_overhead_s=efficiency.graph_overhead_s / looser.overhead,
            eager_overhead_s=efficiency.eager_overhead_s / looser.overhead,
            decomposition_s=efficiency.decomposition_s / looser.overhead,
        ),
    )
    limits = deployment.limits
    most = limits.max_concurrent_requests
    deployment.limits = replace(
        limits,
        max_batch_total_tokens=int(limits.max_batch_total_tokens * looser.kv),
        max_concurrent_requests=None if most is None else max(1, round(most * looser.admission)),
    )
    return deployment
