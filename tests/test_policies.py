"""The schedulers followed by hand: TGI with and without chunking, its stretches, its prefix cache."""

from __future__ import annotations

import pytest
from engines import MODEL, rows, sequence, step, tgi, tokens

from loadgen.server.engine import Engine, Sequence
from loadgen.server.tgi_policy import TgiPolicy, UnchunkedTgiPolicy, longest_reply_tokens
from loadgen.server.vllm_policy import VllmPolicy


def unchunked(ratio: float = 0.3, wait: int = 20, size: int | None = None, prefill: int = 1000) -> Engine:
    policy = UnchunkedTgiPolicy(prefill, size, waiting_served_ratio=ratio, max_waiting_tokens=wait)
    return Engine(MODEL, policy, 100_000)


def prefills(e: Engine, steps: int) -> list[list[int]]:
    """Which sequences each of the next steps prefills."""
    return [[r[0] for r in rows(e) if r[1]] for _ in range(steps)]


# --- TGI without chunking ---------------------------------------------------------------------


def test_running_sequences_stall_during_a_prefill() -> None:
    e = unchunked()
    e.submit(sequence(1, 10, 9), 0.0)
    work, out = step(e)
    assert (work.rows, tokens(out)) == (((1, 10, 0, 0),), [(1, 1, None)])
    # An engine just woken may admit again before its first decode step.
    e.submit(sequence(2, 20, 9), 0.0)
    work, out = step(e)
    assert (work.rows, tokens(out)) == (((2, 20, 0, 0),), [(2, 1, None)])
    # After that admission a decode step, even with somebody waiting.
    e.submit(sequence(3, 5, 9), 0.0)
    assert rows(e) == ((1, 0, 1, 10), (2, 0, 1, 20))
    assert rows(e) == ((3, 5, 0, 0),)
    assert rows(e) == ((1, 0, 1, 11), (2, 0, 1, 21), (3, 0, 1, 5))


def test_waiting_served_ratio_holds_a_small_batch_back() -> None:
    e = unchunked(ratio=0.5, wait=6)
    for i in range(1, 5):
        e.submit(sequence(i, 10, 50), 0.0)
    assert prefills(e, 1) == [[1, 2, 3, 4]]
    e.submit(sequence(5, 10, 50), 0.0)
    # One waits, floor(4 x 0.5) = 2 are asked for; waiting tokens run 1, 2, .. from the admission
    # on, and at 6 the one joins anyway.
    assert prefills(e, 6) == [[], [], [], [], [], [5]]
    # Five run, two are enough: they join after the decode step that follows an admission.
    e.submit(sequence(6, 10, 50), 0.0)
    e.submit(sequence(7, 10, 50), 0.0)
    assert prefills(e, 2) == [[], [6, 7]]


def test_the_ratio_counts_what_is_admitted_not_what_waits() -> None:
    e = unchunked(ratio=1.0, wait=100, prefill=30)
    for i in (1, 2):
        e.submit(sequence(i, 10, 50), 0.0)
    assert prefills(e, 1) == [[1, 2]]
    for i in (3, 4):
        e.submit(sequence(i, 25, 50), 0.0)
    # Two wait and two are asked for, but only one fits the budget of 30: it is put back.
    free = e.pool.free_blocks
    assert prefills(e, 3) == [[], [], []]
    assert (e.pool.free_blocks, e.queue_size) == (free, 2)


def test_who_was_put_back_joins_when_the_waiting_tokens_say_so_whatever_blocks_are_missing_behind() -> None:
    e = Engine(MODEL, UnchunkedTgiPolicy(1000, waiting_served_ratio=1.0, max_waiting_tokens=4), 200)
    for i in (1, 2):
        e.submit(sequence(i, 10, 51), 0.0)
    assert prefills(e, 1) == [[1, 2]]  # 60 blocks each: 80 are left
    for i in (3, 4):
        e.submit(sequence(i, 10, 51), 0.0)
    # Two wait and two are asked for, but there are blocks for one; at four waiting tokens it joins alone.
    assert prefills(e, 5) == [[], [], [], [3], []]


def test_max_batch_size_bounds_the_running_batch() -> None:
    e = unchunked(size=3)
    for i in range(1, 6):
        e.submit(sequence(i, 10, 3), 0.0)
    # Three run for 2 decode steps; the next ones start when all three have left.
    assert prefills(e, 4) == [[1, 2, 3], [], [], [4, 5]]


def test_a_prompt_beyond_the_prefill_budget_is_refused_without_chunking() -> None:
    e = unchunked(prefill=30)
    with pytest.raises(ValueError, match="has 31 tokens to prefill, the limit is 30"):
        e.submit(sequence(1, 31, 1), 0.0)


# --- TGI's stretches of 1,024 tokens ----------------------------------------------------------


def small_stretches(blocks: int = 1000, max_total: int | None = None) -> Engine:
    policy = TgiPolicy(1000)
    policy.stretch_tokens = 4
    return Engine(MODEL, policy, blocks, max_total_tokens=max_total)


def test_a_long_reply_is_queued_again_behind_the_others() -> None:
    e = small_stretches()
    long = sequence(1, 10, 6)
    e.submit(long, 0.0)
    assert rows(e) == ((1, 10, 0, 0),)
    assert e.pool.held_blocks == 10 + 4 - 1
    assert rows(e) == ((1, 0, 1, 10),)
    assert rows(e) == ((1, 0, 1, 11),)
    e.submit(sequence(2, 7, 1), 0.0)
    work, out = step(e)  # 2 is prefilled; 1 emits its 4th token and gives its blocks back
    assert work.rows == ((1, 0, 1, 12), (2, 7, 0, 0))
    assert tokens(out) == [(1, 4, None), (2, 1, "length")]
    assert (e.batch_size, e.queue_size, e.pool.held_blocks) == (0, 1, 0)
    first_s, scheduled_s = long.first_s, long.scheduled_s
    work, out = step(e, 5.0)  # prompt and the four tokens are prefilled again; no ids, no prefix
    assert work.rows == ((1, 14, 0, 0),)
    assert tokens(out) == [(1, 5, None)]
    assert e.pool.held_blocks == 14 + 4 - 1  # the second stretch reserves four again
    assert tokens(step(e, 6.0)[1]) == [(1, 6, "length")]
    assert (long.first_s, long.scheduled_s, long.preemptions) == (first_s, scheduled_s, 0)


def test_the_queue_behind_a_stretch_keeps_its_order() -> None:
    e = Engine(MODEL, TgiPolicy(1000), 13)
    e._policy.stretch_tokens = 4  # type: ignore[attr-defined]
    for i in (1, 2):
        e.submit(sequence(i, 6, 6), 0.0)  # 9 blocks: only one runs at a time
    assert [rows(e)[0][0] for _ in range(12)] == [1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2]


def test_a_stretch_finds_its_prompt_in_the_prefix_cache() -> None:
    e = small_stretches()
    e.submit(sequence(1, 10, 9, ids=range(10)), 0.0)
    seen = [rows(e)[0] for _ in range(9)]
    # The prompt is cached when the stretch ends, what was generated is not: 4 tokens are computed
    # again. The second stretch's prompt (14 tokens) is cached when that ends.
    assert [(n, c) for _, n, _, c in seen if n] == [(10, 0), (4, 10), (4, 14)]


def test_a_stretch_that_no_longer_fits_ends_the_reply() -> None:
    e = small_stretches(max_total=20)
    s = sequence(1, 10, 12, max_new=12)
    e.submit(s, 0.0)
    out = [tokens(step(e)[1])[0] for _ in range(8)]
    # 10 + 4 and 14 + 4 fit 20 tokens, 18 + 4 do not.
    assert out[-1] == (1, 8, "length")
    assert e.start_step(9.0) is None
    assert (s.emitted_tokens, s.done_s is not None) == (8, True)


def test_a_stretch_whose_prompt_is_too_long_an_input_ends_the_reply() -> None:
    # The router validates each continuation like a request of its own (infer/mod.rs).
    policy = TgiPolicy(1000, max_input_tokens=16)
    policy.stretch_tokens = 4
    e = Engine(MODEL, policy, 1000, max_total_tokens=100)
    e.submit(sequence(1, 10, 30), 0.0)
    out = [tokens(step(e)[1])[0] for _ in range(8)]
    assert out[-1] == (1, 8, "length")  # 10 and 14 are inputs of at most 16 tokens, 18 is not
    assert e.start_step(9.0) is None
    with pytest.raises(ValueError, match="has 17 tokens to prefill, max_input_tokens is 16"):
        e.submit(sequence(2, 17, 1), 0.0)


def test_all_that_fits_is_used_to_the_last_token() -> None:
    e = small_stretches(max_total=20)
    s = sequence(1, 10, 10, max_new=10)
    e.submit(s, 0.0)
    out = [tokens(step(e)[1])[0] for _ in range(10)]
    assert out[-1] == (1, 10, "length")


def test_longest_reply() -> None:
    assert longest_reply_tokens(100, 300, 4096) == 300
    assert longest_reply_tokens(100, 1024, 4096) == 1024
    assert longest_reply_tokens(100, 1500, 4096) == 2048  # the last stretch is as long as the others
    assert longest_reply_tokens(2000, 1500, 4096) == 2048
    assert longest_reply_tokens(2049, 1500, 4096) == 1024  # 2049 + 1024 + 1024 > 4096
    assert longest_reply_tokens(100, 3996, 4096) == 3996  # all that fits
    assert longest_reply_tokens(4096, 5, 4096) == 0
    assert longest_reply_tokens(1500, 2000, 4096, max_input_tokens=2048) == 1024  # 2524 are no input
    assert longest_reply_tokens(1000, 2000, 4096, max_input_tokens=2048) == 2048


def test_more_than_max_total_tokens_is_refused() -> None:
    e = small_stretches(max_total=20)
    with pytest.raises(ValueError, match="needs 21 tokens, max_total_tokens is 20"):
        e.submit(sequence(1, 17, 4), 0.0)


# --- TGI's blocks and prefix cache ------------------------------------------------------------


def test_blocks_are_rounded_up() -> None:
    e = Engine(MODEL, TgiPolicy(1000), 10, block_tokens=16)
    e.submit(sequence(1, 17, 16), 0.0)  # 32 tokens
    e.submit(sequence(2, 17, 17), 0.0)  # 33 tokens
    assert rows(e) == ((1, 17, 0, 0), (2, 17, 0, 0))
    assert e.pool.held_blocks == 2 + 3


def test_the_prefill_budget_is_rounded_up_to_blocks() -> None:
    e = Engine(MODEL, TgiPolicy(20), 100, block_tokens=16)
    e.submit(sequence(1, 40, 1), 0.0)
    assert rows(e) == ((1, 32, 0, 0),)
    assert rows(e) == ((1, 8, 0, 32),)


def test_a_prompt_is_shared_only_once_its_request_has_ended() -> None:
    e = tgi()
    same = [sequence(i, 10, 2, ids=range(10)) for i in range(4)]
    e.submit(same[0], 0.0)
    e.submit(same[1], 0.0)
    assert rows(e) == ((0, 10, 0, 0), (1, 10, 0, 0))
    rows(e)
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (0, 10)  # one copy of the two
    e.submit(same[2], 0.0)
    # A prompt that is cached whole still has its last token computed.
    assert rows(e) == ((2, 1, 0, 9),)
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (1, 10)
    rows(e)
    e.submit(sequence(5, 8, 1, ids=[0, 1, 2, 3, 4, 99, 6, 7]), 0.0)
    assert rows(e) == ((5, 3, 0, 5),)
    assert [s.cached_tokens for s in same] == [0, 0, 9, 0]
    assert e.pool.cached_blocks == 13


def test_only_whole_blocks_are_shared() -> None:
    e = Engine(MODEL, TgiPolicy(1000), 100, block_tokens=4)
    e.submit(sequence(1, 10, 1, ids=range(10)), 0.0)
    rows(e)
    assert e.pool.cached_blocks == 2
    e.submit(sequence(2, 11, 1, ids=range(11)), 0.0)
    assert rows(e) == ((2, 3, 0, 8),)


def test_cached_prompts_give_way_to_a_reservation_oldest_first() -> None:
    e = tgi(blocks=30)
    for i, start in enumerate((100, 200)):
        e.submit(sequence(i, 10, 1, ids=range(start, start + 10)), 0.0)
        rows(e)
    assert (e.pool.cached_blocks, e.pool.free_blocks) == (20, 10)
    e.submit(sequence(3, 10, 1, ids=range(100, 110)), 0.0)  # a hit: now 200.. is the oldest
    rows(e)
    e.submit(sequence(4, 14, 1, ids=range(300, 314)), 0.0)  # four blocks are missing
    rows(e)
    assert e.pool.cached_blocks == 30
    e.submit(sequence(5, 11, 1, ids=[*range(200, 210), 7]), 0.0)
    assert rows(e)[0][3] == 6  # of 200.. the last four went
    assert e.pool.free_blocks == 0


def test_a_running_prefix_is_not_evicted() -> None:
    e = tgi(blocks=20)
    e.submit(sequence(1, 10, 1, ids=range(10)), 0.0)
    rows(e)
    holder = sequence(2, 10, 5, ids=range(10))
    e.submit(holder, 0.0)
    rows(e)
    # 10 blocks pinned, 4 held, 6 free: 7 are too many until the holder ends.
    e.submit(sequence(3, 7, 1, ids=range(50, 57)), 0.0)
    assert [rows(e)[-1][0] for _ in range(5)] == [2, 2, 2, 2, 3]
    assert e.pool.cached_blocks == 10 + 7


def test_tgi_admits_by_the_blocks_of_each_sequence_however_many_are_shared() -> None:
    e = tgi(blocks=20)
    e.submit(sequence(1, 10, 1, ids=range(10)), 0.0)
    rows(e)
    for i in (2, 3, 4):
        e.submit(sequence(i, 10, 3, ids=range(10)), 0.0)
    # 2 and 3 hold 12 blocks each by TGI's count, 4 in truth; 24 >= 20 shuts the door for a 5th.
    assert rows(e) == ((2, 1, 0, 9), (3, 1, 0, 9), (4, 1, 0, 9))
    e.submit(sequence(5, 10, 3, ids=range(10)), 0.0)
    assert [len(rows(e)) for _ in range(2)] == [3, 3]
    assert rows(e) == ((5, 1, 0, 9),)


# --- all ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [TgiPolicy(100), UnchunkedTgiPolicy(100), VllmPolicy(100, 100)])
def test_who_stands_behind_a_blocked_request_moves_up_when_it_is_cancelled(policy: TgiPolicy) -> None:
    e = Engine(MODEL, policy, 20)
    e.submit(sequence(1, 10, 6), 0.0)
    rows(e)
    blocked = sequence(2, 10, 1)
    e.submit(blocked, 0.0)
    e.submit(sequence(3, 4, 1), 0.0)
    assert [len(rows(e)) for _ in range(2)] == [1, 1]
    e.cancel(blocked)
    assert rows(e)[-1] == (3, 4, 0, 0)


@pytest.mark.parametrize("policy", [TgiPolicy(100), UnchunkedTgiPolicy(100), VllmPolicy(100, 100)])
def test_a_running_sequence_is_cancelled_twice_and_leaves_once(policy: TgiPolicy) -> None:
    e = Engine(MODEL, policy, 100)
    gone, stays = Sequence(1, 5, 9, 9), Sequence(2, 5, 3, 3)
    e.submit(gone, 0.0)
    e.submit(stays, 0.0)
    step(e)
    e.cancel(gone)
    e.cancel(gone)
    assert tokens(step(e)[1]) == [(2, 2, None)]
    assert e.batch_size == 1
    assert (gone.emitted_tokens, gone.done_s) == (1, None)
    assert tokens(step(e)[1]) == [(2, 3, "length")]
    e.cancel(stays)
    assert e.start_step(0.0) is None
