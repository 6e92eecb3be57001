from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from fakes import ScriptedClient, plan

from loadgen import clock
from loadgen.runner import INTERRUPTED, run_plan
from loadgen.types import Plan, Record, Request, Tape


def run(what: Plan, client: ScriptedClient, *, timeout_s: float = 10.0, zero_s: float = 1.0) -> list[Record]:
    records: list[Record] = []

    async def main() -> None:
        await run_plan(what, client, zero_s=zero_s, timeout_s=timeout_s, on_record=records.append)

    clock.run_virtual(main())
    return records


def test_every_arrival_is_sent_when_due_and_gets_one_record() -> None:
    due_s = [0.05 * k for k in range(200)]
    records = run(plan(due_s), ScriptedClient(1.0))
    assert sorted(r.id for r in records) == list(range(200))
    for record in records:
        assert record.status == "ok" and record.error is None
        assert record.sent_s == record.due_s == 1.0 + due_s[record.id]
        assert record.first_s == pytest.approx(record.sent_s + 0.5)
        assert record.done_s == pytest.approx(record.sent_s + 1.0)
        assert record.chunk_tokens == (1, 1) and record.output_tokens == 2


def test_arrivals_microseconds_apart_do_not_stop_virtual_time() -> None:
    """Found on the Azure trace: a pacer that spins through the last 20 us stops virtual time for good."""
    due_s = [0.0, 1e-7, 5e-6, 5e-6 + 1e-12, 0.1, 0.1 + 1e-9]
    records = sorted(run(plan(due_s), ScriptedClient(), zero_s=123.456), key=lambda r: r.id)
    assert [(r.sent_s or 0) - 123.456 for r in records] == pytest.approx(due_s, abs=1e-12)
    assert all(r.sent_s is not None and r.sent_s >= r.due_s for r in records)


def test_what_is_due_in_the_past_goes_out_at_once_and_shows_as_late() -> None:
    async def main() -> list[Record]:
        records: list[Record] = []
        await asyncio.sleep(5)
        await run_plan(
            plan([0.0, 1.0, 9.0]), ScriptedClient(), zero_s=0.0, timeout_s=9, on_record=records.append
        )
        return records

    records = sorted(clock.run_virtual(main()), key=lambda r: r.id)
    assert [r.due_s for r in records] == [0.0, 1.0, 9.0]
    assert [r.sent_s for r in records] == [5.0, 5.0, 9.0]


def test_each_failure_lands_in_its_own_status_with_its_cause() -> None:
    faults = {1: 429, 2: 500, 3: "reset", 4: "hang", 5: "cut"}
    records = {r.id: r for r in run(plan([0.0] * 6), ScriptedClient(0.1, faults), timeout_s=2.0)}
    assert [records[k].status for k in range(6)] == ["ok", "rejected", "error", "error", "timeout", "error"]
    assert records[1].error == "HTTP 429: Model is overloaded" and records[1].http_status == 429
    assert records[3].error == "connection reset by peer"
    assert records[3].first_s is not None and records[3].finish_reason is None
    assert records[4].error == "no complete reply within 2 s" and records[4].done_s == pytest.approx(3.0)
    assert records[4].first_s is None and records[4].output_tokens is None
    assert "finish event" in (records[5].error or "")


def test_a_closed_loop_keeps_exactly_n_in_flight_and_is_due_when_sent() -> None:
    client = ScriptedClient(lambda id: 0.1 + 0.05 * (id % 3))
    records = run(plan([0.0] * 50, cap=4, closed=True), client)
    assert client.most_in_flight == 4 and len(records) == 50
    assert all(r.due_s == r.sent_s == r.demand_s for r in records)
    # Work conservation: with 4 always busy the makespan is total work / 4, up to one service.
    total_s = sum(0.1 + 0.05 * (k % 3) for k in range(50))
    makespan_s = max(r.done_s or 0 for r in records) - 1.0
    assert total_s / 4 <= makespan_s <= total_s / 4 + 0.2


def test_the_cap_queues_in_order_and_the_wait_shows_as_lateness() -> None:
    client = ScriptedClient(1.0)
    records = sorted(run(plan([0.0, 0.1, 0.2, 0.3], cap=2), client), key=lambda r: r.id)
    assert client.most_in_flight == 2
    lateness_s = [(r.sent_s or 0) - r.due_s for r in records]
    assert lateness_s == pytest.approx([0, 0, 0.8, 0.8])
    assert all(r.status == "ok" for r in records)


def test_the_cap_can_drop_instead() -> None:
    records = run(plan([0.0, 0.1, 0.2, 1.5], cap=2, overflow="drop"), ScriptedClient(1.0))
    assert Counter(r.status for r in records) == {"ok": 3, "dropped": 1}
    dropped = next(r for r in records if r.status == "dropped")
    assert dropped.id == 2 and dropped.sent_s is None and "max_in_flight" in (dropped.error or "")


@pytest.mark.parametrize("closed", [False, True])
def test_an_interruption_disconnects_and_still_leaves_a_record_for_everyone(closed: bool) -> None:
    client = ScriptedClient(1.0)
    records: list[Record] = []
    due_s = [0.0] * 40 if closed else [0.25 * k for k in range(40)]

    async def main() -> None:
        task = asyncio.create_task(
            run_plan(
                plan(due_s, cap=4 if closed else None, closed=closed),
                client,
                zero_s=0.0,
                timeout_s=9.0,
                on_record=records.append,
            )
        )
        await asyncio.sleep(3.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run_virtual(main())
    assert sorted(r.id for r in records) == list(range(40))
    assert client.in_flight == 0 and len(client.disconnected) == 4
    cut = [r for r in records if r.error == "interrupted by the user"]
    assert {r.id for r in cut} == set(client.disconnected)
    unsent = [r for r in records if r.sent_s is None]
    assert unsent and all(r.error == INTERRUPTED and r.status == "cancelled" for r in unsent)


@pytest.mark.parametrize("closed", [False, True])
def test_nothing_more_is_sent_once_a_record_cannot_be_kept(closed: bool) -> None:
    client = ScriptedClient(0.1)

    def full_disk(record: Record) -> None:
        if record.status == "ok":
            raise OSError("no space left")

    async def main() -> None:
        due_s = [0.0] * 50 if closed else [0.05 * k for k in range(50)]
        what = plan(due_s, cap=2 if closed else None, closed=closed)
        await run_plan(what, client, zero_s=0.0, timeout_s=9, on_record=full_disk)

    with pytest.raises(OSError, match="no space left"):
        clock.run_virtual(main())
    assert len(client.started) <= 6


def test_a_bug_in_a_client_is_not_swallowed() -> None:
    class Broken(ScriptedClient):
        async def exchange(self, request: object, tape: Tape) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(plan([0.0, 0.5]), Broken())


def test_shards_partition_the_plan() -> None:
    whole = plan([0.1 * k for k in range(11)])
    parts = [whole.shard(k, 3) for k in range(3)]
    assert sorted(a.request.id for p in parts for a in p.arrivals) == list(range(11))
    with pytest.raises(ValueError, match="0 <= k < n"):
        whole.shard(3, 3)


def test_a_closed_loop_sends_nothing_before_zero() -> None:
    """Found: it began at once, 0.2 s before the window opened, and that work's energy was left out."""
    records = run(plan([0.0] * 6, cap=2, closed=True), ScriptedClient(1.0), zero_s=3.0)
    assert min(r.sent_s or 0 for r in records) == 3.0


@pytest.mark.parametrize("turns", range(1, 6))
def test_a_request_cancelled_before_its_first_step_still_has_its_record(turns: int) -> None:
    """Found: Ctrl-C in the loop turn in which a closed loop refills lost the refilled requests' records."""
    records: list[Record] = []

    async def main() -> None:
        what = plan([0.0] * 12, cap=4, closed=True)
        task = asyncio.create_task(
            run_plan(what, ScriptedClient(1.0), zero_s=0.0, timeout_s=9.0, on_record=records.append)
        )
        await asyncio.sleep(1.0)  # the first four end at this instant
        for _ in range(turns - 1):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run_virtual(main())
    assert sorted(r.id for r in records) == list(range(12))


def test_a_bug_in_a_client_does_not_cost_the_records() -> None:
    class Broken(ScriptedClient):
        async def exchange(self, request: Request, tape: Tape) -> None:
            if request.id == 1:
                raise ZeroDivisionError("no")
            await super().exchange(request, tape)

    records: list[Record] = []

    async def main() -> None:
        what = plan([0.0, 0.5, 1.0])
        await run_plan(what, Broken(), zero_s=0.0, timeout_s=9.0, on_record=records.append)

    with pytest.raises(ZeroDivisionError):
        clock.run_virtual(main())
    assert {r.id: r.status for r in records} == {0: "ok", 1: "error", 2: "cancelled"}
    assert next(r.error for r in records if r.id == 1) == "ZeroDivisionError: no"


def test_a_second_interruption_does_not_cost_the_records() -> None:
    """Found: Ctrl-C twice within milliseconds lost the records of all that was not yet sent."""
    records: list[Record] = []

    async def main() -> None:
        what = plan([0.25 * k for k in range(40)])
        task = asyncio.create_task(
            run_plan(what, ScriptedClient(1.0), zero_s=0.0, timeout_s=9.0, on_record=records.append)
        )
        await asyncio.sleep(3.1)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run_virtual(main())
    assert sorted(r.id for r in records) == list(range(40))
