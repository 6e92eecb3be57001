"""Plans and replicas that the capacity tests share."""

from __future__ import annotations

from typing import Any

from analysis.capacity.plan import CapacityPlan
from analysis.capacity.plan_file import read_plan
from analysis.capacity.replica import Replica, ReplicaType, deploy
from analysis.capacity.workload import workload_of

CHAT = {
    "traffic.rate_rps": 13,
    "lengths.prompt_tokens": 1300,
    "lengths.output_tokens": 250,
    "slo.ttft_s": 0.5,
    "slo.tpot_s": 0.03,
    "search.requests": 500,
    "search.seeds": 2,
}
H100 = ReplicaType("h100-sxm", "bfloat16", 1)


def plan(keys: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> CapacityPlan:
    """The chat of 1,300 in and 250 out, with keys changed; of None, dropped."""
    merged = {**(CHAT if base is None else base), **(keys or {})}
    given = [(key, str(value), f"--set {key}") for key, value in merged.items() if value is not None]
    return read_plan(None, given)


def replica(asked: CapacityPlan, kind: ReplicaType = H100) -> Replica:
    return Replica(deploy(asked, kind), workload_of(asked), asked.slo)
