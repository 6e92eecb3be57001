"""Shaping policies: causality, order, limits, and the library that `Throttle` is a model of."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import numpy as np
import pytest
from asyncio_throttle import Throttler, throttler
from hypothesis import given
from hypothesis import strategies as st

from loadgen import arrivals as a
from loadgen import clock
from loadgen.shaping import Gate, NoShaping, Throttle, TokenBucket
from loadgen.types import ShapingPolicy


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


demands = st.lists(st.floats(0, 1e4), min_size=1, max_size=60).map(lambda ts: np.sort(np.array(ts)))


@given(demands, st.floats(0.01, 100))
def test_a_gate_is_causal_keeps_order_and_opens_only_at_its_instants(demand_s: np.ndarray, d: float) -> None:
    due_s = Gate(d).release(demand_s)
    assert due_s.shape == demand_s.shape and np.all(due_s >= demand_s) and np.all(np.diff(due_s) >= 0)
    assert np.all(due_s - demand_s <= d * (1 + 1e-6))
    off = np.abs(due_s / d - np.rint(due_s / d))
    assert np.all(off < 1e-6)


def test_a_gate_lets_demand_at_an_opening_straight_through() -> None:
    due_s = Gate(0.1).release(np.array([0.0, 0.1, 0.2, 0.30000000000000004, 0.31]))
    assert due_s == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    demand_s = a.Poisson(5).times(20_000, rng())
    assert np.mean(Gate(2).release(demand_s) - demand_s) == pytest.approx(1.0, abs=0.05)
    assert np.array_equal(NoShaping().release(demand_s), demand_s)


policies = st.one_of(
    st.builds(Gate, st.floats(0.01, 100)),
    st.builds(TokenBucket, st.floats(0.01, 100), st.floats(1, 20)),
    st.builds(Throttle, st.integers(1, 20), st.floats(0.01, 100), st.floats(0.001, 1)),
)


@given(demands, policies)
def test_every_policy_is_causal_and_first_in_first_out(demand_s: np.ndarray, policy: ShapingPolicy) -> None:
    due_s = policy.release(demand_s)
    assert due_s.shape == demand_s.shape and due_s.dtype == np.float64
    assert np.all(due_s >= demand_s) and np.all(np.diff(due_s) >= 0)


def bucket_by_hand(demand_s: np.ndarray, rate_rps: float, burst: float) -> list[float]:
    """Tokens counted one request after another, as a router would."""
    tokens, at_s, due = burst, 0.0, []
    for wanted_s in demand_s.tolist():
        now_s = max(wanted_s, at_s)
        tokens = min(burst, tokens + (now_s - at_s) * rate_rps)
        if tokens < 1:
            now_s += (1 - tokens) / rate_rps
            tokens = 1.0
        tokens, at_s = tokens - 1, now_s
        due.append(now_s)
    return due


@given(demands, st.floats(0.1, 50), st.floats(1, 20))
def test_a_token_bucket_releases_as_tokens_counted_by_hand(
    demand_s: np.ndarray, rate_rps: float, burst: float
) -> None:
    due_s = TokenBucket(rate_rps, burst).release(demand_s)
    assert due_s == pytest.approx(bucket_by_hand(demand_s, rate_rps, burst), abs=1e-6 / rate_rps)


def test_a_token_bucket_keeps_its_arrival_curve_and_wastes_nothing() -> None:
    assert TokenBucket(4, 3).release(np.zeros(8)).tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1.0, 1.25]
    assert TokenBucket(4, 1).release(np.array([0, 0.1, 0.2, 5, 5])).tolist() == [0, 0.25, 0.5, 5, 5.25]
    demand_s = a.OnOff(50, 2, 8, 0, "exponential", "poisson").times(20_000, rng(1))
    due_s = TokenBucket(12, 30).release(demand_s)
    for window in (1, 29, 30, 31, 500, 5000):  # releases k .. k + window
        assert np.all(window + 1 <= 30 + 12 * (due_s[window:] - due_s[:-window]) + 1e-6)
    assert np.array_equal(TokenBucket(1e6, 1e6).release(demand_s), demand_s)
    # Overload: the long-run rate is the bucket's.
    busy_s = TokenBucket(5, 30).release(a.Poisson(8).times(20_000, rng(2)))
    assert (20_000 - 30) / busy_s[-1] == pytest.approx(5, rel=1e-3)


def library_starts(
    demand_s: np.ndarray, throttle: Throttle, monkeypatch: pytest.MonkeyPatch, late_s: float = 0.0
) -> np.ndarray:
    """When the real library lets tasks go that ask at ``demand_s``, in virtual time."""

    async def late_sleep(wait_s: float) -> None:
        await asyncio.sleep(wait_s + late_s)

    monkeypatch.setattr(throttler, "time", SimpleNamespace(monotonic=clock.now))
    monkeypatch.setattr(throttler, "asyncio", SimpleNamespace(sleep=late_sleep))

    async def main() -> list[float]:
        real = Throttler(throttle.rate_limit, throttle.period_s, throttle.retry_interval_s)

        async def one(wanted_s: float) -> float:
            await asyncio.sleep(wanted_s)
            async with real:
                return clock.now()

        return await asyncio.gather(*(one(wanted_s) for wanted_s in demand_s.tolist()))

    return np.sort(clock.run_virtual(main()))


@pytest.mark.parametrize(
    ("throttle", "rate_rps", "n"),
    [
        (Throttle(1, 0.1), 12.0, 150),
        (Throttle(5, 1.0), 6.0, 300),
        (Throttle(20, 1.0), 25.0, 300),
        (Throttle(1, 0.001), 300.0, 300),
        (Throttle(3, 0.05, 0.07), 60.0, 300),
        (Throttle(4, 1.0, 0.3), 5.0, 300),
    ],
    ids=repr,
)
def test_a_throttle_starts_when_the_library_does(
    throttle: Throttle, rate_rps: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    demand_s = a.Poisson(rate_rps).times(n, rng(3))
    real_s = library_starts(demand_s, throttle, monkeypatch)
    assert throttle.release(demand_s) == pytest.approx(real_s, abs=1e-7)
    assert np.max(real_s - demand_s) > 2 * throttle.retry_interval_s  # some did wait


@pytest.mark.parametrize("throttle", [Throttle(10), Throttle(1, 0.1), Throttle(2, 0.005)], ids=repr)
def test_a_throttle_with_polls_on_the_edge_of_its_window_starts_as_real_timers_make_the_library(
    throttle: Throttle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls that would meet the end of the window exactly come a hair late in reality, and pass."""
    demand_s = np.zeros(50)
    real_s = library_starts(demand_s, throttle, monkeypatch, late_s=1e-7)
    assert throttle.release(demand_s) == pytest.approx(real_s, abs=1e-4)
    # Timers that are exactly on time, which no kernel has, would lose a retry interval each period.
    exact_s = library_starts(demand_s, Throttle(10, 1.0, 0.25), monkeypatch)
    assert exact_s[10] == 1.25 and Throttle(10, 1.0, 0.25).release(demand_s)[10] == 1.0


def test_a_throttle_bursts_and_polls_as_measured_on_real_timers() -> None:
    """Throttler(100): all at once each second. Throttler(1, period=1/1000): one a poll (96/s measured)."""
    due_s = Throttle(100).release(np.zeros(350))
    assert due_s == pytest.approx(np.repeat([0.0, 1.0, 2.0, 3.0], [100, 100, 100, 50]))
    assert Throttle(1, 0.001).release(np.zeros(200)) == pytest.approx(np.arange(200) * 0.01)
    assert np.array_equal(Throttle(9).release(np.zeros(0)), np.zeros(0))


@given(demands, st.integers(1, 10), st.floats(0.01, 20), st.floats(0.001, 0.5))
def test_a_throttle_never_starts_more_than_its_limit_within_a_period(
    demand_s: np.ndarray, limit: int, period_s: float, retry_s: float
) -> None:
    due_s = Throttle(limit, period_s, retry_s).release(demand_s)
    assert np.all(due_s[limit:] - due_s[:-limit] >= period_s - 1e-6)
    assert np.all(due_s[:limit] == demand_s[:limit])
    # Work conserving up to a poll: a start is late by less than one retry interval.
    free_s = np.concatenate([np.full(min(limit, len(due_s)), -math.inf), due_s[:-limit] + period_s])
    before_s = np.concatenate([[-math.inf], due_s[:-1]])
    waited_for_s = np.maximum(np.maximum(free_s, before_s)[: len(due_s)], demand_s)
    assert np.all(due_s - waited_for_s <= retry_s + 1e-6)


def test_a_long_queue_at_a_throttle_is_cheap() -> None:
    """The library would poll 300 million times here: 20,000 requests that wait 1,000 s on average."""
    demand_s = a.Poisson(20).times(20_000, rng(4))
    due_s = Throttle(10).release(demand_s)
    assert due_s[-1] == pytest.approx(20_000 / 10, rel=0.01) and np.mean(due_s - demand_s) > 450
