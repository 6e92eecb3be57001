"""Two readings of one energy, and a part-time sensor in step with the arrivals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_runs import COUNTER, INSTANT, constant, lattice, record, run_of
from test_lint_rules import H100, said

from analysis.lint.sensor import concentration
from analysis.run import Run
from loadgen.types import Domain, Reading

NVML = [replace(COUNTER, update_s=0.1), replace(INSTANT, update_s=0.1)]


def published(at_s: np.ndarray, **manifest: Any) -> Run:
    """Arrivals beside a board whose counter is renewed every 100 ms and read every 50 ms."""
    readings = []
    for t in np.arange(-2.0, at_s[-1] + 4.0, 0.05):
        shown_s = 0.1 * np.floor(t / 0.1 + 1e-6)
        readings.append(Reading(float(t), "gpu0", energy_j=300.0 * shown_s + 1000))
        readings.append(Reading(float(t), "gpu0.instant", power_w=300.0))
    rows = [record(k, float(t)) for k, t in enumerate(at_s)]
    kept = {"interval_s": 0.05, "baseline_s": 2.0, "reason": None}
    domains = [{name: getattr(d, name) for name in d.__slots__} for d in manifest.pop("domains", NVML)]
    return run_of(rows, readings, power={**kept, "domains": domains}, **manifest)


@pytest.mark.parametrize(
    ("gap_s", "jitter_s", "word"),
    [
        (0.05, 0.0, "warning"),  # every second arrival at the same phase
        (0.3, 0.0, "warning"),
        (0.3, 0.004, "warning"),  # exp(-2 (pi 0.04)**2) = 0.97 of the phase is left
        (0.3, 0.03, "holds"),  # exp(-2 (pi 0.3)**2) = 0.17
        (0.075, 0.0, "holds"),  # three looks show all of it
        (0.047, 0.0, "holds"),  # drifts through
    ],
)
def test_arrivals_at_a_multiple_of_the_sensors_period_keep_step_unless_they_jitter(
    gap_s: float, jitter_s: float, word: str
) -> None:
    rng = np.random.default_rng(1)
    at_s = 1.0 + gap_s * np.arange(200) + rng.normal(0.0, jitter_s, 200)
    rule = said(published(at_s), "sensor-phase")
    assert rule.verdict == word
    if word == "warning":
        assert "gpu0.instant, which sees 25 of every 100 ms" in rule.sentence


def test_poisson_arrivals_keep_step_with_nothing() -> None:
    """By chance the largest of all statistics tried passes as a lock in one of a hundred at most."""
    rng = np.random.default_rng(2)
    found = [concentration(np.cumsum(rng.exponential(0.2, 100)), 0.1, 0.025)[0] for _ in range(100)]
    assert max(found) < 0.5


@pytest.mark.parametrize("sigma_s", [0.005, 0.01, 0.02])
def test_concentration_is_the_characteristic_function_of_the_jitter(sigma_s: float) -> None:
    at_s = np.sort(0.3 * np.arange(2000) + np.random.default_rng(5).normal(0.0, sigma_s, 2000))
    found, period_s = concentration(at_s, 0.1, 0.025)
    assert found == pytest.approx(np.exp(-2 * (np.pi * sigma_s / 0.1) ** 2), abs=0.04)
    assert period_s == pytest.approx(0.1, rel=1e-3)


def test_what_kind_of_sensor_looks_decides_whether_step_matters() -> None:
    at_s = 1.0 + 0.3 * np.arange(200)
    whole = [NVML[0], replace(NVML[1], averaging_s=0.1)]
    assert said(published(at_s, domains=whole), "sensor-phase").verdict == "holds"
    bare = [NVML[0], Domain("gpu0.instant", "instant")]
    assert said(published(at_s, domains=bare), "sensor-phase").verdict == "not judged"
    by_name = said(published(at_s, domains=bare, server=H100), "sensor-phase")
    assert by_name.verdict == "warning" and "gpu0, which sees 25 of every 100 ms" in by_name.sentence
    continuous = run_of([record(k, float(t)) for k, t in enumerate(at_s)], constant(300.0, 64.0), server=H100)
    assert said(continuous, "sensor-phase").verdict == "holds"
    assert said(run_of(lattice(200, 0.3)), "sensor-phase").verdict == "not judged"
    sparse = said(published(1.0 + 2.0 * np.arange(60)), "sensor-phase")
    assert sparse.verdict == "holds"  # 75 ms unseen of 2 s


def test_two_readings_of_one_energy_are_compared_where_there_are_two() -> None:
    off = [replace(r, power_w=330.0) if r.power_w is not None else r for r in constant(300.0, 100.0)]
    rule = said(run_of(lattice(200, 0.5), off), "counter-against-integral")
    assert (rule.verdict, rule.figure, rule.bound) == ("warning", pytest.approx(0.1), 0.05)
    near = said(run_of(lattice(200, 0.5), constant(300.0, 100.0)), "counter-against-integral")
    assert (near.verdict, near.figure) == ("holds", pytest.approx(0.0, abs=1e-9))
    alone = [r for r in constant(300.0, 100.0) if r.domain == "gpu0"]
    only = run_of(lattice(200, 0.5), alone, domains=[COUNTER])
    assert said(only, "counter-against-integral").verdict == "not judged"
