"""Estimates: known quantiles, coverage, joint resampling, and when there is no interval."""

from __future__ import annotations

import time

import numpy as np
import pytest

from analysis import stats
from loadgen.types import Floats


def _blocks(n: int, *, seed: int = 0, resamples: int = 400, latency_s: float = 0.01) -> stats.Blocks:
    due_s = np.arange(n, dtype=float)
    return stats.choose_blocks(0.0, float(n), due_s, np.full(n, latency_s), seed=seed, resamples=resamples)


def test_known_quantiles_and_moments_of_a_ramp() -> None:
    values = np.arange(1001, dtype=float)
    blocks = _blocks(1001)
    index = blocks.index(np.arange(1001, dtype=float))
    p50, p90, p99 = stats.quantiles(values, index, (0.5, 0.9, 0.99), blocks, "s")
    assert (p50.value, p90.value, p99.value) == (500.0, 900.0, 990.0)
    assert stats.mean(values, index, blocks, "s").value == 500.0
    # variance of 0..N equally likely, sample form: (N+1)(N+2)/12 with N+1 = 1001 points
    assert stats.std(values, index, blocks, "s").value == pytest.approx((1001 * 1002 / 12) ** 0.5)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(9, 2.262157), (19, 2.093024), (39, 2.022691), (59, 2.000995)]
)
def test_student_t_matches_the_printed_table(freedom: int, expected: float) -> None:
    assert stats.student_t(1.959964, freedom) == pytest.approx(expected, abs=5e-4)


def test_blocks_span_several_latencies_and_number_at_most_60() -> None:
    due = np.arange(10_000) * 0.05
    short = stats.choose_blocks(0.0, 500.0, due, np.full(10, 0.4))
    assert short.count == 60
    long = stats.choose_blocks(0.0, 500.0, due, np.full(10, 4.0))
    assert long.count == 25
    assert long.length_s == pytest.approx(20.0)


def test_coverage_of_mean_quantiles_and_ratio_on_independent_data_is_about_95_percent() -> None:
    rng = np.random.default_rng(7)
    replications, n = 300, 600
    truth = {"mean": 1.0, "p50": np.log(2.0), "p90": np.log(10.0), "ratio": 2.0, "std": 1.0}
    hits = dict.fromkeys(truth, 0)
    for r in range(replications):
        values = rng.exponential(1.0, n)
        other = rng.exponential(0.5, n)
        blocks = _blocks(n, seed=r)
        index = blocks.index(np.arange(n, dtype=float))
        p50, p90 = stats.quantiles(values, index, (0.5, 0.9), blocks, "s")
        found = {
            "mean": stats.mean(values, index, blocks, "s"),
            "std": stats.std(values, index, blocks, "s"),
            "p50": p50,
            "p90": p90,
            "ratio": stats.ratio(blocks.sums(values, index), blocks.sums(other, index), blocks, "", n),
        }
        for name, estimate in found.items():
            assert estimate.low is not None
            assert estimate.high is not None
            hits[name] += estimate.low <= truth[name] <= estimate.high
    # 95 % of 300 is 285, binomial standard deviation 3.8; a deviation's interval is skewed, so looser
    for name in ("mean", "p50", "p90", "ratio"):
        assert 0.915 <= hits[name] / replications <= 0.98, name
    assert 0.87 <= hits["std"] / replications <= 0.98


def _autocorrelated(rng: np.random.Generator, n: int, rho: float) -> Floats:
    noise = rng.normal(0.0, 1.0, n)
    values = np.empty(n)
    values[0] = noise[0] / np.sqrt(1 - rho**2)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + noise[i]
    return values


def test_blocks_cover_dependent_data_where_independent_resampling_would_not() -> None:
    rng = np.random.default_rng(11)
    n, rho = 1200, 0.8
    hits = iid_hits = 0
    for r in range(150):
        values = _autocorrelated(rng, n, rho)
        blocks = _blocks(n, seed=r, latency_s=8.0)
        estimate = stats.mean(values, blocks.index(np.arange(n, dtype=float)), blocks, "")
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0.0 <= estimate.high
        iid_hits += abs(values.mean()) <= 1.96 * values.std(ddof=1) / np.sqrt(n)
    assert hits / 150 >= 0.88
    assert iid_hits / 150 < 0.65


def test_all_metrics_share_one_resampling() -> None:
    blocks = _blocks(600)
    index = blocks.index(np.arange(600, dtype=float))
    energy = np.random.default_rng(3).exponential(5.0, blocks.count)
    # energy exactly proportional to the requests' own weights: the ratio has no spread at all
    joint = stats.ratio(energy, energy / 4.0, blocks, "J", 600)
    assert joint.value == pytest.approx(4.0)
    assert joint.low == pytest.approx(4.0)
    assert joint.high == pytest.approx(4.0)
    assert stats.mean(np.full(600, 2.0), index, blocks, "s").low == pytest.approx(2.0)


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(1).normal(size=600)
    instants = np.arange(600, dtype=float)

    def estimate(seed: int) -> tuple[float | None, float | None]:
        blocks = _blocks(600, seed=seed)
        found = stats.mean(values, blocks.index(instants), blocks, "s")
        return found.low, found.high

    assert estimate(0) == estimate(0)
    assert estimate(0) != estimate(1)


@pytest.mark.parametrize(
    ("due", "latency", "window", "words"),
    [
        (np.arange(30) * 1.0, np.full(30, 0.1), 30.0, "30 requests are too few"),
        (np.arange(600) * 0.1, np.full(600, 10.0), 60.0, "too short, 60 s is 1 block of"),
        (np.zeros(600), np.full(600, 0.1), 60.0, "arrivals fill only 1 of"),
        (np.zeros(0), np.zeros(0), 0.0, "window is empty"),
    ],
)
def test_no_interval_says_why(due: Floats, latency: Floats, window: float, words: str) -> None:
    blocks = stats.choose_blocks(0.0, window, due, latency)
    assert blocks.draws is None
    assert words in blocks.describe()
    if len(due):
        estimate = stats.mean(latency, blocks.index(due), blocks, "s")
        assert estimate.value == pytest.approx(latency[0])
        assert estimate.low is None
        assert words in estimate.method


def test_extreme_quantile_of_few_values_has_a_value_but_no_interval() -> None:
    blocks = _blocks(200)
    values = np.arange(200, dtype=float)
    p50, p99 = stats.quantiles(values, blocks.index(values), (0.5, 0.99), blocks, "s")
    assert p50.low is not None
    assert p99.value == pytest.approx(197.01)
    assert p99.low is None
    assert "beyond p99" in p99.method


def test_zero_denominator_gives_a_reason_not_an_exception() -> None:
    blocks = _blocks(600)
    zero = stats.ratio(np.ones(blocks.count), np.zeros(blocks.count), blocks, "J", 0, "per success")
    assert zero.value is None
    assert "denominator is 0" in zero.method
    assert stats.mean(np.zeros(0), np.zeros(0, dtype=np.intp), blocks, "s").value is None
    (p50,) = stats.quantiles(np.zeros(0), np.zeros(0, dtype=np.intp), [0.5], blocks, "s")
    assert p50.value is None


def test_binned_quantiles_of_many_values_agree_with_a_direct_resampling() -> None:
    rng = np.random.default_rng(5)
    n = 20_000
    values = rng.lognormal(size=n)
    instants = np.sort(rng.uniform(0, 500.0, n))
    blocks = stats.choose_blocks(0.0, 500.0, instants, np.full(5, 0.1), resamples=60)
    index = blocks.index(instants)
    assert blocks.draws is not None
    order = np.argsort(values)
    got = stats._resampled_quantiles(values[order], index[order], (0.5, 0.99), blocks, blocks.draws)
    for r in (0, 17, 59):
        copied = np.repeat(values, blocks.draws[r][index].astype(int))
        expected = np.quantile(copied, [0.5, 0.99], method="inverted_cdf")
        np.testing.assert_allclose(got[:, r], expected, rtol=2e-3)


def test_1000_resamples_of_10000_requests_and_520000_gaps_take_under_2_seconds() -> None:
    rng = np.random.default_rng(2)
    n = 10_000
    due = np.arange(n) * 0.05
    blocks = stats.choose_blocks(0.0, 500.0, due, np.full(n, 0.4))
    index = blocks.index(due)
    gap_index = np.repeat(index, 52)
    gaps = rng.exponential(0.01, n * 52)
    columns = [rng.exponential(0.1, n) for _ in range(8)]
    started = time.process_time()
    for column in columns:
        stats.quantiles(column, index, (0.5, 0.9, 0.95, 0.99), blocks, "s")
        stats.mean(column, index, blocks, "s")
        stats.std(column, index, blocks, "s")
    stats.quantiles(gaps, gap_index, (0.5, 0.9, 0.95, 0.99), blocks, "s")
    assert time.process_time() - started < 2.0
