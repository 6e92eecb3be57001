"""Estimates: known quantiles, coverage, joint blocks, and when there is no interval."""

from __future__ import annotations

import time

import numpy as np
import pytest

from analysis import stats
from analysis.stats import student
from loadgen.types import Estimate, Floats


def _blocks(n: int, *, latency_s: float = 0.01) -> stats.Blocks:
    return stats.choose_blocks(0.0, float(n), np.arange(n, dtype=float), np.full(n, latency_s))


def _holds(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None and estimate.high is not None, estimate.method
    return estimate.low <= truth <= estimate.high


def test_known_quantiles_and_moments_of_a_shuffled_ramp() -> None:
    values = np.random.default_rng(4).permutation(1001).astype(float)
    blocks = _blocks(1001)
    index = blocks.index(np.arange(1001, dtype=float))
    found = stats.quantiles(values, index, (0.5, 0.9, 0.99), blocks, "s")
    assert [e.value for e in found] == [500.0, 900.0, 990.0]
    mean, std = stats.mean(values, index, blocks, "s"), stats.std(values, index, blocks, "s")
    assert mean.value == 500.0
    # variance of 0..N equally likely, sample form: (N+1)(N+2)/12 with N+1 = 1001 points
    assert std.value == pytest.approx((1001 * 1002 / 12) ** 0.5)
    for estimate in (*found, mean, std):
        assert _holds(estimate, estimate.value or 0.0)
    # p50 of 1,001 independent values: its rank is sure to 2.13 sqrt(1001 / 4), here 3.4 % of the values
    assert found[0].high is not None and found[0].high - 500.0 == pytest.approx(33.7, rel=0.35)


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.262157), (19, 2.093024), (39, 2.022691), (120, 1.9799)],
)
def test_student_t_matches_the_printed_table(freedom: int, expected: float) -> None:
    assert student.two_sided(0.95, freedom) == pytest.approx(expected, abs=5e-5)
    assert student.probability(expected, freedom) == pytest.approx(0.05, abs=1e-5)


def test_blocks_span_a_latency_and_ten_readings_and_number_at_most_240() -> None:
    due = np.arange(10_000) * 0.05
    assert stats.choose_blocks(0.0, 500.0, due, np.full(10, 0.4)).count == 240
    long = stats.choose_blocks(0.0, 500.0, due, np.full(10, 4.0))
    assert (long.count, long.length_s) == (125, pytest.approx(4.0))
    assert stats.choose_blocks(0.0, 500.0, due, np.full(10, 0.4), 0.5).count == 100
    # a series that is renewed every 8 s leaves no shorter blocks
    assert stats.choose_blocks(0.0, 500.0, due, np.full(10, 0.4), update_s=8.0).count == 62


@pytest.mark.parametrize("n", [400, 1200])
def test_coverage_on_independent_data_is_about_95_percent(n: int) -> None:
    rng = np.random.default_rng(7)
    replications = 400
    truth = {"mean": 1.0, "p50": np.log(2.0), "p90": np.log(10.0), "ratio": 2.0, "std": 1.0}
    hits, given = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    blocks = _blocks(n)
    index = blocks.index(np.arange(n, dtype=float))
    for _ in range(replications):
        values, other = rng.exponential(1.0, n), rng.exponential(0.5, n)
        p50, p90 = stats.quantiles(values, index, (0.5, 0.9), blocks, "s")
        found = {
            "mean": stats.mean(values, index, blocks, "s"),
            "std": stats.std(values, index, blocks, "s"),
            "p50": p50,
            "p90": p90,
            "ratio": stats.ratio(blocks.sums(values, index), blocks.sums(other, index), blocks, "", n),
        }
        for name, estimate in found.items():
            if estimate.low is not None:
                given[name] += 1
                hits[name] += _holds(estimate, truth[name])
    # binomial standard deviation 1.1 %; a deviation's interval is skewed, so looser
    for name in ("mean", "p50", "p90", "ratio"):
        assert given[name] >= 0.98 * replications, name
        assert 0.92 <= hits[name] / given[name] <= 0.98, name
    assert 0.87 <= hits["std"] / given["std"] <= 0.98


def _autocorrelated(rng: np.random.Generator, n: int, rho: float) -> Floats:
    noise = rng.normal(0.0, 1.0, n)
    values = np.empty(n)
    values[0] = noise[0] / np.sqrt(1 - rho**2)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + noise[i]
    return values


def test_dependent_data_are_covered_where_independent_resampling_would_not() -> None:
    rng = np.random.default_rng(11)
    n, rho = 2400, 0.9
    hits = median_hits = iid_hits = given = 0
    blocks = _blocks(n)
    index = blocks.index(np.arange(n, dtype=float))
    for _ in range(200):
        values = _autocorrelated(rng, n, rho)
        estimate = stats.mean(values, index, blocks, "")
        (median,) = stats.quantiles(values, index, [0.5], blocks, "")
        iid_hits += abs(values.mean()) <= 1.96 * values.std(ddof=1) / np.sqrt(n)
        if estimate.low is None or median.low is None:
            continue
        given += 1
        hits += _holds(estimate, 0.0)
        median_hits += _holds(median, 0.0)
    assert given >= 190
    assert 0.91 <= hits / given <= 0.99
    assert 0.91 <= median_hits / given <= 0.99
    assert iid_hits / 200 < 0.5


def test_the_effective_sample_is_stated_and_a_trend_gets_no_interval() -> None:
    n, rho = 24_000, 0.9
    values = _autocorrelated(np.random.default_rng(3), n, rho)
    blocks = _blocks(n)
    index = blocks.index(np.arange(n, dtype=float))
    (p50,) = stats.quantiles(values, index, [0.5], blocks, "s")
    worth = float(p50.method.rpartition("n_eff ")[2].split()[0])
    # signs of a Gaussian autoregression correlate as (2 / pi) asin(rho**k): a sum of 11.4 times variance
    design = 1 + 2 * sum(2 / np.pi * np.arcsin(rho**k) for k in range(1, 400))
    assert worth == pytest.approx(n / design, rel=0.5)
    ramp = np.arange(n, dtype=float)
    for estimate in (stats.mean(ramp, index, blocks, "s"), *stats.quantiles(ramp, index, [0.5], blocks, "s")):
        assert estimate.low is None
        assert "effective sample too small" in estimate.method


def test_energy_and_requests_of_a_block_stay_together() -> None:
    blocks = _blocks(600)
    index = blocks.index(np.arange(600, dtype=float))
    energy = np.random.default_rng(3).exponential(5.0, blocks.count)
    # energy exactly proportional to the requests' own weights: the ratio has no spread at all
    joint = stats.ratio(energy, energy / 4.0, blocks, "J", 600)
    assert joint.value == pytest.approx(4.0)
    assert joint.low == pytest.approx(4.0)
    assert joint.high == pytest.approx(4.0)
    assert stats.mean(np.full(600, 2.0), index, blocks, "s").low == pytest.approx(2.0)


def test_intervals_do_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(8)
    values = rng.lognormal(size=800)
    blocks = _blocks(800)
    index = blocks.index(np.arange(800, dtype=float))
    seconds = [stats.mean(values, index, blocks, "s"), *stats.quantiles(values, index, [0.9], blocks, "s")]
    milli = values * 1e3
    others = [stats.mean(milli, index, blocks, "ms"), *stats.quantiles(milli, index, [0.9], blocks, "ms")]
    for one, other in zip(seconds, others, strict=True):
        scaled = stats.scaled(one, 1e3, "ms")
        assert (other.low, other.high) == (pytest.approx(scaled.low), pytest.approx(scaled.high))


@pytest.mark.parametrize(
    ("due", "latency", "window", "words"),
    [
        (np.arange(30) * 1.0, np.full(30, 0.1), 30.0, "30 requests are too few; it takes at least about 80"),
        (
            np.arange(600) * 0.1,
            np.full(600, 10.0),
            60.0,
            "6 time blocks of 10 s (a median latency), 40 are needed; it takes at least about 4,000",
        ),
        (np.zeros(600), np.full(600, 0.1), 60.0, "due at about the same time, which is one event"),
        (np.arange(600) % 20 * 3.0, np.full(600, 0.1), 60.0, "arrived in only 20 of"),
        (np.zeros(0), np.zeros(0), 0.0, "window is empty"),
    ],
)
def test_no_interval_says_why(due: Floats, latency: Floats, window: float, words: str) -> None:
    blocks = stats.choose_blocks(0.0, window, due, latency)
    assert blocks.waves is None
    assert words in (blocks.reason or "")
    if len(due):
        index = blocks.index(due)
        for estimate in (
            stats.mean(latency, index, blocks, "s"),
            *stats.quantiles(latency, index, [0.5], blocks, "s"),
        ):
            assert estimate.value == pytest.approx(latency[0])
            assert estimate.low is None
            assert words in estimate.method


def test_extreme_quantile_of_few_values_has_a_value_but_no_interval() -> None:
    blocks = _blocks(200)
    values = np.random.default_rng(0).permutation(200).astype(float)
    p50, p99 = stats.quantiles(values, blocks.index(np.arange(200.0)), (0.5, 0.99), blocks, "s")
    assert p50.low is not None
    assert p99.value == pytest.approx(197.01)
    assert p99.low is None
    assert "beyond p99" in p99.method


def test_equal_values_have_an_interval_of_no_width() -> None:
    blocks = _blocks(1000)
    (p99,) = stats.quantiles(np.full(1000, 0.2), blocks.index(np.arange(1000.0)), [0.99], blocks, "s")
    assert (p99.low, p99.value, p99.high) == (0.2, 0.2, 0.2)


def test_zero_denominator_gives_a_reason_not_an_exception() -> None:
    blocks = _blocks(600)
    zero = stats.ratio(np.ones(blocks.count), np.zeros(blocks.count), blocks, "J", 0, "per success")
    assert zero.value is None
    assert "denominator is 0" in zero.method
    assert stats.mean(np.zeros(0), np.zeros(0, dtype=np.intp), blocks, "s").value is None
    (p50,) = stats.quantiles(np.zeros(0), np.zeros(0, dtype=np.intp), [0.5], blocks, "s")
    assert p50.value is None


def test_a_denominator_in_one_block_alone_bounds_no_ratio() -> None:
    blocks = _blocks(600)
    once = np.zeros(blocks.count)
    once[7] = 3.0
    found = stats.ratio(np.random.default_rng(1).exponential(1.0, blocks.count), once, blocks, "J", 3)
    assert found.value is not None
    assert found.low is None
    assert "is not told from 0" in found.method


def test_10000_requests_and_520000_gaps_take_under_2_seconds() -> None:
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


def test_a_median_on_the_edge_of_two_values_is_as_open_as_a_coin() -> None:
    """The values above the larger of two do not vary, yet the next run's median may be the smaller one."""
    blocks = _blocks(1000)
    index = blocks.index(np.arange(1000.0))
    values = np.random.default_rng(9).permutation(np.repeat([1.0, 2.0], [490, 510]))
    (p50,) = stats.quantiles(values, index, [0.5], blocks, "s")
    # 510 of 1,000: 0.63 standard deviations from half
    assert (p50.low, p50.value, p50.high) == (1.0, 2.0, 2.0)
    sure = np.random.default_rng(9).permutation(np.repeat([1.0, 2.0], [300, 700]))
    (p50,) = stats.quantiles(sure, index, [0.5], blocks, "s")
    assert (p50.low, p50.high) == (2.0, 2.0)


def test_a_share_of_independent_values_has_the_binomial_interval() -> None:
    rng = np.random.default_rng(12)
    blocks = _blocks(2000)
    index = blocks.index(np.arange(2000.0))
    held, low, high = 0, [], []
    for _ in range(300):
        found = stats.share(blocks.counts(index[rng.random(2000) < 0.1]), blocks.counts(index), blocks, "x")
        held += _holds(found, 0.1)
        low.append(0.1 - (found.low or 0.0))
        high.append((found.high or 1.0) - 0.1)
    assert 0.92 <= held / 300 <= 0.98  # binomial standard deviation 1.3 %
    half = 1.96 * (0.1 * 0.9 / 2000) ** 0.5
    assert np.mean(low) == pytest.approx(half, rel=0.1)
    assert np.mean(high) == pytest.approx(half, rel=0.1)


def test_a_share_without_exceptions_or_with_few_says_so() -> None:
    blocks = _blocks(600)
    index = blocks.index(np.arange(600.0))
    whole = blocks.counts(index)
    every = stats.share(whole, whole, blocks, "successes / records")
    assert (every.value, every.low) == (1.0, None)
    assert "at most 0.5 % if its cases are independent" in every.method
    few = stats.share(blocks.counts(index[3:]), whole, blocks, "successes / records")
    assert few.low is None
    assert "cases of the rarer outcome are only 3, 5 are needed; it takes at least about 1,000" in few.method
    assert stats.share(0 * whole, 0 * whole, blocks, "x").value is None


def test_the_run_that_an_interval_takes_is_stated_and_read_back() -> None:
    assert (
        stats.requests_needed("x; no interval: y; it takes at least about 23,000 requests at this load")
        == 23_000
    )
    assert stats.requests_needed("no interval: the window is empty") is None
    rng = np.random.default_rng(3)
    values = _autocorrelated(rng, 8000, 0.98)
    for n in (1000, 8000):
        blocks = _blocks(n)
        index = blocks.index(np.arange(n, dtype=float))
        needed = stats.requests_needed(stats.mean(values[:n], index, blocks, "s").method)
        # 32 independent stretches of (1 + 0.98) / (1 - 0.98) = 99 values each are 3,168
        assert needed is None if n == 8000 else 1_000 < (needed or 0) < 10_000


def test_nothing_of_the_counted_has_a_rate_of_zero_without_an_interval() -> None:
    blocks = _blocks(600)
    none = stats.ratio(np.zeros(blocks.count), np.diff(blocks.edges_s), blocks, "1/s", 0)
    assert (none.value, none.low) == (0.0, None)
    assert "never seen" in none.method
