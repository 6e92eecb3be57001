"""How exact the energy of a window is: against analytic truth, alone and through the real nvidia-ml-py.

The figures printed (``pytest -s``) are those of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nvml import SENSOR_COUNTER, TRUE_COUNTER, Board, Driven, drive
from made_runs import lattice, run_of
from polls import polled

from analysis import energy
from analysis.energy import integral
from analysis.lint import judge, sensor
from analysis.run import Run, Series
from loadgen.types import Domain, Floats

LOW_W, HIGH_W = 100.0, 700.0
SECONDS = 90.0
PERIODS_S = (0.2, 0.3, 0.5, 0.8, 1.0, 1.4, 2.0)


def square_j(period_s: float, phase_s: float) -> Callable[[Floats], Floats]:
    """The energy of 700 W in the first half of each period, 100 W in the other."""

    def joules(t_s: Floats) -> Floats:
        whole, part = np.divmod(np.asarray(t_s) - phase_s, period_s)
        high_s = whole * period_s / 2 + np.minimum(part, period_s / 2)
        return LOW_W * (np.asarray(t_s) - phase_s) + (HIGH_W - LOW_W) * high_s

    return joules


def step_j(at_s: float) -> Callable[[Floats], Floats]:
    return lambda t_s: LOW_W * t_s + (HIGH_W - LOW_W) * np.maximum(0.0, t_s - at_s)


def windows(
    rng: np.random.Generator, n: int, seconds: float, longest_s: float = 60.0
) -> Iterator[tuple[float, float]]:
    """Of 5 s up to ``longest_s``, anywhere in [0, seconds]."""
    for _ in range(n):
        length_s = rng.uniform(5.0, longest_s)
        start_s = rng.uniform(0.0, seconds - length_s)
        yield start_s, start_s + length_s


@pytest.mark.parametrize(
    ("period_s", "publish_s", "limit", "limit_5_s"),
    [
        pytest.param(0.05, (0.09, 0.11), 0.005, 0.005, id="20 Hz, 90-110 ms"),
        # In step: the phase is one of 50 ms of phases, and nothing read tells which.
        pytest.param(0.05, (0.1, 0.1), 0.005, 0.006, id="20 Hz, 100 ms exactly"),
        pytest.param(0.1, (0.1, 0.11), 0.005, 0.015, id="10 Hz, 100-110 ms"),
        pytest.param(0.1, (0.1, 0.1), 0.005, 0.015, id="10 Hz, 100 ms exactly"),
        # Read less often than published: which of several publications was read, nothing tells.
        pytest.param(0.1, (0.09, 0.1), 0.0075, 0.025, id="10 Hz, 90-100 ms"),
    ],
)
def test_a_counter_is_within_half_a_percent_and_always_inside_its_bound(
    period_s: float, publish_s: tuple[float, float], limit: float, limit_5_s: float
) -> None:
    """Over windows of 5-60 s; ``limit_5_s``: over those of exactly 5 s."""
    rng = np.random.default_rng(20)
    off: dict[str, list[float]] = {"5-60 s": [], "5 s": []}
    widths, outside = [], 0
    for trial in range(60):
        kind = trial % 6
        phase_s = 0.0 if kind == 0 else float(rng.uniform(0, 1))
        true_j = {
            4: lambda t: 400.0 * t,
            5: step_j(float(rng.uniform(10, 50))),
        }.get(kind, square_j(float(rng.choice(PERIODS_S)), phase_s))
        every_s = float(rng.uniform(*publish_s))
        t_s, value, _ = polled(
            true_j,
            seconds=SECONDS,
            period_s=period_s,
            publish_s=every_s,
            phase_s=float(rng.uniform(0, every_s)),
            seed=trial,
        )
        curve = integral.counter_curve(t_s, value, 0.1)
        for spans, found in zip(
            (windows(rng, 20, SECONDS), windows(rng, 20, SECONDS, 5.0)), off.values(), strict=True
        ):
            for start_s, end_s in spans:
                truth_j = float(true_j(np.array(end_s)) - true_j(np.array(start_s)))
                within = integral.certain_j(t_s, value, start_s, end_s)
                assert within is not None
                outside += not within[0] <= truth_j <= within[1]
                if found is off["5-60 s"]:
                    widths.append((within[1] - within[0]) / 2 / truth_j)
                found.append(abs(curve.between(start_s, end_s) / truth_j - 1))
    print(f"\ncounter, read every {1e3 * period_s:g} ms, published every {publish_s}:")
    for name, found in off.items():
        _say(name, found)
    print(f"bound +-{100 * np.median(widths):.2f} % (median)")
    assert outside == 0
    assert np.quantile(off["5-60 s"], 0.95) <= limit
    assert np.quantile(off["5 s"], 0.95) <= limit_5_s


def _say(what: str, off: list[float]) -> None:
    p50, p95, worst = np.quantile(off, [0.5, 0.95, 1.0])
    print(f"{what}: n={len(off)} p50 {100 * p50:.3f} % p95 {100 * p95:.3f} % max {100 * worst:.2f} %")


SLOW = 5
"""The first boards of `_boards`: their power keeps its level for 5 s, five windows of `.average`."""


def _boards() -> list[Board]:
    """Sensors without a gap: constant, step, square waves in and out of phase with the publication."""
    boards = [
        Board(low=400.0, publish_phase=0.02, offset=1e6),
        Board(low=LOW_W, high=HIGH_W, step=40.03, publish_phase=0.07, offset=1e6),
    ]
    for k, period in enumerate((10.0, 12.0, 20.0)):
        boards.append(
            Board(low=LOW_W, high=HIGH_W, period=period, phase=1.3 * k, publish_phase=0.03 * k, offset=1e6)
        )
    assert len(boards) == SLOW
    for k, period in enumerate((0.2, 0.6, 1.0, 2.0)):
        boards.append(Board(low=LOW_W, high=HIGH_W, period=period, publish_phase=0.0, offset=1e6))
        boards.append(
            Board(
                low=LOW_W,
                high=HIGH_W,
                period=period,
                phase=0.033,
                publish_phase=0.01 * k,
                publish=0.1013,
                offset=1e6,
            )
        )
    return boards


def _run(driven: Driven, *, spacing_s: float | None = None, end_s: float) -> Run:
    """A run whose boards are those of the driver, with requests at a constant spacing."""
    assert driven.error is None, driven.error
    domains = [Domain(**row) for row in driven.domains]
    load: dict[str, Any] = {"pattern": "constant", "interval_s": spacing_s} if spacing_s else {}
    return run_of(
        lattice(20, 0.5),
        driven.readings,
        domains=domains,
        end_s=end_s,
        scenario={"load": load},
        power={"interval_s": 0.05, "baseline_s": 2.0, "reason": None, "domains": driven.domains},
    )


def test_through_nvml_counters_hold_half_a_percent_and_integrals_one_percent(library: Path) -> None:
    """Integrals of what their sensor can see: of a mean over w, power that keeps its level for 5 w."""
    boards = _boards()
    driven = drive(library, boards, seconds=SECONDS + 6.0, interval_s=0.05, jitter_s=4e-3)
    run = _run(driven, end_s=SECONDS)
    rng = np.random.default_rng(7)
    spans = [(a + 2.0, b + 2.0) for a, b in windows(rng, 100, SECONDS)]
    off: dict[str, list[float]] = {}
    outside = 0
    for index, board in enumerate(boards):
        truths_j = [board.energy_j(*span) for span in spans]
        slow = "slow" if index < SLOW else "fast"
        for kind, suffix in (
            ("counter", ""),
            (f"instant, {slow}", ".instant"),
            (f"average, {slow}", ".average"),
        ):
            series: Series = run.series[f"gpu{index}{suffix}"]
            curve = energy.curve(series)
            off.setdefault(kind, []).extend(
                abs(curve.between(*span) / truth - 1) for span, truth in zip(spans, truths_j, strict=True)
            )
            if kind == "counter":
                for span, truth in zip(spans, truths_j, strict=True):
                    within = integral.certain_j(series.t_s, series.value, *span)
                    assert within is not None
                    outside += not within[0] <= truth <= within[1]
    for kind, errors in off.items():
        _say(f"NVML {kind}", errors)
    assert outside == 0
    assert np.quantile(off["counter"], 0.95) <= 0.005
    for seen in ("instant, slow", "instant, fast", "average, slow"):
        assert np.quantile(off[seen], 0.95) <= 0.01, seen


def test_through_nvml_the_window_of_a_run_states_a_bound_that_holds_the_truth(library: Path) -> None:
    boards = [Board(low=120.0, high=650.0, period=0.7, publish_phase=0.04, offset=1e6)]
    run = _run(drive(library, boards, seconds=30.0, jitter_s=4e-3, start_s=-4.0), end_s=20.0)
    gpu = energy.measure(run, np.array([0.0, 20.0]))["gpu"]
    truth_j = boards[0].energy_j(0.0, 20.0)
    assert gpu.total_j is not None and gpu.within_j is not None and gpu.bound_j is not None
    assert gpu.within_j[0] <= truth_j <= gpu.within_j[1]
    assert abs(gpu.total_j - truth_j) <= min(0.005 * truth_j, gpu.bound_j)
    assert gpu.coverage == 1.0
    assert gpu.boards[0].update_s == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("counter", "told"), [(SENSOR_COUNTER, False), (TRUE_COUNTER, True)])
def test_the_part_time_sensors_bias_is_said(library: Path, counter: int, told: bool) -> None:
    """A request every 50 ms, 20 ms of work each: 25 of every 100 ms see always the same part of it.

    Fed by that sensor, the counter is wrong alike, and nothing measured can tell; the spacing does.
    """
    board = Board(
        low=100.0,
        high=600.0,
        period=0.05,
        duty=0.4,
        publish=0.1,
        publish_phase=0.022,
        window=0.025,
        counter=counter,
        offset=1e6,
    )
    run = _run(drive(library, [board], seconds=34.0, start_s=-2.0), spacing_s=0.05, end_s=30.0)
    parts = energy.measure(run, np.array([0.0, 30.0]))
    gpu, truth_j = parts["gpu"], board.energy_j(0.0, 30.0)
    assert gpu.total_j is not None
    readings_j = [gpu.total_j, *(joules for _, joules in gpu.boards[0].checks)]
    biased = [abs(joules / truth_j - 1) > 0.15 for joules in readings_j]
    assert biased == [not told, True, True]  # counter, instant, average
    said = judge(run, parts).warnings
    in_step = [w for w in said if "keep step" in w]
    assert len(in_step) == 1
    assert "arrivals every 50 ms" in in_step[0] and "25 of every 100 ms" in in_step[0]
    assert any("off the counter of gpu0" in w for w in said) is told


@pytest.mark.parametrize(
    ("spacing_ms", "updates"),
    [
        (50.0, 1),  # always the same 25 of 50 ms
        (100.0, 1),
        (200.0, 2),
        (50.4, 1),  # 2 x 50.4 is within 2 % of 100
        (75.0, None),  # 3 x 25 ms show all of it
        (47.0, None),  # drifts through
        (20.0, None),  # shorter than a look
        (2000.0, None),  # 75 ms unseen of 2 s cannot move the mean by 5 %
    ],
)
def test_which_spacings_keep_step_with_25_of_100_ms(spacing_ms: float, updates: int | None) -> None:
    assert sensor.in_step(1e-3 * spacing_ms, 0.1, 0.025) == updates
    assert sensor.in_step(1e-3 * spacing_ms, 0.1, 0.1) is None  # a sensor without a gap
