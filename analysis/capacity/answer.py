"""The answer: every candidate assessed, ranked, and what would change the ranking."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from time import perf_counter

from analysis.capacity.binding import Binding, binding
from analysis.capacity.fleet import Fleet, fleet
from analysis.capacity.fluid import Fluid
from analysis.capacity.lone import lone
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.replica import Replica, ReplicaType, deploy
from analysis.capacity.search import Found, search
from analysis.capacity.sensitivity import Sensitivity, sensitivity
from analysis.capacity.shaping import Shaped, shaping
from analysis.capacity.workload import Workload
from loadgen import pool
from loadgen.errors import CapacityError, ConfigError
from loadgen.types import Estimate

LABEL = "simulated"


@dataclass(frozen=True, slots=True)
class Assessed:
    """One replica type. ``reason``: why it cannot serve this at all, in one line; then the rest is None.

    ``fleet`` as the plan wants replicas switched, ``other`` the other way round (None for one rate).
    ``search_s``: seconds that the search for the highest rate took.
    """

    kind: ReplicaType
    reason: str | None = None
    fluid: Fluid | None = None
    found: Found | None = None
    binding: Binding | None = None
    fleet: Fleet | None = None
    other: Fleet | None = None
    search_s: float | None = None

    @property
    def name(self) -> str:
        """The type, for people."""
        return str(self.kind)


@dataclass(frozen=True, slots=True)
class Answer:
    """``ranked``: those that can serve it, best first by ``criterion``; ``left_out``: the others.

    Everything in it is simulated; ``notes`` are what a reader must know of the inputs.
    """

    label: str
    criterion: str
    ranked: tuple[Assessed, ...]
    left_out: tuple[Assessed, ...]
    shaping: Shaped | None
    sensitivity: Sensitivity | None
    notes: tuple[str, ...]

    @property
    def best(self) -> Assessed | None:
        """The first of the ranking."""
        return self.ranked[0] if self.ranked else None


def kinds_of(plan: CapacityPlan) -> list[ReplicaType]:
    """Every combination of the plan's candidates."""
    c = plan.candidates
    return [ReplicaType(*one) for one in dict.fromkeys(itertools.product(c.gpus, c.dtypes, c.shards))]


def assess(workload: Workload, kinds: list[ReplicaType], number: int) -> Assessed:
    """One of the types. A task for a pool: what it gives depends on nothing but its arguments."""
    plan, kind = workload.plan, kinds[number]
    try:
        replica = Replica(deploy(plan, kind), workload, plan.slo)
    except (CapacityError, ConfigError) as exc:
        return Assessed(kind, str(exc).replace("--num-shard", "--shards"))
    begun_s = perf_counter()
    found = search(replica)
    search_s = perf_counter() - begun_s
    if found is None:
        return Assessed(kind, lone(replica), search_s=search_s)
    several = len(workload.demand.rates_rps) > 1
    return Assessed(
        kind,
        None,
        found.fluid,
        found,
        binding(plan, kind, replica, found),
        fleet(plan, kind, replica, found.max_rps),
        fleet(plan, kind, replica, found.max_rps, switch_off=not plan.switch_off) if several else None,
        search_s,
    )


def assess_all(
    workload: Workload, kinds: list[ReplicaType], *, workers: int | None = None
) -> Iterator[tuple[int, Assessed]]:
    """Every type, as they end, over a pool of processes."""
    task = partial(assess, workload, kinds)
    yield from pool.each(task, range(len(kinds)), what="capacity", workers=workers)


def answer(workload: Workload, assessed: list[Assessed]) -> Answer:
    """Ranks what was assessed, tries shaping on the best, and asks what would change it."""
    plan = workload.plan
    able = [a for a in assessed if a.fleet is not None]
    ranked = tuple(sorted(able, key=lambda a: worth(plan, a.fleet)))
    left_out = tuple(a for a in assessed if a.fleet is None)
    shaped = sensible = None
    if ranked:
        best = ranked[0]
        assert best.found is not None and best.fleet is not None
        replica = Replica(deploy(plan, best.kind), workload, plan.slo)
        shaped = shaping(plan, replica, best.found, best.fleet.operating_rps)
        rivals = [(a.kind, a.found, a.fleet) for a in ranked[:2] if a.found and a.fleet]
        sensible = sensitivity(workload, rivals)
    return Answer(LABEL, plan.criterion, ranked, left_out, shaped, sensible, notes_of(workload))


def worth(plan: CapacityPlan, fleet: Fleet | None) -> tuple[float, float]:
    """What the ranking sorts by, smaller is better; equal ones by energy."""
    if fleet is None:
        return inf, inf
    joules = _value(fleet.per_good_j)
    return {"cost": _value(fleet.per_good_cost), "energy": joules, "boards": float(fleet.boards)}[
        plan.criterion
    ], joules


def _value(estimate: Estimate) -> float:
    return inf if estimate.value is None else estimate.value


def notes_of(workload: Workload) -> tuple[str, ...]:
    """What is not in the figures."""
    plan = workload.plan
    notes = [*workload.notes, "boards only: hosts, network and embodied carbon are not in it"]
    if plan.pue is None:
        notes.append("no PUE was given: energy and CO2e are those of the boards alone")
    if plan.place is None:
        notes.append("no grid was given: no CO2e (--grid FR, or g/kWh)")
    lacking = [gpu for gpu in plan.candidates.gpus if gpu not in plan.price_per_gpu_h]
    if lacking:
        notes.append(f"no price was given of {', '.join(lacking)} (--price GPU={plan.currency})")
    if plan.lengths is not None and plan.lengths.max_new_tokens is None and plan.server.scheduler == "tgi":
        notes.append("KV memory is reserved for each reply's own length: clients are taken to know it")
    if plan.switch_off and len(workload.demand.rates_rps) > 1:
        notes.append("switching replicas on and off is taken to cost nothing")
    return tuple(notes)
