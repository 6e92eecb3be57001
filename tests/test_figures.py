"""Figures hold the right numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_figures import Line, all_text, attributed, comparison, every, fitted, late_run
from made_runs import constant, failed, lattice, power, record, run_of

import analysis
from analysis import energy, figures, lint
from analysis.attribution import Attributed
from analysis.figures import reduce
from analysis.figures.style import Drawn
from analysis.fit.model import Residuals
from analysis.timeline import timeline


@pytest.fixture(scope="module")
def drawn_once(mixed_run: Path) -> dict[str, Drawn]:
    return every(mixed_run)


def lines(drawn: Drawn, ax: int = 0) -> list[Any]:
    return list(drawn.figure.axes[ax].lines)


def test_a_histogram_counts_every_request_and_marks_mean_and_quantiles() -> None:
    joules = np.random.default_rng(5).lognormal(1.0, 1.0, 500)
    run = run_of(lattice(500, 0.2), constant(300.0, 101.0))
    drawn = figures.energy_histogram(attributed(joules), run)
    assert drawn is not None
    ax = drawn.figure.axes[0]
    assert sum(bar.get_height() for bar in ax.patches) == 500
    at = [line.get_xdata()[0] for line in ax.lines]
    for quantile in np.quantile(joules, [0.5, 0.95, 0.99]):
        assert np.isclose(at, quantile).any()
    marked = [line for line in ax.lines if line.get_marker() == "D"]
    assert marked[0].get_xdata()[0] == pytest.approx(joules.mean())
    bar = next(line for line in ax.lines if line.get_marker() == "|")
    assert bar.get_xdata()[0] < joules.mean() < bar.get_xdata()[1]
    assert "n = 500 successful requests" in all_text(drawn) and "measured" in all_text(drawn)


def test_failed_requests_and_warm_ups_are_in_no_figure_of_successes() -> None:
    rows = pd.concat(
        [attributed(np.full(20, 2.0)).requests, attributed(np.full(5, 99.0), "error", first=30).requests]
    )
    warm = attributed(np.full(2, 50.0), first=-2).requests
    whole = pd.concat([rows, warm])
    found = Attributed("work", "measured", 0, 1, float(whole["total_j"].sum()) + 7.0, 7.0, whole)
    drawn = figures.energy_histogram(found)
    assert drawn is not None
    assert sum(bar.get_height() for bar in drawn.figure.axes[0].patches) == 20
    assert "No intervals: the run was not given" in all_text(drawn)
    parts = figures.phase_components(found, {})
    assert parts is not None
    widths = [bar.get_width() for bar in parts.figure.axes[0].patches]
    np.testing.assert_allclose(widths, [10.0, 10.0, 20.0, 495.0, 100.0, 7.0])
    assert "failed 77 %" in all_text(parts)


def test_bars_of_components_add_up_to_each_part(drawn_once: dict[str, Drawn], mixed_run: Path) -> None:
    run = analysis.load(mixed_run)
    parts = energy.measure(run, np.array([0.0, run.end_s]))  # type: ignore[list-item]
    bars = drawn_once["phase-components"].figure.axes[0].patches
    by_row: dict[float, float] = {}
    for bar in bars:
        by_row[bar.get_y()] = by_row.get(bar.get_y(), 0.0) + bar.get_width()
    total_kj = [parts[p].total_j / 1e3 for p in ("gpu", "cpu", "ram")]  # type: ignore[operator]
    np.testing.assert_allclose([by_row[y] for y in sorted(by_row, reverse=True)], total_kj, rtol=1e-9)


def test_energy_by_length_shows_medians_and_the_line_of_a_model() -> None:
    tokens = np.repeat([10.0, 20.0, 40.0, 80.0], 25)
    records = [record(i, float(i), prompt_tokens=int(t), output_tokens=11) for i, t in enumerate(tokens)]
    drawn = figures.energy_by_length(run_of(records), attributed(3.0 * tokens), Line())  # type: ignore[arg-type]
    assert drawn is not None
    assert len(drawn.figure.axes) == 1  # all replies are of one length
    _, medians, *_, line = [found for found in lines(drawn) if len(found.get_xdata())]
    np.testing.assert_allclose(medians.get_xdata(), [10, 20, 40, 80])
    np.testing.assert_allclose(medians.get_ydata(), [30, 60, 120, 240])
    np.testing.assert_allclose(line.get_ydata(), 0.1 * (line.get_xdata() + 11))
    band = drawn.figure.axes[0].collections[-1].get_paths()[0].vertices
    np.testing.assert_allclose(band[:, 1].max(), 0.1 * 91 + 5.0)  # 3 and 4 J make 5


def test_latency_curves_are_the_shares_of_the_requests() -> None:
    records = [record(i, 0.5 * i, first_s=0.5 * i + 0.01 * (i + 1), done_s=0.5 * i + 5.0) for i in range(100)]
    drawn = figures.latency_ecdf(run_of(records))
    assert drawn is not None
    curves = [line for line in lines(drawn) if line.get_drawstyle() == "steps-post"]
    ttft = min(curves, key=lambda c: abs(float(c.get_xdata()[0]) - 0.01))
    np.testing.assert_allclose(ttft.get_xdata(), 0.01 * np.arange(1, 101))
    np.testing.assert_allclose(ttft.get_ydata(), np.arange(1, 101) / 100)
    assert "TTFT and E2E from due are as from sent" in all_text(drawn)


def test_a_latency_band_holds_the_interval_of_the_summary(
    drawn_once: dict[str, Drawn], mixed_run: Path
) -> None:
    told = analysis.summarize(analysis.load(mixed_run))["latency"]["ttft_s"]["p50"]
    bands = [c.get_paths()[0].vertices for c in drawn_once["latency-ecdf"].figure.axes[0].collections]
    ends = [sorted(b[np.isclose(b[:, 1], 0.5), 0])[:: max(1, (b[:, 1] == 0.5).sum() - 1)] for b in bands]
    assert any(np.allclose(e[:1] + e[-1:], [told["low"], told["high"]]) for e in ends)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], list(range(1, 4001))])
def test_the_reduced_distribution_agrees_with_the_sample(values: list[float]) -> None:
    sample = np.array(values, dtype=np.float64)
    x, share = reduce.ecdf(sample)
    assert len(x) <= 600 and share[-1] == 1.0
    np.testing.assert_allclose(share, [(sample <= v).mean() for v in x])
    assert x[0] == sample.min() and x[-1] == sample.max()


def test_extremes_keep_every_peak() -> None:
    t = np.arange(1000.0)
    y = np.zeros(1000)
    y[[3, 777]] = (-5.0, 9.0)
    low, high = reduce.extremes(t, y, np.linspace(0, 1000, 11))
    assert low.min() == -5.0 and low.argmin() == 0
    assert high.max() == 9.0 and high.argmax() == 7


def test_power_over_time_is_the_boards_and_the_idle_line_its_baseline() -> None:
    """300 W while requests run and 100 W before and after, as a signal with its own integral."""
    joules = lambda t: 100.0 * t + 200.0 * np.clip(t, 0.0, 20.0)  # noqa: E731
    watts = lambda t: np.where((t >= 0) & (t < 20.0), 300.0, 100.0)  # noqa: E731
    run = run_of(lattice(100, 0.2), power(watts, joules, 20.0), end_s=20.0)
    drawn = figures.power_timeline(run, timeline(run))
    assert drawn is not None
    mean, idle = lines(drawn)[:2]
    inside = mean.get_ydata()[(mean.get_xdata() > 0.3) & (mean.get_xdata() < 19.0)]
    np.testing.assert_allclose(inside, 300.0, rtol=1e-6)
    np.testing.assert_allclose(idle.get_ydata(), 100.0, rtol=1e-6)
    due = next(line for line in lines(drawn, 1) if line.get_drawstyle() == "steps-post")
    held_s = np.diff(due.get_xdata())
    assert float((due.get_ydata()[:-1] * held_s).sum()) == pytest.approx(100)


def test_requests_in_flight_keep_the_time_that_requests_took() -> None:
    records = [*lattice(40, 0.25), *(failed(40 + i, float(i)) for i in range(5))]
    run = run_of(records)
    drawn = figures.in_flight_timeline(run, timeline(run, 50))
    assert drawn is not None
    area = 0.0
    for band in drawn.figure.axes[0].collections:
        x, y = band.get_paths()[0].vertices.T
        area += abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2
    spent = (run.requests["done_s"] - run.requests["sent_s"]).sum()
    assert area == pytest.approx(spent, rel=1e-6)
    assert "no token came" in all_text(drawn)


def test_lateness_shows_its_quantile_and_the_limit_of_the_rules() -> None:
    run = late_run()
    drawn = figures.lateness(run)
    assert drawn is not None
    late_ms = np.array([1 + i % 5 for i in range(60)])
    point = next(line for line in lines(drawn, 1) if line.get_marker() == "o")
    assert point.get_xdata()[0] == pytest.approx(np.quantile(late_ms, 0.99))
    limits = [line for line in lines(drawn, 1) if len(set(np.asarray(line.get_xdata()))) == 1]
    assert any(line.get_xdata()[0] == pytest.approx(1e3 * lint.lateness_limit_s(run)) for line in limits)


@pytest.mark.parametrize(
    ("equal", "word"), [(True, "at equal load"), (False, "NOT at equal"), (None, "not certain")]
)
def test_bars_and_ratios_say_whether_the_load_was_equal(equal: bool | None, word: str) -> None:
    bars = figures.shaping_bars(comparison(equal))
    ratios = figures.forest(comparison(equal), "energy_per_request_j")
    assert bars is not None and ratios is not None
    assert word in bars.title and word in ratios.title and word in bars.alt
    patches = bars.figure.axes[0].patches
    assert [p.get_width() for p in patches] == [10.0, 20.0, 9.5]
    assert (patches[1].get_facecolor() == patches[0].get_facecolor()) == (equal is True)
    whiskers = [line for line in lines(bars) if line.get_marker() == "|"]
    assert [tuple(w.get_xdata()) for w in whiskers] == [(9.0, 11.0), (18.0, 22.0)]
    points = [line for line in lines(ratios) if line.get_marker() in ("o", "x")]
    assert [(p.get_xdata()[0], p.get_marker()) for p in points] == [(2.0, "o"), (0.95, "x")]
    assert points[0].get_markerfacecolor() != "none"  # told from 1
    assert any(tuple(line.get_xdata()) == (1.7, 2.4) for line in lines(ratios))
    assert "not for all: made without" in all_text(bars)


def test_residuals_beyond_the_axis_are_said() -> None:
    drawn = figures.residuals(fitted())
    assert drawn is not None
    assert "1 beyond the axis, to 501 J" in all_text(drawn)
    dots = lines(drawn)[0]
    np.testing.assert_allclose(np.abs(dots.get_ydata()[:-1]), 1.0)


def test_with_nothing_to_draw_there_is_no_figure() -> None:
    nothing = run_of([])
    lost = run_of([failed(0, 0.0), failed(1, 1.0)])
    none = attributed(np.empty(0))
    unknown = comparison()
    assert figures.energy_histogram(none, nothing) is None
    assert figures.energy_histogram(attributed(np.array([3.0]), "error"), lost) is None
    assert figures.phase_components(None, {}) is None
    assert figures.phase_components(none, {}) is None
    assert figures.energy_by_length(nothing, none) is None
    assert figures.power_timeline(lost, timeline(lost)) is None
    assert figures.power_timeline(nothing, timeline(nothing)) is None
    assert figures.in_flight_timeline(nothing, None) is None
    assert figures.latency_ecdf(lost) is None
    assert figures.lateness(run_of(lattice(3, 1.0), clock="virtual")) is None
    assert figures.lateness(run_of(lattice(3, 1.0))) is None  # on time to the last digit
    assert figures.shaping_bars(unknown, "p99_ttft") is None
    assert figures.forest(unknown, "p99_ttft") is None
    blank = Residuals({}, np.array([np.nan]), np.array([1.0]))
    assert figures.residuals(SimpleNamespace(residuals=blank)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("joules", [[5.0], [0.0, 0.0], [4.0] * 30, [1e-7, 1e9], [0.0, 1.0, 1e4]])
def test_few_equal_zero_or_far_apart_energies_are_drawn(joules: list[float]) -> None:
    values = np.array(joules)
    run = run_of(
        [record(i, float(i), prompt_tokens=5 + i) for i in range(len(values))], constant(300.0, 40.0)
    )
    drawn = figures.energy_histogram(attributed(values), run)
    assert drawn is not None
    assert sum(bar.get_height() for bar in drawn.figure.axes[0].patches) == len(values)
    assert "no interval" in all_text(drawn).lower()
    assert (figures.energy_by_length(run, attributed(values)) is None) == (len(values) == 1)
    over = timeline(run)
    for each in (
        figures.in_flight_timeline(run, over),
        figures.latency_ecdf(run),
        figures.power_timeline(run, over),
    ):
        assert each is not None
        figures.svg(each)


def test_one_request_with_missing_values_is_drawn_without_them() -> None:
    values = np.array([1.0, 2.0, np.nan])
    rows = attributed(values[:2]).requests.reindex([0, 1, 2])
    rows["status"] = "ok"
    part = SimpleNamespace(requests=rows, label="measured", method="work")
    drawn = figures.energy_histogram(part)  # type: ignore[arg-type]
    assert drawn is not None
    assert sum(bar.get_height() for bar in drawn.figure.axes[0].patches) == 2
