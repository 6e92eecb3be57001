"""Goodput and the sentences about missing intervals, on records computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from made_runs import constant, failed, lattice, record, run_of

from analysis.absent import without_intervals
from analysis.energy import blocks_of
from analysis.goodput import goodput
from analysis.run import Run
from analysis.summary import summarize
from loadgen.types import Domain, Estimate, Reading, Record


def _goodput(records: list[Record], **limits_s: float | None) -> dict[str, Any]:
    run = run_of(records, slo=limits_s)
    found = goodput(run, blocks_of(run))
    assert found is not None
    return found


def _value(found: dict[str, Any], name: str = "ratio") -> float | None:
    estimate = found[name]
    assert isinstance(estimate, Estimate)
    return estimate.value


# due 0.0: demanded at -1, sent at 0.5 s, first token 1.0 s, done 3.0 s, 5 tokens
ONE = record(
    0,
    0.0,
    demand_s=-1.0,
    sent_s=0.5,
    first_s=1.0,
    done_s=3.0,
    output_tokens=5,
    chunk_s=(1.0,),
    chunk_tokens=(5,),
)


@pytest.mark.parametrize(
    ("limit", "value_s"),
    [
        ("ttft_s", 0.5),
        ("ttft_from_due_s", 1.0),
        ("ttft_from_demand_s", 2.0),
        ("tpot_s", 0.5),
        ("e2e_s", 2.5),
        ("e2e_from_due_s", 3.0),
        ("e2e_from_demand_s", 4.0),
    ],
)
def test_each_limit_is_met_at_its_value_and_missed_just_below(limit: str, value_s: float) -> None:
    assert _value(_goodput([ONE], **{limit: value_s})) == 1.0
    assert _value(_goodput([ONE], **{limit: value_s - 1e-6})) == 0.0


@pytest.mark.parametrize("status", ["error", "timeout", "rejected", "cancelled", "dropped"])
def test_a_failure_never_meets_a_limit_however_fast_and_stays_in_the_denominator(status: Any) -> None:
    fast = record(1, 1.0, status=status, error="broken")
    unsent = failed(2, 2.0, "dropped", sent_s=None, done_s=None)
    found = _goodput([record(0, 0.0), fast, unsent, record(3, 3.0)], e2e_s=10.0)
    assert _value(found) == 2 / 4
    # the window ends with the last reply, at 3.2 s
    assert _value(found, "rps") == pytest.approx(2 / 3.2)


def test_every_limit_must_hold_and_one_that_is_null_is_none() -> None:
    slow_first = record(1, 1.0, first_s=1.15)
    found = _goodput([record(0, 0.0), slow_first], ttft_s=0.12, e2e_s=0.2 + 1e-9, tpot_s=None)
    assert found["slo"] == {"ttft_s": 0.12, "e2e_s": 0.2 + 1e-9}
    assert _value(found) == 0.5
    run = run_of(lattice(3, 1.0), slo={"ttft_s": None})
    assert goodput(run, blocks_of(run)) is None


def test_one_token_has_no_gap_to_be_slow_in_and_an_unknown_count_is_said() -> None:
    single = record(0, 0.0, output_tokens=1)
    unknown = record(1, 1.0, output_tokens=None, tokens_from=None)
    found = _goodput([single, unknown, record(2, 2.0)], tpot_s=0.02)
    assert _value(found) == 2 / 3
    assert "1 successes that cannot be judged count as not met" in found["ratio"].method
    none = _goodput([unknown], tpot_s=0.02)
    assert _value(none) is None
    assert "no successful request has what the limits on tpot_s ask for" in none["ratio"].method


def test_a_limit_that_is_not_known_here_is_no_traceback() -> None:
    found = _goodput(lattice(3, 1.0), first_frame_s=1.0)
    assert _value(found) is None


def test_the_interval_of_a_goodput_stays_below_one() -> None:
    rng = np.random.default_rng(4)
    first_s = [i + float(rng.exponential(0.1)) for i in range(2000)]
    rows = [record(i, float(i), first_s=t_s, done_s=t_s + 0.1) for i, t_s in enumerate(first_s)]
    ratio = _goodput(rows, ttft_s=0.4)["ratio"]
    # P(exponential of mean 0.1 s <= 0.4 s) = 1 - exp(-4); 36 exceptions are known to about a third
    assert 0.97 < ratio.low < 1 - np.exp(-4) < ratio.high < 1.0
    assert ratio.high - ratio.low == pytest.approx(2 * 2.1 * np.sqrt(np.exp(-4) / 2000), rel=0.4)


def _congested(n: int) -> Run:
    """A single server at utilisation 0.9, one token after another: waits in long clumps."""
    rng = np.random.default_rng(1)
    due_s = np.cumsum(rng.exponential(1.0, n))
    rows, free_s = [], 0.0
    for i, t_s in enumerate(due_s.tolist()):
        first_s = max(free_s, t_s) + float(rng.exponential(0.9))
        free_s = first_s
        rows.append(record(i, t_s, first_s=first_s, done_s=first_s + 0.1))
    return run_of(rows, constant(300.0, free_s + 1.0, period_s=1.0))


def test_a_short_run_is_told_what_it_has_no_interval_of_and_how_long_one_would_take() -> None:
    (sentence,) = without_intervals(summarize(_congested(1500)))
    assert sentence.startswith("No 95 % interval for ttft ")
    assert "p99" in sentence
    needed = int(sentence.rpartition("at least about ")[2].split()[0].replace(",", ""))
    assert 2_000 < needed < 2_000_000


def test_too_few_requests_and_a_burst_are_named_in_one_sentence() -> None:
    (few,) = without_intervals(summarize(run_of(lattice(30, 1.0))))
    assert (
        few == "No 95 % intervals: 30 requests are too few; it takes at least about 80 requests at this load."
    )
    (burst,) = without_intervals(summarize(run_of([record(i, 0.0) for i in range(300)])))
    assert burst == "No 95 % intervals: all requests were due at about the same time, which is one event."


def test_equal_latencies_have_intervals_of_no_width() -> None:
    got = summarize(run_of(lattice(600, 1.0), constant(300.0, 600.0), end_s=600.0))
    for statistic in ("mean", "p50", "p99"):
        found = got["latency"]["e2e_s"][statistic]
        assert found["low"] == pytest.approx(0.2, abs=1e-9)
        assert found["high"] == pytest.approx(0.2, abs=1e-9)


@pytest.mark.parametrize(("update_s", "count"), [(5.0, 80), (30.0, 240)])
def test_blocks_grow_to_a_slow_sensor_only_while_enough_of_them_remain(update_s: float, count: int) -> None:
    """A counter that is renewed every 30 s in 400 s costs the energy its interval, not the latencies."""
    slow = Domain("gpu0", "counter", update_s=update_s)
    readings = [
        Reading(t, "gpu0", energy_j=300.0 * update_s * (t // update_s)) for t in np.arange(-40.0, 441.0, 0.1)
    ]
    run = run_of(lattice(800, 0.5), readings, domains=[slow], end_s=400.0)
    got = summarize(run)
    assert got["blocks"]["count"] == count
    assert got["latency"]["ttft_s"]["p50"]["low"] is not None
    per_request = got["energy"]["gpu"]["energy_per_request"]
    assert per_request["value"] == pytest.approx(150.0, rel=0.1)
    assert (per_request["low"] is None) is (update_s == 30.0)
    if update_s == 30.0:
        assert "a new value every 30 s" in per_request["method"]
        assert "it takes a run of 1,200 s or more" in per_request["method"]
