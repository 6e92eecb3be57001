from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import COUNTER, INSTANT, constant, failed, lattice, power, record, run_of

from analysis.run import Run, build_run, load_run
from analysis.timeline import littles_law, timeline
from loadgen.types import Reading, Record, ServerSample


def random_records(n: int = 400, seed: int = 5) -> list[Record]:
    """Requests at random instants that take random times; every tenth fails, some are never sent."""
    rng = np.random.default_rng(seed)
    due_s = np.sort(rng.uniform(0, 100, n))
    held_s = rng.exponential(2.0, n)
    made = []
    for i, (due, held) in enumerate(zip(due_s.tolist(), held_s.tolist(), strict=True)):
        if i % 20 == 7:
            made.append(failed(i, due, "dropped", sent_s=None, done_s=None))
        elif i % 10 == 3:
            made.append(failed(i, due, done_s=due + held))
        else:
            made.append(record(i, due, first_s=due, done_s=due + held, chunk_s=(due,), chunk_tokens=(1,)))
    return made


def with_samples(run: Run, records: list[Record], samples: list[ServerSample]) -> Run:
    return build_run(run.path, run.manifest, records, [], samples=samples)


def test_every_request_is_counted_once_and_all_its_time_is_in_flight() -> None:
    records = random_records()
    run = run_of(records)
    found = timeline(run, 97)
    assert found is not None
    assert len(found.edges_s) == 98 and (found.edges_s[0], found.edges_s[-1]) == (0.0, run.end_s)
    sent = [r for r in records if r.sent_s is not None]
    for rates, count in (
        (found.offered_rps, len(records)),
        (found.sent_rps, len(sent)),
        (found.done_rps, sum(r.status == "ok" for r in records)),
        (found.failed_rps, sum(r.status != "ok" for r in records)),
    ):
        assert rates.shape == (97,)
        assert rates.sum() * found.width_s == pytest.approx(count, rel=1e-12)
    held_s = sum(r.done_s - r.sent_s for r in sent if r.done_s is not None and r.sent_s is not None)
    assert found.in_flight.sum() * found.width_s == pytest.approx(held_s, rel=1e-9)


def test_a_lattice_has_the_same_rates_and_load_in_every_bin() -> None:
    found = timeline(run_of(lattice(100, 0.5), end_s=50.0), 10)
    assert found is not None
    assert found.sent_rps == pytest.approx(np.full(10, 2.0))
    assert found.in_flight == pytest.approx(np.full(10, 0.2 / 0.5))  # each is held 0.2 s of 0.5


def test_offered_is_the_plan_also_where_no_record_came_of_it() -> None:
    plan = [{"id": i, "phase": "measure", "due_s": float(i)} for i in range(10)]
    plan += [{"id": -1, "phase": "warmup", "due_s": None}]
    run = run_of(lattice(3, 1.0), counts=None)
    killed = build_run(run.path, {**run.manifest, "window": None}, lattice(3, 1.0), [], plan)
    found = timeline(killed, 10, end_s=10.0)
    assert found is not None
    assert found.offered_rps == pytest.approx(np.ones(10))
    assert found.sent_rps == pytest.approx([1.0] * 3 + [0.0] * 7)
    assert killed.missing == 7


def test_warmups_are_in_flight_but_in_no_rate() -> None:
    run = run_of([record(-1, -1.0, phase="warmup"), *lattice(4, 1.0)])
    found = timeline(run, 5, start_s=-1.0, end_s=4.0)
    assert found is not None
    assert found.sent_rps == pytest.approx([0, 1, 1, 1, 1])
    assert found.in_flight == pytest.approx(np.full(5, 0.2))


@pytest.mark.parametrize("records", [[], [failed(0, 0.0, "dropped", sent_s=None, done_s=None)]])
def test_nothing_done_is_no_timeline(records: list[Record]) -> None:
    run = run_of(records)
    assert timeline(run) is None
    found = littles_law(run, 0.0, 10.0)
    assert (found.expected, found.ratio) == (None, None) and "no request was sent" in str(found.reason)


def test_no_bins_and_an_empty_window() -> None:
    run = run_of(lattice(4, 1.0))
    with pytest.raises(ValueError, match="at least one bin"):
        timeline(run, 0)
    assert timeline(run, start_s=9.0, end_s=9.0) is None
    assert "empty" in str(littles_law(run, 3.0, 3.0).reason)


def test_power_by_part_is_the_signal_and_keeps_the_energy() -> None:
    def watts(t: np.ndarray) -> np.ndarray:
        return np.where(t < 20.0, 100.0, 400.0)

    def joules(t: np.ndarray) -> np.ndarray:
        return np.where(t < 20.0, 100.0 * t, 2000.0 + 400.0 * (t - 20.0))

    run = run_of(lattice(80, 0.5), power(watts, joules, 40.0), end_s=40.0)
    found = timeline(run, 8)
    assert found is not None and set(found.power_w) == {"gpu"}
    assert found.power_w["gpu"] == pytest.approx([100.0] * 4 + [400.0] * 4, rel=1e-3)
    fine = timeline(run, 240)
    assert fine is not None
    assert fine.power_w["gpu"].sum() * fine.width_s == pytest.approx(20 * 100 + 20 * 400, rel=1e-9)


def test_power_is_not_known_beyond_the_readings_nor_in_a_gap() -> None:
    readings = [r for r in constant(300.0, 50.0) if not 20.0 < r.t_s < 31.0]
    found = timeline(run_of(lattice(100, 0.5), readings, end_s=50.0), 60, start_s=-5.0, end_s=55.0)
    assert found is not None
    gpu = found.power_w["gpu"]
    assert np.isnan(gpu[:2]).all() and np.isnan(gpu[-2:]).all()
    assert np.isnan(gpu[26:35]).all()
    known = ~np.isnan(gpu)
    assert known.sum() > 40 and gpu[known] == pytest.approx(np.full(known.sum(), 300.0), rel=1e-6)


def test_a_part_whose_energy_is_not_known_is_left_out() -> None:
    backwards = [
        Reading(r.t_s, r.domain, energy_j=1.0) if r.domain == "gpu0" and r.t_s > 25.0 else r
        for r in constant(300.0, 50.0)
    ]
    for readings in ([], backwards):
        found = timeline(run_of(lattice(100, 0.5), readings, domains=(COUNTER, INSTANT), end_s=50.0))
        assert found is not None and found.power_w == {}


def test_the_gauges_are_averaged_over_each_bin_and_missing_where_there_are_none() -> None:
    records = lattice(100, 0.5)
    samples = [ServerSample(float(t), running=2.0 * t) for t in range(31)]
    run = with_samples(run_of(records, end_s=50.0), records, samples)
    found = timeline(run, 10)
    assert found is not None and found.waiting is None and found.running is not None
    assert found.running[:6] == pytest.approx(2.0 * found.middle_s[:6])
    assert np.isnan(found.running[7:]).all()
    alone = timeline(run_of(records, end_s=50.0), 10)
    assert alone is not None and alone.running is None


def test_littles_law_by_the_records_holds_without_edges_and_says_what_they_make() -> None:
    run = run_of(lattice(100, 0.5), end_s=50.0)
    whole = littles_law(run, 0.0, 50.0)
    assert (whole.rate_rps, whole.mean_s) == (pytest.approx(2.0), pytest.approx(0.2))
    assert whole.in_flight == pytest.approx(0.4) and whole.ratio == pytest.approx(1.0)
    assert whole.source == "records" and "not collected" in str(whole.reason) and whole.agreement is None
    # [0.1, 0.6]: half of the first is inside, half of the second; one was sent in it.
    cut = littles_law(run, 0.1, 0.6)
    assert (cut.in_flight, cut.expected) == (pytest.approx(0.4), pytest.approx(0.4))
    # [0.55, 1.01]: the second's last 0.15 s, and the first 0.01 of the third's 0.2 s.
    cut = littles_law(run, 0.55, 1.01)
    assert cut.in_flight == pytest.approx(0.16 / 0.46) and cut.expected == pytest.approx(0.2 / 0.46)
    assert cut.edges == pytest.approx(-0.04 / 0.46) and cut.ratio == pytest.approx(0.8)


def test_time_inside_the_window_is_rate_times_mean_and_the_edges() -> None:
    records = random_records()
    run = run_of(records)
    for start_s, end_s in ((0.0, 100.0), (10.0, 20.0), (33.3, 34.0), (99.0, 130.0)):
        inside_s = sum(
            max(0.0, min(r.done_s, end_s) - max(r.sent_s, start_s))
            for r in records
            if r.sent_s is not None and r.done_s is not None
        )
        found = littles_law(run, start_s, end_s)
        assert found.in_flight == pytest.approx(inside_s / (end_s - start_s), abs=1e-9)
        assert found.expected is not None and found.edges is not None
        assert found.expected + found.edges == pytest.approx(found.in_flight)


def test_gauges_are_an_independent_figure_and_agree_where_both_count_the_same() -> None:
    records = lattice(100, 0.5, chunk_s=(), chunk_tokens=())
    records = [replace(r, done_s=r.due_s + 2.0) for r in records]  # four at a time
    samples = [ServerSample(0.1 + k, running=3.0, waiting=1.0) for k in range(50)]
    run = with_samples(run_of(records, end_s=51.5), records, samples)
    found = littles_law(run, 10.0, 40.0)
    assert (found.source, found.reason) == ("server gauges", None)
    assert found.in_flight == pytest.approx(4.0) and found.agreement == pytest.approx(1.0)
    half = with_samples(run, records, [replace(s, waiting=0.0, running=2.0) for s in samples])
    assert littles_law(half, 10.0, 40.0).agreement == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ([ServerSample(float(t), running=1.0) for t in range(50)], "how many requests are waiting"),
        ([ServerSample(float(t), running=1.0, waiting=0.0) for t in range(5)], "5 samples"),
        (
            [ServerSample(float(t), running=1.0, waiting=0.0) for t in range(50) if not 20 < t < 30],
            "a gap of 10 s",
        ),
    ],
)
def test_gauges_that_do_not_tell_the_load_are_refused_with_the_reason(
    samples: list[ServerSample], why: str
) -> None:
    records = lattice(100, 0.5)
    found = littles_law(with_samples(run_of(records, end_s=50.0), records, samples), 0.0, 49.0)
    assert found.source == "records" and why in str(found.reason)
    assert found.ratio == pytest.approx(1.0)


def test_an_embedded_run_fills_its_timeline(mixed_run: Path) -> None:
    run = load_run(mixed_run)
    found = timeline(run)
    assert found is not None and run.end_s is not None
    assert {"gpu", "cpu", "ram"} >= set(found.power_w) >= {"gpu"}
    assert found.done_rps.sum() * found.width_s == pytest.approx(len(run.ok))
    assert np.isfinite(found.power_w["gpu"]).all()
