"""Curves, bounds, coverage and publication instants, from arrays whose truth is a closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polls import polled

from analysis.energy import integral
from analysis.energy.publication import publications, update_period_s
from loadgen.types import Floats


def steps_j(power_w: Floats, each_s: float) -> Callable[[Floats], Floats]:
    """The exact energy of a power that is piecewise constant from -5 s on."""
    edges_s = -5.0 + each_s * np.arange(len(power_w) + 1)
    total_j = np.concatenate([[0.0], np.cumsum(power_w * each_s)])
    return lambda t_s: np.interp(t_s, edges_s, total_j)


powers = st.lists(st.floats(0.5, 700.0), min_size=20, max_size=40).map(np.array)


@given(powers, st.floats(0.02, 0.3), st.floats(0.001, 0.35), st.floats(0, 1), st.integers(0, 99), st.data())
def test_the_truth_is_never_outside_the_bound(
    power_w: Floats, period_s: float, publish_s: float, phase: float, seed: int, data: st.DataObject
) -> None:
    """Whatever the load, the periods and their phase: nothing of them is assumed."""
    true_j = steps_j(power_w, 17.0 / len(power_w))
    t_s, value, _ = polled(
        true_j, seconds=6.0, period_s=period_s, publish_s=publish_s, phase_s=phase * publish_s, seed=seed
    )
    start_s = data.draw(st.floats(-1.0, 4.0))
    end_s = data.draw(st.floats(start_s + 0.01, 6.0))
    within = integral.certain_j(t_s, value, start_s, end_s)
    assert within is not None
    low_j, high_j = within
    truth_j = float(true_j(np.array(end_s)) - true_j(np.array(start_s)))
    assert low_j - 1e-9 <= truth_j <= high_j + 1e-9
    found_j = integral.counter_curve(t_s, value, publish_s).between(start_s, end_s)
    assert low_j - 1e-6 <= found_j <= high_j + 1e-6
    # An edge is certain within an update and two sampling periods; three where a reading falls on it.
    edge_s = publish_s + 3 * (period_s + 0.03)
    assert high_j - low_j <= 2 * max(power_w) * edge_s + 0.01


@given(powers, st.lists(st.floats(0.0, 10.0), max_size=30), st.booleans())
def test_any_split_of_a_window_adds_up_to_it(power_w: Floats, cuts: list[float], repeats: bool) -> None:
    t_s, value, _ = polled(steps_j(power_w, 17.0 / len(power_w)), seconds=10.0)
    curves = [integral.counter_curve(t_s, value, 0.1 if repeats else None)]
    curves.append(integral.power_curve(t_s, np.interp(t_s, np.linspace(-2, 12, len(power_w)), power_w)))
    edges_s = np.array([0.0, *sorted(cuts), 10.0])
    for curve in curves:
        parts_j = np.diff(curve.at(edges_s))
        assert (parts_j >= -1e-9).all()
        assert parts_j.sum() == pytest.approx(curve.between(0.0, 10.0), rel=1e-12)


@given(st.randoms())
def test_the_order_of_the_rows_is_of_no_account(random: object) -> None:
    t_s, value, _ = polled(lambda t: 200.0 * t + 20.0 * np.sin(t), seconds=5.0)
    t_s = np.round(t_s, 2)  # some fall on one instant
    order = list(range(len(t_s)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = integral.in_order(t_s[order], value[order])
    expected = integral.in_order(t_s, value)
    assert all(np.array_equal(a, b) for a, b in zip(shuffled, expected, strict=True))


@given(powers)
def test_two_boards_cost_what_each_costs(power_w: Floats) -> None:
    one_j, other_j = steps_j(power_w, 17.0 / len(power_w)), steps_j(power_w[::-1], 17.0 / len(power_w))
    t_s, first, _ = polled(one_j, seconds=10.0)
    _, second, _ = polled(other_j, seconds=10.0)
    _, both, _ = polled(lambda t: one_j(t) + other_j(t), seconds=10.0)
    parts_j = [integral.counter_curve(t_s, v, 0.1).between(0.0, 10.0) for v in (first, second)]
    # The counters are in whole millijoules.
    assert sum(parts_j) == pytest.approx(integral.counter_curve(t_s, both, 0.1).between(0.0, 10.0), abs=0.01)


@pytest.mark.parametrize(
    ("period_s", "publish_s", "within_ms"), [(0.05, 0.1017, 1.0), (0.05, 0.0963, 1.0), (0.1, 0.1037, 3.0)]
)
def test_publications_are_found_within_a_millisecond_or_so(
    period_s: float, publish_s: float, within_ms: float
) -> None:
    t_s, value, at_s = polled(lambda t: 300.0 * t, period_s=period_s, publish_s=publish_s)
    found_s, _ = publications(t_s, value, 0.1)
    truth_s = at_s[1:][np.diff(value) > 0]
    assert 1e3 * np.mean(np.abs(found_s - truth_s)) < within_ms
    # Each stays where the readings put it, whatever the comb says.
    new = np.flatnonzero(np.diff(value) > 0) + 1
    assert (found_s >= t_s[new - 1]).all() and (found_s <= t_s[new]).all()


def test_asked_only_near_an_instant_it_finds_there_what_it_finds_everywhere() -> None:
    t_s, value, _ = polled(lambda t: 300.0 * t + 50.0 * np.sin(3 * t), seconds=200.0)
    everywhere = integral.counter_curve(t_s, value, 0.1)
    near = integral.counter_curve(t_s, value, 0.1, np.array([21.3, 150.07]))
    assert near.between(21.3, 150.07) == everywhere.between(21.3, 150.07)
    assert near.between(40.0, 90.0) == pytest.approx(everywhere.between(40.0, 90.0), rel=0.01)


def test_irregular_publications_are_put_in_the_middle_of_what_is_known() -> None:
    rng = np.random.default_rng(3)
    at_s = np.cumsum(rng.uniform(0.06, 0.4, 300))
    t_s = np.arange(0.5, 50.0, 0.05)
    value = 100.0 * at_s[np.searchsorted(at_s, t_s, side="right") - 1]
    found_s, found = publications(t_s, value)
    assert np.abs(found_s - found / 100.0).max() <= 0.025 + 1e-9


def test_a_counter_read_far_more_slowly_than_it_moves_has_its_knots_at_the_readings() -> None:
    t_s = np.arange(0.0, 10.0, 0.05)
    curve = integral.counter_curve(t_s, 250.0 * t_s, 1e-3)
    assert np.array_equal(curve.t_s, t_s)
    assert curve.between(1.234, 7.891) == pytest.approx(250.0 * (7.891 - 1.234))


def test_an_idle_counter_that_moves_once_in_a_while_is_interpolated_and_bounded() -> None:
    """0.4 W in steps of 1 J: a new value every 2.5 s."""
    t_s = np.arange(0.0, 60.0, 0.1)
    value = np.floor(0.4 * t_s)
    assert integral.counter_curve(t_s, value, 0.1).between(5.0, 55.0) == pytest.approx(20.0, abs=0.05)
    within = integral.certain_j(t_s, value, 5.0, 55.0)
    assert within is not None and within[0] <= 20.0 <= within[1]


def test_a_long_gap_keeps_its_energy_and_widens_the_bound() -> None:
    t_s, value, _ = polled(lambda t: 300.0 * t, seconds=60.0)
    kept = (t_s < 20.0) | (t_s > 31.0)
    curve = integral.counter_curve(t_s[kept], value[kept], 0.1)
    assert curve.between(10.0, 50.0) == pytest.approx(12_000.0, rel=1e-3)
    inside = integral.certain_j(t_s[kept], value[kept], 25.0, 50.0)
    assert inside is not None and inside[1] - inside[0] > 300.0 * 10.0
    assert inside[0] <= 7500.0 <= inside[1]


def test_no_bound_before_the_first_reading_or_without_a_newer_value_after_the_window() -> None:
    t_s = np.arange(0.0, 10.0, 0.1)
    value = 100.0 * np.minimum(t_s, 8.0)
    assert integral.certain_j(t_s, value, 1.0, 7.0) is not None
    assert integral.certain_j(t_s, value, -1.0, 7.0) is None
    assert integral.certain_j(t_s, value, 1.0, 9.0) is None


def test_an_uncertain_clock_widens_the_bound_by_its_power() -> None:
    t_s, value, _ = polled(lambda t: 400.0 * t, seconds=20.0, jitter_s=0.0)
    exact = integral.certain_j(t_s, value, 2.01, 12.01)
    unsure = integral.certain_j(t_s, value, 2.01, 12.01, clock_s=0.5)
    assert exact is not None and unsure is not None
    widened_j = (unsure[1] - unsure[0]) - (exact[1] - exact[0])
    assert widened_j == pytest.approx(4 * 400.0 * 0.5, abs=4 * 400.0 * 0.1)


@pytest.mark.parametrize("update_s", [0.1017, 0.0963])
def test_a_switch_between_two_publications_is_found_where_it_was(update_s: float) -> None:
    """A straight line through it would be up to 600 W x a quarter of the update off: 15 J."""
    at_s = 10.0 + 0.31 * np.arange(100)

    def true_j(t_s: Floats) -> Floats:
        level_w = np.where(np.arange(101) % 2 == 0, 100.0, 700.0)
        edges_s = np.concatenate([[-5.0], at_s, [90.0]])
        return np.interp(t_s, edges_s, np.concatenate([[0.0], np.cumsum(level_w * np.diff(edges_s))]))

    t_s, value, _ = polled(true_j, publish_s=update_s)
    curve = integral.counter_curve(t_s, value, 0.1)
    off_j = curve.at(at_s) - curve.at(np.array([9.0])) - (true_j(at_s) - true_j(np.array(9.0)))
    assert np.quantile(np.abs(off_j), 0.95) < 1.5
    assert (np.diff(curve.energy_j) >= 0).all()


def test_no_switch_is_made_up_after_a_gap() -> None:
    t_s, value, _ = polled(lambda t: 100.0 * t + 600.0 * np.maximum(0.0, t - 25.0), seconds=60.0)
    kept = (t_s < 20.0) | (t_s > 31.0)
    curve = integral.counter_curve(t_s[kept], value[kept], 0.1)
    inside = (curve.t_s > 20.1) & (curve.t_s < 30.9)
    assert not inside.any()


def test_coverage_is_the_share_near_a_reading() -> None:
    t_s = np.arange(0.0, 100.0, 0.1)
    assert integral.coverage(t_s, 0.0, 99.0, 0.3) == pytest.approx(1.0)
    holed = t_s[(t_s <= 40.0) | (t_s >= 60.0)]
    assert integral.coverage(holed, 0.0, 99.0, 0.3) == pytest.approx((99.0 - (20.0 - 0.6)) / 99.0, rel=1e-3)
    assert integral.coverage(np.array([-5.0, 200.0]), 0.0, 99.0, 0.3) == 0.0
    assert integral.coverage(np.array([]), 0.0, 99.0, 0.3) == 0.0


def test_the_update_period_seen_is_that_of_the_changes() -> None:
    t_s = np.arange(0.0, 3000.0, 1.0)
    assert update_period_s(t_s, np.floor(t_s / 30.0)) == pytest.approx(30.0)
    assert update_period_s(t_s, np.full_like(t_s, 118.0)) is None  # a constant power says nothing
