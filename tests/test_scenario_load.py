"""The patterns and shaping policies of a scenario: keys, mistakes, flags, and what they plan."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen import arrivals as a
from loadgen import overrides, shipped
from loadgen.config import read_yaml
from loadgen.errors import ConfigError
from loadgen.plan import build
from loadgen.scenario import Scenario
from loadgen.scenario_file import load_scenario, validate
from loadgen.scenario_load import LOADS
from loadgen.shaping import Gate, NoShaping, Throttle, TokenBucket
from loadgen.types import ArrivalProcess, ShapingPolicy


def scenario(load: dict[str, Any]) -> Scenario:
    return Scenario.model_validate({"name": "t", "load": load})


def mistakes(tmp_path: Path, load: str, *flags: str) -> list[str]:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: t\nload:\n  {load}\n")
    parser = argparse.ArgumentParser()
    overrides.add_flags(parser)
    with pytest.raises(ConfigError) as refusal:
        tree = read_yaml(path)
        overrides.apply(tree, parser.parse_args(flags))
        validate(tree, path.parent)
    return [line.removeprefix(str(path)) for line in str(refusal.value).splitlines()]


@pytest.mark.parametrize(
    ("load", "process"),
    [
        ({"pattern": "ramp", "start_rps": 1, "end_rps": 9, "duration_s": 60}, a.Ramp(1, 9, 60)),
        (
            {
                "pattern": "sine",
                "mean_rps": 2,
                "amplitude": 0.5,
                "period_s": 60,
                "law": "poisson",
                "requests": 9,
            },
            a.Sine(2, 0.5, 60, 0.0, "poisson"),
        ),
        (
            {
                "pattern": "on_off",
                "rate_rps": 5,
                "on_s": 2,
                "off_s": 8,
                "dwell": "exponential",
                "duration_s": 60,
            },
            a.OnOff(5, 2, 8, 0.0, "exponential", "constant"),
        ),
        (
            {"pattern": "uniform_literal", "low_s": 0, "high_s": 0.5, "requests": 9},
            a.UniformLiteral(0, 0.5),
        ),
    ],
)
def test_a_pattern_builds_its_process_and_plans_it(load: dict[str, Any], process: ArrivalProcess) -> None:
    made = scenario(load)
    assert made.load.process() == process
    planned = [arrival.demand_s for arrival in build(made).measured.arrivals]
    assert planned[0] == 0 and planned == sorted(planned)
    assert planned[-1] < load.get("duration_s", math.inf) and len(planned) <= load.get("requests", 10**6)


def test_a_ramp_ends_by_itself_and_a_count_cuts_it() -> None:
    ramp = {"pattern": "ramp", "start_rps": 1, "end_rps": 9, "duration_s": 60}
    assert len(build(scenario(ramp)).measured.arrivals) == 300  # (1 + 9) / 2 * 60
    cut = build(scenario(ramp | {"requests": 50})).measured.arrivals
    assert len(cut) == 50 and cut[-1].demand_s + cut[-1].demand_s ** 2 / 15 == pytest.approx(49)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ("{pattern: ramp, start_rps: 1, end_rps: 9}", ":2 load.duration_s: missing; expected a number"),
        (
            "{pattern: ramp, start_rps: 0, end_rps: 0, duration_s: 5}",
            "load.end_rps: expected > 0 where start_rps",
        ),
        (
            "{pattern: ramp, start_rps: -1, end_rps: 0, duration_s: 5}",
            "load.start_rps: expected >= 0, got -1",
        ),
        (
            "{pattern: sine, mean_rps: 1, amplitude: 1.5, period_s: 9, requests: 5}",
            "amplitude: expected <= 1, got",
        ),
        (
            "{pattern: sine, mean_rps: 1, amplitude: 0.5, period_s: 9}",
            "load.requests: expected a count of requests",
        ),
        (
            "{pattern: sine, mean_rps: 1, amplitud: 0.5, period_s: 9, requests: 5}",
            "did you mean 'amplitude'?",
        ),
        (
            "{pattern: on_off, rate_rps: 0, on_s: 1, off_s: 1, requests: 5}",
            "load.rate_rps: expected > 0, got 0",
        ),
        (
            "{pattern: on_off, rate_rps: 1, on_s: 1, off_s: 1, dwell: geometric, requests: 5}",
            "load.dwell: expected",
        ),
        (
            "{pattern: on_off, rate_rps: 1, on_s: 1e-9, off_s: 1, dwell: exponential, requests: 5}",
            "load.on_s: expected at least 0.001 requests in an on and an off time together",
        ),
        (
            "{pattern: uniform_literal, low_s: 0, high_s: 1}",
            "load.requests: missing; expected a whole number",
        ),
        (
            "{pattern: uniform_literal, low_s: 2, high_s: 1, requests: 5}",
            "load.high_s: expected >= low_s (2.0)",
        ),
        (
            "{pattern: uniform_literal, low_s: 0, high_s: 1, requests: 5, duration_s: 9}",
            "load.duration_s: expected none: how many arrive in a time depends on how many there are",
        ),
        ("{pattern: ramps, start_rps: 1}", "did you mean 'ramp'?"),
    ],
)
def test_each_mistake_in_a_pattern_is_one_line(tmp_path: Path, load: str, said: str) -> None:
    found = mistakes(tmp_path, load)
    assert any(said in line for line in found), found
    if "amplitud:" not in load:
        assert len(found) == 1, found


@pytest.mark.parametrize(
    ("shaping", "policy"),
    [
        ("{}", NoShaping()),
        ("{policy: none, interval_s: 2}", NoShaping()),
        ("{policy: gate, interval_s: 2}", Gate(2)),
        ("{policy: token_bucket, rate_rps: 3, burst: 1.5}", TokenBucket(3, 1.5)),
        ("{policy: throttle, rate_limit: 4, period_s: 2}", Throttle(4, 2, 0.01)),
        ("{policy: throttle, rate_limit: 4, period_s: 2, retry_interval_s: 0.5}", Throttle(4, 2, 0.5)),
    ],
)
def test_a_shaping_section_builds_its_policy(tmp_path: Path, shaping: str, policy: ShapingPolicy) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"name: t\nload:\n  pattern: poisson\n  rate_rps: 9\n  requests: 200\n  shaping: {shaping}\n"
    )
    made = load_scenario(path)
    assert made.load.shaping.shaper() == policy
    arrivals = build(made).measured.arrivals
    demand_s = np.array([arrival.demand_s for arrival in arrivals])
    assert [arrival.due_s for arrival in arrivals] == policy.release(demand_s).tolist()


@pytest.mark.parametrize(
    ("shaping", "said"),
    [
        ("{policy: gate}", "load.shaping.interval_s: expected a number of seconds between openings"),
        (
            "{policy: token_bucket, burst: 5}",
            "load.shaping.rate_rps: expected a number of requests per second",
        ),
        ("{policy: token_bucket, rate_rps: 5}", "load.shaping.burst: expected a number of requests >= 1"),
        ("{policy: token_bucket, rate_rps: 5, burst: 0.5}", "load.shaping.burst: expected >= 1, got 0.5"),
        (
            "{policy: throttle, rate_limit: 5}",
            "load.shaping.period_s: expected a number of seconds, got nothing",
        ),
        ("{policy: throttle, rate_limit: 5.5, period_s: 1}", "rate_limit: expected a whole number, got 5.5"),
        (
            "{policy: throttle, rate_limit: 5, period_s: 1, burst: 3}",
            "load.shaping.burst: expected none: policy throttle has rate_limit, period_s, retry_interval_s",
        ),
        ("{policy: token_bukket}", "did you mean 'token_bucket'?"),
        ("{policy: gate, intervall_s: 2}", "did you mean 'interval_s'?"),
    ],
)
def test_each_mistake_in_shaping_is_one_line(tmp_path: Path, shaping: str, said: str) -> None:
    load = f"pattern: poisson\n  rate_rps: 1\n  requests: 5\n  shaping: {shaping}"
    found = mistakes(tmp_path, load)
    assert len(found) == 1 and said in found[0] and found[0].startswith(":6 "), found


def flagged(name: str, *flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    overrides.add_flags(parser)
    path = shipped.find(name, "scenario")
    tree = read_yaml(path)
    overrides.apply(tree, parser.parse_args(flags))
    return validate(tree, path.parent).load.model_dump()


def test_a_pattern_change_keeps_the_mean_rate_of_the_new_patterns() -> None:
    """ramp: (1 + 20) / 2; sine_day: 4; on_off: 10 * 5 / 25."""
    for name, mean_rps in (("ramp", 10.5), ("sine_day", 4.0), ("on_off", 2.0)):
        for pattern in ("constant", "poisson", "gamma"):
            load = flagged(name, "--arrival-pattern", pattern)
            assert load["pattern"] == pattern and load["rate_rps"] == pytest.approx(mean_rps), (name, pattern)
    assert flagged("sine_day", "--request-rate", "7")["mean_rps"] == 7
    literal = flagged("poisson_20rps", "--arrival-pattern", "uniform_literal")
    assert (literal["low_s"], literal["high_s"]) == (0, 0.1)
    with pytest.raises(ConfigError, match="ramp sets its own rate"):
        flagged("ramp", "--request-rate", "7")


@pytest.mark.parametrize(
    ("name", "mean_rps", "held"),
    [("ramp", 10.5, 0), ("sine_day", 4, 0), ("on_off", 2, 0), ("token_bucket", 2, 1)],
)
def test_the_shipped_scenarios_offer_what_they_say(name: str, mean_rps: float, held: int) -> None:
    made = load_scenario(shipped.find(name, "scenario"))
    duration_s = made.load.duration_s
    assert duration_s is not None
    arrivals = build(made).measured.arrivals
    spread = 26.6 if name in ("on_off", "token_bucket") else 1
    expected = mean_rps * duration_s
    assert len(arrivals) == pytest.approx(expected, abs=4 * math.sqrt(spread * expected))
    assert any(arrival.due_s > arrival.demand_s for arrival in arrivals) == bool(held)


def test_every_pattern_and_policy_stands_in_the_document() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs/scenarios.md").read_text(encoding="utf-8")
    for name in (*LOADS, "none", "gate", "token_bucket", "throttle"):
        assert f"\n| `{name}`" in text, name
