"""What a sweep's points say together: the front against brute force, ratios against what was put in."""

from __future__ import annotations

import io
import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis.figures.files import write_sweep_figures
from analysis.figures.svg import svg
from analysis.figures.sweeps import sweep_figure
from analysis.sweeps.front import pareto_front
from analysis.sweeps.study import study
from analysis.sweeps.view import as_object, render
from loadgen.sweep.figures import FIGURES, Outcome, figures_of

J = "energy_per_success_j"
T_975_OF_4_DEGREES = 2.776445105  # Student's t table
WANTED: dict[str, Any] = {
    "compare": {"axis": "load", "reference": "fixed", "metrics": [J]},
    "pareto": {"x": "e2e_p99_s", "y": J, "within": ["gap"], "served": 0.99},
    "figures": [],
}


def manifest(*axes: str, points: int, draws: int = 0) -> dict[str, Any]:
    return {"axes": list(axes), "points": points, "draws": draws, "name": "made", "http": False}


def row(number: int, axes: dict[str, Any], draws_j: Any = None, **figures: Any) -> dict[str, Any]:
    counted = {"requests": 10, "ok": 10, "e2e_p99_s": 1.0}
    return {"point": number, "axes": axes, "figures": counted | figures, "refused": None, "draws_j": draws_j}


def made(draws: int = 0) -> list[dict[str, Any]]:
    """Random is 0.8 times fixed at gap 1 and 0.5 times at gap 2, but for a noise of the seed's own."""
    rng, rows = np.random.default_rng(3), []
    for gap, factor in ((1, 0.8), (2, 0.5)):
        for seed in range(5):
            base = 100.0 * math.exp(rng.normal(0, 0.3))
            noise = math.exp(rng.normal(0, 0.01))
            scales = np.exp(np.random.default_rng(9).normal(0, 0.1, draws))
            for load, value in (("fixed", base), ("random", base * factor * noise)):
                powers = (scales * value).tolist() if draws else None
                axes = {"load": load, "gap": gap, "seed": seed}
                e2e_s = 1.0 if load == "fixed" else 2.0
                figures = {J: value, "e2e_p99_s": e2e_s}
                rows.append(row(len(rows), axes, powers, **figures))
    return rows


coordinates = st.integers(0, 6).map(float)  # few values, so that there are ties


@given(st.lists(st.tuples(coordinates, coordinates), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beats(q: tuple[float, float], p: tuple[float, float]) -> bool:
        return q[0] <= p[0] and q[1] <= p[1] and q != p

    kept = [k for k, p in enumerate(points) if not any(beats(q, p) for q in points)]
    found = pareto_front(points)
    assert sorted(found) == kept and len(set(found)) == len(found)
    assert [points[k][0] for k in found] == sorted(points[k][0] for k in found)


def test_a_point_without_a_value_is_on_no_front() -> None:
    assert pareto_front([(math.nan, 1.0), (2.0, math.nan), (3.0, 3.0)]) == [2]
    assert pareto_front([]) == []


def test_cells_are_means_over_seeds_with_students_interval() -> None:
    rows = made()
    found = study(rows, manifest("load", "gap", "seed", points=21), WANTED)
    assert found.axes == ("load", "gap") and len(found.cells) == 4 and found.missing == 1
    cell = next(c for c in found.cells if c.levels == {"load": "fixed", "gap": 1})
    values = [r["figures"][J] for r in rows if r["axes"]["load"] == "fixed" and r["axes"]["gap"] == 1]
    estimate = cell.figures[J]
    half = T_975_OF_4_DEGREES * statistics.stdev(values) / math.sqrt(5)
    assert estimate.value == pytest.approx(statistics.fmean(values)) and estimate.n == 5
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half))
    assert estimate.unit == "J" and cell.envelope_j is None


def test_ratios_are_paired_by_seed_so_what_seeds_share_cancels() -> None:
    found = study(made(), manifest("load", "gap", "seed", points=20), WANTED)
    by_gap = {one.levels["gap"]: one for one in found.against}
    assert {one.level for one in found.against} == {"random"} and len(found.against) == 2
    for gap, factor in ((1, 0.8), (2, 0.5)):
        one = by_gap[gap]
        assert one.ratio.value == pytest.approx(factor, rel=0.02)
        assert one.ratio.low is not None and one.ratio.high is not None
        assert one.ratio.low < one.ratio.value < one.ratio.high  # type: ignore[operator]
        assert one.ratio.high / one.ratio.low < 1.1  # unpaired: seeds differ by 30 %
        assert one.told and one.p is not None and one.p_adjusted is not None and one.p_adjusted >= one.p
    assert max(o.p_adjusted / o.p for o in found.against) == pytest.approx(2)  # type: ignore[operator, type-var]


def test_a_ratio_of_the_same_draws_has_an_envelope_of_its_own() -> None:
    found = study(made(200), manifest("load", "gap", "seed", points=20, draws=200), WANTED)
    cell, one = found.cells[0], found.against[0]
    assert cell.envelope_j is not None and one.envelope is not None
    low_j, high_j = cell.envelope_j
    # 5 and 95 % of a lognormal of sigma 0.1: e^(-0.164) and e^(0.164) times the median.
    assert high_j / low_j == pytest.approx(math.exp(2 * 1.645 * 0.1), rel=0.08)
    # Every draw scales both levels alike, so the ratio does not move.
    assert one.envelope == pytest.approx((one.ratio.value, one.ratio.value), rel=1e-9)


def test_points_that_turn_requests_away_are_no_candidates() -> None:
    rows = [
        row(0, {"gap": 1, "load": "a"}, e2e_p99_s=1.0, energy_per_success_j=5.0),
        row(1, {"gap": 1, "load": "b"}, e2e_p99_s=0.5, energy_per_success_j=4.0, ok=9),
        row(2, {"gap": 1, "load": "c"}, e2e_p99_s=2.0, energy_per_success_j=6.0),
        row(3, {"gap": 2, "load": "c"}, e2e_p99_s=9.0, energy_per_success_j=9.0),
    ]
    wanted = WANTED | {"compare": None}
    found = study(rows, manifest("gap", "load", points=4), wanted)
    assert [[cell["load"] for cell in one.cells] for one in found.fronts] == [["a"], ["c"]]
    # More within the SLO is better: now c is on the front of gap 1 too, having more of it.
    for place, share in ((0, 0.4), (1, 1.0), (2, 0.9), (3, 0.1)):
        rows[place]["figures"]["goodput_share"] = share
    wanted["pareto"] = WANTED["pareto"] | {"x": "goodput_share"}
    found = study(rows, manifest("gap", "load", points=4), wanted)
    assert [cell["load"] for cell in found.fronts[0].cells] == ["c", "a"]


def test_figures_follow_from_what_became_of_the_requests() -> None:
    nan = math.nan
    outcome = Outcome(
        demand_s=np.array([0.0, 1.0, 2.0, 6.0]),
        due_s=np.array([0.0, 2.0, 2.0, 6.0]),
        sent_s=np.array([0.0, 2.0, 3.0, nan]),
        first_s=np.array([0.5, 2.25, nan, nan]),
        done_s=np.array([1.5, 4.25, nan, nan]),
        prompt_tokens=np.array([10.0, 20.0, 30.0, 40.0]),
        output_tokens=np.array([5.0, 9.0, 7.0, 7.0]),
        energy_j=70.0,
        end_s=7.0,
    )
    found = figures_of(outcome, {"ttft_s": 0.3, "tpot_s": None}, closed=False)
    counts = {
        "requests": 4,
        "ok": 2,
        "rejected": 1,
        "dropped": 1,
        "prompt_tokens": 15.0,
        "output_tokens": 7.0,
    }
    assert {name: found[name] for name in counts} == counts
    assert (found[J], found["energy_per_token_j"], found["mean_power_w"]) == (35.0, 5.0, 10.0)
    assert (found["ttft_mean_s"], found["tpot_p50_s"], found["e2e_mean_s"]) == (0.375, 0.25, 1.875)
    assert (found["hold_mean_s"], found["e2e_from_demand_mean_s"]) == (0.5, 2.375)
    assert found["realised_gap_s"] == 2.0 and found["rate_rps"] == pytest.approx(2 / 7)
    assert found["goodput_share"] == 0.25 and found["goodput_rps"] == pytest.approx(1 / 7)
    assert set(found) <= set(FIGURES)


def test_nothing_served_leaves_figures_empty_and_not_zero() -> None:
    nan, zero = np.full(2, np.nan), np.zeros(2)
    outcome = Outcome(zero, zero, zero, nan, nan, zero + 5, zero + 5, 12.0, 3.0)
    found = figures_of(outcome, {}, closed=True)
    assert (found["ok"], found["rejected"], found[J], found["e2e_p99_s"]) == (0, 2, None, None)
    assert found["realised_gap_s"] is None and "goodput_share" not in found
    study_of = study(
        [row(0, {"seed": 1}, **found)], manifest("seed", points=1), WANTED | {"pareto": None, "compare": None}
    )
    assert J not in study_of.cells[0].figures and shown(study_of)


def shown(found: Any, width: int = 100) -> str:
    text = io.StringIO()
    render(found, Console(file=text, width=width))
    return text.getvalue()


def test_the_table_cuts_nothing_off_and_names_its_label() -> None:
    found = study(made(20), manifest("load", "gap", "seed", points=20, draws=20), WANTED)
    text = " ".join(shown(found, width=40).split())
    assert "…" not in text and "simulated" in text and "random" in text
    assert "ratio to load fixed" in text and "means over 5 seeds" in text and "told from 1 at 5 %" in text
    told = as_object(found)
    assert told["against"][0]["told"] is True and len(told["fronts"]) == 2
    assert told["cells"][0]["figures"][J]["unit"] == "J"


def test_counts_are_told_with_what_they_are_of_and_equal_seeds_with_the_reason() -> None:
    rows = [row(k, {"load": "on_off", "seed": k}, requests=3000, ok=2994, **{J: 5.0}) for k in range(3)]
    text = " ".join(shown(study(rows, manifest("load", "seed", points=3), {})).split())
    assert "2,994" in text and "served of 3,000 requests a point" in text
    assert "0 %: nothing in these points depends on the seed" in text
    drawn = " ".join(shown(study(made(5), manifest("load", "gap", "seed", points=20, draws=5), {})).split())
    assert "of draws: least to greatest of 5 draws" in drawn and "depends on the seed" not in drawn


PLOT = {"x": "gap", "y": J, "series": "load", "log": ["x", "y"], "relative": False, "where": {}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["fixed", "random", "of 30 draws"]),
        ({"relative": True, "log": []}, ["ratio to fixed", "random"]),
        ({"x": "load", "series": None, "log": []}, ["gap 1", "gap 2", "fixed"]),
        ({"x": "e2e_p99_s", "where": {"gap": 2}}, ["time to last token, p99, s"]),
    ],
)
def test_figures_are_drawn_and_say_what_they_are_of(changes: dict[str, Any], words: list[str]) -> None:
    found = study(made(30), manifest("load", "gap", "seed", points=20, draws=30), WANTED)
    drawn = sweep_figure(found, PLOT | changes)
    assert drawn is not None
    text = " ".join(re.sub("<[^>]*>", " ", svg(drawn)).split())
    for word in ("simulated", "5 seeds", "10 served", *words):
        assert word in text, word


def test_a_figure_of_nothing_is_a_note(tmp_path: Path) -> None:
    found = study(made(), manifest("load", "gap", "seed", points=20), WANTED)
    notes = write_sweep_figures(found, [PLOT | {"y": "goodput_share"}, PLOT], tmp_path)
    assert notes == ["no figure of goodput_share over gap: no point has both"]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png", ".svg"]
