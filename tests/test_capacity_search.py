"""The search for the highest rate, against queues with known answers and bounds."""

from __future__ import annotations

from math import exp, factorial, floor

import numpy as np
import pytest
from capacity_plans import H100, plan, replica

from analysis.capacity.fluid import Means, fluid, little, means_of
from analysis.capacity.lone import lone
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.replica import ReplicaType, judge
from analysis.capacity.search import crosses, over_streams, quick, search
from analysis.capacity.workload import workload_of
from loadgen.emulation import Jobs, simulate
from loadgen.emulation.jobs import Lengths

ONE_SLOT = {
    "lengths.prompt_tokens": 1000,
    "lengths.output_tokens": 1,
    "slo.tpot_s": None,
    "server.max_concurrent_requests": 1_000_000,
    "server.launcher.max_batch_size": 1,
}


def waits_at_most(x_s: float, rate_rps: float, service_s: float) -> float:
    """P(W <= x) of M/D/1, first in first out (Crommelin 1932; Erlang's formula)."""
    total = 0.0
    for k in range(floor(x_s / service_s) + 1):
        late = rate_rps * (k * service_s - x_s)
        total += late**k / factorial(k) * exp(-late)
    return (1 - rate_rps * service_s) * total


def md1_rate(limit_s: float, service_s: float, share: float) -> float:
    low, high = 0.0, 1 / service_s
    for _ in range(80):
        rate = (low + high) / 2
        if waits_at_most(limit_s - service_s, rate, service_s) >= share:
            low = rate
        else:
            high = rate
    return low


def one_slot_service_s() -> float:
    asked = plan({**ONE_SLOT, "slo.ttft_s": 10})
    served = replica(asked).serve(0.01, 2, 0)
    return float(served.ttft_s[0])


@pytest.mark.parametrize(("services", "n"), [(1.5, 3000), (4.0, 8000)])
def test_one_slot_is_found_where_the_m_d_1_queue_has_its_limit(services: float, n: int) -> None:
    service_s = one_slot_service_s()
    limit_s = (1 + services) * service_s
    asked = plan({**ONE_SLOT, "slo.ttft_s": limit_s, "search.requests": n, "search.seeds": 3})
    found = search(replica(asked))
    assert found is not None and found.max_rps.low is not None and found.max_rps.high is not None
    expected = md1_rate(limit_s, service_s, 0.95)
    assert found.rate_rps == pytest.approx(expected, rel=0.03)
    assert found.max_rps.low < expected < found.max_rps.high
    assert found.share.value == pytest.approx(0.95, abs=0.01)


def test_one_slot_without_a_limit_that_bites_is_stable_up_to_its_service_rate() -> None:
    asked = plan({**ONE_SLOT, "slo.ttft_s": 1e6, "search.requests": 300})
    found = search(replica(asked))
    assert found is not None and found.stable
    # 95 % good is all that is asked for: a twentieth may stay unserved for ever.
    assert found.rate_rps == pytest.approx(1 / one_slot_service_s() / 0.95, rel=1e-6)
    assert found.fluid.cap == "batch"


FLUID = [
    ({}, H100, None),
    ({"server.scheduler": "vllm"}, H100, None),
    ({"lengths.prompt_tokens": 200, "lengths.output_tokens": 20}, H100, None),
    ({"lengths.prompt_tokens": 6000, "lengths.output_tokens": 900}, ReplicaType("l40s", "bfloat16", 1), "kv"),
    ({"model": "qwen2.5-0.5b", "lengths.output_tokens": 40}, ReplicaType("l4", "float16", 1), None),
    ({"lengths.prompt_cv": 1.0, "lengths.output_cv": 1.0}, ReplicaType("a100-sxm", "int8", 1), None),
    (
        {"model": "llama-3.1-70b", "server.max_concurrent_requests": 16},
        ReplicaType("h100-sxm", "fp8", 4),
        "admission",
    ),
]


@pytest.mark.parametrize(("keys", "kind", "cap"), FLUID)
def test_no_replica_sustains_more_than_the_fluid_bound(
    keys: dict[str, object], kind: ReplicaType, cap: str | None
) -> None:
    one = replica(plan(keys), kind)
    jobs = one.workload.jobs(1.0, 500, 1)
    bound = fluid(one.deployment, jobs.lengths)
    limit = one.deployment.limits.max_concurrent_requests
    # Everything waits at the client's door, so that the replica is never short of work.
    backlog = Jobs(np.zeros(500), np.zeros(500), jobs.lengths, max_in_flight=limit)
    served = simulate(one.deployment, backlog)
    assert served.ok.all()
    sustained = 500 / served.end_s
    assert 0.5 * bound.stable_rps < sustained <= bound.stable_rps
    if cap is not None:
        assert bound.cap == cap


def test_the_highest_rate_is_below_the_bound_and_rises_with_every_limit() -> None:
    rates = []
    for tpot_s in (0.015, 0.02, 0.03, 0.05):
        one = replica(plan({"slo.tpot_s": tpot_s}))
        found = quick(one)
        assert found is not None and not found.stable
        rates.append(found.rate_rps)
        bound = fluid(one.deployment, one.workload.jobs(1.0, 500, 1).lengths, tpot_s)
        assert found.rate_rps < bound.stable_rps / 0.95
    assert rates == sorted(rates) and rates[0] < 0.7 * rates[-1]
    strict = quick(replica(plan({"slo.percentile": 99.5})))
    loose = quick(replica(plan({"slo.percentile": 80})))
    assert strict is not None and loose is not None and strict.rate_rps < rates[2] < loose.rate_rps


def test_the_same_plan_finds_the_same_rate_and_another_seed_another() -> None:
    first, again = (search(replica(plan())) for _ in range(2))
    other = search(replica(plan({"seed": 2})))
    assert first is not None and other is not None
    assert first == again
    assert first.rate_rps != other.rate_rps
    assert first.rate_rps == pytest.approx(other.rate_rps, rel=0.15)


def test_rates_and_boards_see_the_same_requests() -> None:
    workload = workload_of(plan({"lengths.prompt_cv": 1.0}))
    slow, fast = workload.jobs(2.0, 400, 3), workload.jobs(8.0, 400, 3)
    assert np.allclose(slow.demand_s, 4 * fast.demand_s)
    assert slow.lengths is fast.lengths
    assert not np.array_equal(slow.lengths.prompt_tokens, workload.jobs(2.0, 400, 4).lengths.prompt_tokens)


def test_a_reply_of_one_token_keeps_any_tpot_and_what_is_refused_keeps_nothing() -> None:
    asked = plan({"lengths.output_tokens": 1, "slo.tpot_s": 1e-9, "server.max_concurrent_requests": 1})
    one = replica(asked)
    served = one.serve(40.0, 300, 1)
    fared = judge(served, asked.slo, 40.0, 131_072)
    assert fared.refused == int((~served.ok).sum()) > 0
    assert fared.late["tpot"] == 0
    assert fared.good == 300 - fared.refused


def test_a_limit_that_a_lone_request_breaks_is_named_with_its_value() -> None:
    one = replica(plan(), ReplicaType("l4", "bfloat16", 1))
    assert search(one) is None
    said = lone(one)
    alone = one.serve(1e-5, 1, 0)
    assert said.startswith("SLO out of reach: alone on it, p95 TPOT is ")
    assert f"{1e3 * float(alone.tpot_s[0]):.3g} ms > 30 ms" in said
    # Weights of 16 GB at 0.8 of 300 GB/s: no reply can be quicker than that.
    assert float(alone.tpot_s[0]) > 15e9 / 300e9


def test_requests_longer_than_the_server_takes_are_the_reason() -> None:
    one = replica(plan({"lengths.prompt_tokens": 200_000}))
    assert search(one) is None
    assert "requests are refused or cut short: longer than 131,072 tokens together" in lone(one)


def test_a_reply_that_the_server_cuts_short_is_not_good() -> None:
    keys = {"model": "qwen2.5-0.5b", "lengths.output_tokens": 40_000, "slo.tpot_s": None}
    one = replica(plan(keys))
    assert search(one) is None
    fared = one.fare(1e-3, 20, 1)
    assert one.serve(1e-3, 20, 1).ok.all() and fared.good == 0 and fared.refused == 20
    assert "longer than 32,768 tokens together" in lone(one)


@pytest.mark.parametrize("start", [0.01, 3.0, 8.0, 90.0])
def test_a_crossing_is_found_from_wherever_it_is_started(start: float) -> None:
    found = crosses(lambda rate: 1 / (1 + (rate / 7.0) ** 12), 0.95, start, 100.0, 0.004, step=1.3)
    assert found is not None and not found.stable
    assert found.rate_rps == pytest.approx(7.0 * (1 / 0.95 - 1) ** (1 / 12), rel=0.002)


def test_a_share_that_never_falls_ends_at_the_bound_and_one_that_is_never_good_nowhere() -> None:
    high = crosses(lambda rate: 1.0, 0.95, 3.0, 20.0, 0.01, step=1.3)
    assert high is not None and high.stable and high.rate_rps == 20.0
    assert crosses(lambda rate: 0.9, 0.95, 3.0, 20.0, 0.01, step=1.3) is None


def test_the_interval_over_streams_is_students() -> None:
    found = over_streams(np.array([10.0, 12.0, 11.0, 13.0, 14.0]), "1/s", 50, "x")
    # t(0.975, 4) = 2.776445; s = sqrt(2.5).
    assert found.high == pytest.approx(12 + 2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert found.low == pytest.approx(24 - float(found.high or 0))


def test_means_of_two_requests_by_hand() -> None:
    lengths = Lengths(np.array([10, 20]), np.array([1, 3]), np.array([1, 5]))
    # Decode rows attend to 20 and 21 tokens before them plus themselves: 21 + 22.
    assert means_of(lengths, reserves=False) == Means(15, (55 + 210) / 2, 1, 43 / 2, (10 + 20 + 43) / 2)
    assert means_of(lengths, reserves=True).held_tokens == (10 * 1 + (20 + 5 - 1) * 3) / 2


def test_littles_batch_is_that_of_the_simulation() -> None:
    one = replica(plan({"search.requests": 2000}))
    lengths = one.workload.jobs(1.0, 100, 1).lengths
    rates = np.array([1.0, 6.0])
    served = [one.serve(rate, 2000, 1) for rate in rates]
    # Little's law on the time between first and last token.
    seen = [rate * float((s.done_s - s.first_s).mean()) for rate, s in zip(rates, served, strict=True)]
    assert little(one.deployment, lengths, rates) == pytest.approx(seen, rel=0.08)
    assert np.isinf(little(one.deployment, lengths, np.array([500.0]))).all()


def test_the_default_effort_is_that_of_the_method() -> None:
    look = CapacityPlan.model_fields["search"].default
    assert (look.requests, look.seeds) == (10_000, 5)
