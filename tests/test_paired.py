"""Runs of the same requests: what they have in common cancels, and the intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import stats
from analysis.stats import autocorrelation, paired, pairs
from loadgen.types import Floats


def _blocks(n: int) -> stats.Blocks:
    return stats.choose_blocks(0.0, float(n), np.arange(n, dtype=float), np.full(n, 0.01))


def _queue(n: int, rng: np.random.Generator) -> Floats:
    """Lognormal factors whose logarithms remember half of the one before."""
    noise = rng.normal(size=n)
    for i in range(1, n):
        noise[i] += 0.5 * noise[i - 1]
    return np.asarray(np.exp(0.3 * noise), dtype=np.float64)


def test_requests_pair_only_when_all_are_shared_with_equal_prompts() -> None:
    a = {1: "x", 2: "y"}
    assert paired.shared_requests(a, {2: "y", 1: "x"}) == ([1, 2], None)
    assert "another prompt" in str(paired.shared_requests(a, {1: "x", 2: "z"})[1])
    assert "only 1 of 2 and 1" in str(paired.shared_requests(a, {1: "x"})[1])
    assert paired.shared_requests(a, {3: "x"}) == ([], "the runs share no request")


def test_pairing_removes_what_the_requests_have_in_common() -> None:
    rng = np.random.default_rng(21)
    n = 1000
    common = rng.lognormal(0.0, 1.0, n)
    a, b = common + rng.normal(0, 0.01, n), common + 0.02 + rng.normal(0, 0.01, n)
    at_s, blocks = np.arange(n, dtype=float), _blocks(n)
    together = paired.paired_requests(a, b, at_s, blocks, "s")
    index = blocks.index(at_s)
    apart = pairs.unpaired(stats.mean(a, index, blocks, "s"), stats.mean(b, index, blocks, "s"))
    assert together.difference.low is not None and together.difference.high is not None
    assert 0.018 < together.difference.low < 0.02 + 1e-3 < 0.023
    assert together.difference.high - together.difference.low < 0.004
    assert apart.difference.low is not None and apart.difference.low < 0 < (apart.difference.high or 0)
    assert together.p is not None and together.p < 1e-6
    assert apart.p is not None and apart.p > 0.05
    assert "one pair of runs" in together.notes[0]


@pytest.fixture(scope="module")
def held() -> dict[str, list[bool]]:
    """Whether intervals held the truth in 400 pairs of runs of the same prompts."""
    rng, n, count = np.random.default_rng(8), 800, 100
    blocks, at_s = _blocks(n), np.arange(n, dtype=float)
    index, groups = (
        blocks.index(at_s),
        stats.Blocks(np.arange(count + 1.0), autocorrelation.waves(count), 0.95, None),
    )
    owner = np.arange(n) * count // n
    found: dict[str, list[bool]] = {name: [] for name in ("median", "times", "energy", "narrower")}
    for _ in range(400):
        prompts = rng.lognormal(0.0, 1.0, n)
        a, b = prompts * _queue(n, rng), 1.5 * prompts * _queue(n, rng)
        medians = (float(np.median(a)), float(np.median(b)))
        median = paired.paired_quantiles(a, b, 0.5, at_s, blocks, "s", medians)
        apart = pairs.unpaired(*(stats.quantiles(x, index, [0.5], blocks, "s")[0] for x in (a, b)))
        joules = [
            50.0 * np.bincount(owner, rng.exponential(1.0, n)) + 200.0 * np.bincount(owner, x)
            for x in (a, 2 * b / 3)
        ]
        requests = np.bincount(owner).astype(np.float64)
        energy = paired.paired_ratios((joules[0], requests), (joules[1], requests), groups, "J", n)
        for name, estimate, truth in (
            ("times", median.ratio, 1.5),
            ("energy", energy.difference, 0.0),
            ("median", median.difference, 0.5 * 1.0),  # the median of the prompts' part is 1
        ):
            assert estimate.low is not None and estimate.high is not None
            found[name].append(estimate.low <= truth <= estimate.high)
        assert median.ratio.high is not None and median.ratio.low is not None
        assert apart.ratio.high is not None and apart.ratio.low is not None
        found["narrower"].append(median.ratio.high / median.ratio.low < apart.ratio.high / apart.ratio.low)
    return found


@pytest.mark.parametrize("name", ["median", "times", "energy"])
def test_paired_intervals_hold_the_truth(held: dict[str, list[bool]], name: str) -> None:
    assert 0.92 <= np.mean(held[name]) <= 0.98


def test_pairing_narrows_medians_too(held: dict[str, list[bool]]) -> None:
    assert np.mean(held["narrower"]) > 0.95


def test_a_ratio_of_sums_is_that_of_the_runs_and_exact_when_they_agree() -> None:
    rng = np.random.default_rng(2)
    groups = stats.Blocks(np.arange(61.0), autocorrelation.waves(60), 0.95, None)
    joules, requests = rng.exponential(5.0, 60), np.full(60, 4.0)
    found = paired.paired_ratios((joules, requests), (2.5 * joules, requests), groups, "J", 240)
    assert found.ratio.value == pytest.approx(2.5)
    assert found.difference.value == pytest.approx(1.5 * joules.sum() / 240)
    # Twice the joules of every group is twice the energy, whatever the groups are: nothing is left to chance.
    assert found.ratio.low == pytest.approx(2.5) and found.ratio.high == pytest.approx(2.5)
    same = paired.paired_ratios((joules, requests), (joules, requests), groups, "J", 240)
    assert (same.ratio.value, same.difference.value, same.p) == (1.0, 0.0, 1.0)
    assert "groups of neighbouring requests" in found.difference.method


def test_a_constant_power_of_two_windows_does_not_differ() -> None:
    """Found: joules over seconds of unequal blocks gave 38 W with a difference of -7e-15 [-1e-14, -8e-16]."""
    rng = np.random.default_rng(4)
    groups = stats.Blocks(np.linspace(0.0, 240.0, 241), autocorrelation.waves(240), 0.95, None)
    sides = []
    for gap_s in (0.3, 0.5):
        edges_s = np.cumsum(rng.uniform(0.9, 1.1, 241)) * gap_s
        sides.append((np.diff(38.0 * edges_s), np.diff(edges_s)))
    found = paired.paired_ratios(sides[0], sides[1], groups, "W", 1000)
    assert (found.difference.low, found.difference.value, found.difference.high) == (0.0, 0.0, 0.0)
    assert found.p == 1.0 and found.ratio.value == 1.0
    sides[1] = (sides[1][0] * (1 + 1e-8), sides[1][1])
    assert paired.paired_ratios(sides[0], sides[1], groups, "W", 1000).difference.value == pytest.approx(
        3.8e-7
    )


def test_swapped_sides_mirror_each_other() -> None:
    rng = np.random.default_rng(5)
    groups = stats.Blocks(np.arange(81.0), autocorrelation.waves(80), 0.95, None)
    a, b = ((rng.exponential(5.0, 80), rng.uniform(1.0, 3.0, 80)) for _ in range(2))
    there, back = (paired.paired_ratios(x, y, groups, "J", 80) for x, y in ((a, b), (b, a)))
    assert there.difference.value == pytest.approx(-(back.difference.value or 0.0))
    assert there.ratio.low == pytest.approx(1 / (back.ratio.high or 1.0))
    assert there.p == pytest.approx(back.p)


def test_nothing_in_common_or_no_denominator_says_so() -> None:
    none = paired.paired_requests(np.empty(0), np.empty(0), np.empty(0), _blocks(100), "s")
    assert none.difference.value is None and "no request succeeded" in none.difference.method
    groups = stats.Blocks(np.arange(41.0), autocorrelation.waves(40), 0.95, None)
    zero = paired.paired_ratios((np.ones(40), np.zeros(40)), (np.ones(40), np.ones(40)), groups, "J", 40)
    assert zero.ratio.value is None and "denominator is 0" in zero.ratio.method
