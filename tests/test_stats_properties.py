"""Properties every interval has, whatever the data: equivariance, order within a block, holding its value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import stats
from loadgen.types import Estimate, Floats

QS = (0.05, 0.5, 0.9, 0.99)
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def samples(draw: st.DrawFn) -> tuple[Floats, stats.Blocks, stats.Ints]:
    """80 to 600 values: smooth, skewed, dependent, of few distinct values, or all alike; their blocks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(80, 600))
    kind = draw(st.sampled_from(["normal", "lognormal", "walk", "two", "few", "equal", "one apart"]))
    values: Floats = {
        "normal": lambda: rng.normal(5.0, 1.0, n),
        "lognormal": lambda: rng.lognormal(0.0, 1.5, n),
        "walk": lambda: 50.0 + np.cumsum(rng.normal(size=n)),
        "two": lambda: rng.integers(1, 3, n).astype(np.float64),
        "few": lambda: rng.poisson(2.0, n) + 1.0,
        "equal": lambda: np.full(n, 0.1),
        "one apart": lambda: np.append(np.full(n - 1, 0.1), 7.0),
    }[kind]()
    due_s = np.sort(rng.uniform(0.0, float(n), n))
    blocks = stats.choose_blocks(0.0, float(n), due_s, np.array([0.01]))
    return values, blocks, blocks.index(due_s)


def _all(values: Floats, index: stats.Ints, blocks: stats.Blocks) -> list[Estimate]:
    """Every kind of estimate of these values, in order."""
    whole = blocks.counts(index)
    return [
        stats.mean(values, index, blocks, "s"),
        stats.std(values, index, blocks, "s"),
        *stats.quantiles(values, index, QS, blocks, "s"),
        stats.ratio(blocks.sums(values, index), whole, blocks, "s", len(values)),
    ]


def _same(a: Estimate, b: Estimate, scale: float = 1.0, shift: float = 0.0, slack: float = 1e-7) -> None:
    """b is a x scale + shift, up to ``slack`` of the size of the numbers at hand."""
    assert (a.low is None) == (b.low is None), (a.method, b.method)
    size = abs(shift) + scale * max(abs(x) for x in (a.value, a.low, a.high) if x is not None)
    for one, other in ((a.value, b.value), (a.low, b.low), (a.high, b.high)):
        if one is not None and other is not None:
            assert other == pytest.approx(one * scale + shift, rel=0, abs=slack * size)


@SETTINGS
@given(samples())
def test_an_interval_holds_its_value_and_its_numbers_are_finite(
    made: tuple[Floats, stats.Blocks, stats.Ints],
) -> None:
    values, blocks, index = made
    for estimate in _all(values, index, blocks):
        assert estimate.value is not None
        assert math.isfinite(estimate.value)
        assert (estimate.low is None) == (estimate.high is None)
        if estimate.low is None or estimate.high is None:
            assert "no interval: " in estimate.method
            continue
        assert math.isfinite(estimate.low) and math.isfinite(estimate.high)
        assert estimate.low <= estimate.value <= estimate.high
    for quantile in stats.quantiles(values, index, QS, blocks, "s"):
        if quantile.low is not None and quantile.high is not None:
            assert values.min() <= quantile.low <= quantile.high <= values.max()


@SETTINGS
@given(samples(), st.sampled_from([1e-9, 1e-3, 3.7, 1e6, 1e12]))
def test_intervals_scale_with_the_values(
    made: tuple[Floats, stats.Blocks, stats.Ints], factor: float
) -> None:
    values, blocks, index = made
    for one, other in zip(_all(values, index, blocks), _all(values * factor, index, blocks), strict=True):
        _same(one, other, scale=factor)


@SETTINGS
@given(samples(), st.sampled_from([-3.0, 0.5, 1e4]))
def test_intervals_of_quantiles_and_deviations_shift_and_stay(
    made: tuple[Floats, stats.Blocks, stats.Ints], shift: float
) -> None:
    values, blocks, index = made
    before, after = _all(values, index, blocks), _all(values + shift, index, blocks)
    assert after[0].value == pytest.approx((before[0].value or 0.0) + shift)
    _same(before[1], after[1], slack=1e-4)
    for one, other in zip(before[2:6], after[2:6], strict=True):
        _same(one, other, shift=shift)


@SETTINGS
@given(samples(), st.integers(0, 2**32 - 1))
def test_the_order_within_a_block_does_not_matter(
    made: tuple[Floats, stats.Blocks, stats.Ints], seed: int
) -> None:
    values, blocks, index = made
    order = np.lexsort((np.random.default_rng(seed).random(len(values)), index))
    for one, other in zip(
        _all(values, index, blocks), _all(values[order], index[order], blocks), strict=True
    ):
        _same(one, other)


@SETTINGS
@given(samples(), st.floats(0.0, 1.0))
def test_a_share_lies_with_its_interval_between_0_and_1_and_its_complement_mirrors_it(
    made: tuple[Floats, stats.Blocks, stats.Ints], level: float
) -> None:
    values, blocks, index = made
    chosen = values <= np.quantile(values, level)
    whole = blocks.counts(index)
    some, rest = (
        stats.share(blocks.counts(index[rows]), whole, blocks, "share") for rows in (chosen, ~chosen)
    )
    assert some.value == pytest.approx(np.mean(chosen))
    assert (some.low is None) == (rest.low is None)
    if some.low is not None and some.high is not None and rest.low is not None and rest.high is not None:
        assert 0.0 <= some.low <= (some.value or 0.0) <= some.high <= 1.0
        assert (some.low, some.high) == (pytest.approx(1 - rest.high), pytest.approx(1 - rest.low))


@SETTINGS
@given(st.lists(st.sampled_from([0.0, 1.0, -2.5, 1e60, math.nan, math.inf]), min_size=1, max_size=200))
def test_what_is_no_number_never_becomes_a_headline(values: list[float]) -> None:
    n = len(values)
    blocks = stats.choose_blocks(0.0, float(n), np.arange(n) + 0.5, np.array([0.01]))
    made, index = np.array(values), blocks.index(np.arange(n) + 0.5)
    for estimate in (stats.mean(made, index, blocks, "s"), *stats.quantiles(made, index, QS, blocks, "s")):
        if not np.isfinite(made).all():
            assert estimate.value is None
            assert "not finite" in estimate.method
