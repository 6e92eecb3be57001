"""NVML's readings against boards whose power is a known function of time: values, stamps, clocks."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import (
    CALLED,
    SENSOR_COUNTER,
    UNSTAMPED,
    Board,
    Host,
    drive,
    python,
    read_times,
)

SQUARE = Board(low=100, high=400, period=2.0, duty=0.3, phase=0.4)


def published_s(board: Board, t_s: float) -> float:
    """The last publication at or before an instant, counted up from the first."""
    k = 0
    while board.publish_phase + (k + 1) * board.publish <= t_s + 1e-9:
        k += 1
    return board.publish_phase + k * board.publish


SIGNALS = {
    "constant": Board(low=312.5),
    "step": Board(low=90, high=640, step=3.7),
    "square": SQUARE,
    "square of 100 ms": Board(low=100, high=500, period=0.2, duty=0.5),
    "square at 73 ms": Board(low=80, high=700, period=0.073, duty=0.4, phase=0.011, publish_phase=0.0371),
    "published every 20 ms": replace(SQUARE, publish=0.02, window=0.02, publish_phase=0.007),
}


def test_readings_are_the_signal_as_it_was_published_at_any_sampling(library: Path) -> None:
    """Values within NVML's 1 mJ and 1 mW of the truth at the publication; power stamped with its instant."""
    boards = [replace(board, window=board.publish) for board in SIGNALS.values()]
    for interval_s, jitter_s in ((0.05, 0.0), (0.1, 0.03), (0.037, 0.01), (0.2, 0.15)):
        times = read_times(8.0, interval_s, jitter_s=jitter_s, start_s=1.0)
        got = drive(library, boards, times=times)
        assert len(got.readings) == 3 * len(boards) * len(times) and not got.warnings
        for n, board in enumerate(boards):
            at = [published_s(board, t) for t in times]
            counted = got.series(f"gpu{n}")
            assert [t for t, _ in counted] == times
            assert [j for _, j in counted] == pytest.approx([board.energy_j(0.0, p) for p in at], abs=1.1e-3)
            shown = got.series(f"gpu{n}.instant")
            assert [t for t, _ in shown] == pytest.approx(at, abs=2e-6)  # the wall clock's float64
            means = [board.energy_j(p - board.window, p) / board.window for p in at]
            assert [w for _, w in shown] == pytest.approx(means, abs=1.1e-3)
            seconds = [board.energy_j(p - 1.0, p) for p in at]
            assert [w for _, w in got.series(f"gpu{n}.average")] == pytest.approx(seconds, abs=1.1e-3)


def test_truth_and_driver_agree_on_random_signals(library: Path) -> None:
    draw = random.Random(7)
    boards = [
        Board(
            low=draw.uniform(40, 200),
            high=draw.uniform(200, 700),
            period=draw.uniform(0.01, 3.0),
            duty=draw.uniform(0.05, 0.95),
            phase=draw.uniform(-1, 1),
            publish=0.0,
        )
        for _ in range(8)
    ]
    times = sorted(draw.uniform(0, 50) for _ in range(40))
    got = drive(library, boards, times=times)
    for n, board in enumerate(boards):
        truth = [board.energy_j(0.0, t) for t in times]
        assert [j for _, j in got.series(f"gpu{n}")] == pytest.approx(truth, abs=1.1e-3)


def test_far_apart_counter_readings_are_off_by_at_most_their_publication(library: Path) -> None:
    """E = last - first; each end is at most one period of power late, whatever the sampling."""
    board = replace(SQUARE, publish_phase=0.043)
    counted = drive(library, [board], seconds=30, interval_s=0.05, jitter_s=0.02).series("gpu0")
    draw = random.Random(3)
    shares = []
    for _ in range(500):
        first, last = sorted(draw.sample(range(len(counted)), 2))
        (a_s, a_j), (b_s, b_j) = counted[first], counted[last]
        if b_s - a_s >= 5:
            error_j = b_j - a_j - board.energy_j(a_s, b_s)
            assert abs(error_j) <= 400 * board.publish + 2e-3
            shares.append(abs(error_j) / board.energy_j(a_s, b_s))
    assert len(shares) > 200 and sorted(shares)[len(shares) // 2] < 0.01


def test_own_time_stamps_make_the_integral_of_a_visible_signal_exact(library: Path) -> None:
    """Each publication is the mean of the 100 ms before its stamp: E = sum of P x 0.1 over stamps."""
    board = replace(SQUARE, publish_phase=0.043)
    shown = drive(library, [board], seconds=20, interval_s=0.05, jitter_s=0.02).series("gpu0.instant")
    by_stamp = {round(t, 4): w for t, w in shown}
    stamps = sorted(by_stamp)
    assert len(stamps) == pytest.approx(200, abs=2)  # 20 s of 100 ms: none missed, none twice
    total_j = sum(by_stamp[t] * 0.1 for t in stamps[1:])
    assert total_j == pytest.approx(board.energy_j(stamps[0], stamps[-1]), rel=1e-5)


def test_a_part_time_sensor_is_wrong_where_the_signal_hides_from_it_and_the_counter_tells(
    library: Path,
) -> None:
    """25 ms of every 100 ms: right for a constant, 2.5 times too high for work that it always meets."""
    hidden = Board(low=100, high=500, period=0.1, duty=0.25, phase=0.075, window=0.025)
    boards = [hidden, replace(hidden, counter=SENSOR_COUNTER), Board(low=321, window=0.025)]
    got = drive(library, boards, seconds=10, interval_s=0.1, jitter_s=0.02)
    assert hidden.energy_j(0, 10) == pytest.approx(2000.0)
    assert {w for _, w in got.series("gpu0.instant")} == {500.0}
    assert got.series("gpu0")[-1][1] == pytest.approx(2000.0)
    assert got.series("gpu1")[-1][1] == pytest.approx(5000.0)  # this counter integrates what its sensor saw
    assert got.series("gpu2")[-1][1] == pytest.approx(3210.0)
    assert {w for _, w in got.series("gpu2.average")} == {321.0}


def test_two_and_eight_boards_are_a_series_each(library: Path) -> None:
    boards = [Board(low=100 + 10 * n, high=400, period=1.0 + n / 10, phase=n / 7) for n in range(8)]
    got = drive(library, boards, seconds=5)
    assert [b["uuid"] for b in got.boards] == [f"GPU-{n}0000000-aaaa" for n in range(1, 9)]
    assert len(got.domains) == 24 and all(len(read) == 24 for read in got.reads)
    for n, board in enumerate(boards):
        (a_s, a_j), (b_s, b_j) = got.series(f"gpu{n}")[0], got.series(f"gpu{n}")[-1]
        assert b_j - a_j == pytest.approx(board.energy_j(a_s, b_s), abs=2e-3)


def test_readings_carry_the_middle_of_their_call_or_the_drivers_own_stamp(library: Path) -> None:
    """Each driver call takes 4 ms and answers in its middle."""
    got = drive(library, [Board(publish=0.0, window=0.0, stamp=CALLED)], host=Host(call=4e-3), times=[1.0])
    stamps = {r.domain: r.t_s for r in got.readings}
    assert stamps["gpu0"] == pytest.approx(1.002, abs=1e-9)
    assert stamps["gpu0.instant"] == stamps["gpu0.average"] == pytest.approx(1.006, abs=2e-6)
    counted = got.series("gpu0")[0]
    assert counted[1] == pytest.approx(100 * counted[0], abs=2e-3)


@pytest.mark.parametrize(
    ("board", "believed"),
    [
        (Board(stamp=CALLED, stamp_off=-1.9), True),
        (Board(stamp=CALLED, stamp_off=0.004), True),
        (Board(stamp=CALLED, stamp_off=-2.1), False),
        (Board(stamp=CALLED, stamp_off=0.02), False),
        (Board(stamp=UNSTAMPED), False),
    ],
)
def test_an_implausible_stamp_is_replaced_and_said_once(library: Path, board: Board, believed: bool) -> None:
    got = drive(library, [board], host=Host(call=2e-3), times=[5.0, 5.1, 5.2])
    first = next(r.t_s for r in got.readings if r.domain == "gpu0.instant")
    assert first == pytest.approx(5.003 + (board.stamp_off if believed else 0.0), abs=2e-6)
    assert len(got.said("gpu0", "time stamps are not believed")) == (not believed)


def test_in_real_time_the_fake_follows_the_monotonic_clock(library: Path) -> None:
    code = (
        "import json, os; from loadgen.power.nvml import NvmlSource; s = NvmlSource.open()\n"
        "rows = [[r.t_s, r.domain, r.power_w, r.energy_j] for r in s.read()]\n"
        "print(json.dumps([rows, os.environ['FAKE_ORIGIN_S']]))\n"
        "s.reopen(); assert len(s.read()) == 3; assert not s.warnings"
    )
    said = python(library, code, [Board(low=100, high=400, period=0.2)], real_time=True)
    read, origin_s = json.loads(said)
    rows = {domain: (t, w, j) for t, domain, w, j in read}
    since_s = rows["gpu0"][0] - float(origin_s)
    assert 0 < since_s < 30
    assert rows["gpu0"][2] == pytest.approx(250 * since_s, abs=400 * 0.1 + 20)
    assert -0.2 < rows["gpu0.instant"][0] - rows["gpu0"][0] < 0.05
    assert rows["gpu0.instant"][1] in (100.0, 400.0)


def test_the_truth_of_the_tests_is_a_sum_over_edges() -> None:
    """By hand: 0.3 of 2 s at 400 W from 0.4 on, else 100 W."""
    assert SQUARE.energy_j(0.0, 2.0) == pytest.approx(0.6 * 400 + 1.4 * 100)
    assert SQUARE.energy_j(0.4, 1.0) == pytest.approx(240.0)
    assert SQUARE.energy_j(0.9, 1.2) == pytest.approx(0.1 * 400 + 0.2 * 100)
    assert (SQUARE.power_w(0.3), SQUARE.power_w(0.5), SQUARE.power_w(1.0)) == (100, 400, 100)
    step = Board(low=10, high=20, step=1.0)
    assert step.energy_j(0.0, 3.0) == pytest.approx(50.0) and step.energy_j(2.0, 3.0) == pytest.approx(20.0)
    assert [step.power_w(t) for t in (0.5, 1.0, 1.5)] == [10, 20, 20]
