"""Comparisons: pairing, coverage of differences and ratios, runs as samples, Holm, equal load."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import stats
from analysis.stats import pairs
from loadgen.types import Estimate


def _blocks(n: int) -> stats.Blocks:
    return stats.choose_blocks(0.0, float(n), np.arange(n, dtype=float), np.full(n, 0.01))


def test_requests_pair_only_when_all_are_shared_with_equal_prompts() -> None:
    a = {1: "x", 2: "y"}
    assert pairs.shared_requests(a, {2: "y", 1: "x"}) == ([1, 2], None)
    assert "another prompt" in str(pairs.shared_requests(a, {1: "x", 2: "z"})[1])
    assert "only 1 of 2 and 1" in str(pairs.shared_requests(a, {1: "x"})[1])
    assert pairs.shared_requests(a, {3: "x"}) == ([], "the runs share no request")


def test_pairing_removes_what_the_requests_have_in_common() -> None:
    rng = np.random.default_rng(21)
    n = 1000
    common = rng.lognormal(0.0, 1.0, n)
    a, b = common + rng.normal(0, 0.01, n), common + 0.02 + rng.normal(0, 0.01, n)
    at_s, blocks = np.arange(n, dtype=float), _blocks(n)
    paired = pairs.paired_requests(a, b, at_s, blocks, "s")
    index = blocks.index(at_s)
    apart = pairs.unpaired(stats.mean(a, index, blocks, "s"), stats.mean(b, index, blocks, "s"))
    assert paired.difference.low is not None and paired.difference.high is not None
    assert 0.018 < paired.difference.low < 0.02 + 1e-3 < 0.023
    assert paired.difference.high - paired.difference.low < 0.004
    assert apart.difference.low is not None and apart.difference.low < 0 < (apart.difference.high or 0)
    assert paired.p is not None and paired.p < 1e-6
    assert apart.p is not None and apart.p > 0.05
    assert "one pair of runs" in paired.notes[0]


def test_unpaired_differences_and_ratios_hold_the_truth() -> None:
    rng = np.random.default_rng(4)
    blocks = _blocks(600)
    index = blocks.index(np.arange(600.0))
    held = np.zeros(2)
    for _ in range(300):
        a = stats.mean(rng.exponential(1.0, 600), index, blocks, "s")
        b = stats.mean(rng.exponential(2.0, 600), index, blocks, "s")
        found = pairs.unpaired(a, b)
        for i, (estimate, truth) in enumerate(((found.difference, 1.0), (found.ratio, 2.0))):
            assert estimate.low is not None and estimate.high is not None
            held[i] += estimate.low <= truth <= estimate.high
    assert ((held / 300 >= 0.915) & (held / 300 <= 0.985)).all()


def test_missing_sides_leave_the_reason() -> None:
    known = Estimate(2.0, "s", 1.9, 2.1, 0.95, 10, "mean")
    gone = pairs.unpaired(known, stats.missing("s", "no power"))
    assert gone.difference.value is None and "no power" in gone.difference.method
    bare = pairs.unpaired(known, stats.exact(3.0, "s", 5, "no interval: 5 requests are too few"))
    assert (bare.difference.value, bare.difference.low, bare.p) == (1.0, None, None)
    assert "too few" in bare.ratio.method
    with pytest.raises(ValueError, match="one unit"):
        pairs.unpaired(known, stats.exact(3.0, "J", 5, ""))


def test_runs_as_samples_match_students_paired_example() -> None:
    # differences 1, 2, 3, 4, 5: mean 3, standard error sqrt(2.5 / 5), t(4) 2.776
    found = pairs.over_runs([10, 10, 10, 10, 10], [11, 12, 13, 14, 15], "J", interleaved=True)
    assert found.difference.value == pytest.approx(3.0)
    assert found.difference.low == pytest.approx(3 - 2.7764 * 0.5**0.5, abs=1e-3)
    assert found.p == pytest.approx(0.01324, abs=1e-4)  # t = 4.2426 with 4 degrees of freedom
    assert found.notes == ()
    assert found.ratio.value == pytest.approx((1.1 * 1.2 * 1.3 * 1.4 * 1.5) ** 0.2)


def test_few_runs_and_runs_not_in_turn_are_said() -> None:
    one = pairs.over_runs([10.0], [11.0], "J", interleaved=True)
    assert (one.difference.value, one.difference.low, one.p) == (1.0, None, None)
    assert "one pair of runs" in one.notes[0]
    three = pairs.over_runs([10, 11, 12], [11, 13, 12], "J", interleaved=False)
    assert "5 or more" in three.notes[0] and "not taken in turn" in three.notes[1]
    assert pairs.taken_in_turn([0, 3, 4], [1, 2, 5])
    assert not pairs.taken_in_turn([0, 1, 2], [3, 4, 5])
    with pytest.raises(ValueError, match="as many runs"):
        pairs.over_runs([1.0, 2.0], [1.0], "J", interleaved=True)


def test_holm_by_hand_and_its_familywise_error() -> None:
    assert pairs.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert pairs.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    drawn = np.random.default_rng(9).uniform(size=(2000, 8))
    false = [min(pairs.holm({str(i): p for i, p in enumerate(row)}).values()) <= 0.05 for row in drawn]
    assert np.mean(false) == pytest.approx(0.05, abs=0.015)


def _rate(value: float, half: float | None) -> Estimate:
    ends = (None, None) if half is None else (value - half, value + half)
    return Estimate(value, "1/s", *ends, 0.95, 100, "no interval: short" if half is None else "mean")


@pytest.mark.parametrize(
    ("a", "b", "equal", "words"),
    [
        (_rate(20.0, 0.1), _rate(20.1, 0.1), True, "equal within 5%"),
        (_rate(20.0, 0.1), _rate(15.0, 0.1), False, "NOT equal"),
        (_rate(20.0, 2.0), _rate(20.0, 2.0), None, "cannot be told"),
        (_rate(20.0, None), _rate(20.5, None), True, "by the values alone"),
        (_rate(20.0, 0.1), stats.missing("1/s", "nothing was sent"), None, "nothing was sent"),
    ],
)
def test_equal_load_is_checked_and_said(a: Estimate, b: Estimate, equal: bool | None, words: str) -> None:
    verdict = pairs.same_load({"rate": a}, {"rate": b})
    assert verdict.equal is equal
    assert words in verdict.sentences[0]


def test_one_unequal_quantity_makes_the_load_unequal() -> None:
    a = {"rate": _rate(20.0, 0.1), "output tokens": _rate(50.0, 0.1), "prompt tokens": _rate(9.0, 5.0)}
    b = {"rate": _rate(20.0, 0.1), "output tokens": _rate(80.0, 0.1), "prompt tokens": _rate(9.0, 5.0)}
    assert pairs.same_load(a, b).equal is False
    assert pairs.same_load(a, {"rate": _rate(20.0, 0.1)}).equal is None
