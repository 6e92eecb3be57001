"""Energy per request of the engine against figures of an independent prototype of the same model.

1,300 prompt tokens, Llama-3.1-8B in bfloat16 on H100, idle energy included.
"""

from __future__ import annotations

import numpy as np
import pytest
from engines import GPU, Floats, alike, simulate, tgi

from loadgen.arrivals import Constant, Gamma, Poisson, Uniform
from loadgen.types import ArrivalProcess

IDLE_W = GPU.context_idle_w
TOLERANCE = 0.05
"""What issue 3 asks for."""


def joules_per_request(times_s: Floats, reply: int) -> float:
    """All energy from the first arrival to the last reply, per request."""
    run = simulate(tgi(), alike(np.diff(times_s, prepend=times_s[0]), 1300, reply))
    return (run.busy_j + (run.end_s - run.busy_s) * IDLE_W) / len(times_s)


def unit_times(process: ArrivalProcess, n: int) -> Floats:
    """Arrivals from 0 on, their mean gap exactly 1."""
    times = process.times(n, np.random.default_rng(11))
    since_first = times - times[0]
    return np.asarray(since_first * ((n - 1) / since_first[-1]), dtype=np.float64)


@pytest.mark.parametrize(
    ("process", "mean_gap", "reference_j"),
    [
        (Constant(1.0), 0.995, (30.6, 46.1, 68.1, 89.9, 149, 212, 691)),
        (Uniform(0.0, 2.0), 1.018, (30.4, 46.0, 67.9, 88.4, 138, 207, 703)),
        (Poisson(1.0), 1.002, (30.4, 46.0, 66.2, 83.3, 129, 199, 692)),
        (Gamma(1.0, 0.25), 1.052, (31.1, 43.3, 60.4, 72.1, 114, 185, 700)),
    ],
    ids=["fixed", "uniform", "Poisson", "gamma, CV 2"],
)
def test_energy_against_spacing(
    process: ArrivalProcess, mean_gap: float, reference_j: tuple[float, ...]
) -> None:
    # The prototype's draws were not scaled to the mean asked for. What they realised shows in the
    # last figure, at a gap of 5 s: ``mean_gap`` (benchmarks/spacing.py). So that one is no test.
    times = unit_times(process, 2000)
    gaps_s = (0.05, 0.1, 0.175, 0.25, 0.5, 1.0)
    joules = [joules_per_request(times * gap_s * mean_gap, 50) for gap_s in gaps_s]
    assert joules == pytest.approx(reference_j[:-1], rel=TOLERANCE)
    # No spacing beats the idle board.
    assert all(j > IDLE_W * gap_s * mean_gap * 0.99 for j, gap_s in zip(joules, gaps_s, strict=True))


def test_spacing_moves_energy_by_less_than_half_and_fixed_is_worst() -> None:
    for gap_s in (0.25, 0.5, 1.0):
        fixed, gamma = (
            joules_per_request(unit_times(p, 1000) * gap_s, 50) for p in (Constant(1.0), Gamma(1.0, 0.25))
        )
        assert 1.0 < fixed / gamma < 1.5


def test_energy_falls_with_rate() -> None:
    reference_j = {0.01: 12_700, 0.1: 1582, 0.5: 503, 1: 310, 2: 171, 4: 100, 8: 62.5, 12: 48.7, 16: 42.6}
    times = unit_times(Poisson(1.0), 3000)
    joules = [joules_per_request(times / rate, 250) for rate in reference_j]
    assert joules == pytest.approx(list(reference_j.values()), rel=TOLERANCE)
    # Inoue 2021 (Perf. Eval., arXiv 1912.06322): efficiency does not fall with the rate.
    assert joules == sorted(joules, reverse=True)


@pytest.mark.parametrize(("reply", "above_idle_j"), [(50, 94), (250, 384)])
def test_low_load_is_idle_plus_a_constant(reply: int, above_idle_j: float) -> None:
    gap_s, n = 30.0, 20
    joules = joules_per_request(np.arange(float(n)) * gap_s, reply) * n
    span_s = (n - 1) * gap_s + simulate(tgi(), alike(np.zeros(1), 1300, reply)).busy_s
    assert (joules - IDLE_W * span_s) / n == pytest.approx(above_idle_j, rel=0.01)
