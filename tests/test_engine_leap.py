"""Leaping equals stepping: the same instants and energies, for every policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import pytest
from engines import ConstantSteps, Run, Setting, Wish, engine_settings, sequence, simulate, tgi, wishes
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.physics.transformer import DecodeLine
from loadgen.server.engine import Engine, Policy, Sequence, drive
from loadgen.server.tgi_policy import TgiPolicy, UnchunkedTgiPolicy
from loadgen.server.vllm_policy import VllmPolicy


def compare(setting: Setting, wishes: list[Wish], unit_s: float) -> list[Sequence]:
    """Runs the workload both ways and asserts that nothing differs; the sequences."""
    due_s = (np.cumsum([wish.gap for wish in wishes]) * unit_s).tolist()

    def run(leap: bool) -> Run:
        arrivals = [(t, wish.sequence(i)) for i, (t, wish) in enumerate(zip(due_s, wishes, strict=True))]
        return simulate(setting.engine(), arrivals, leap=leap)

    leapt, stepped = run(True), run(False)
    for a, b in zip(leapt.everyone, stepped.everyone, strict=True):
        for instant in ("submitted_s", "scheduled_s", "first_s", "done_s"):
            assert getattr(a, instant) == pytest.approx(getattr(b, instant), rel=1e-9), instant
        assert a.emitted_tokens == b.emitted_tokens == a.reply_tokens
        assert (a.computed_tokens, a.cached_tokens, a.preemptions) == (
            b.computed_tokens,
            b.cached_tokens,
            b.preemptions,
        )
    assert leapt.busy_s == pytest.approx(stepped.busy_s, rel=1e-9)
    assert leapt.busy_j == pytest.approx(stepped.busy_j, rel=1e-6)
    assert leapt.end_s == pytest.approx(stepped.end_s, rel=1e-9)
    return leapt.everyone


@settings(deadline=None, max_examples=250, derandomize=True)
@given(wishes=wishes, setting=engine_settings())
def test_leaping_equals_stepping(wishes: list[Wish], setting: Setting) -> None:
    # An odd unit: no arrival falls on the end of a step but the first of a busy period.
    compare(setting, wishes, 0.00037123456789)


def until_all_have_left(
    e: Engine, events: list[tuple[float, bool, Sequence]], *, leap: bool
) -> tuple[float, float]:
    """Submits at (instant, False, sequence), cancels at (instant, True, sequence): busy seconds and joules.

    An event during a step happens before the step ends, as in the service.
    """
    pending = deque(events)
    now_s = busy_s = busy_j = 0.0
    while True:
        due_s = pending[0][0] if pending else inf
        work = e.start_leap(now_s, due_s) if leap else e.start_step(now_s)
        if work is not None:
            now_s += work.duration_s
            busy_s += work.duration_s
            busy_j += work.duration_s * work.power_w
        elif pending:
            now_s = max(now_s, due_s)
        else:
            return busy_s, busy_j
        while pending and pending[0][0] <= now_s:
            at_s, cancel, s = pending.popleft()
            if cancel:
                e.cancel(s)
            else:
                e.submit(s, at_s)
        if work is not None:
            e.finish(now_s)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    wishes=wishes,
    cancels=st.dictionaries(st.integers(0, 24), st.floats(0.0, 0.4), max_size=12),
    setting=engine_settings(),
)
def test_leaping_equals_stepping_with_cancellations(
    wishes: list[Wish], cancels: dict[int, float], setting: Setting
) -> None:
    due_s = (np.cumsum([wish.gap for wish in wishes]) * 0.00037123456789).tolist()

    def run(leap: bool) -> tuple[list[Sequence], tuple[float, float], Engine]:
        everyone = [wish.sequence(i) for i, wish in enumerate(wishes)]
        events = [(due_s[s.id], False, s) for s in everyone]
        events += [
            (due_s[i] + after_s, True, everyone[i]) for i, after_s in cancels.items() if i < len(wishes)
        ]
        e = setting.engine()
        return everyone, until_all_have_left(e, sorted(events, key=lambda event: event[:2]), leap=leap), e

    leapt, leapt_sums, leapt_engine = run(True)
    stepped, stepped_sums, stepped_engine = run(False)
    assert leapt_sums == pytest.approx(stepped_sums, rel=1e-6)
    for a, b in zip(leapt, stepped, strict=True):
        for name in ("emitted_tokens", "computed_tokens", "cached_tokens", "preemptions", "reserved_blocks"):
            assert getattr(a, name) == getattr(b, name), name
        for instant in ("scheduled_s", "first_s", "done_s"):
            t = getattr(b, instant)
            assert getattr(a, instant) == (None if t is None else pytest.approx(t, rel=1e-9)), instant
        assert (a.done_s is None) <= a.cancelled
    assert leapt_engine.pool.held_blocks == stepped_engine.pool.held_blocks == 0
    assert leapt_engine.pool.cached_blocks == stepped_engine.pool.cached_blocks


def unchunked(ratio: float, wait: int) -> Policy:
    return UnchunkedTgiPolicy(400, waiting_served_ratio=ratio, max_waiting_tokens=wait)


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize(
    "policy",
    [
        lambda: TgiPolicy(90),
        lambda: unchunked(0.3, 20),
        lambda: unchunked(1.2, 7),
        lambda: unchunked(3.0, 40),
        lambda: VllmPolicy(90, 60),
    ],
    ids=["chunked", "unchunked", "ratio 1.2", "ratio 3", "vllm"],
)
@pytest.mark.parametrize("blocks", [40, 200])
def test_leaping_equals_stepping_under_load(policy: Callable[[], Policy], caching: bool, blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    wishes = [
        Wish(int(g), int(f), int(p), int(r), int(x), True)
        for g, f, p, r, x in zip(
            rng.geometric(0.1, 300) - 1,
            rng.integers(0, 20, 300),
            rng.integers(1, 61, 300),
            rng.geometric(0.03, 300),
            rng.integers(0, 12, 300),
            strict=True,
        )
    ]
    everyone = compare(Setting(policy, 16, blocks, caching, 1024, ""), wishes, 0.0051234567)
    if blocks == 40:
        assert any(s.cached_tokens for s in everyone) == caching
        assert any(s.preemptions for s in everyone) == isinstance(policy(), VllmPolicy)


@dataclass
class CubicPower(ConstantSteps):
    """Steps of one second that draw (cached tokens / 100) cubed watts."""

    def decode_line(self, rows: int) -> DecodeLine:
        return DecodeLine(self.step_s, 0.0, 0.0, 0.0, 0.0, 1.0)

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        return (traffic_bytes / 100) ** 3


@pytest.mark.parametrize("steps", [1, 2, 3, 400])
def test_a_leap_sums_energies_that_are_cubic_in_the_cached_tokens(steps: int) -> None:
    engine = Engine(CubicPower(1.0), TgiPolicy(1000), 10_000)
    prefill, leap = drive(engine, [(0.0, sequence(1, 50, 1 + steps))])
    assert (prefill.steps, leap.steps, leap.duration_s) == (1, steps, steps)
    energy_j = sum(((50 + i) / 100) ** 3 for i in range(steps))
    assert leap.duration_s * leap.power_w == pytest.approx(energy_j, rel=1e-12)


def test_a_request_is_one_prefill_and_one_leap() -> None:
    works = list(drive(tgi(), [(0.0, sequence(1, 1300, 250))]))
    assert [w.steps for w in works] == [1, 249]
    assert [w.rows for w in works] == [(), ()]


def test_an_arrival_ends_a_leap_at_the_end_of_the_step_it_falls_in() -> None:
    arrivals = [(0.0, sequence(1, 100, 50)), (10.5, sequence(2, 100, 5))]
    engine = Engine(ConstantSteps(1.0), TgiPolicy(1000), 10_000)
    works = [(w.start_s, w.duration_s, w.steps) for w in drive(engine, arrivals)]
    # 1: prefill, ten steps (the tenth ends at 11), then with 2's prefill, four together, 34 alone.
    assert works == [(0, 1, 1), (1, 10, 10), (11, 1, 1), (12, 4, 4), (16, 34, 34)]
    assert (arrivals[1][1].scheduled_s, arrivals[1][1].first_s, arrivals[1][1].done_s) == (11, 12, 16)
