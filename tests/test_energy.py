"""Energy from readings: closed-form signals, edges, splits, dropped samples, broken counters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_runs import AVERAGE, COUNTER, INSTANT, constant, lattice, power, run_of

from analysis import energy
from analysis.energy import PartEnergy
from analysis.load import Run
from loadgen.types import Domain, Floats, Reading


def _gpu(run: Run, *edges_s: float) -> PartEnergy:
    return energy.measure(run, np.array(edges_s or (0.0, 100.0)))["gpu"]


def _square_w(t: Floats) -> Floats:
    """300 W in the first second of every two, else 100 W."""
    return np.where((t + 1e-9) % 2.0 < 1.0 - 1e-9, 300.0, 100.0)


def _square_j(t: Floats) -> Floats:
    whole, part = np.divmod(t, 2.0)
    return 400.0 * whole + np.where(part <= 1.0, 300.0 * part, 300.0 + 100.0 * (part - 1.0))


def test_constant_118_w_is_11800_j_and_never_0_though_every_sample_is_equal() -> None:
    gpu = _gpu(run_of(lattice(10, 1.0), constant(118.0, 100.0), end_s=100.0))
    assert gpu.total_j == pytest.approx(11_800.0)
    assert gpu.mean_power_w == pytest.approx(118.0)
    assert dict(gpu.boards[0].checks)["gpu0.instant"] == pytest.approx(11_800.0)
    only_power = [r for r in constant(118.0, 100.0) if r.power_w is not None]
    assert _gpu(run_of([], only_power, domains=[INSTANT], end_s=100.0)).total_j == pytest.approx(11_800.0)


def test_square_wave_at_multiples_of_the_publication_is_exact_both_ways() -> None:
    gpu = _gpu(run_of(lattice(10, 1.0), power(_square_w, _square_j, 100.0), end_s=100.0))
    assert gpu.total_j == pytest.approx(20_000.0)
    assert dict(gpu.boards[0].checks)["gpu0.instant"] == pytest.approx(20_000.0)


def test_step_is_integrated_with_hold_not_with_a_ramp() -> None:
    # 100 W until 50 s, then 500 W, read once in 10 s: trapezoids would give 30 000 +- 2 000 J
    readings = [Reading(10.0 * k, "gpu0.instant", power_w=100.0 if k < 5 else 500.0) for k in range(11)]
    run = run_of([], readings, domains=[INSTANT], end_s=100.0)
    assert _gpu(run).total_j == pytest.approx(50 * 100.0 + 50 * 500.0)


def test_window_edges_between_readings_are_interpolated() -> None:
    run = run_of([], constant(200.0, 100.0), end_s=100.0)
    assert _gpu(run, 0.0333, 99.9777).total_j == pytest.approx(200.0 * (99.9777 - 0.0333))


def test_energy_is_conserved_over_any_split_of_the_window() -> None:
    run = run_of([], power(_square_w, _square_j, 100.0), end_s=100.0)
    edges = np.concatenate([[0.0], np.sort(np.random.default_rng(4).uniform(0, 100, 37)), [100.0]])
    split = energy.measure(run, edges)["gpu"]
    assert split.block_j is not None
    assert split.block_j.sum() == pytest.approx(_gpu(run).total_j)
    assert (split.block_j >= 0).all()


def test_dropped_samples_cost_a_counter_nothing() -> None:
    readings = power(_square_w, _square_j, 100.0)
    rng = np.random.default_rng(9)
    kept = [r for r in readings if r.t_s <= 0 or r.t_s >= 100 or rng.random() > 0.5]
    gpu = _gpu(run_of([], kept, end_s=100.0))
    assert gpu.total_j == pytest.approx(20_000.0)
    assert dict(gpu.boards[0].checks)["gpu0.instant"] == pytest.approx(20_000.0, rel=0.05)


def test_backwards_counter_is_unavailable_and_not_replaced_or_clamped() -> None:
    readings = [
        replace(r, energy_j=r.energy_j - 5000.0) if r.energy_j is not None and r.t_s > 50 else r
        for r in constant(200.0, 100.0)
    ]
    gpu = _gpu(run_of([], readings, end_s=100.0))
    assert gpu.total_j is None
    assert gpu.reason == "gpu0: the energy counter ran backwards"


def test_counter_that_never_advances_is_not_0_j_and_power_takes_over_saying_so() -> None:
    frozen = [replace(r, energy_j=7.0) if r.energy_j is not None else r for r in constant(200.0, 100.0)]
    gpu = _gpu(run_of([], frozen, end_s=100.0))
    assert gpu.total_j == pytest.approx(20_000.0)
    assert gpu.boards[0].domain == "gpu0.instant"
    assert gpu.boards[0].passed_over == "gpu0: the energy counter never advanced"
    alone = [r for r in frozen if r.domain == "gpu0"]
    assert _gpu(run_of([], alone, domains=[COUNTER], end_s=100.0)).total_j is None


def test_boards_are_summed_and_a_missing_one_makes_the_sum_unavailable() -> None:
    second = replace(COUNTER, name="gpu1")
    readings = [r for r in constant(200.0, 100.0) if r.domain == "gpu0"]
    other = [Reading(r.t_s, "gpu1", energy_j=0.35 * (r.energy_j or 0.0)) for r in readings]
    both = _gpu(run_of([], readings + other, domains=[COUNTER, second], end_s=100.0))
    assert both.total_j == pytest.approx(27_000.0)
    assert [b.domain for b in both.boards] == ["gpu0", "gpu1"]
    lost = _gpu(run_of([], readings + other[:500], domains=[COUNTER, second], end_s=100.0))
    assert lost.total_j is None
    assert "gpu1: readings cover" in str(lost.reason)


def test_idle_power_before_and_after_is_of_the_stretches_without_requests() -> None:
    def watts(t: Floats) -> Floats:
        return np.where((t >= 0) & (t < 10.2), 400.0, np.where(t < 0, 120.0, 130.0))

    def joules(t: Floats) -> Floats:
        busy = 400.0 * np.clip(t, 0, 10.2)
        return 120.0 * np.minimum(t, 0) + busy + 130.0 * np.maximum(t - 10.2, 0)

    run = run_of(lattice(100, 0.1), power(watts, joules, 10.2, baseline_s=3.0))
    assert run.end_s == pytest.approx(10.1)
    gpu = _gpu(run, 0.0, 10.1)
    assert gpu.idle_before_w == pytest.approx(120.0)
    assert gpu.idle_after_w == pytest.approx(130.0)


def test_host_parts_keep_their_own_labels() -> None:
    domains = [Domain("gpu0", "simulated"), Domain("cpu0.package", "estimated"), Domain("ram", "estimated")]
    readings = []
    for k in range(1041):
        t = -2 + 0.1 * k
        readings += [
            Reading(t, "gpu0", energy_j=300.0 * (t + 2)),
            Reading(t, "cpu0.package", energy_j=50.0 * (t + 2)),
            Reading(t, "ram", energy_j=38.0 * (t + 2)),
        ]
    parts = energy.measure(run_of([], readings, domains=domains, end_s=100.0), np.array([0.0, 100.0]))
    assert {name: part.label for name, part in parts.items()} == {
        "gpu": "simulated",
        "cpu": "estimated",
        "ram": "estimated",
    }
    assert {name: part.total_j for name, part in parts.items()} == pytest.approx(
        {"gpu": 30_000.0, "cpu": 5_000.0, "ram": 3_800.0}
    )


def test_nothing_read_is_unavailable_with_the_manifests_reason() -> None:
    gpu = _gpu(run_of(lattice(3, 1.0)))
    assert gpu.total_j is None
    assert gpu.reason == "no power source on this machine"


def test_average_power_alone_is_measured_and_named_so() -> None:
    readings = [Reading(0.1 * k - 2, "gpu0.average", power_w=250.0) for k in range(1041)]
    gpu = _gpu(run_of([], readings, domains=[AVERAGE], end_s=100.0))
    assert gpu.total_j == pytest.approx(25_000.0)
    assert (gpu.label, gpu.methods) == ("measured", ("average",))
