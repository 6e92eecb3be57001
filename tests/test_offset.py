"""The offset of a remote clock: within its own bound whatever the delays, the drift and the steps."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.load import run_time_s
from loadgen.power.offset import Exchange, Line, Offset, fastest

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


@pytest.mark.parametrize("ppm", [0.0, 50.0, -50.0, 5e4])
@pytest.mark.parametrize("skew_s", [1.0, -1.0])
def test_a_steady_drift_is_followed_within_the_bound_at_every_instant(skew_s: float, ppm: float) -> None:
    rng, far = random.Random(5), Far(skew_s, ppm)

    def burst(at_s: float) -> Offset:
        return fastest(
            [far.ask(at_s + 0.01 * k, rng.expovariate(500), rng.expovariate(100)) for k in range(50)]
        )

    line = Line(burst(0.0), burst(100.0))
    assert 1e6 * line.drift == pytest.approx(ppm, abs=1e6 * 2 * line.bound_s / 99)
    polls = [far.ask(float(k), rng.expovariate(200), rng.expovariate(50)) for k in range(1, 100)]
    assert line.checked(polls) == (line.bound_s, 0.0)  # slow, not inconsistent
    # A gain of 5 % while one round trip is under way moves the truth by 5 % of it: 1e-3 s at most here.
    slack_s = 1e-6 * abs(ppm) * 0.02
    for at_s in np.linspace(0.5, 100, 50):
        assert abs(line.offset_s(at_s) - far.offset_s(at_s)) <= line.bound_s + slack_s


def test_a_clock_moved_in_mid_run_widens_the_bound_until_it_holds_there() -> None:
    ends = Line(Offset(0.0, 1.0, 1e-4, 50), Offset(100.0, 1.0, 1e-4, 50))
    moved = Far(1.03).ask(50.0, 1e-3, 2e-3)
    bound_s, step_s = ends.checked([Far(1.0).ask(20.0, 1e-3, 5e-3), moved])
    assert bound_s >= 0.03 and step_s == pytest.approx(0.03, abs=3e-3)
    assert bound_s == pytest.approx(0.03, abs=4e-3)


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
