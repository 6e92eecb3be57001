"""The intervals hold the long-run values of a queue in equilibrium, or say that they cannot.

The queue is M/M/1 with known long-run values; ``benchmarks/coverage.py`` does the same at full size.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import stats
from analysis.stats import autocorrelation
from loadgen.types import Estimate, Floats

MEAN_S, TOKENS, IDLE_W, BUSY_W = 0.05, 52.0, 120.0, 450.0


def _queue(rho: float, n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Due times, waits, tokens, and the corners (time, energy) of one run in equilibrium."""
    gap_s = rng.exponential(MEAN_S / rho, n)
    tokens = rng.exponential(TOKENS, n)
    service_s = tokens * MEAN_S / TOKENS
    found_s = rng.exponential(MEAN_S / (1 - rho)) if rng.random() < rho else 0.0
    wait_s, free_s = np.empty(n), found_s
    due_s = np.cumsum(gap_s)
    for i in range(n):
        start_s = max(free_s, due_s[i])
        wait_s[i] = start_s - due_s[i]
        free_s = start_s + service_s[i]
    begin_s = np.append(0.0, due_s + wait_s)
    end_s = begin_s + np.append(found_s, service_s)
    t_s = np.column_stack([begin_s, end_s]).ravel()
    power_w = np.tile([BUSY_W, IDLE_W], n + 1)[:-1]
    return due_s, wait_s, tokens, t_s, np.append(0.0, np.cumsum(np.diff(t_s) * power_w))


def _estimates(rho: float, n: int, rng: np.random.Generator) -> tuple[Estimate, Estimate]:
    due_s, wait_s, tokens, t_s, energy_j = _queue(rho, n, rng)
    blocks = stats.choose_blocks(0.0, float(due_s[-1]), due_s, wait_s, 0.1)
    index = blocks.index(due_s)
    (p99,) = stats.quantiles(wait_s, index, [0.99], blocks, "s")
    per_block_j = np.diff(np.interp(blocks.edges_s, t_s, energy_j))
    return p99, stats.ratio(per_block_j, blocks.sums(tokens, index), blocks, "J", n)


def _truth(rho: float) -> tuple[float, float]:
    """P(wait > t) = rho exp(-(1 - rho) t / s); power over tokens a second."""
    p99_s = MEAN_S / (1 - rho) * math.log(100 * rho)
    return p99_s, (IDLE_W + (BUSY_W - IDLE_W) * rho) * MEAN_S / (rho * TOKENS)


def test_p99_wait_and_joules_per_token_hold_the_closed_form_at_utilisation_one_half() -> None:
    rng = np.random.default_rng(50)
    replications = 250
    held, given = np.zeros(2), np.zeros(2)
    for _ in range(replications):
        for i, (found, truth) in enumerate(zip(_estimates(0.5, 10_000, rng), _truth(0.5), strict=True)):
            if found.low is not None and found.high is not None:
                given[i] += 1
                held[i] += found.low <= truth <= found.high
    assert given[0] >= 0.93 * replications
    assert given[1] == replications
    # binomial standard deviation 1.4 %
    assert ((held / given >= 0.915) & (held / given <= 0.985)).all(), held / given


def test_a_short_run_near_saturation_is_refused_its_p99_and_keeps_joules_per_token() -> None:
    rng = np.random.default_rng(95)
    truth_j = _truth(0.95)[1]
    for _ in range(20):
        p99, per_token = _estimates(0.95, 10_000, rng)
        assert p99.value is not None
        assert p99.low is None
        assert "effective sample too small" in p99.method
        assert per_token.low is not None and per_token.high is not None
        assert per_token.low <= truth_j <= per_token.high


def test_waves_are_orthonormal_and_leave_a_constant_out() -> None:
    waves = autocorrelation.waves(60)
    np.testing.assert_allclose(waves @ waves.T, np.eye(20), atol=1e-12)
    np.testing.assert_allclose(waves.sum(axis=1), 0.0, atol=1e-12)


@pytest.mark.parametrize(("rho", "least", "most"), [(0.0, 80, 80), (0.5, 30, 33), (0.9, 4, 5), (1.0, 0, 0)])
def test_waves_left_flat_fall_with_the_autocorrelation(rho: float, least: int, most: int) -> None:
    # near w = 0 the spectrum is 1 / (1 + c w**2), c = rho / (1 - rho)**2; its mean up to w,
    # atan(x) / x with x = sqrt(c) w, is 0.9 at x = 0.59: j = 240 w / pi = 31.9 and 4.75
    assert least <= autocorrelation.freedom(rho, 240) <= most


def test_lag_one_is_taken_at_its_upper_end() -> None:
    rng = np.random.default_rng(2)
    found = [autocorrelation.lag_one_upper(rng.normal(size=60)) for _ in range(500)]
    assert np.mean(np.array(found) >= 0.0) == 1.0
    # bias-corrected plus one standard error: above the true 0 in about 84 % of the samples
    assert np.mean(np.array(found) > 0.0) == pytest.approx(0.84, abs=0.05)
    assert autocorrelation.lag_one_upper(np.arange(60.0)) == pytest.approx(1.0, abs=0.02)
