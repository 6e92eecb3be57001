"""The engine with TGI's default scheduler: steps followed by hand, and misuse."""

from __future__ import annotations

import pytest
from engines import sequence, step, tgi, tokens

from loadgen.server.tgi_policy import TgiPolicy


def test_one_request() -> None:
    e = tgi()
    s = sequence(7, 10, 3)
    e.submit(s, 0.5)
    assert (e.queue_size, e.batch_size) == (1, 0)
    work, out = step(e, 1.0)
    assert work.rows == ((7, 10, 0, 0),)
    assert tokens(out) == [(7, 1, None)]
    assert (e.queue_size, e.batch_size) == (0, 1)
    assert e.pool.free_blocks == 400_000 - 12
    work, out = step(e, 2.0)
    assert work.rows == ((7, 0, 1, 10),)
    assert tokens(out) == [(7, 2, None)]
    work, out = step(e, 3.0)
    assert work.rows == ((7, 0, 1, 11),)
    assert tokens(out) == [(7, 3, "length")]
    assert e.pool.free_blocks == 400_000
    assert e.start_step(4.0) is None
    assert (s.submitted_s, s.scheduled_s) == (0.5, 1.0)
    assert s.first_s is not None and 1.0 < s.first_s < 2.0
    assert s.done_s == 3.0 + work.duration_s


def test_a_single_token_reply_ends_with_its_prefill() -> None:
    e = tgi()
    e.submit(sequence(1, 5, 1), 0.0)
    assert tokens(step(e)[1]) == [(1, 1, "length")]
    assert e.batch_size == 0


def test_long_prompt_is_fed_in_chunks_and_emits_after_the_last() -> None:
    e = tgi(prefill_tokens=8)
    e.submit(sequence(1, 20, 2), 0.0)
    rows, outs = zip(*[(w.rows, tokens(out)) for w, out in (step(e) for _ in range(4))], strict=True)
    assert rows == (((1, 8, 0, 0),), ((1, 8, 0, 8),), ((1, 4, 0, 16),), ((1, 0, 1, 20),))
    assert outs == ([], [], [(1, 1, None)], [(1, 2, "length")])


def test_chunk_shares_the_budget_with_running_rows() -> None:
    e = tgi(prefill_tokens=10)
    e.submit(sequence(1, 4, 9), 0.0)
    e.submit(sequence(2, 20, 9), 0.0)
    # 4 + 6 of the budget of 10; the server then leaves one token to each other row.
    assert step(e)[0].rows == ((1, 4, 0, 0), (2, 6, 0, 0))
    assert step(e)[0].rows == ((1, 0, 1, 4), (2, 9, 0, 6))
    assert step(e)[0].rows == ((1, 0, 1, 5), (2, 5, 0, 15))
    assert step(e)[0].rows == ((1, 0, 1, 6), (2, 0, 1, 20))


def test_a_chunk_leaves_a_token_to_each_row_of_the_forward_before() -> None:
    e = tgi(prefill_tokens=10)
    e.submit(sequence(1, 4, 3), 0.0)
    e.submit(sequence(2, 45, 9), 0.0)
    # The server derives the next chunk before it learns who has ended: 1 ends with the third forward
    # and is still counted in the fourth (flash_causal_lm.py, batch_budget).
    assert [[r[1] for r in step(e)[0].rows if r[0] == 2] for _ in range(5)] == [[6], [9], [9], [9], [10]]


def test_at_most_one_admission_every_two_forwards() -> None:
    e = tgi()
    e.submit(sequence(1, 4, 50), 0.0)
    step(e)
    admitted = []
    for k in range(8):
        e.submit(sequence(10 + k, 4, 50), 0.0)
        rows = step(e)[0].rows
        admitted.append([r[0] for r in rows if r[1]])
    # The first prefill may be followed at once; then one forward without, one with everything queued.
    assert admitted == [[10], [], [11, 12], [], [13, 14], [], [15, 16], []]


def test_full_reservation_blocks_in_order_of_arrival() -> None:
    e = tgi(blocks=100)
    e.submit(sequence(1, 50, 2, max_new=11), 0.0)  # holds 60
    e.submit(sequence(2, 45, 1), 0.0)  # needs 45: waits
    e.submit(sequence(3, 1, 1), 0.0)  # would fit, but is behind
    assert step(e)[0].rows == ((1, 50, 0, 0),)
    assert e.pool.free_blocks == 40
    assert step(e)[0].rows == ((1, 0, 1, 50),)  # the reply ends early: all 60 come back
    assert e.pool.free_blocks == 100
    assert step(e)[0].rows == ((2, 45, 0, 0), (3, 1, 0, 0))


def test_cancelled_in_the_queue_is_skipped() -> None:
    e = tgi()
    gone = sequence(1, 9, 9)
    e.submit(gone, 0.0)
    e.submit(sequence(2, 3, 1), 0.0)
    e.cancel(gone)
    assert step(e)[0].rows == ((2, 3, 0, 0),)
    assert gone.scheduled_s is None
    assert e.queue_size == 0


def test_only_cancelled_requests_are_no_work() -> None:
    e = tgi()
    gone = sequence(1, 9, 9)
    e.submit(gone, 0.0)
    e.cancel(gone)
    assert e.next_waiting() is None
    assert e.start_step(0.0) is None


def test_cancelled_while_running_leaves_at_its_next_token() -> None:
    e = tgi(prefill_tokens=8)
    gone = sequence(1, 12, 9)
    e.submit(gone, 0.0)
    step(e)
    e.cancel(gone)
    work, out = step(e)  # the prompt is finished first: only a token tells the server
    assert work.rows == ((1, 4, 0, 8),)
    assert out == []
    assert (e.batch_size, e.pool.free_blocks) == (0, e.pool.total_blocks)
    assert gone.done_s is None


def test_misuse_is_refused() -> None:
    e = tgi(blocks=100)
    with pytest.raises(ValueError, match="needs 101 KV blocks"):
        e.submit(sequence(1, 100, 2), 0.0)
    for bad in (sequence(1, 0, 1), sequence(1, 5, 0), sequence(1, 5, 6, max_new=5)):
        with pytest.raises(ValueError, match="expected prompt"):
            e.submit(bad, 0.0)
    with pytest.raises(ValueError, match="expected >= 1"):
        TgiPolicy(0)
    with pytest.raises(RuntimeError, match="no step"):
        e.finish_step(0.0)
    e.submit(sequence(1, 5, 5), 0.0)
    e.start_step(0.0)
    with pytest.raises(RuntimeError, match="has not finished"):
        e.start_step(0.0)


def test_nothing_happens_to_a_sequence_before_it_is_submitted() -> None:
    e = tgi()
    s = sequence(1, 5, 1)
    e.submit(s, 2.0)
    e.start_step(1.9)
    e.finish_step(1.95)
    assert (s.scheduled_s, s.first_s, s.done_s) == (2.0, 2.0, 2.0)
