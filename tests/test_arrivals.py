from __future__ import annotations

import math

import numpy as np
import pytest

from loadgen import arrivals as a
from loadgen.seeds import streams
from loadgen.types import ArrivalProcess

LAWS: list[ArrivalProcess] = [
    a.Constant(0.05),
    a.Uniform(0.0, 0.1),
    a.UniformScript(0.05, 0.3),
    a.Poisson(20.0),
    a.Gamma(20.0, 0.5),
    a.Gamma(20.0, math.inf),
    a.Steps((a.Stage(5, 40), a.Stage(0, 10), a.Stage(20, 40)), "poisson"),
    a.Ramp(0, 40, 200),
    a.Sine(10, 0.9, 60, -1.5, "poisson"),
    a.OnOff(30, 5, 10),
    a.OnOff(30, 5, 10, 2, "exponential", "poisson"),
    a.UniformLiteral(0.0, 0.1),
    a.AllAtOnce(),
    a.ClosedLoop(),
    a.Trace(np.cumsum(np.full(900, 0.1))),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_every_law_is_sorted_from_zero_seeded_and_of_the_asked_length(law: ArrivalProcess) -> None:
    times_s = law.times(800, rng(3))
    assert times_s.shape == (800,) and times_s.dtype == np.float64
    assert times_s[0] == 0.0 and np.all(np.diff(times_s) >= 0)
    assert np.array_equal(times_s, law.times(800, rng(3)))


@pytest.mark.parametrize(
    ("law", "mean_s", "cv"),
    [
        (a.Uniform(0.05, 0.3), 0.175, 0.25 / math.sqrt(12) / 0.175),
        (a.Poisson(4.0), 0.25, 1.0),
        (a.Gamma(4.0, 0.25), 0.25, 2.0),
        (a.Gamma(4.0, 16.0), 0.25, 0.25),
    ],
)
def test_gaps_have_the_mean_and_cv_of_their_law(law: ArrivalProcess, mean_s: float, cv: float) -> None:
    n = 200_000
    gaps_s = np.diff(law.times(n, rng(1)))
    # Five standard errors; that of the CV uses the fourth moment of the widest law here.
    assert gaps_s.mean() == pytest.approx(mean_s, abs=5 * cv * mean_s / math.sqrt(n))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=5 * 3 / math.sqrt(n) * max(cv, 1))
    assert a.describe(law.times(n, rng(1))).lag1 == pytest.approx(0, abs=5 / math.sqrt(n))


def test_constant_does_not_drift() -> None:
    assert a.Constant(0.05).times(10_001, rng())[-1] == 500.0


def test_infinite_burstiness_is_constant_and_burstiness_is_the_shape() -> None:
    assert np.array_equal(a.Gamma(20, math.inf).times(50, rng()), a.Constant(0.05).times(50, rng()))
    bursty, calm = (a.describe(a.Gamma(20, b).times(5000, rng())).gap_cv for b in (0.2, 5.0))
    assert bursty is not None and calm is not None and bursty > 1 > calm


def test_poisson_counts_have_dispersion_one_and_constant_counts_none() -> None:
    assert a.describe(a.Poisson(20).times(40_000, rng())).dispersion == pytest.approx(1.0, abs=0.15)
    shape = a.describe(a.Constant(0.05).times(10_000, rng()))
    assert shape.gap_cv == 0 and shape.dispersion == 0 and shape.rate_rps == pytest.approx(20)


def script_literally(n: int, low_s: float, high_s: float, seed: int) -> np.ndarray:
    """The study's loop, draw by draw: request i sleeps for its own i fresh uniforms."""
    draw = np.random.default_rng(seed)
    return np.sort([sum(draw.uniform(low_s, high_s, i)) for i in range(1, n + 1)])


def test_uniform_script_is_the_studys_loop_in_law() -> None:
    """Published for one seed of the study's script: gap CV 0.86 over 100 requests, 0.99 over 5,000."""

    def cv(times_s: np.ndarray) -> float:
        gaps_s = np.diff(times_s)
        return float(gaps_s.std() / gaps_s.mean())

    law = a.UniformScript(0.05, 0.3)
    ours = [cv(law.times(100, rng(k))) for k in range(200)]
    literal = [cv(script_literally(100, 0.05, 0.3, 1000 + k)) for k in range(200)]
    error = 5 * np.std(ours) / math.sqrt(200) * math.sqrt(2)
    assert np.mean(ours) == pytest.approx(np.mean(literal), abs=error)
    assert np.mean(ours) == pytest.approx(0.86, abs=2 * np.std(ours))
    assert np.mean([cv(law.times(5000, rng(k))) for k in range(5)]) == pytest.approx(0.99, abs=0.02)
    # The mean over all requests is that of sums of 1..n uniforms, m (n + 1) / 2, less the first (about m).
    means_s = [law.times(2000, rng(k)).mean() for k in range(100)]
    assert np.mean(means_s) == pytest.approx(0.175 * 2001 / 2 - 0.175, abs=0.2)


def test_steps_hold_their_rates_and_lose_nothing_at_the_edges() -> None:
    steps = a.Steps((a.Stage(10, 5), a.Stage(0, 3), a.Stage(4, 5)))
    times_s = steps.times(10_000, rng())
    assert len(times_s) == 70
    assert np.sum(times_s < 5) == 50 and np.sum((times_s >= 5) & (times_s < 8)) == 0
    assert times_s[50] == pytest.approx(8.0) and times_s[-1] < 13
    counts = [np.sum(a.Steps((a.Stage(50, 100),), "poisson").times(20_000, rng(k)) < 100) for k in range(20)]
    assert np.mean(counts) == pytest.approx(5000, abs=5 * math.sqrt(5000 / 20))


def test_a_trace_is_scaled_thinned_and_cut() -> None:
    recorded_s = np.sort(rng(5).uniform(100, 3600, 20_000))
    whole = a.Trace(recorded_s)
    assert np.allclose(whole.times(20_000, rng()), recorded_s - recorded_s[0])
    assert np.allclose(a.Trace(recorded_s, time_scale=0.5).times(99, rng()), whole.times(99, rng()) / 2)
    thinned = a.Trace(recorded_s, thin=0.25)
    rows = thinned.rows(rng(2))
    assert len(rows) == pytest.approx(5000, abs=5 * math.sqrt(20_000 * 0.25 * 0.75))
    assert np.allclose(thinned.at(rows), recorded_s[rows] - recorded_s[rows[0]])
    assert (
        a.Trace(recorded_s, max_duration_s=60).at(a.Trace(recorded_s, max_duration_s=60).rows(rng()))[-1] < 60
    )
    assert len(a.Trace(recorded_s, max_requests=7).rows(rng())) == 7


@pytest.mark.parametrize("law", LAWS[:11], ids=repr)
def test_a_duration_gives_the_prefix_of_what_a_count_gives(law: ArrivalProcess) -> None:
    if isinstance(law, a.UniformScript):
        return  # its early arrivals depend on how many there are: requests overtake each other
    inside = a.count_within(law, 30.0, rng(4))
    many = law.times(5000, rng(4))
    assert np.array_equal(inside, many[many < 30.0])
    assert len(a.count_within(law, 30.0, rng(4), limit=10)) == 10


def test_what_is_too_short_to_describe_says_none() -> None:
    assert a.describe(np.array([])).rate_rps is None
    assert a.describe(np.array([0.0])).gap_cv is None
    assert a.describe(np.zeros(100)) == a.Shape(100, 0.0, None, None, None, None)
    two = a.describe(np.array([0.0, 0.5]))
    assert two.rate_rps == 2 and two.dispersion is None and two.lag1 is None and two.gap_cv is None


def test_a_duration_misses_no_request_that_overtakes() -> None:
    """Request 257 of the script may arrive before request 256: counts at the cut must stay unbiased."""
    law, cut_s = a.UniformScript(0.05, 0.3), 256 * 0.175
    counts = [len(a.count_within(law, cut_s, rng(k))) for k in range(100)]
    whole = [int(np.sum(law.times(2048, rng(1000 + k)) < cut_s)) for k in range(100)]
    error = 5 * math.hypot(np.std(counts), np.std(whole)) / math.sqrt(100)
    assert np.mean(counts) == pytest.approx(np.mean(whole), abs=error)
    assert max(counts) > 256


def test_a_trace_thinned_to_nothing_is_empty() -> None:
    trace = a.Trace(np.arange(10.0), thin=1e-12)
    assert trace.times(10, rng()).shape == (0,)


def test_rounding_at_a_boundary_moves_no_arrival_into_the_stage_before() -> None:
    """0.07/s for 100 s holds 7 arrivals, though 0.07 * 100 exceeds 7 in floating point."""
    times_s = a.Steps((a.Stage(0.07, 100), a.Stage(0, 10), a.Stage(1, 5))).times(999, rng())
    assert 0.07 * 100 > 7 and np.sum(times_s < 100) == 7 and times_s[7] == pytest.approx(110)


def test_streams_do_not_move_each_other_and_zero_is_a_seed() -> None:
    one, two = streams(0), streams(0)
    one.arrivals.random(1000)
    assert one.prompts.random() == two.prompts.random()
    assert streams(0).arrivals.random() != streams(1).arrivals.random()
    assert streams(0).arrivals.random() != streams(0).prompts.random()
