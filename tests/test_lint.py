"""The verdict: every rule fires where it must, stays silent where it must."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from made_runs import INSTANT, constant, failed, lattice, record, run_of

from analysis import energy, floor, latency, lint
from analysis.lint import Verdict
from analysis.run import Run
from loadgen.physics.boards import GPUS
from loadgen.types import Domain, Reading

H100 = {"kind": "tgi", "model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "h100-sxm", "dtype": "bfloat16"}


def _judge(run: Run) -> Verdict:
    parts = energy.measure(run, np.array([0.0, run.end_s])) if run.end_s else {}
    return lint.judge(run, parts)


def silent(verdict: Verdict) -> bool:
    return (verdict.reasons, verdict.warnings) == ((), ())


def _one(verdict: Verdict, words: str) -> str:
    found = [r for r in verdict.reasons if words in r]
    assert len(found) == 1, verdict.reasons
    return found[0]


def test_a_clean_run_is_valid_without_a_word() -> None:
    run = run_of(lattice(200, 0.5), constant(300.0, 100.0), server=H100)
    assert silent(_judge(run))


@pytest.mark.parametrize("kind", ["tgi", "embedded"])
def test_the_published_1_1_mwh_at_50_ms_on_an_h100_is_caught_by_idle_and_by_physics(kind: str) -> None:
    # 1.1e-3 Wh per request, one request per 50 ms: 79.2 W mean (arXiv 2601.22362)
    n = 10_000
    rows = [record(i, 0.05 * i, output_tokens=52) for i in range(n)]
    run = run_of(rows, constant(79.2, 500.0), server={**H100, "kind": kind}, end_s=500.0)
    verdict = _judge(run)
    assert not verdict.valid
    assert "mean GPU power 79.2 W is below idle" in _one(verdict, "is below idle")
    assert "1.1 mWh per success is below the physical floor" in _one(verdict, "physical floor")


def test_physical_floor_is_at_least_idle_and_the_flop_of_the_uncached_prompts() -> None:
    rows = [record(i, 0.05 * i, output_tokens=52) for i in range(1000)]
    run = run_of(rows, server={**H100, "kind": "embedded"})
    bound = floor.physical_floor(run, 50.0, 1)
    assert bound is not None
    assert bound.soft_j is not None
    # theory.md: 2 x 6.979e9 x 1200 FLOP at 989 TFLOP/s and 700 W is 3.29e-3 Wh for the prefill alone
    assert 1.0 < bound.soft_j / 1000 / 3600 / 3.29e-3 < 1.1
    idle_j = floor.least_idle_w(GPUS["h100-sxm"]) * 50.0
    assert bound.hard_j > idle_j + (200.0 - 97.8) * 1000 * 2 * 6.979e9 * 1200 / 989e12
    cached = floor.physical_floor(run_of(rows, server=H100), 50.0, 1)
    assert cached is not None
    assert idle_j < cached.hard_j < bound.hard_j


def test_unknown_board_has_no_floor_and_a_known_one_is_found_by_the_drivers_name() -> None:
    rows = lattice(200, 0.5)
    assert floor.physical_floor(run_of(rows), 100.0, 1) is None
    gpus = [{"domain": "gpu0", "name": "NVIDIA H100 80GB HBM3", "power_limit_w": 700.0}]
    run = run_of(rows, constant(60.0, 100.0), gpus=gpus)
    assert "below idle" in " ".join(_judge(run).reasons)


def test_soft_floor_only_warns() -> None:
    rows = [record(i, 0.05 * i, prompt_tokens=4000, output_tokens=2) for i in range(1000)]
    verdict = _judge(run_of(rows, constant(250.0, 60.0), server=H100))
    assert verdict.valid
    assert any("possible only with lower clocks" in w for w in verdict.warnings)


@pytest.mark.parametrize(
    ("late_s", "e2e_s", "valid"), [(4e-3, 0.2, True), (6e-3, 0.2, False), (6e-3, 0.8, True)]
)
def test_lateness_limit_is_5_ms_or_1_percent_of_the_median_latency(
    late_s: float, e2e_s: float, valid: bool
) -> None:
    rows = [record(i, 0.5 * i, sent_s=0.5 * i + late_s, done_s=0.5 * i + late_s + e2e_s) for i in range(100)]
    assert _judge(run_of(rows)).valid is valid
    assert _judge(run_of(rows, clock="virtual")).valid
    assert _judge(run_of(rows, closed_loop=True)).valid
    assert _judge(run_of(rows, scenario={"load": {"max_in_flight": 4, "overflow": "queue"}})).valid


def test_missing_and_surplus_records_are_invalid() -> None:
    verdict = _judge(run_of(lattice(90, 0.5), counts={"planned": 100, "warmup": 0}))
    assert "90 records for 100 planned requests: 10 missing" in verdict.reasons
    twice = [*lattice(10, 0.5), record(9, 4.5)]
    assert not _judge(run_of(twice, counts={"planned": 10, "warmup": 0})).valid


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_did_not_end_by_itself_is_incomplete(status: str) -> None:
    assert _one(_judge(run_of(lattice(10, 0.5), status=status)), "incomplete")


def test_gap_of_more_than_3_periods_and_backwards_counter_are_invalid() -> None:
    readings = constant(300.0, 100.0)
    three = [r for r in readings if not 50.05 < r.t_s < 50.25]
    assert _judge(run_of(lattice(200, 0.5), three)).valid
    four = [r for r in readings if not 50.05 < r.t_s < 50.35]
    gap = _one(_judge(run_of(lattice(200, 0.5), four)), "without a reading")
    assert "0.4 s without a reading of gpu0, gpu0.instant, more than 3 periods of 0.1 s" in gap
    reset = [
        replace(r, energy_j=r.energy_j - 9000.0) if r.energy_j is not None and r.t_s > 50 else r
        for r in readings
    ]
    assert _one(_judge(run_of(lattice(200, 0.5), reset)), "the counter of gpu0 ran backwards")


def test_stamps_of_the_sensors_own_are_no_gap_however_fast_it_is_read() -> None:
    """Found: read every 20 ms, the stamps of a sensor that publishes every 100 ms were gaps of 5 periods."""
    instant = Domain("gpu0.instant", "instant", 0.1, "", 0.1)
    t_s = -2.0 + 0.02 * np.arange(5201)
    readings = [Reading(round(0.1 * np.floor(t / 0.1 + 1e-6), 6), "gpu0.instant", power_w=300.0) for t in t_s]
    power = {"interval_s": 0.02, "domains": [asdict(instant)], "reason": None}
    run = run_of(lattice(200, 0.5), readings, end_s=100.0, power=power)
    assert silent(_judge(run))
    gpu = energy.measure(run, np.array([0.0, 100.0]))["gpu"]
    assert (gpu.total_j, gpu.coverage) == pytest.approx((30_000.0, 1.0))
    holed = [r for r in readings if not 50.0 < r.t_s < 50.45]
    assert "more than 3 periods of 0.1 s" in _one(
        _judge(run_of(lattice(200, 0.5), holed, end_s=100.0, power=power)), "without a reading"
    )


def test_power_over_the_limit_of_all_boards_is_invalid() -> None:
    assert "exceeds" in _one(_judge(run_of(lattice(200, 0.5), constant(740.0, 100.0), server=H100)), "limit")
    gpus = [{"domain": "gpu0", "name": "some board", "power_limit_w": 300.0}]
    assert "300 W" in _one(_judge(run_of(lattice(200, 0.5), constant(316.0, 100.0), gpus=gpus)), "limit")
    assert _judge(run_of(lattice(200, 0.5), constant(314.0, 100.0), gpus=gpus)).valid


def test_load_below_the_runs_own_idle_is_a_wrong_board_or_a_dead_server() -> None:
    readings = [
        Reading(0.1 * k - 3, "gpu0.instant", power_w=70.0 if 30 <= k < 1030 else 120.0) for k in range(1061)
    ]
    verdict = _judge(run_of(lattice(200, 0.5), readings, domains=[INSTANT], end_s=100.0))
    assert _one(verdict, "this run's own idle")


def test_counter_and_integral_that_disagree_are_a_warning() -> None:
    off = [replace(r, power_w=330.0) if r.power_w is not None else r for r in constant(300.0, 100.0)]
    verdict = _judge(run_of(lattice(200, 0.5), off))
    assert verdict.valid
    assert any("+10 % off the counter of gpu0" in w for w in verdict.warnings)


def test_failures_estimated_tokens_and_the_manifests_own_words_are_warnings() -> None:
    rows: list[Any] = [failed(i, float(i)) if i < 6 else record(i, float(i)) for i in range(100)]
    rows[50] = replace(rows[50], tokens_from="chunks")
    rows[51] = replace(rows[51], tokens_from=None, output_tokens=None)
    warnings = _judge(run_of(rows, warnings=["trace cut short"])).warnings
    assert warnings[0] == "trace cut short"
    assert any("only 94 % of the requests succeeded" in w for w in warnings)
    assert any("output tokens of 1 of 94 replies are counted here" in w for w in warnings)
    assert any("1 of 94 replies have no token count" in w for w in warnings)


def test_nothing_succeeded_is_invalid() -> None:
    assert "no request succeeded" in _judge(run_of([failed(0, 0.0), failed(1, 1.0)])).reasons


def test_a_quiet_board_whose_sensor_reads_5_percent_low_is_not_called_impossible() -> None:
    """Found: the floors took readings for exact; NVML's gain is off by up to 5 % (arXiv 2312.02741)."""
    idle_w = 100.0  # the least published for an H100 with a model resident (100-153 W)
    rows = lattice(10, 10.0, prompt_tokens=10, output_tokens=1)
    low = _judge(run_of(rows, constant(0.95 * idle_w, 100.0), server=H100, end_s=100.0))
    assert silent(low)
    lower = _judge(run_of(rows, constant(0.92 * idle_w, 100.0), server=H100, end_s=100.0))
    assert _one(lower, "is below idle") and _one(lower, "below the physical floor")


def test_tokens_that_came_without_an_event_of_their_own_are_said() -> None:
    # An emoji takes three tokens and one event: 33 tokens in 11 events; an end marker alone is no news.
    rows = [record(i, 0.6 * i, output_tokens=33 if i % 2 else 12) for i in range(100)]
    run = run_of(rows, constant(300.0, 60.0), end_s=60.0)
    warnings = _judge(run).warnings
    assert any("50 of 100 replies brought 1,650 tokens in 550 events: itl is the gap" in w for w in warnings)
    assert latency.tokens_per_chunk(run) == pytest.approx((50 * 33 + 50 * 12) / 1100)
