"""From one replica to a fleet: how many, hour by hour, and what a good request then costs.

With headroom h and the highest rate L of a replica, an hour of rate d takes ceil(d / (L (1 - h))) of
them. They share the demand evenly. Energy and the share of good requests are simulated at the rates
that a replica then sees; over a few of them where there are many, and interpolated: power and good share
on straight lines of the rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.capacity.plan import CapacityPlan
from analysis.capacity.replica import Fared, Replica, ReplicaType
from analysis.capacity.search import over_streams
from analysis.capacity.workload import HOUR_S, Demand
from analysis.stats import LEVEL, exact, missing, scaled
from analysis.words import WH_PER_J
from loadgen.types import Estimate, Floats

GRID_POINTS, GRID_N = 6, 3_000
_FIRST_STREAM = 1
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Operation:
    """A replica at some rates, (k,), ascending: watts and good share, (streams, k) each; simulated.

    The first rate is 0: at rest with a model loaded.
    """

    rates_rps: Floats
    power_w: Floats
    good: Floats
    n: int

    def at(self, stream: int, rates_rps: Floats) -> tuple[Floats, Floats]:
        """Watts and good share of one stream at these rates."""
        return (
            np.interp(rates_rps, self.rates_rps, self.power_w[stream]),
            np.interp(rates_rps, self.rates_rps, self.good[stream]),
        )


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas by bin, (k,), and what a good request costs. Boards only: hosts are not in it.

    ``boards``: of the whole fleet, those of the peak. ``operating_rps``: of a replica at the peak.
    ``per_good_*``: energy of all replicas, idle ones included, over good requests; ``co2e_g`` of its
    use, embodied not included; ``cost`` of the boards' hours. ``peak_w`` in the busiest bin, ``idle_w``
    of the fleet at rest with models loaded; both without PUE.
    """

    replicas: Ints
    boards: int
    board_hours_per_day: float
    operating_rps: float
    good_share: Estimate
    per_good_j: Estimate
    per_good_wh: Estimate
    per_good_cost: Estimate
    per_good_co2e_g: Estimate
    peak_w: float
    idle_w: float


def replicas_for(rates_rps: Floats, max_rps: float, headroom: float) -> Ints:
    """Replicas that each of the rates takes: (k,) -> (k,); none for a rate of 0."""
    needed = np.ceil(rates_rps / (max_rps * (1 - headroom)) - 1e-9)
    return np.maximum(needed, rates_rps > 0).astype(np.int64)


def operate(replica: Replica, rates_rps: Floats, *, streams: int) -> Operation:
    """The replica at so many of these rates that the rest can be interpolated."""
    n = min(GRID_N, replica.workload.plan.search.requests)
    wanted = np.unique(rates_rps[rates_rps > 0])
    if len(wanted) > GRID_POINTS:
        wanted = np.geomspace(wanted[0], wanted[-1], GRID_POINTS)
    shards = replica.deployment.launch.launcher.num_shard
    idle_w = shards * replica.deployment.gpu.context_idle_w
    power, good = [], []
    for stream in range(_FIRST_STREAM, _FIRST_STREAM + streams):
        fared = [replica.fare(float(rate), n, stream) for rate in wanted]
        power.append([idle_w, *(f.power_w(idle_w) for f in fared)])
        good.append([fared[0].share, *(f.share for f in fared)])
    return Operation(np.concatenate([[0.0], wanted]), np.array(power), np.array(good), n * streams)


def fleet(
    plan: CapacityPlan,
    kind: ReplicaType,
    replica: Replica,
    max_rps: Estimate,
    *,
    switch_off: bool | None = None,
    streams: int | None = None,
) -> Fleet:
    """The fleet of this type that the demand takes. ``switch_off``, ``streams``: instead of the plan's."""
    assert max_rps.value is not None
    demand = replica.workload.demand
    switch_off = plan.switch_off if switch_off is None else switch_off
    replicas = on(demand, max_rps.value, plan.headroom, switch_off=switch_off)
    each_rps = np.divide(demand.rates_rps, replicas, out=np.zeros(len(replicas)), where=replicas > 0)
    operation = operate(replica, each_rps, streams=streams or plan.search.seeds)
    joules, shares = [], []
    wanted = demand.rates_rps * demand.bins_s
    for stream in range(len(operation.power_w)):
        power_w, good = operation.at(stream, each_rps)
        served_good = float(wanted @ good)
        joules.append(float((replicas * power_w) @ demand.bins_s) / served_good)
        shares.append(served_good / float(wanted.sum()))
    n = operation.n * (len(operation.rates_rps) - 1)
    per_good_j = over_streams(joules, "J", n, "simulated: energy of all replicas over good requests")
    good_share = over_streams(shares, "1", n, "simulated: good requests over all")
    assert good_share.value is not None
    busiest = int(demand.rates_rps.argmax())
    peak_w = np.mean([operation.at(s, each_rps)[0][busiest] for s in range(len(operation.power_w))])
    most = int(replicas.max())
    return Fleet(
        replicas,
        most * kind.shards,
        float(replicas @ demand.bins_s) * kind.shards * 24 / float(demand.bins_s.sum()),
        float(each_rps[busiest]),
        good_share,
        per_good_j,
        scaled(per_good_j, WH_PER_J, "Wh"),
        _cost(plan, kind, demand, max_rps, good_share.value, switch_off),
        _co2e(plan, per_good_j),
        float(peak_w) * most,
        most * kind.shards * replica.deployment.gpu.context_idle_w,
    )


def on(demand: Demand, max_rps: float, headroom: float, *, switch_off: bool) -> Ints:
    """Replicas that are on in each bin: those it needs, or always those of the peak."""
    need = replicas_for(demand.rates_rps, max_rps, headroom)
    return need if switch_off else np.full(len(need), need.max())


def _cost(
    plan: CapacityPlan, kind: ReplicaType, demand: Demand, max_rps: Estimate, good: float, switch_off: bool
) -> Estimate:
    """Price of the boards' hours over good requests; its interval is that of the highest rate, by ceil."""
    price = plan.price_per_gpu_h.get(kind.gpu)
    if price is None:
        return missing(plan.currency, f"no price of {kind.gpu} was given")
    requests = float(demand.rates_rps @ demand.bins_s) * good

    def per_good(rate_rps: float) -> float:
        replicas = on(demand, rate_rps, plan.headroom, switch_off=switch_off)
        return price * kind.shards * float(replicas @ demand.bins_s) / HOUR_S / requests

    assert max_rps.value is not None
    value = per_good(max_rps.value)
    method = f"{price:g} {plan.currency} per board and hour over good requests"
    if max_rps.low is None or max_rps.high is None or max_rps.low <= 0:
        return exact(value, plan.currency, max_rps.n, f"{method}; no interval: the highest rate has none")
    low, high = per_good(max_rps.high), per_good(max_rps.low)
    how = f"{method}; replicas at the ends of the highest rate's interval"
    return Estimate(value, plan.currency, low, high, LEVEL, max_rps.n, how)


def _co2e(plan: CapacityPlan, per_good_j: Estimate) -> Estimate:
    place = plan.place
    if place is None:
        return missing("g", "no grid intensity was given")
    pue = 1.0 if plan.pue is None else plan.pue
    said = "no PUE: the boards alone" if plan.pue is None else f"PUE {plan.pue:g}"
    found = scaled(per_good_j, WH_PER_J * 1e-3 * pue * place.g_per_kwh, "g")
    return Estimate(
        found.value,
        "g",
        found.low,
        found.high,
        found.level,
        found.n,
        f"{found.method}; {said}, {place.g_per_kwh:g} g/kWh; of use, embodied not included",
    )


def per_good(fared: Fared) -> float | None:
    """Joules over good requests of one simulation; None without one."""
    return fared.energy_j / fared.good if fared.good else None
