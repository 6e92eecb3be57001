"""Tokens, blocks, energy and order are conserved, whatever the policy, the requests and who hangs up."""

from __future__ import annotations

import pytest
from engines import GPU, Setting, Wish, engine_settings, sequence, simulate, tgi, wishes
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.server.engine import Engine, Sequence, drive


def check_blocks(e: Engine, everyone: list[Sequence]) -> None:
    pool = e.pool
    held = sum(s.reserved_blocks for s in everyone)
    assert held == pool.held_blocks
    assert held + pool.cached_blocks + pool.free_blocks == pool.total_blocks
    assert min(held, pool.free_blocks) >= 0
    for s in e._batch.members:
        # What a sequence computed lies in blocks of its own or in the cache.
        cached = 0 if s.match is None else s.match.tokens // pool.block_tokens
        assert (s.reserved_blocks + cached) * pool.block_tokens >= s.computed_tokens


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    wishes=wishes, cancels=st.dictionaries(st.integers(0, 24), st.integers(0, 60)), setting=engine_settings()
)
def test_tokens_and_blocks_are_conserved(
    wishes: list[Wish], cancels: dict[int, int], setting: Setting
) -> None:
    e = setting.engine()
    everyone = [wish.sequence(i) for i, wish in enumerate(wishes)]
    submit_at: list[int] = []
    for wish in wishes:
        submit_at.append((submit_at[-1] if submit_at else 0) + wish.gap // 20)
    fed = [0] * len(everyone)
    out: list[list[int]] = [[] for _ in everyone]
    reasons: dict[int, str] = {}
    for k in range(100_000):
        for i, s in enumerate(everyone):
            if submit_at[i] == k:
                e.submit(s, float(k))
            if submit_at[i] <= k and cancels.get(i) == k:
                e.cancel(s)
        running = e.batch_size
        work = e.start_step(float(k))
        if work is None:
            # Work conservation: an idle engine has nothing that is still wanted.
            assert e.next_waiting() is None
            assert running == 0
            if k >= max(submit_at[-1], *cancels.values(), 0) + 1:
                break
            continue
        assert len({r[0] for r in work.rows}) == len(work.rows)
        for i, prefill, decode, context in work.rows:
            assert (prefill > 0) != (decode > 0)
            assert context == everyone[i].computed_tokens
            fed[i] += prefill + decode
        check_blocks(e, [s for s in everyone if s.submitted_s is not None])
        # A cancellation during a step takes effect at its end.
        for i, s in enumerate(everyone):
            if submit_at[i] <= k and cancels.get(i) == k + 1 and k % 2:
                e.cancel(s)
        for s, index, reason in e.finish_step(k + 0.5):
            out[s.id].append(index)
            assert (reason is not None) == (index == s.reply_tokens)
            assert not s.cancelled
            assert s.id not in reasons
            if reason is not None:
                reasons[s.id] = reason
        check_blocks(e, [s for s in everyone if s.submitted_s is not None])
    else:
        pytest.fail("the engine never became idle")
    assert e.pool.held_blocks == 0
    for s in everyone:
        assert out[s.id] == list(range(1, s.emitted_tokens + 1))
        assert s.reserved_blocks == 0
        assert s.match is None
        if not s.cancelled:
            assert s.emitted_tokens == s.reply_tokens
            assert s.done_s is not None
            if s.preemptions == 0 and setting.stretch_tokens == 1024:
                # Every token but the last is fed once, except those the cache held.
                assert fed[s.id] == s.prompt_tokens + s.reply_tokens - 1 - s.cached_tokens
    scheduled = [
        s.scheduled_s
        for s in sorted(everyone, key=lambda s: (submit_at[s.id], s.id))
        if s.scheduled_s is not None
    ]
    assert scheduled == sorted(scheduled)  # first come, first served


@settings(deadline=None, max_examples=60, derandomize=True)
@given(wishes=wishes, setting=engine_settings())
def test_work_never_overlaps_and_draws_between_active_and_tdp(wishes: list[Wish], setting: Setting) -> None:
    t, arrivals = 0.0, []
    for i, wish in enumerate(wishes):
        t += wish.gap * 0.00037
        arrivals.append((t, wish.sequence(i)))
    end_s = 0.0
    for work in drive(setting.engine(), arrivals):
        assert work.start_s >= end_s
        assert work.duration_s > 0
        assert GPU.active_w <= work.power_w <= GPU.tdp_w
        end_s = work.start_s + work.duration_s
    assert end_s == max(s.done_s or 0.0 for _, s in arrivals)


def test_same_work_same_energy_whatever_the_order() -> None:
    # Two requests that never meet cost twice what one costs.
    one = simulate(tgi(), [(0.0, sequence(1, 300, 40))])
    two = simulate(tgi(), [(0.0, sequence(1, 300, 40)), (100.0, sequence(2, 300, 40))])
    assert two.busy_j == pytest.approx(2 * one.busy_j, rel=1e-12)
    assert two.busy_s == pytest.approx(2 * one.busy_s, rel=1e-12)
