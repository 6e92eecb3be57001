"""The engine and the board bound to an event loop: tokens come out when they are due.

One timer per engine step, none per token. Steps follow each other at the
model's own instants: while work remains, a step begins where the previous one
ended, whatever the loop's lateness, so a late loop delivers tokens late but
neither stretches steps nor drifts. On the virtual clock it is never late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol, TypeVar

from loadgen import clock
from loadgen.errors import CapacityError, ConfigError
from loadgen.physics.hardware import GPUS, Gpu
from loadgen.physics.transformer import DTYPES, MODELS, Dtype, StepModel, Transformer
from loadgen.server.engine import Engine, Sequence, StepWork, TgiPolicy
from loadgen.server.gpu import Board
from loadgen.types import Step

T = TypeVar("T")

_WIGGLE_ROOM = 0.10
"""Share of the board TGI leaves free: its server's TGI_WIGGLE_ROOM of 0.90."""
_LAUNCHER_SHARE = 0.95
"""The launcher's own, more generous estimate of the usable share."""
_CONTEXT_BYTES = 512 * 2**20
"""CUDA context, kernels and captured graphs. Assumed."""


class Sink(Protocol):
    """Where a request's tokens go. Called synchronously at the end of an engine step."""

    def token(self, index: int, finish_reason: str | None) -> None:
        """The ``index``-th token, from 1; ``finish_reason`` is None unless it is the last."""
        ...

    def failed(self, message: str) -> None:
        """No more tokens will come."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server accepts, in the terms of TGI's launcher. Counts."""

    model_id: str
    max_concurrent_requests: int = 128
    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    max_batch_total_tokens: int


def derive_limits(model: Transformer, gpu: Gpu, dtype: Dtype, max_concurrent_requests: int = 128) -> Limits:
    """The limits TGI v3 would choose for a model on one board.

    ``max_batch_prefill_tokens``: the card's 16-bit rate over FLOP per token
    (4096 if that is 100 or less), at most the model's positions and what the
    launcher thinks fits in memory. ``max_batch_total_tokens``: KV blocks of one
    token in 90 % of the board after weights, context and the activations of a
    full prefill; TGI measures that by a warm-up prefill, here activations are
    the widest moment of a layer (gate and up, their product, two residuals).
    Raises CapacityError when nothing is left for the cache.
    """
    h, q = model.hidden, model.heads * model.head_dim
    kv = model.kv_heads * model.head_dim
    # The launcher's count, factor for factor: it takes K and V as one 2*kv product.
    flop_per_token = model.layers * (2 * q * h + 2 * (2 * kv * h) + 2 * (2 * q * h) + 6 * h * model.ffn)
    prefill = int(gpu.tgi_f16_flop_per_s / flop_per_token)
    if prefill <= 100:
        prefill = 4096
    kv_bytes = model.kv_token_bytes(dtype)
    weights = model.weights_bytes(dtype)
    fits = int((_LAUNCHER_SHARE * gpu.memory_bytes - weights) // kv_bytes)
    prefill = min(prefill, model.max_position_embeddings, max(fits, 0))
    activations = prefill * (3 * model.ffn + 2 * h) * dtype.size_bytes
    usable = (1.0 - _WIGGLE_ROOM) * gpu.memory_bytes - weights - _CONTEXT_BYTES - activations
    blocks = int(usable // kv_bytes)
    total = min(blocks, model.max_position_embeddings)
    if prefill < 1 or total < 2:
        raise CapacityError(
            f"{model.id} in {dtype.name} needs {weights / 1e9:.1f} GB for its weights alone and leaves no "
            f"room for a KV cache on {gpu.id} ({gpu.memory_bytes / 1e9:.1f} GB)"
        )
    return Limits(
        model_id=model.hub_id,
        max_concurrent_requests=max_concurrent_requests,
        max_input_tokens=total - 1,
        max_total_tokens=total,
        max_batch_prefill_tokens=prefill,
        max_batch_total_tokens=blocks,
    )


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
    ``clock.now()`` instants; their energies sum to ``board.energy_j`` at
    ``board.end_s``. Accepts at most ``max_concurrent_requests`` requests at a
    time, from submission to last token, failure or cancellation.

    ``seed`` is kept for the routes, which draw reply lengths from it; the
    service itself is deterministic. Raises ConfigError for an unknown id,
    CapacityError when the model does not fit.
    """

    def __init__(
        self,
        model: str,
        gpu: str,
        dtype: str,
        *,
        seed: int = 0,
        max_concurrent_requests: int = 128,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.model = _known("model", model, MODELS)
        self.gpu = _known("gpu", gpu, GPUS)
        self.dtype = _known("dtype", dtype, DTYPES)
        self.seed = seed
        self.limits = derive_limits(self.model, self.gpu, self.dtype, max_concurrent_requests)
        self._engine = Engine(
            StepModel(self.model, self.gpu, self.dtype),
            TgiPolicy(self.limits.max_batch_prefill_tokens),
            self.limits.max_batch_total_tokens,
        )
        self._on_step = on_step
        self._tickets: dict[Sequence, Ticket] = {}
        self._board: Board | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._handle: asyncio.Handle | None = None
        self._work: tuple[StepWork, float] | None = None
        self._closed = False

    @property
    def board(self) -> Board:
        """The board, from the start of the service on. Raises RuntimeError before it."""
        if self._board is None:
            raise RuntimeError("the service has not been started")
        return self._board

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
        """KV tokens reserved by the running batch."""
        return self._engine.pool.total_blocks - self._engine.pool.free_blocks

    @property
    def in_flight(self) -> int:
        """Accepted requests that have not ended."""
        return len(self._tickets)

    def start(self) -> None:
        """Begins the first idle stretch now, on the running event loop. Again: nothing."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._ended = self._loop.create_future()
            self._board = Board(self.gpu, clock.now())

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
    ) -> Ticket | None:
        """Queues a request; None when ``max_concurrent_requests`` are in flight (HTTP 429).

        It will emit exactly ``reply_tokens`` tokens, the last with
        ``finish_reason``. Raises ValueError when it could never be scheduled,
        RuntimeError after ``close``.
        """
        if self._closed:
            raise RuntimeError("the service is closed")
        self.start()
        if len(self._tickets) >= self.limits.max_concurrent_requests:
            return None
        sequence = Sequence(request_id, prompt_tokens, max_new_tokens, reply_tokens, finish_reason)
        self._engine.submit(sequence, clock.now())
        ticket = self._tickets[sequence] = Ticket(self, sequence, sink)
        if self._handle is None:
            # Not at once: whatever else arrives in this turn of the loop joins the same prefill.
            assert self._loop is not None
            self._handle = self._loop.call_soon(self._next)
        return ticket

    def close(self) -> None:
        """Stops. A step in progress is booked whole; then the last idle stretch, up to now.

        Requests in flight fail. Again: nothing.
        """
        self._stop(None)

    def _stop(self, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        try:
            if error is None and self._board is not None:
                self._book_work()
                self._book_idle(clock.now())
        finally:
            tickets = list(self._tickets.values())
            self._tickets.clear()
            for ticket in tickets:
                self._tell(ticket.sink.failed, "the server is shutting down")
            if self._ended is not None and not self._ended.done():
                if error is None:
                    self._ended.set_result(None)
                else:
                    self._ended.set_exception(error)

    def _next(self) -> None:
        """Begins the next step if there is one; otherwise the board idles until a submission."""
        self._handle = None
        board = self.board
        start_s = board.end_s
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
        self._work = (work, board.busy(start_s, work.duration_s, work.power_w))
        assert self._loop is not None
        self._handle = self._loop.call_at(board.end_s, self._finish)

    def _finish(self) -> None:
        emissions = self._engine.finish_step(self.board.end_s)
        try:
            self._book_work()
        except Exception as error:
            self._stop(error)
            return
        # self._handle stays set meanwhile, so that a submission by a sink does not wake us twice.
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
        if not self._closed:
            self._next()

    def _book_idle(self, until_s: float) -> None:
        board = self.board
        start_s = board.end_s
        if until_s > start_s:
            energy_j = board.advance(until_s)
            if self._on_step is not None:
                self._on_step(Step(start_s, until_s - start_s, energy_j))

    def _book_work(self) -> None:
        if self._work is not None:
            work, energy_j = self._work
            self._work = None
            if self._on_step is not None:
                self._on_step(Step(work.start_s, work.duration_s, energy_j, work.rows))

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


def _known(what: str, name: str, table: Mapping[str, T]) -> T:
    if name in table:
        return table[name]
    near = get_close_matches(name, table, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"server.{what}: expected one of {', '.join(table)}, got {name}{hint}")
