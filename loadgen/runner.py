"""The hot loop: a plan and a client in, one Record per arrival out.

The only place that stamps ``sent_s`` and decides a status. Due times are absolute
(``zero_s + due_s``), never relative to the last send, so lateness cannot add up;
what could not be sent on time is sent late and shows in ``sent_s - due_s``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from loadgen import clock
from loadgen.errors import ExchangeError
from loadgen.pacer import Pacer
from loadgen.types import Arrival, Client, Plan, Record, Reply, Status, Tape

INTERRUPTED = "interrupted before it was sent"


async def run_plan(
    plan: Plan,
    client: Client,
    *,
    zero_s: float,
    timeout_s: float,
    on_record: Callable[[Record], None],
    on_sent: Callable[[], None] = lambda: None,
) -> None:
    """Sends every arrival of the plan and hands over one Record each, as they end.

    ``zero_s`` is the clock.now() that due times count from, ``timeout_s`` runs
    from ``sent_s``. Records hold clock.now() instants. When cancelled, requests
    under way are disconnected, every arrival still gets its record
    (``cancelled``), and the cancellation goes on.
    """
    flight = _Flight(plan, client, zero_s, timeout_s, on_record, on_sent)
    try:
        if plan.closed:
            flight.waiting.extend(plan.arrivals)
            with Pacer() as pacer:
                await pacer.sleep_until(zero_s)  # nothing may be sent before the window opens
            flight.fill()
        else:
            with Pacer() as pacer:
                for position, arrival in enumerate(plan.arrivals):
                    await pacer.sleep_until(zero_s + arrival.due_s)
                    if flight.failure is not None:
                        break
                    flight.released = position + 1
                    flight.release(arrival)
        await flight.landed()
    except BaseException:
        await flight.abandon()
        raise


def record_unsent(plan: Plan, zero_s: float, on_record: Callable[[Record], None]) -> None:
    """The records of a plan that was interrupted before it began."""
    for arrival in plan.arrivals:
        due_s, demand_s = (0.0, 0.0) if plan.closed else (arrival.due_s, arrival.demand_s)
        record = _record(
            arrival, zero_s + demand_s, zero_s + due_s, None, None, _NO_REPLY, "cancelled", INTERRUPTED
        )
        on_record(record)


class _Flight:
    """The requests that are due: waiting for a place, under way, landed."""

    def __init__(
        self,
        plan: Plan,
        client: Client,
        zero_s: float,
        timeout_s: float,
        on_record: Callable[[Record], None],
        on_sent: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.client = client
        self.zero_s = zero_s
        self.timeout_s = timeout_s
        self.on_record = on_record
        self.on_sent = on_sent
        self.waiting: deque[Arrival] = deque()
        self.tasks: dict[asyncio.Task[None], None] = {}  # in the order of sending: an interruption repeats
        self.unbegun: dict[int, Arrival] = {}
        self.released = 0
        self.failure: BaseException | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    def release(self, arrival: Arrival) -> None:
        cap = self.plan.max_in_flight
        if cap is None or len(self.tasks) < cap:
            self._send(arrival)
        elif self.plan.overflow == "drop":
            self._record(arrival, None, None, "dropped", f"{cap} requests were in flight (max_in_flight)")
        else:
            self.waiting.append(arrival)

    def fill(self) -> None:
        cap = self.plan.max_in_flight
        while self.waiting and self.failure is None and (cap is None or len(self.tasks) < cap):
            self._send(self.waiting.popleft())

    async def landed(self) -> None:
        """Returns when nothing is under way or waiting. Re-raises a bug found in a task."""
        await self._empty.wait()
        if self.failure is not None:
            raise self.failure

    async def abandon(self) -> None:
        """Disconnects what is under way and records what was never sent."""
        later = [*self.waiting, *(() if self.plan.closed else self.plan.arrivals[self.released :])]
        self.waiting.clear()
        under_way = list(self.tasks)
        for task in under_way:
            task.cancel()
        # A task cancelled before its first step never runs, not even to leave its record. All this
        # before anything is awaited: a second Ctrl-C ends the wait, and the rest would be lost.
        for arrival in [*self.unbegun.values(), *later]:
            self._record(arrival, None, None, "cancelled", INTERRUPTED)
        await asyncio.gather(*under_way, return_exceptions=True)

    def _send(self, arrival: Arrival) -> None:
        self._empty.clear()
        self.unbegun[arrival.request.id] = arrival
        task = asyncio.get_running_loop().create_task(self._exchange(arrival))
        self.tasks[task] = None
        task.add_done_callback(self._landed_one)
        self.on_sent()

    def _landed_one(self, task: asyncio.Task[None]) -> None:
        del self.tasks[task]
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.failure = self.failure or exc
        self.fill()
        if not self.tasks and (not self.waiting or self.failure is not None):
            self._empty.set()

    async def _exchange(self, arrival: Arrival) -> None:
        del self.unbegun[arrival.request.id]
        tape, sent_s = Tape(), clock.now()
        status: Status = "ok"
        error: str | None = None
        thrown: BaseException | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                await self.client.exchange(arrival.request, tape)
        except TimeoutError:
            status, error = "timeout", f"no complete reply within {self.timeout_s:g} s"
        except ExchangeError as exc:
            status, error = "error", str(exc)
        except asyncio.CancelledError as exc:
            status, error, thrown = "cancelled", "interrupted by the user", exc
        except Exception as exc:  # a bug, which `landed` raises; the request has its record all the same
            status, error, thrown = "error", f"{type(exc).__name__}: {exc}", exc
        self._record(arrival, sent_s, tape, status, error)
        if thrown is not None:
            raise thrown

    def _record(
        self, arrival: Arrival, sent_s: float | None, tape: Tape | None, status: Status, error: str | None
    ) -> None:
        reply = self.client.decode(tape) if tape is not None and tape.http_status is not None else _NO_REPLY
        if status == "ok" and reply.error is not None:
            status, error = ("rejected" if reply.rejected else "error"), reply.error
        demand_s, due_s = self.zero_s + arrival.demand_s, self.zero_s + arrival.due_s
        if self.plan.closed:
            demand_s = due_s = self.zero_s if sent_s is None else sent_s
        self.on_record(_record(arrival, demand_s, due_s, sent_s, tape, reply, status, error))


def _record(
    arrival: Arrival,
    demand_s: float,
    due_s: float,
    sent_s: float | None,
    tape: Tape | None,
    reply: Reply,
    status: Status,
    error: str | None,
) -> Record:
    stamps = tape.stamps if tape is not None else []
    chunk_s = tuple(stamps[read] for read in reply.chunk_reads)
    done_s = clock.now() if sent_s is not None else None
    return Record(
        id=arrival.request.id,
        phase=arrival.request.phase,
        block=arrival.request.block,
        demand_s=demand_s,
        due_s=due_s,
        sent_s=sent_s,
        first_s=chunk_s[0] if chunk_s else None,
        done_s=stamps[-1] if status == "ok" and stamps else done_s,
        chunk_s=chunk_s,
        chunk_tokens=reply.chunk_tokens,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
        tokens_from=reply.tokens_from,
        finish_reason=reply.finish_reason,
        http_status=tape.http_status if tape is not None else None,
        server_times=reply.server_times,
        status=status,
        error=error,
    )


_NO_REPLY = Reply("", (), (), None, None, None, None, {}, "no response")
