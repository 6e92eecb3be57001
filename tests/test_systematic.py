"""Systematic parts combine as the GUM's worked rules say, and a gain cancels on its own board only."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.stats.systematic import Board, Component, combine, of_energy, of_ratio


def test_standard_uncertainties_are_those_of_the_distributions() -> None:
    rng = np.random.default_rng(6)
    assert Component("a", 5.0).standard == pytest.approx(rng.uniform(-5, 5, 400_000).std(), rel=0.01)
    drawn = rng.triangular(-5, 0, 5, 400_000).std()
    assert Component("a", 5.0, "triangular").standard == pytest.approx(drawn, rel=0.01)
    assert Component("a", 5.0, "normal").standard == 2.5


def test_three_four_make_five() -> None:
    parts = [Component("a", 6.0, "normal"), Component("b", 8.0, "normal")]
    found = combine("J", parts)
    assert (found.standard, found.expanded) == (pytest.approx(5.0), pytest.approx(10.0))
    assert "k = 2" in found.describe()


def test_energy_of_two_boards_with_clock_and_edges() -> None:
    boards = [Board("GPU-a", 3000.0, 0.05), Board("GPU-b", 4000.0, 0.05)]
    found = of_energy(boards, clock_bound_s=0.01, power_step_w=400.0, edges_j=30.0)
    # half-widths 150, 200, 4 (10 ms x 400 W), 30 J; rectangular
    assert found.standard == pytest.approx(math.sqrt((150**2 + 200**2 + 4**2 + 30**2) / 3))
    assert found.missing == ()


def test_what_is_not_known_is_named_and_not_counted_as_nothing() -> None:
    found = of_energy([Board("GPU-a", 1000.0, None)], edges_j=3.0)
    assert set(found.missing) == {"gain of GPU-a", "clock"}
    assert "not known: gain of GPU-a, clock" in found.describe()
    with pytest.raises(ValueError, match="half-width >= 0"):
        Component("edges", math.nan)


def test_a_gain_cancels_on_the_same_board_and_not_between_boards() -> None:
    same = of_ratio([Board("GPU-a", 900.0, 0.05)], [Board("GPU-a", 1300.0, 0.05)])
    assert same.standard == 0.0
    other = of_ratio([Board("GPU-b", 900.0, 0.05)], [Board("GPU-a", 1300.0, 0.05)])
    assert other.standard == pytest.approx(0.05 * math.sqrt(2 / 3))
    edges = of_energy([], edges_j=9.0, clock_bound_s=0.0, power_step_w=0.0)
    with_edges = of_ratio([Board("GPU-a", 900.0, 0.05)], [Board("GPU-a", 1300.0, 0.05)], edges)
    assert with_edges.standard == pytest.approx(0.01 / math.sqrt(3))


def test_partly_shared_boards_agree_with_drawn_gains() -> None:
    rng = np.random.default_rng(12)
    gain = 1 + rng.uniform(-0.05, 0.05, (3, 200_000))
    ratios = (600 * gain[0] + 400 * gain[1]) / (300 * gain[0] + 700 * gain[2])
    above = [Board("a", 600.0, 0.05), Board("b", 400.0, 0.05)]
    found = of_ratio(above, [Board("a", 300.0, 0.05), Board("c", 700.0, 0.05)])
    assert found.standard == pytest.approx(np.log(ratios).std(), rel=0.02)


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="energies > 0"):
        of_ratio([Board("a", 1.0, 0.05)], [])
