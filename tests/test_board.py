"""The simulated board: exact energy, and what a driver would publish of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.physics.hardware import GPUS
from loadgen.server.gpu import Board

H100 = GPUS["h100-sxm"]
IDLE = H100.context_idle_w


def test_idle_board() -> None:
    board = Board(H100, 10.0)
    assert board.energy_j(9.0) == 0.0
    assert board.energy_j(12.5) == pytest.approx(2.5 * IDLE)
    shown = board.published(12.57)
    assert shown.at_s == pytest.approx(12.5)
    assert shown.energy_j == pytest.approx(2.5 * IDLE)
    assert shown.instant_w == pytest.approx(IDLE)
    assert shown.average_w == pytest.approx(IDLE)


def test_energy_inside_and_around_a_step() -> None:
    board = Board(H100, 0.0)
    assert board.busy(1.0, 0.5, 600.0) == pytest.approx(300.0)
    assert board.energy_j(1.0) == pytest.approx(IDLE)
    assert board.energy_j(1.25) == pytest.approx(IDLE + 150.0)
    assert board.energy_j(1.5) == pytest.approx(IDLE + 300.0)
    assert board.energy_j(2.0) == pytest.approx(1.5 * IDLE + 300.0)
    assert board.end_s == 1.5
    assert board.advance(2.0) == pytest.approx(0.5 * IDLE)
    assert board.advance(1.7) == 0.0


def test_counter_advances_every_100_ms_in_whole_millijoules() -> None:
    board = Board(H100, 0.0)
    board.busy(0.05, 0.3, 333.3333)
    reads = [board.published(t / 1000).energy_j for t in range(400)]
    assert len(set(reads)) == 4
    assert reads == sorted(reads)
    for tick in range(4):
        exact_j = board.energy_j(tick / 10)
        published_j = reads[tick * 100 + 50]
        assert 0 <= exact_j - published_j < 1.001e-3
        assert published_j * 1000 == pytest.approx(round(published_j * 1000), abs=1e-6)


def test_instant_power_sees_a_quarter_of_the_time() -> None:
    # A step in the 25 ms before each publication, idle for the other 75 ms.
    board = Board(H100, 0.0)
    for k in range(20):
        board.busy(k * 0.1 + 0.075, 0.025, 500.0)
    shown = board.published(1.95)
    assert shown.instant_w == pytest.approx(500.0)
    assert shown.average_w == pytest.approx(0.25 * 500 + 0.75 * IDLE)


def test_average_is_over_the_last_second() -> None:
    board = Board(H100, 0.0)
    board.busy(2.0, 0.4, 620.0)
    board.advance(4.0)
    assert board.published(2.4).average_w == pytest.approx(0.4 * 620 + 0.6 * IDLE)
    assert board.published(3.2).average_w == pytest.approx(0.2 * 620 + 0.8 * IDLE)
    assert board.published(3.4).average_w == pytest.approx(IDLE)
    assert board.published(0.3).average_w == pytest.approx(IDLE)  # before the start: idle


def test_refuses_overlap_and_impossible_power() -> None:
    board = Board(H100, 0.0)
    board.busy(0.0, 1.0, 400.0)
    with pytest.raises(ValueError, match="already reaches"):
        board.busy(0.5, 1.0, 400.0)
    with pytest.raises(ValueError, match="outside"):
        board.busy(1.0, 1.0, H100.tdp_w + 1)
    with pytest.raises(ValueError, match="outside"):
        board.busy(1.0, 1.0, H100.bare_idle_w - 1)


def test_memory_is_bounded_and_old_instants_are_refused() -> None:
    board = Board(H100, 0.0)
    total_j = 0.0
    for k in range(50_000):
        total_j += board.busy(k * 0.01, 0.01, 300.0 + k % 2)
    assert len(board._starts) < 6000
    assert board.energy_j(500.0) == pytest.approx(total_j, rel=1e-12)
    assert board.mean_power_w(495.5, 500.0) == pytest.approx(300.5)
    with pytest.raises(ValueError, match="older than the history"):
        board.energy_j(1.0)


segments = st.lists(
    st.tuples(
        st.floats(0, 2, allow_nan=False),
        st.floats(1e-4, 2, allow_nan=False),
        st.floats(H100.bare_idle_w, H100.tdp_w),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(segments, st.floats(0, 1e6))
def test_parts_sum_to_the_whole(parts: list[tuple[float, float, float]], start_s: float) -> None:
    board = Board(H100, start_s)
    sum_j = 0.0
    exact_j = 0.0
    for gap_s, duration_s, power_w in parts:
        at_s = board.end_s + gap_s
        sum_j += board.advance(at_s)
        sum_j += board.busy(board.end_s, duration_s, power_w)
        exact_j += gap_s * IDLE + duration_s * power_w
    assert sum_j == pytest.approx(board.energy_j(board.end_s), rel=1e-9)
    # Instants near 1e6 s resolve 1e-10 s.
    assert sum_j == pytest.approx(exact_j, rel=1e-9, abs=1e-6 * (1 + len(parts)))
    span_s = board.end_s - start_s
    assert H100.bare_idle_w * span_s * (1 - 1e-9) <= sum_j <= H100.tdp_w * span_s * (1 + 1e-9)


@settings(deadline=None)
@given(segments)
def test_published_counter_never_runs_backwards(parts: list[tuple[float, float, float]]) -> None:
    board = Board(replace(H100, context_idle_w=100.0), 0.0)
    last_j = 0.0
    for gap_s, duration_s, power_w in parts:
        board.busy(board.end_s + gap_s, duration_s, power_w)
        shown = board.published(board.end_s)
        assert shown.energy_j >= last_j
        assert shown.energy_j <= board.energy_j(board.end_s) + 1e-6
        assert H100.bare_idle_w - 1e-6 <= shown.instant_w <= H100.tdp_w + 1e-6
        last_j = shown.energy_j
