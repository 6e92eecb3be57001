"""The engine and its boards bound to an event loop: tokens come out when they are due.

One timer per engine step, none per token. Steps follow each other at the
model's own instants: while work remains, a step begins where the previous one
ended, whatever the loop's lateness, so a late loop delivers tokens late but
neither stretches steps nor drifts. On the virtual clock it is never late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from loadgen import clock
from loadgen.launch import Launch
from loadgen.pacer import Alarm
from loadgen.server.deployment import Deployment
from loadgen.server.engine import Sequence, StepWork
from loadgen.server.gpu import Board
from loadgen.types import Step

WARM_UP_ID = -(2**53)
"""The request id of the warm-up prefill in the book of steps."""


CLOSING = "the server is shutting down"
"""What requests in flight, and later ones, are told when the service has stopped."""


class Sink(Protocol):
    """Where a request's tokens go. Called synchronously at the end of an engine step."""

    def token(self, index: int, finish_reason: str | None) -> None:
        """The ``index``-th token, from 1; ``finish_reason`` is None unless it is the last."""
        ...

    def failed(self, message: str) -> None:
        """No more tokens will come."""
        ...


class Ticket:
    """A request the service has accepted. Instants are on ``clock.now()``, None until they happen."""

    __slots__ = ("_sequence", "_service", "sink")

    def __init__(self, service: Service, sequence: Sequence, sink: Sink) -> None:
        self._service = service
        self._sequence = sequence
        self.sink = sink

    @property
    def submitted_s(self) -> float:
        """When it was submitted."""
        assert self._sequence.submitted_s is not None
        return self._sequence.submitted_s

    @property
    def scheduled_s(self) -> float | None:
        """Start of the first step that worked on it."""
        return self._sequence.scheduled_s

    @property
    def first_s(self) -> float | None:
        """End of the step that emitted its first token."""
        return self._sequence.first_s

    @property
    def done_s(self) -> float | None:
        """End of the step that emitted its last token; stays None when cancelled."""
        return self._sequence.done_s

    @property
    def emitted_tokens(self) -> int:
        """Tokens of the reply so far."""
        return self._sequence.emitted_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had when the request was first admitted."""
        return self._sequence.cached_tokens

    @property
    def preemptions(self) -> int:
        """How often the request lost its blocks and was computed anew."""
        return self._sequence.preemptions

    def cancel(self) -> None:
        """The client has gone: no further calls to the sink, and its place is free at once.

        The engine drops it when popped from the queue or at its next token.
        Does nothing on a request that has ended.
        """
        self._service._drop(self)


class Service:
    """An inference server without its protocol.

    ``on_step`` receives every step, when it has finished, and every idle
    stretch, when it is over, in order and without gaps, at absolute
    ``clock.now()`` instants; their energies, each over all boards, sum to
    ``energy_j`` at ``end_s``. ``on_work``, when set, is told of every forward
    when it has finished. Accepts at most ``max_concurrent_requests`` requests at a
    time, from submission to last token, failure or cancellation.

    The service is deterministic; ``launch.seed`` keys what the routes and the
    boards draw. Raises ConfigError for an unknown id, CapacityError when the
    model does not fit.
    """

    def __init__(
        self, launch: Launch | None = None, *, on_step: Callable[[Step], None] | None = None
    ) -> None:
        self.launch = launch = Launch() if launch is None else launch
        self.deployment = Deployment(launch)
        self.limits = self.deployment.limits
        self._engine = self.deployment.engine()
        self._on_step = on_step
        self.on_work: Callable[[StepWork], None] | None = None
        self._tickets: dict[Sequence, Ticket] = {}
        self._boards: tuple[Board, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._alarm: Alarm | None = None
        self._awake = False
        self._work: tuple[StepWork, float] | None = None
        self._closed = False

    @property
    def boards(self) -> tuple[Board, ...]:
        """One board per shard, from the start of the service on. Raises RuntimeError before it."""
        if not self._boards:
            raise RuntimeError("the service has not been started")
        return self._boards

    @property
    def end_s(self) -> float:
        """The instant up to which the boards' histories are recorded."""
        return self.boards[0].end_s

    def energy_j(self, t_s: float) -> float:
        """Exact energy of all boards from the start to ``t_s``."""
        return sum(board.energy_j(t_s) for board in self.boards)

    @property
    def queue_size(self) -> int:
        """Requests waiting for admission, those whose client has gone included (as TGI's gauge)."""
        return self._engine.queue_size

    @property
    def batch_size(self) -> int:
        """Requests in the running batch."""
        return self._engine.batch_size

    @property
    def batch_tokens(self) -> int:
        """KV tokens that the running batch holds or has reserved, a shared prefix once."""
        pool = self._engine.pool
        return (pool.total_blocks - pool.available_blocks) * self.limits.block_tokens

    @property
    def closed(self) -> bool:
        """Whether the service has stopped, by ``close`` or by a failure."""
        return self._closed

    @property
    def in_flight(self) -> int:
        """Accepted requests that have not ended."""
        return len(self._tickets)

    def start(self) -> None:
        """Begins the first idle stretch now, on the running event loop. Again: nothing."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._ended = self._loop.create_future()
            self._alarm = Alarm()
            self._boards = self.deployment.boards(clock.now())

    async def warm_up(self) -> None:
        """One full prefill before the first request, as TGI and vLLM do to learn what fits.

        Returns when it is over; requests must not be submitted before.
        """
        self.start()
        tokens = min(self.limits.max_batch_prefill_tokens, self.limits.max_total_tokens)
        cost = self.deployment.step_model.step(
            prefill_tokens=tokens,
            prefill_pairs=tokens * (tokens + 1) // 2,
            prefill_span_tokens=tokens,
            emitting_rows=1,
        )
        now_s = clock.now()
        self._book_idle(now_s)
        rows = ((WARM_UP_ID, tokens, 0, 0),)
        self._begin(StepWork(now_s, cost.duration_s, cost.power_w, rows))
        await asyncio.sleep(self.end_s - clock.now())
        self._book_work()

    async def run(self) -> None:
        """Starts the service and returns when it is closed.

        Raises what ``on_step`` raised, if it did: the service has then stopped,
        since a run whose energy book has a hole is not worth finishing.
        """
        self.start()
        assert self._ended is not None
        try:
            await asyncio.shield(self._ended)
        finally:
            self.close()

    def submit(
        self,
        request_id: int,
        prompt_tokens: int,
        max_new_tokens: int,
        reply_tokens: int,
        finish_reason: str,
        sink: Sink,
        *,
        prompt_ids: bytes | None = None,
    ) -> Ticket | None:
        """Queues a request; None when ``max_concurrent_requests`` are in flight (HTTP 429).

        It will emit ``reply_tokens`` tokens, the last with ``finish_reason``
        (fewer, and ``length``, when its next stretch no longer fits). Without
        ``prompt_ids``, 8 bytes a token, it shares no prefix. Raises ValueError
        when it could never be scheduled, RuntimeError after ``close``.
        """
        if self._closed:
            raise RuntimeError("the service is closed")
        self.start()
        limit = self.limits.max_concurrent_requests
        if limit is not None and len(self._tickets) >= limit:
            return None
        sequence = Sequence(
            request_id, prompt_tokens, max_new_tokens, reply_tokens, finish_reason, prompt_ids
        )
        self._engine.submit(sequence, clock.now())
        ticket = self._tickets[sequence] = Ticket(self, sequence, sink)
        if not self._awake:
            # Not at once: whatever else arrives in this turn of the loop joins the same prefill.
            assert self._loop is not None
            self._awake = True
            self._loop.call_soon(self._next)
        return ticket

    def close(self) -> None:
        """Stops. A step in progress is booked whole; then the last idle stretch, up to now.

        Requests in flight fail. Again: nothing.
        """
        self._stop(None)

    def die(self) -> None:
        """As a killed process: requests in flight fail, and its boards hold no context any more."""
        self.close()
        for board in self._boards:
            board.enter("bare idle", max(board.end_s, clock.now()))

    def _stop(self, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        if self._alarm is not None:
            self._alarm.close()
        try:
            if error is None and self._boards:
                self._book_work()
                self._book_idle(clock.now())
        finally:
            tickets = list(self._tickets.values())
            self._tickets.clear()
            for ticket in tickets:
                self._tell(ticket.sink.failed, CLOSING)
            if self._ended is not None and not self._ended.done():
                if error is None:
                    self._ended.set_result(None)
                else:
                    self._ended.set_exception(error)

    def _next(self) -> None:
        """Begins the next step if there is one; otherwise the board idles until a submission."""
        self._awake = False
        if self._closed:
            return
        start_s = self.end_s
        if not self._engine.batch_size:
            head = self._engine.next_waiting()
            if head is None:
                return
            assert head.submitted_s is not None
            start_s = max(start_s, head.submitted_s)
        work = self._engine.start_step(start_s)
        if work is None:
            return
        try:
            self._book_idle(start_s)
        except Exception as error:
            self._stop(error)
            return
        self._begin(work)
        assert self._alarm is not None
        self._awake = True
        self._alarm.set(self.end_s, self._finish)

    def _begin(self, work: StepWork) -> None:
        energy_j = 0.0
        for board in self._boards:
            energy_j += board.busy(work.start_s, work.duration_s, work.power_w)
        self._work = (work, energy_j)

    def _finish(self) -> None:
        emissions = self._engine.finish_step(self.end_s)
        try:
            self._book_work()
        except Exception as error:
            self._stop(error)
            return
        # Still awake meanwhile, so that a submission by a sink does not wake us twice.
        tickets = self._tickets
        for sequence, index, finish_reason in emissions:
            # A sink called just before may have cancelled this one.
            ticket = tickets.get(sequence) if finish_reason is None else tickets.pop(sequence, None)
            if ticket is None:
                continue
            try:
                ticket.sink.token(index, finish_reason)
            except Exception as error:
                self._report(error)
                ticket.cancel()
                self._tell(ticket.sink.failed, "internal error")
        self._next()

    def _book_idle(self, until_s: float) -> None:
        start_s = self.end_s
        if until_s > start_s:
            energy_j = sum(board.advance(until_s) for board in self._boards)
            if self._on_step is not None:
                self._on_step(Step(start_s, until_s - start_s, energy_j))

    def _book_work(self) -> None:
        if self._work is not None:
            work, energy_j = self._work
            self._work = None
            if self._on_step is not None:
                self._on_step(Step(work.start_s, work.duration_s, energy_j, work.rows))
            if self.on_work is not None:
                self.on_work(work)

    def _drop(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket._sequence, None) is not None:
            self._engine.cancel(ticket._sequence)

    def _tell(self, call: Callable[[str], None], message: str) -> None:
        try:
            call(message)
        except Exception as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        """One broken connection must not stop the others: the loop's handler logs it."""
        assert self._loop is not None
        self._loop.call_exception_handler({"message": "a sink of the service raised", "exception": error})
