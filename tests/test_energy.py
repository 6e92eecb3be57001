"""Energy from readings: closed-form signals, edges, splits, dropped samples, broken counters."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

import numpy as np
import pytest
from made_runs import AVERAGE, COUNTER, INSTANT, constant, lattice, power, run_of
from rich.console import Console

from analysis import energy
from analysis.energy import PartEnergy
from analysis.lint import judge
from analysis.run import Run, build_run
from analysis.show import render
from analysis.summary import summarize
from loadgen.types import BoardState, Domain, Floats, Reading


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


def test_a_constant_estimate_claims_no_active_energy_of_0_j() -> None:
    """Found: 50 W assumed for a CPU were shown as 0 J that the work added."""
    readings = [Reading(0.1 * k - 2, "cpu0.package", energy_j=5.0 * k) for k in range(1041)]
    run = run_of([], readings, domains=[Domain("cpu0.package", "estimated")], end_s=100.0)
    cpu = summarize(run)["energy"]["cpu"]
    assert cpu["total_j"]["value"] == pytest.approx(5000.0)
    assert cpu["idle_power_w"]["value"] == pytest.approx(50.0)
    assert cpu["active_j"]["value"] is None and cpu["static_j"]["value"] is None
    assert "constant estimate" in cpu["active_j"]["method"]


def test_nothing_read_is_unavailable_with_the_manifests_reason() -> None:
    gpu = _gpu(run_of(lattice(3, 1.0)))
    assert gpu.total_j is None
    assert gpu.reason == "no power source on this machine"


def test_average_power_alone_is_measured_and_named_so() -> None:
    readings = [Reading(0.1 * k - 2, "gpu0.average", power_w=250.0) for k in range(1041)]
    gpu = _gpu(run_of([], readings, domains=[AVERAGE], end_s=100.0))
    assert gpu.total_j == pytest.approx(25_000.0)
    assert (gpu.label, gpu.methods) == ("measured", ("average",))


def _counter(name: str, watts: float, *, every_s: float = 0.1, seconds: float = 104.0) -> list[Reading]:
    """Readings every 0.1 s of a counter that publishes every ``every_s``."""
    t_s = -2.0 + 0.1 * np.arange(round(seconds / 0.1) + 1)
    shown_s = np.floor(t_s / every_s + 1e-9) * every_s + 2.0
    return [
        Reading(float(t), name, energy_j=watts * max(0.0, float(s)))
        for t, s in zip(t_s, shown_s, strict=True)
    ]


def test_boards_of_several_hosts_are_boards_of_their_own_and_summed() -> None:
    names = ["node0/gpu0", "node1/gpu0", "node1.rack-2/gpu1"]
    readings = [r for k, name in enumerate(names) for r in _counter(name, 100.0 * (k + 1))]
    readings += _counter("node1/cpu0.package", 50.0) + _counter("node0/ram", 20.0)
    domains = [Domain(name, "counter") for name in [*names, "node1/cpu0.package", "node0/ram"]]
    run = run_of([], readings, domains=domains, end_s=100.0)
    parts = energy.measure(run, np.array([0.0, 100.0]))
    assert [b.domain for b in parts["gpu"].boards] == names
    assert [parts[p].total_j for p in ("gpu", "cpu", "ram")] == pytest.approx([60_000.0, 5000.0, 2000.0])


@pytest.mark.parametrize("host", ["", "node0/"])
def test_a_declared_reason_makes_a_sum_over_hosts_unavailable_but_hides_no_estimate(host: str) -> None:
    """Found: an embedded run says that its host is not simulated, and still estimates it."""
    domain = Domain(f"{host}cpu0.package", "estimated")
    reasons = {"gpu": None, "cpu": "node1: permission denied on energy_uj", "ram": None}
    power = {"interval_s": 0.1, "domains": [asdict(domain)], "reason": None, "reasons": reasons}
    run = run_of([], _counter(domain.name, 50.0), end_s=100.0, power=power)
    parts = energy.measure(run, np.array([0.0, 100.0]))
    assert (parts["cpu"].total_j is None) is bool(host)
    said = list(judge(run, parts).warnings)
    assert said == [f"energy of cpu is unavailable: {reasons['cpu']}"] * bool(host)


def test_memory_module_and_dram_are_in_no_sum_but_shown() -> None:
    names = ["gpu0", "gpu0.memory", "gpu0.module", "gpu0.module_energy", "cpu0.package", "cpu0.dram"]
    names += ["ane0", "node1/soc0"]
    readings = [r for k, name in enumerate(names) for r in _counter(name, 10.0 * (k + 1))]
    run = run_of([], readings, domains=[Domain(n, "counter") for n in names], end_s=100.0)
    parts = energy.measure(run, np.array([0.0, 100.0]))
    assert parts["gpu"].total_j == pytest.approx(1000.0)
    assert parts["cpu"].total_j == pytest.approx(5000.0)
    expected = {
        "gpu0.memory": 2000.0,
        "gpu0.module": 3000.0,
        "gpu0.module_energy": 4000.0,
        "cpu0.dram": 6000.0,
        "ane0": 7000.0,
        "node1/soc0": 8000.0,
    }
    summary = summarize(run)
    assert summary["energy"]["apart"] == pytest.approx(expected)
    console = Console(width=300, file=io.StringIO())
    render(summary, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "in no sum  gpu0.memory 2.00 kJ, gpu0.module 3.00 kJ (with the CPU beside it)" in shown
    assert "ane0 7.00 kJ, node1/soc0 8.00 kJ (the whole module)" in shown


def test_each_part_says_why_it_was_not_read() -> None:
    reasons = {"gpu": "no NVML", "cpu": "permission denied on energy_uj", "ram": None}
    power = {"interval_s": None, "domains": [], "reason": "generic", "reasons": reasons}
    parts = energy.measure(run_of(lattice(3, 1.0), power=power), np.array([0.0, 2.0]))
    assert parts["gpu"].reason == "no NVML"
    assert parts["cpu"].reason == "permission denied on energy_uj"
    assert parts["ram"].reason == "no ram power source was read"


def test_static_is_idle_power_times_the_window_and_active_the_rest() -> None:
    def joules(t: Floats) -> Floats:
        return 120.0 * t + 280.0 * np.clip(t, 0.0, 100.0)

    def watts(t: Floats) -> Floats:
        return np.where((t >= 0) & (t < 100.0), 400.0, 120.0)

    run = run_of(lattice(200, 0.5), power(watts, joules, 100.0, baseline_s=4.0), end_s=100.0)
    gpu = _gpu(run)
    assert (gpu.static_j, gpu.active_j) == pytest.approx((12_000.0, 28_000.0))
    assert gpu.total_j == pytest.approx(40_000.0)
    rows = summarize(run)["energy"]["gpu"]
    assert rows["static_j"]["value"] + rows["active_j"]["value"] == pytest.approx(rows["total_j"]["value"])
    unread = _gpu(run_of([], [r for r in constant(90.0, 100.0) if -0.1 < r.t_s < 100.1], end_s=100.0))
    assert unread.total_j == pytest.approx(9000.0) and unread.active_j is None and unread.static_j is None


def test_a_window_states_how_far_off_its_energy_can_be_or_why_that_is_not_known() -> None:
    run = run_of([], constant(200.0, 100.0), end_s=100.0)
    gpu = _gpu(run)
    assert gpu.within_j is not None and gpu.within_j[0] < 20_000.0 < gpu.within_j[1]
    assert gpu.bound_j is not None and gpu.bound_j < 200.0 * 0.5
    power_only = [r for r in constant(200.0, 100.0) if r.power_w is not None]
    for averaging_s in (0.025, 0.1):  # even of a sensor that sees all: what is within its mean is unseen
        domains = [Domain("gpu0.instant", "instant", averaging_s, "", 0.1)]
        unbounded = _gpu(run_of([], power_only, domains=domains, end_s=100.0))
        assert unbounded.bound_j is None and "gpu0.instant is power" in str(unbounded.bound_reason)
    clock = {"start": {"at_s": 0.0}, "end": None, "drift_ppm": None, "bound_s": None}
    sidecars = [{"name": "node0", "domains": ["gpu0"], "clock": clock, "metrics": False}]
    remote = run_of([], constant(200.0, 100.0), end_s=100.0, sidecars=sidecars)
    assert "clock of the sidecar node0" in str(_gpu(remote).bound_reason)
    sidecars[0]["clock"] = {**clock, "bound_s": 0.5}
    wider = _gpu(run_of([], constant(200.0, 100.0), end_s=100.0, sidecars=sidecars))
    assert wider.bound_j is not None and wider.bound_j > gpu.bound_j + 2 * 200.0 * 0.5 - 40.0


def test_a_gauge_that_is_slower_than_the_blocks_gives_the_whole_but_no_intervals() -> None:
    """A Prometheus or DCGM gauge of 30 s says nothing about a block of 10 s."""
    for documented in (30.0, None):  # the period is also seen
        domain = Domain("gpu0", "counter", None, "", documented)
        readings = _counter("gpu0", 200.0, every_s=30.0, seconds=664.0)
        run = run_of(lattice(1000, 0.6), readings, domains=[domain], end_s=600.0)
        split = energy.measure(run, np.linspace(0.0, 600.0, 61))["gpu"]
        assert split.total_j == pytest.approx(120_000.0, rel=0.01)
        assert split.block_j is None
        assert "every 30 s" in str(split.block_reason) and "a block is 10 s" in str(split.block_reason)
        assert split.boards[0].update_s == pytest.approx(30.0)
        assert ("passes it on" in str(split.bound_reason)) is (documented is not None)
        rows = summarize(run)["energy"]["gpu"]
        assert rows["energy_per_request"]["value"] == pytest.approx(120.0, rel=0.01)
        assert rows["energy_per_request"]["low"] is None
        assert "every 30 s" in rows["energy_per_request"]["method"]


def test_a_window_of_fewer_than_ten_updates_is_refused_with_both_lengths() -> None:
    domain = Domain("gpu0", "counter", None, "", 30.0)
    run = run_of([], _counter("gpu0", 200.0, every_s=30.0), domains=[domain], end_s=100.0)
    gpu = _gpu(run)
    assert gpu.total_j is None
    assert "every 30 s" in str(gpu.reason) and "at least 300 s" in str(gpu.reason)


def test_a_slow_counter_that_stops_before_the_windows_end_does_not_lose_the_rest_unsaid() -> None:
    slow_s = np.arange(-15.0, 290.0, 15.0)  # the last at 285 s of 300
    readings = [Reading(float(t), "gpu0", energy_j=400.0 * (float(t) + 15.0)) for t in slow_s]
    power = {"interval_s": 15.0, "baseline_s": 2.0, "domains": [], "label": "measured"}
    domain = Domain("gpu0", "counter", None, "", 15.0)
    run = run_of(lattice(100, 2.9), readings, domains=[domain], end_s=300.0)
    run = replace(run, manifest={**run.manifest, "power": {**run.manifest["power"], **power}})
    gpu = _gpu(run, 0.0, 300.0)
    assert gpu.total_j is None
    assert gpu.reason is not None and "the window is 0.000 to 300.000 s" in gpu.reason


def test_coverage_is_that_of_the_worst_board() -> None:
    readings = _counter("gpu0", 200.0) + [r for r in _counter("gpu1", 200.0) if not 40 < r.t_s < 60]
    run = run_of([], readings, domains=[COUNTER, replace(COUNTER, name="gpu1")], end_s=100.0)
    assert _gpu(run).coverage == pytest.approx(1 - (20.0 - 0.6) / 100, abs=0.003)


def test_instant_and_average_that_disagree_are_told_without_a_counter() -> None:
    readings = [Reading(0.1 * k - 2, "gpu0.instant", power_w=300.0) for k in range(1041)]
    readings += [Reading(0.1 * k - 2, "gpu0.average", power_w=330.0) for k in range(1041)]
    run = run_of([], readings, domains=[INSTANT, AVERAGE], end_s=100.0)
    said = judge(run, energy.measure(run, np.array([0.0, 100.0]))).warnings
    assert len([w for w in said if "gpu0.average is +10 % off the integral of gpu0.instant" in w]) == 1


def _states(**changes: object) -> list[str]:
    """What is said of states once a second, ``changes`` giving values from 60 s on."""
    calm = BoardState(0.0, "gpu0", 60.0, 1980.0, 2619.0, 700.0, 0, 0, 0)
    states = [
        replace(calm, t_s=float(t), **(changes if t >= 60 else {}))  # type: ignore[arg-type]
        for t in range(-2, 103)
    ]
    run = run_of(lattice(10, 1.0), constant(300.0, 100.0), end_s=100.0)
    run = build_run(run.path, run.manifest, [], constant(300.0, 100.0), states=states)
    return list(judge(run, {}).warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"event_reasons": 0x40}, "hardware thermal slowdown in 40.6 % of 101 looks"),
        ({"event_reasons": 0x80 | 0x4}, "power brake in 40.6 %"),
        ({"event_reasons": 0x4}, None),  # at its power limit: how a loaded board runs
        ({"sm_clock_mhz": 1400.0}, "from 1400 to 1980 MHz"),
        ({"sm_clock_mhz": 345.0, "event_reasons": 0x1}, None),  # idle boards clock down
        ({"temperature_c": 75.0}, "+12 C"),
        ({"temperature_c": 65.0}, None),
        ({"ecc_errors": 3}, "3 uncorrected memory errors"),
        ({"temperature_c": None, "event_reasons": None, "ecc_errors": None}, None),
    ],
)
def test_what_board_states_say(changes: dict[str, object], words: str | None) -> None:
    said = _states(**changes)
    assert len(said) == (words is not None), said
    assert words is None or words in said[0]
