"""Comparisons: coverage of differences and ratios, p values, runs as samples, Holm, equal load."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import stats
from analysis.stats import equal_load, pairs, student
from loadgen.types import Estimate


def _blocks(n: int) -> stats.Blocks:
    return stats.choose_blocks(0.0, float(n), np.arange(n, dtype=float), np.full(n, 0.01))


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


def test_what_rounding_leaves_of_equal_values_is_no_difference() -> None:
    """Found: 50 W summed in two orders differed by 1e-14 W, with p = 0."""
    a, b = (
        Estimate(w, "W", w, w, 0.95, 240, "the same in all 240 blocks") for w in (50.000000000000014, 50.0)
    )
    found = pairs.unpaired(a, b)
    assert (found.difference.value, found.difference.low, found.difference.high) == (0.0, 0.0, 0.0)
    assert found.p == 1.0 and (found.ratio.low, found.ratio.value, found.ratio.high) == (1.0, 1.0, 1.0)
    other = Estimate(50.001, "W", 50.001, 50.001, 0.95, 240, "the same in all 240 blocks")
    assert pairs.unpaired(a, other).p == 0.0


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


def test_the_degrees_of_freedom_are_those_that_made_the_interval() -> None:
    rng = np.random.default_rng(3)
    blocks = _blocks(600)
    mean = stats.mean(rng.exponential(1.0, 600), blocks.index(np.arange(600.0)), blocks, "s")
    assert mean.low is not None
    assert pairs.degrees_of(mean) == 15  # independent values take all the waves
    # Student's table: with 10 degrees 2.228 is the 5 % point and 3.169 the 1 % point.
    ends = Estimate(5.0, "s", 5.0 - 2.2281, 5.0 + 2.2281, 0.95, 10, "t(10) interval")
    assert pairs.p_of(ends, 5.0 - 2.2281, 10) == pytest.approx(0.05, abs=1e-4)
    assert pairs.p_of(ends, 5.0 + 3.1693, 10) == pytest.approx(0.01, abs=1e-4)
    assert pairs.p_of(stats.exact(5.0, "s", 10, "no interval: few"), 0.0, 10) is None


def test_p_of_no_difference_is_uniform_far_into_the_tail() -> None:
    rng = np.random.default_rng(17)
    blocks = _blocks(300)
    index = blocks.index(np.arange(300.0))
    drawn = rng.normal(10.0, 1.0, (1500, 2, 300))
    p = np.array(
        [pairs.unpaired(*(stats.mean(x, index, blocks, "s") for x in pair)).p for pair in drawn], dtype=float
    )
    for level in (0.2, 0.05, 0.01):  # Holm's rule needs the small ones to be right too
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * (level / 1500) ** 0.5)


def test_swapping_the_sides_turns_the_sign_and_inverts_the_ratio() -> None:
    a = Estimate(2.0, "J", 1.7, 2.2, 0.95, 50, "t(12) interval")
    b = Estimate(3.0, "J", 2.9, 3.4, 0.95, 50, "t(14) interval")
    there, back = pairs.unpaired(a, b), pairs.unpaired(b, a)
    assert (there.difference.low, there.difference.high) == pytest.approx(
        (-back.difference.high, -back.difference.low)
    )  # type: ignore[operator]
    assert (there.ratio.low, there.ratio.high) == pytest.approx((1 / back.ratio.high, 1 / back.ratio.low))  # type: ignore[operator]
    assert there.p == pytest.approx(back.p)
    assert pairs.unpaired(a, a).ratio.value == 1.0


def test_runs_that_make_no_pairs_are_compared_as_welch_did() -> None:
    # Variances 2.5 and 10: error sqrt(0.5 + 2), 2.5**2 / (0.5**2 / 4 + 2**2 / 4) = 5.88 degrees, 5 taken.
    found = pairs.independent_runs([1, 2, 3, 4, 5], [2, 4, 6, 8, 10], "J")
    half = student.two_sided(0.95, 5) * 2.5**0.5
    assert (found.difference.value, found.difference.low) == (3.0, pytest.approx(3.0 - half))
    assert "(Welch)" in found.difference.method and "5 and 5 runs make no pairs" in found.notes[0]
    alone = pairs.independent_runs([4.0], [5.0, 6.0], "J")
    assert (alone.difference.value, alone.difference.low, alone.p) == (1.5, None, None)
    assert pairs.mean_of_runs([10.0], "J").low is None
    # mean 12, deviation 2, t(2) = 4.3027
    three = pairs.mean_of_runs([10.0, 12.0, 14.0], "J")
    assert three.high == pytest.approx(12 + 4.3027 * 2 / 3**0.5, abs=1e-3)


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
        (_rate(20.0, 0.1), _rate(20.1, 0.1), True, "equal within 5 %"),
        (_rate(20.0, 0.1), _rate(15.0, 0.1), False, "NOT equal"),
        (_rate(20.0, 2.0), _rate(20.0, 2.0), None, "cannot be told"),
        (_rate(20.0, None), _rate(20.5, 0.1), None, "by the values alone: without an interval it cannot"),
        (_rate(20.0, None), _rate(20.0, None), True, "by the values alone"),
        (_rate(20.0, None), _rate(30.0, None), False, "by the values alone"),
        (stats.exact(20.0, "1/s", 9, "x"), stats.exact(20.5, "1/s", 9, "x"), True, "by the values alone"),
        (_rate(20.0, 0.1), stats.missing("1/s", "nothing was sent"), None, "nothing was sent"),
    ],
)
def test_equal_load_is_checked_and_said(a: Estimate, b: Estimate, equal: bool | None, words: str) -> None:
    verdict = equal_load.same_load({"rate": a}, {"rate": b})
    assert verdict.equal is equal
    assert words in verdict.sentences[0]


def test_one_unequal_quantity_makes_the_load_unequal() -> None:
    a = {"rate": _rate(20.0, 0.1), "output tokens": _rate(50.0, 0.1), "prompt tokens": _rate(9.0, 5.0)}
    b = {"rate": _rate(20.0, 0.1), "output tokens": _rate(80.0, 0.1), "prompt tokens": _rate(9.0, 5.0)}
    assert equal_load.same_load(a, b).equal is False
    assert equal_load.same_load(a, {"rate": _rate(20.0, 0.1)}).equal is None
    wide = {"rate": _rate(20.0, 5.0)}
    told = equal_load.same_load(wide, wide)
    assert (told.equal, told.as_happened) == (None, True)
    none = {"tokens": stats.exact(0.0, "tokens", 3, "counted")}
    assert equal_load.same_load(none, none).equal is True
