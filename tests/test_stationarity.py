"""MSER-5 finds known warm-ups, and what never settles is called not stationary."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.stats import stationarity
from loadgen.types import Floats


def _autoregression(rng: np.random.Generator, n: int, rho: float) -> Floats:
    series, state = np.empty(n), rng.normal() / np.sqrt(1 - rho**2)
    for i, step in enumerate(rng.normal(size=n)):
        state = rho * state + step
        series[i] = state
    return series


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("size", [-10.0, 10.0])
def test_a_known_warm_up_is_left_out(rho: float, size: float) -> None:
    rng = np.random.default_rng(31)
    lengths = []
    for _ in range(50):
        series = 300.0 + _autoregression(rng, 240, rho)
        series[:40] += size
        found = stationarity.settled(series)
        if found.first is not None:
            lengths.append(found.first)
    assert len(lengths) >= 46
    assert np.median(lengths) == 40
    assert min(lengths) >= 35


def test_an_exponential_approach_is_cut_where_it_has_faded_into_the_noise() -> None:
    rng = np.random.default_rng(5)
    found = [
        stationarity.mser5(20 * np.exp(-np.arange(400) / 20) + rng.normal(size=400)).first for _ in range(50)
    ]
    kept = np.array([first for first in found if first is not None])
    # the approach is worth one standard deviation of the noise at 60, a tenth of it at 106
    assert len(kept) == 50
    assert 45 <= np.median(kept) <= 110


def test_stationary_series_keep_nearly_all_and_are_rarely_refused() -> None:
    rng = np.random.default_rng(8)
    found = [stationarity.settled(_autoregression(rng, 300, 0.4)) for _ in range(200)]
    kept = [f.first for f in found if f.first is not None]
    assert len(kept) >= 0.94 * 200
    assert np.median(kept) <= 30


@pytest.mark.parametrize("rise", [3.0, 30.0])
def test_a_trend_is_not_stationary(rise: float) -> None:
    rng = np.random.default_rng(13)
    refused = 0
    for _ in range(50):
        found = stationarity.settled(np.linspace(0.0, rise, 240) + rng.normal(size=240))
        refused += found.first is None and "not stationary" in (found.reason or "")
    assert refused >= 47


def test_an_overloaded_queue_and_a_noiseless_ramp_are_not_stationary() -> None:
    rng = np.random.default_rng(1)
    queue = np.cumsum(rng.normal(0.5, 1.0, 400))
    assert "not stationary" in str(stationarity.settled(queue).reason)
    assert "not stationary" in str(stationarity.settled(np.arange(200.0)).reason)


def test_a_constant_is_stationary_and_gaps_or_few_values_are_said() -> None:
    assert stationarity.settled(np.full(100, 7.0)) == stationarity.Settled(0, None)
    assert "49 values are too few" in str(stationarity.settled(np.zeros(49)).reason)
    assert "missing" in str(stationarity.settled(np.append(np.zeros(99), np.nan)).reason)


def test_the_window_begins_when_the_last_series_has_settled_and_names_the_one_that_has_not() -> None:
    rng = np.random.default_rng(3)
    edges_s = np.linspace(0.0, 240.0, 481)
    early, late = rng.normal(size=480), rng.normal(size=480)
    early[:40] += 50.0
    late[:120] += 50.0
    window = stationarity.steady_window(edges_s, {"in flight": early, "power": late})
    assert (window.start_s, window.end_s, window.reason) == (60.0, 240.0, None)
    assert "in flight, power" in window.rule
    drifting = stationarity.steady_window(edges_s, {"in flight": early, "power": np.arange(480.0)})
    assert drifting.start_s is None
    assert str(drifting.reason).startswith("power: not stationary")


def test_in_flight_counts_the_time_of_every_request_in_each_bin() -> None:
    edges_s = np.array([0.0, 1.0, 2.0, 4.0])
    sent_s, done_s = np.array([-1.0, 0.5, 1.0]), np.array([0.25, 3.0, 2.0])
    np.testing.assert_allclose(stationarity.in_flight(sent_s, done_s, edges_s), [0.75, 2.0, 0.5])
    np.testing.assert_allclose(
        stationarity.binned(np.array([0.1, 0.2, 3.0]), np.array([1.0, 3.0, 5.0]), edges_s), [2.0, 2.0, 5.0]
    )
