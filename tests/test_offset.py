"""The offset of a remote clock: within its own bound whatever the delays, the drift and the steps."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.run import run_time_s
from loadgen.power.offset import SLEW, Exchange, Line, Offset, fastest

DELAYS = st.floats(0, 0.5, allow_nan=False)


@dataclass
class Far:
    """A clock that is ``skew_s`` ahead at 0 and gains ``ppm``; the oracle of these tests."""

    skew_s: float
    ppm: float = 0.0

    def offset_s(self, at_s: float) -> float:
        return self.skew_s + 1e-6 * self.ppm * at_s

    def ask(self, at_s: float, out_s: float, back_s: float) -> Exchange:
        asked_s = at_s + out_s
        return Exchange(at_s, asked_s + self.offset_s(asked_s), asked_s + back_s)


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(DELAYS, DELAYS), min_size=1, max_size=20))
def test_the_offset_is_within_its_bound_however_unequal_the_ways(
    skew_s: float, delays: list[tuple[float, float]]
) -> None:
    far = Far(skew_s)
    found = fastest([far.ask(float(i), out_s, back_s) for i, (out_s, back_s) in enumerate(delays)])
    assert abs(found.offset_s - skew_s) <= found.bound_s + 1e-8
    assert found.round_trips == len(delays)


def test_the_fastest_round_trip_decides_and_slow_ones_do_not_blur_it() -> None:
    far = Far(-1.0)
    slow = [far.ask(float(i), 0.2, 0.3) for i in range(49)]
    found = fastest([*slow, far.ask(50.0, 1e-4, 3e-4)])
    assert found.bound_s == pytest.approx(2e-4, rel=1e-6)
    assert found.offset_s == pytest.approx(-1.0 - 1e-4, abs=1e-9)  # half the ways' difference
    assert found.at_s == pytest.approx(50.0002)


def test_a_clock_that_is_moved_between_two_questions_is_not_called_precise() -> None:
    before, after = Far(0.0), Far(0.5)
    found = fastest([before.ask(0.0, 1e-4, 1e-4), after.ask(1.0, 2e-4, 2e-4)])
    assert abs(found.offset_s - 0.5) <= found.bound_s and abs(found.offset_s) <= found.bound_s


def test_no_round_trip_is_no_offset() -> None:
    with pytest.raises(ValueError):
        fastest([])


class Uneven:
    """A clock whose offset goes through (instant, offset) points: the oracle of `checked`."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self._at_s, self._offset_s = (np.array(column) for column in zip(*points, strict=True))

    def offset_s(self, at_s: float) -> float:
        return float(np.interp(at_s, self._at_s, self._offset_s))

    def ask(self, at_s: float, out_s: float, back_s: float) -> Exchange:
        asked_s = at_s + out_s
        return Exchange(at_s, asked_s + self.offset_s(asked_s), asked_s + back_s)


def followed(
    far: Far | Uneven, seed: int, span_s: float, *, gap_s: float = 1.0
) -> tuple[Line, list[Exchange]]:
    """50 questions at each end, one each ``gap_s`` between; the ways are unequal and jitter, some slow."""
    rng = random.Random(seed)
    least_s, jitter_s, share = 10 ** rng.uniform(-4.5, -2.3), 10 ** rng.uniform(-5, -2.5), rng.random()

    def ask(at_s: float) -> Exchange:
        back_s = least_s * (1 - share) + rng.expovariate(1 / jitter_s) + 0.3 * (rng.random() < 0.05)
        return far.ask(at_s, least_s * share + rng.expovariate(1 / jitter_s), back_s)

    def burst(at_s: float) -> Offset:
        return fastest([ask(at_s + 0.02 * k) for k in range(50)])

    polls = [ask(float(at_s)) for at_s in np.arange(2.0, span_s - 1.0, gap_s)]
    return Line(burst(0.0), burst(span_s)), polls


def worst_s(line: Line, far: Far | Uneven) -> float:
    """How far the line is from the truth at most."""
    instants_s = np.linspace(line.start.at_s, line.end.at_s, 1500)
    return max(abs(line.offset_s(at_s) - far.offset_s(at_s)) for at_s in instants_s)


SPANS = {"100 s": 100.0, "6 h": 6 * 3600.0}


@pytest.mark.parametrize("ppm", [0.0, 50.0, -50.0, 5e4])
@pytest.mark.parametrize("skew_s", [1.0, -1.0])
@pytest.mark.parametrize("span_s", SPANS.values(), ids=SPANS)
def test_a_steady_drift_is_followed_within_the_bound_at_every_instant(
    skew_s: float, ppm: float, span_s: float
) -> None:
    far = Far(skew_s, ppm)
    line, polls = followed(far, 5, span_s)
    ends_s = max(line.start.bound_s, line.end.bound_s)
    bound_s, step_s = line.checked(polls)
    assert step_s == 0.0 and 1e6 * line.drift == pytest.approx(ppm, abs=1e6 * 2 * ends_s / span_s)
    # Between two polls a second apart, one of them slow, the clock could have been slewed and back.
    assert ends_s <= bound_s < 5 * ends_s + 2e-3 + 1e-6 * abs(ppm)
    assert worst_s(line, far) <= bound_s


@pytest.mark.parametrize("seed", range(12))
def test_a_slew_of_the_kernels_most_for_part_of_the_run_stays_within_the_bound(seed: int) -> None:
    """It was not seen where an exchange's own bound hid it: the bound of the ends was stated, and broken."""
    rng = random.Random(seed)
    begin_s, lasts_s = rng.uniform(5, 60), rng.uniform(5, 30)
    slewed_s = 1.0 + 450e-6 * lasts_s
    far = Uneven([(-9, 1.0), (begin_s, 1.0), (begin_s + lasts_s, slewed_s), (200, slewed_s)])
    line, polls = followed(far, seed, 120.0)
    bound_s, _ = line.checked(polls)
    assert worst_s(line, far) <= bound_s * 1.001
    assert worst_s(line, far) > 1.05 * max(line.start.bound_s, line.end.bound_s)


def test_while_the_link_is_broken_the_clock_may_leave_the_line_and_the_bound_says_how_far() -> None:
    line, polls = followed(Far(1.0), 1, 100.0)
    whole_s, _ = line.checked(polls)
    holed_s, step_s = line.checked([e for e in polls if not 30 < e.at_s < 70])
    assert step_s == 0.0 and whole_s < 5e-3
    assert holed_s == pytest.approx(SLEW * 40 / 2, abs=5e-3)


@pytest.mark.parametrize("step_s", [0.03, -0.3, 4e-3])
def test_a_clock_moved_in_mid_run_widens_the_bound_until_it_holds_there(step_s: float) -> None:
    far = Uneven([(-9, 1.0), (40.3, 1.0), (40.3 + 1e-6, 1.0 + step_s), (200, 1.0 + step_s)])
    line, polls = followed(far, 3, 100.0)
    bound_s, seen_s = line.checked(polls)
    assert worst_s(line, far) <= bound_s < 2 * abs(step_s) + 0.4
    assert seen_s == pytest.approx(0.6 * abs(step_s), rel=0.3)


def test_bounds_of_a_step_by_hand() -> None:
    ends = Line(Offset(0.0, 1.0, 1e-4, 50), Offset(100.0, 1.0, 1e-4, 50))
    polls = [Far(1.0).ask(float(at_s), 1e-3, 1e-3) for at_s in range(1, 100) if at_s != 50]
    bound_s, step_s = ends.checked([*polls, Far(1.03).ask(50.0, 1e-3, 2e-3)])
    # 30 ms off, asked within 1.5 ms, of which the asymmetry hides 0.5; 1 s to the next poll.
    assert step_s == pytest.approx(0.03 - 2e-3, abs=1e-3)
    assert bound_s == pytest.approx(0.03 - 0.5e-3 + 1.5e-3 + 0.75 * SLEW * 2, abs=1e-3)


@pytest.mark.parametrize("ppm", [50.0, -5e4])
def test_drift_is_taken_out_of_instants_exactly(ppm: float) -> None:
    """What is written is the far clock less its offset at the start; what is read is our clock again."""
    far, start_s = Far(1.0, ppm), -7.0
    ours_s = np.linspace(-7.0, 90.0, 40)
    written_s = np.array([t + far.offset_s(t) - far.offset_s(start_s) for t in ours_s])
    clock = {"start": {"at_s": start_s}, "drift_ppm": ppm}
    assert run_time_s(written_s, clock) == pytest.approx(ours_s, abs=1e-9)
    assert run_time_s(written_s, None) is written_s
    assert run_time_s(written_s, {"start": {"at_s": start_s}, "drift_ppm": None}) is written_s
