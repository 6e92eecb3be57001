"""vLLM's scheduler followed by hand: one budget, blocks on demand, preemption, the prefix cache."""

from __future__ import annotations

import pytest
from engines import MODEL, rows, sequence, step, tokens

from loadgen.server.engine import Engine
from loadgen.server.vllm_policy import VllmPolicy


def vllm(blocks: int, budget: int = 64, seqs: int = 8, block: int = 4) -> Engine:
    return Engine(MODEL, VllmPolicy(budget, seqs), blocks, block_tokens=block)


def test_vllm_admits_in_every_step_and_shares_one_budget() -> None:
    e = vllm(100, budget=10)
    e.submit(sequence(1, 4, 9), 0.0)
    assert rows(e) == ((1, 4, 0, 0),)
    e.submit(sequence(2, 20, 9), 0.0)
    assert rows(e) == ((1, 0, 1, 4), (2, 9, 0, 0))
    e.submit(sequence(3, 3, 9), 0.0)
    assert rows(e) == ((1, 0, 1, 5), (2, 9, 0, 9))
    assert rows(e) == ((1, 0, 1, 6), (2, 2, 0, 18), (3, 3, 0, 0))
    e.submit(sequence(4, 3, 9), 0.0)
    assert rows(e) == ((1, 0, 1, 7), (2, 0, 1, 20), (3, 0, 1, 3), (4, 3, 0, 0))


def test_vllm_takes_blocks_as_it_writes() -> None:
    e = vllm(100)
    s = sequence(1, 7, 9)
    e.submit(s, 0.0)
    held = []
    for _ in range(9):
        assert e.start_step(0.0) is not None
        held.append((s.computed_tokens, s.reserved_blocks, e.pool.held_blocks))
        e.finish_step(1.0)
    # Blocks of 4 hold the tokens computed before the step and those it writes.
    assert held == [(0, 2, 2), *((c, c // 4 + 1, c // 4 + 1) for c in range(7, 15))]
    assert e.pool.held_blocks == 0


def test_vllm_runs_at_most_max_num_seqs() -> None:
    e = vllm(100, seqs=2)
    for i in (1, 2, 3):
        e.submit(sequence(i, 4, 3), 0.0)
    assert [[r[0] for r in rows(e)] for _ in range(4)] == [[1, 2], [1, 2], [1, 2], [3]]


def test_vllm_preempts_the_last_admitted_and_puts_it_first() -> None:
    e = vllm(6)
    one, two = sequence(1, 8, 10), sequence(2, 8, 10)
    three = sequence(3, 4, 1)
    for s in (one, two, three):
        e.submit(s, 0.0)
    assert rows(e) == ((1, 8, 0, 0), (2, 8, 0, 0), (3, 4, 0, 0))  # 2 + 2 + 1 blocks of 6
    # Each needs a third block; the pool of 6 has two (3 ended). They decode up to 12 tokens.
    for k in range(4):
        assert rows(e) == ((1, 0, 1, 8 + k), (2, 0, 1, 8 + k))
    assert e.pool.free_blocks == 0
    e.submit(sequence(4, 1, 1), 0.0)
    # Now 1 needs a fourth block: 2 gives up its three. Nothing is admitted in such a step.
    work, out = step(e)
    assert (work.rows, tokens(out)) == (((1, 0, 1, 12),), [(1, 6, None)])
    assert (two.preemptions, two.reserved_blocks, two.computed_tokens) == (1, 0, 0)
    assert (e.queue_size, e.pool.free_blocks) == (2, 2)
    # 2 comes before 4 and needs ceil(13 / 4) = 4 blocks, so both wait until 1 ends.
    for k in range(3):
        assert rows(e) == ((1, 0, 1, 13 + k),)
    assert tokens(step(e)[1]) == [(1, 10, "length")]
    work, out = step(e)  # 8 of prompt and 5 emitted are computed anew; that gives token 6
    assert work.rows == ((2, 13, 0, 0), (4, 1, 0, 0))
    assert tokens(out) == [(2, 6, None), (4, 1, "length")]
    assert [tokens(step(e)[1])[0][1] for _ in range(4)] == [7, 8, 9, 10]
    assert two.done_s is not None
    assert one.preemptions == 0


def test_vllm_admits_nothing_in_a_step_that_preempts() -> None:
    e = vllm(5, budget=4, seqs=4)
    for i in (1, 2):
        e.submit(sequence(i, 4, 14), 0.0)
    # Prompt 2 comes in chunks of 3 and 1 beside 1's tokens. At 8 tokens it needs a third block and
    # finds none: it gives up its two, of which a first chunk of 3 would need one, but not yet.
    assert [rows(e) for _ in range(7)][-1] == ((1, 0, 1, 9), (2, 0, 1, 7))
    e.submit(sequence(3, 1, 1), 0.0)
    assert rows(e) == ((1, 0, 1, 10),)
    assert rows(e) == ((1, 0, 1, 11), (2, 3, 0, 0))


def test_vllm_preempts_until_there_is_room_the_older_victim_first_in_the_queue() -> None:
    e = Engine(MODEL, VllmPolicy(64, 8), 8, block_tokens=4)
    for i in (1, 2, 3):
        e.submit(sequence(i, 8, 20), 0.0)
    rows(e)  # 6 blocks
    # All three need a third block, two are there: 3 goes.
    assert rows(e) == ((1, 0, 1, 8), (2, 0, 1, 8))
    assert (e.pool.held_blocks, e.queue_size) == (6, 1)
    # 3 needs ceil(9 / 4) = 3 blocks for its prompt and its token, two are free: it waits while
    # 1 and 2 write on. At 12 tokens each takes one of the two, at 16 tokens 2 has to go.
    for k in range(7):
        assert rows(e) == ((1, 0, 1, 9 + k), (2, 0, 1, 9 + k))
    assert rows(e) == ((1, 0, 1, 16),)
    assert [s.id for s in e._queue] == [2, 3]


def test_vllm_shares_a_prompt_while_it_runs_but_computes_its_last_token() -> None:
    e = vllm(100)
    e.submit(sequence(1, 12, 9, ids=range(12)), 0.0)
    rows(e)
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (0, 3)
    again = sequence(2, 12, 9, ids=range(12))
    e.submit(again, 0.0)
    # At most 11 of the 12 tokens may come from the cache, so two whole blocks do.
    assert rows(e) == ((1, 0, 1, 12), (2, 4, 0, 8))
    assert again.cached_tokens == 8
    # 1: its fourth block; 2: a copy of the third, which the cache already has.
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (2, 3)


def test_vllm_shares_a_prompt_in_the_step_that_computes_it() -> None:
    e = vllm(100, budget=28)
    for i in (1, 2, 3):
        e.submit(sequence(i, 14, 3, ids=range(14)), 0.0)
    # Blocks are in the cache once they are given out (kv_cache_manager.py, allocate_slots).
    assert rows(e) == ((1, 14, 0, 0), (2, 2, 0, 12), (3, 2, 0, 12))
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (3, 3)


def test_vllm_shares_the_chunks_of_a_prompt_as_they_are_computed() -> None:
    e = vllm(100, budget=10)
    for i in (1, 2):
        e.submit(sequence(i, 13, 3, ids=range(13)), 0.0)
    assert rows(e) == ((1, 10, 0, 0),)
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (1, 2)
    assert rows(e) == ((1, 3, 0, 10), (2, 1, 0, 12))
    assert (e.pool.held_blocks, e.pool.cached_blocks) == (2, 3)


def test_vllm_a_sequence_that_shared_its_prompt_can_fill_the_whole_pool() -> None:
    # Its own copy of what 1 had, beside the cached one, once left it a block short: it preempted
    # itself, and nothing was scheduled ever after.
    e = vllm(7)
    e.submit(sequence(1, 12, 1, ids=range(12)), 0.0)
    whole = sequence(2, 16, 13, ids=range(16))
    e.submit(whole, 0.0)
    for _ in range(13):
        step(e)
    assert (whole.emitted_tokens, whole.preemptions) == (13, 0)
    assert whole.done_s is not None


def test_vllm_a_cancelled_sequence_leaves_in_the_middle_of_its_prompt() -> None:
    e = vllm(100, budget=8)
    gone = sequence(1, 40, 9)
    e.submit(gone, 0.0)
    rows(e)
    e.submit(sequence(2, 4, 1), 0.0)
    e.cancel(gone)
    assert rows(e) == ((2, 4, 0, 0),)
    assert (gone.computed_tokens, gone.emitted_tokens, gone.done_s) == (8, 0, None)
    assert (e.batch_size, e.pool.held_blocks) == (0, 0)


def test_vllm_finds_what_a_preempted_sequence_computed_where_memory_allows() -> None:
    e = vllm(8)
    e.submit(sequence(1, 8, 18), 0.0)
    two = sequence(2, 8, 18, ids=range(100, 108))
    e.submit(two, 0.0)
    while not two.preemptions:
        rows(e)
    # Both had 4 blocks when 1 needed a fifth. 16 tokens of 2 stay cached but for that one block.
    assert e.pool.cached_blocks == 3
    e.cancel(next(iter(e._batch.members)))
    seen = [r for _ in range(3) for r in rows(e) if r[0] == 2 and r[1]]
    assert seen == [(2, 5, 0, 12)]  # 8 + 9 emitted = 17 to compute, 12 found


def test_vllm_refuses_what_never_fits() -> None:
    with pytest.raises(ValueError, match="expected 1 <= sequences <= tokens, got 4, 5"):
        VllmPolicy(4, 5)
    e = Engine(MODEL, VllmPolicy(64, 8), 8, block_tokens=4, max_total_tokens=24)
    with pytest.raises(ValueError, match="needs 9 KV blocks, the engine has 8"):
        e.submit(sequence(1, 30, 4), 0.0)
    with pytest.raises(ValueError, match="needs 25 tokens, max_total_tokens is 24"):
        e.submit(sequence(1, 20, 5), 0.0)
