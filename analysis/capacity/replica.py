"""One replica of a type, and how its requests fare at a rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.capacity.plan import CapacityPlan, Slo
from analysis.capacity.workload import Workload
from loadgen.emulation import Jobs, Lengths, Served, simulate
from loadgen.physics.profile_file import profile_of
from loadgen.server.deployment import Deployment
from loadgen.types import ShapingPolicy

Mask = npt.NDArray[np.bool_]


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

    ``good``: served whole and within every limit, counted from demand; ``refused``: not served, or cut
    short; ``late``: those served that broke a limit, by limit (one may break several). ``energy_j``: of
    all boards until ``end_s``.
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
    end_s: float

    @property
    def share(self) -> float:
        """Good requests over all of them."""
        return self.good / self.n

    def power_w(self, idle_w: float) -> float:
        """Watts at the rate in the long run: at rest, and what every request adds to that.

        Energy over time would count the wait for the last reply, energy per request times the rate how
        far this stream's gaps happen to be from their mean.
        """
        return idle_w + (self.energy_j - idle_w * self.end_s) / self.n * self.rate_rps


def whole(served: Served, most_tokens: int) -> Mask:
    """Which requests were served to their end, (n,): TGI ends a reply where ``most_tokens`` are reached."""
    return np.asarray(served.ok & _fits(served.jobs.lengths, most_tokens))


def _fits(lengths: Lengths, most_tokens: int) -> Mask:
    return np.asarray(lengths.prompt_tokens + lengths.reply_tokens <= most_tokens)


def judge(served: Served, slo: Slo, rate_rps: float, most_tokens: int) -> Fared:
    """Counts what kept the SLO. Latencies count from demand: what a policy holds back is in them.

    ``most_tokens``: the server's limit of a prompt and its reply together.
    """
    demand_s, ok = served.jobs.demand_s, whole(served, most_tokens)
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
        served.end_s,
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

    def share_whole(self, stream: int, n: int) -> float:
        """The share of requests that are no longer than the server takes; no rate serves more whole."""
        lengths = self.workload.jobs(1.0, n, stream).lengths
        return float(_fits(lengths, self.deployment.limits.max_total_tokens).mean())

    def serve(
        self, rate_rps: float, n: int, stream: int, hold: Hold = AT_ONCE, *, record: bool = False
    ) -> Served:
        """n requests of a stream at this rate."""
        return simulate(self.deployment, hold.shaped(self.workload.jobs(rate_rps, n, stream)), record=record)

    def fare(self, rate_rps: float, n: int, stream: int, hold: Hold = AT_ONCE) -> Fared:
        """The same, judged."""
        most_tokens = self.deployment.limits.max_total_tokens
        return judge(self.serve(rate_rps, n, stream, hold), self.slo, rate_rps, most_tokens)


def deploy(plan: CapacityPlan, kind: ReplicaType, looser: Looser | None = None) -> Deployment:
    """The replica type's engine, limits and step costs, with constraints relaxed.

    Raises CapacityError when it does not fit, ConfigError when the boards cannot run or split it.
    """
    launch, profile = plan.launch(kind.gpu, kind.dtype, kind.shards), profile_of(kind.gpu)
    if looser is None:
        return Deployment(launch, profile)
    gpu, efficiency = profile.gpu, profile.efficiency
    relaxed = replace(
        profile,
        gpu=replace(gpu, bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s * looser.bandwidth),
        efficiency=replace(
            efficiency,
            compute=efficiency.compute * looser.compute,
            graph_overhead_s=efficiency.graph_overhead_s / looser.overhead,
            eager_overhead_s=efficiency.eager_overhead_s / looser.overhead,
            decomposition_s=efficiency.decomposition_s / looser.overhead,
        ),
    )
    deployment = Deployment(launch, relaxed)
    limits = deployment.limits
    most = limits.max_concurrent_requests
    deployment.limits = replace(
        limits,
        max_batch_total_tokens=int(limits.max_batch_total_tokens * looser.kv),
        max_concurrent_requests=None if most is None else max(1, round(most * looser.admission)),
    )
    return deployment
