"""Rates that change with time, and the literal reading of the study, against closed forms and integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadgen import arrivals as a


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def counts(process: a.Ramp | a.Sine | a.OnOff, edges_s: list[float], runs: int, n: int) -> np.ndarray:
    """Mean arrivals after t = 0 in each window, over seeded runs."""
    each = [np.histogram(process.times(n, rng(k))[1:], edges_s)[0] for k in range(runs)]
    return np.asarray(np.mean(each, axis=0))


def test_a_ramp_from_rest_arrives_at_the_roots_of_its_count() -> None:
    """lambda = t / 10 up to 10/s at 100 s: t^2 / 20 = i."""
    times_s = a.Ramp(0, 10, 100).times(10_000, rng())
    assert len(times_s) == 500
    assert times_s == pytest.approx(np.sqrt(20 * np.arange(500)), abs=1e-9)
    # Down again is the same ramp seen from its end.
    down_s = a.Ramp(10, 0, 100).times(10_000, rng())
    assert down_s[1:] == pytest.approx(100 - times_s[1:][::-1], abs=1e-6)
    assert a.Ramp(4, 4, 50).times(999, rng()) == pytest.approx(np.arange(200) / 4)


def test_a_poisson_ramp_has_the_mean_counts_of_its_integral() -> None:
    means = counts(a.Ramp(2, 18, 100, "poisson"), [0, 25, 50, 75, 100], 60, 9999)
    for mean, expected in zip(means, [100, 200, 300, 400], strict=True):  # 25 s at 4, 8, 12, 16/s
        assert mean == pytest.approx(expected, abs=5 * math.sqrt(expected / 60))
    # Seen on the scale of the cumulative rate, the gaps are exponential of mean 1.
    times_s = a.Ramp(2, 18, 100, "poisson").times(9999, rng(7))
    gaps = np.diff(2 * times_s + 0.08 * times_s**2)
    assert gaps.mean() == pytest.approx(1, abs=5 / math.sqrt(len(gaps)))
    assert gaps.std() == pytest.approx(1, abs=5 * math.sqrt(2 / len(gaps)))


@pytest.mark.parametrize(
    ("amplitude", "phase_rad", "period_s", "mean_rps"),
    [
        (0.0, 1.0, 60, 3),
        (0.5, 0.0, 60, 3),
        (0.9, -math.pi / 2, 86_400, 0.01),
        (1.0, 2.0, 10, 40),
        (1.0, -1.6, 7, 9),
    ],
)
def test_a_sine_meets_its_count_at_every_arrival(
    amplitude: float, phase_rad: float, period_s: float, mean_rps: float
) -> None:
    """The rate is integrated by the trapezoid rule and must be i at arrival i."""
    law = a.Sine(mean_rps, amplitude, period_s, phase_rad)
    times_s = law.times(round(2.4 * mean_rps * period_s), rng())
    grid_s = np.linspace(0, 3 * period_s, 400_001)
    rate_rps = mean_rps * (1 + amplitude * np.sin(2 * math.pi * grid_s / period_s + phase_rad))
    areas = (rate_rps[1:] + rate_rps[:-1]) / 2 * np.diff(grid_s)
    reached = np.interp(times_s, grid_s, np.concatenate([[0.0], np.cumsum(areas)]))
    assert reached == pytest.approx(np.arange(len(times_s)), abs=2e-6)
    assert np.all(np.diff(times_s) >= 0)
    per_period = round(mean_rps * period_s)
    assert times_s[per_period] == pytest.approx(period_s, abs=1e-4 * period_s)


def test_a_sine_is_exact_to_a_nanosecond() -> None:
    """m (1 + sin t / 2) holds m (t + (1 - cos t) / 2) up to t; m is chosen so that this is 1, at known t."""
    for quarters, cosine in ((1, 0), (2, -1), (3, 0), (4, 1), (4001, 0)):
        t_s = quarters * math.pi / 2
        law = a.Sine(1 / (t_s + (1 - cosine) / 2), 0.5, 2 * math.pi)
        assert law.times(2, rng())[1] == pytest.approx(t_s, abs=1e-9)


def test_a_poisson_day_has_quiet_nights() -> None:
    """m P (1/2 +- A / pi) requests in the two halves of a day that starts at noon's rise."""
    means = counts(a.Sine(5, 0.8, 100, 0.0, "poisson"), [0, 50, 100], 60, 2000)
    for mean, expected in zip(means, [250 + 400 / math.pi, 250 - 400 / math.pi], strict=True):
        assert mean == pytest.approx(expected, abs=5 * math.sqrt(expected / 60))


def test_constant_dwells_send_the_same_burst_every_cycle() -> None:
    times_s = a.OnOff(10, 5, 20).times(200, rng())
    one = np.arange(50) / 10
    assert times_s == pytest.approx(np.concatenate([one, one + 25, one + 50, one + 75]))
    # 0.07/s for 100 s are 7, though 0.07 * 100 > 7; then 1 a second; nothing adds up over cycles.
    slow_s = a.OnOff(0.07, 100, 3, 1).times(100_000, rng())
    assert slow_s[:10] == pytest.approx([*(np.arange(7) / 0.07), 100, 101, 102])
    assert slow_s[10_000 * 10 - 10] == pytest.approx(9_999 * 103, abs=1e-3)


def test_a_markov_modulated_process_has_the_rate_and_dispersion_of_theory() -> None:
    """Interrupted: 10/s for 2 s of 10: mean 2/s, variance / mean of long counts 26.6; with 1/s between, less.

    1 + 2 (r1 - r2)^2 q1 q2 / ((q1 + q2)^2 (r1 q2 + r2 q1)), q1 = 1/2, q2 = 1/8, by hand:
    1 + 2 * 100 / 16 / (25/64 * 10/8) = 26.6 and 1 + 2 * 81 / 16 / (25/64 * 14/8) = 15.81.
    """
    for off_rps, mean_rps, dispersion in ((0.0, 2.0, 26.6), (1.0, 2.8, 15.81)):
        law = a.OnOff(10, 2, 8, off_rps, "exponential", "poisson")
        windows, width_s = 1500, 200.0
        times_s = a.count_within(law, windows * width_s, rng(5))
        found = np.histogram(times_s, windows, (0, windows * width_s))[0]
        assert found.mean() / width_s == pytest.approx(
            mean_rps, abs=5 * math.sqrt(mean_rps * dispersion / (windows * width_s))
        )
        # Windows of 125 relaxation times are short of the limit by about 1 / 125.
        assert found.var() / found.mean() == pytest.approx(dispersion, rel=0.01 + 5 * math.sqrt(2 / windows))
        assert law.per_cycle / 10 == pytest.approx(mean_rps)


def test_exponential_dwells_are_exponential() -> None:
    """At a very high even rate the silences are the off times: mean 8, CV 1."""
    times_s = a.OnOff(200, 2, 8, 0, "exponential").times(400_000, rng(6))
    gaps_s = np.diff(times_s)
    silences_s = gaps_s[gaps_s > 0.01]
    n = len(silences_s)
    assert n == pytest.approx(1000, abs=5 * math.sqrt(1000))
    assert silences_s.mean() == pytest.approx(8, abs=5 * 8 / math.sqrt(n))
    assert silences_s.std() / silences_s.mean() == pytest.approx(1, abs=5 / math.sqrt(n))


def test_more_arrivals_move_no_dwell() -> None:
    law = a.OnOff(10, 2, 8, 0, "exponential", "poisson")
    assert np.array_equal(law.times(9000, rng(1))[:90], law.times(90, rng(1)))


@pytest.mark.parametrize(("low_s", "high_s"), [(0.0, 1.0), (0.05, 0.3)])
def test_the_literal_reading_is_front_loaded(low_s: float, high_s: float) -> None:
    """P(t_i <= t) summed over requests gives the count; one draw each, so counts are sums of coins."""
    n, runs = 1000, 200
    draws = [a.UniformLiteral(low_s, high_s).times(n, rng(k)) for k in range(runs)]
    i = np.arange(1, n)
    for t_s in (1.0, 20.0, 200.0):
        chance = np.clip((t_s / i - low_s) / (high_s - low_s), 0, 1)
        expected, variance = 1 + chance.sum(), float((chance * (1 - chance)).sum())
        got = np.mean([np.sum(times_s <= t_s) for times_s in draws])
        assert got == pytest.approx(expected, abs=5 * math.sqrt(variance / runs) + 1e-9)
    mean_s = (low_s + high_s) / 2 * (n - 1) / 2
    spread_s = (high_s - low_s) / math.sqrt(12) * math.sqrt(float((i**2).sum())) / n
    assert np.mean(draws) == pytest.approx(mean_s, abs=5 * spread_s / math.sqrt(runs))
    if low_s == 0:  # about ln(n high / t) / high times the even share
        assert np.mean([np.sum(times_s <= 10) for times_s in draws]) > 50 > 5 * 10 * 0.5
