"""Iteration-level continuous batching: a pure state machine.

The engine knows sequences, a queue, a pool of KV blocks and what a step costs;
it has no clock, every instant is passed in. Which sequences a step runs is the
policy's decision, so a second scheduler is a second policy and nothing else.
Exactly one step is in progress or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from loadgen.physics.transformer import StepModel

Row = tuple[int, int, int, int]
"""(sequence id, prefill tokens, decode tokens, context tokens before the step)."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request inside the engine, from submission to its last token.

    ``reply_tokens`` is how many tokens it will emit, ``1..max_new_tokens``;
    ``computed_tokens`` counts tokens whose KV is in the cache. Instants are on
    the caller's clock; ``scheduled_s`` is the start of the first step that
    holds a chunk of it, ``first_s`` and ``done_s`` the ends of the steps that
    emit its first and last token. A cancelled sequence has no ``done_s``.
    """

    id: int
    prompt_tokens: int
    max_new_tokens: int
    reply_tokens: int
    finish_reason: str = "length"
    computed_tokens: int = 0
    emitted_tokens: int = 0
    reserved_blocks: int = 0
    cancelled: bool = False
    submitted_s: float | None = None
    scheduled_s: float | None = None
    first_s: float | None = None
    done_s: float | None = None


class BlockPool:
    """KV blocks: reserved by a sequence once, freed once, never overdrawn."""

    __slots__ = ("free_blocks", "total_blocks")

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self.free_blocks = total_blocks

    def reserve(self, sequence: Sequence, blocks: int) -> bool:
        """Takes the blocks, or returns False and takes none."""
        if blocks > self.free_blocks:
            return False
        self.free_blocks -= blocks
        sequence.reserved_blocks += blocks
        return True

    def release(self, sequence: Sequence) -> None:
        """Returns whatever the sequence holds."""
        self.free_blocks += sequence.reserved_blocks
        sequence.reserved_blocks = 0


class Policy(Protocol):
    """Which rows the next step runs."""

    def blocks_needed(self, sequence: Sequence) -> int:
        """The most blocks the sequence can ever hold."""
        ...

    def next_rows(
        self, queue: deque[Sequence], running: list[Sequence], pool: BlockPool
    ) -> list[tuple[Sequence, int]]:
        """(sequence, new tokens) for the next step, empty for nothing to do.

        Takes admitted sequences out of ``queue``, reserves their blocks, and
        leaves ``running`` (oldest first) to the engine, which appends them.
        """
        ...


class TgiPolicy:
    """Text Generation Inference v3 with chunked prefill, its default.

    First come, first served. A sequence is admitted when its whole lifetime
    (prompt + max_new - 1 tokens, blocks of one token) can be reserved, so
    nothing is ever preempted. A step feeds at most ``max_batch_prefill_tokens``
    tokens; a prompt that does not fit is fed in chunks. Admission into a
    running batch is one forward (new chunks plus the running rows) and is
    always followed by a forward without admission: at most one admission
    every two forwards. With chunking on, TGI ignores waiting_served_ratio and
    max_waiting_tokens. Source: router and server of TGI at db931fc.
    """

    def __init__(self, max_batch_prefill_tokens: int) -> None:
        if max_batch_prefill_tokens < 1:
            raise ValueError(f"max_batch_prefill_tokens: expected >= 1, got {max_batch_prefill_tokens}")
        self.max_batch_prefill_tokens = max_batch_prefill_tokens
        self._decode_due = False

    def blocks_needed(self, sequence: Sequence) -> int:
        return sequence.prompt_tokens + sequence.max_new_tokens - 1

    def next_rows(
        self, queue: deque[Sequence], running: list[Sequence], pool: BlockPool
    ) -> list[tuple[Sequence, int]]:
        budget = self.max_batch_prefill_tokens
        if not running:
            # The router's outer loop: this prefill may be followed at once by an admission.
            self._decode_due = False
            return self._admit(queue, pool, budget)
        rows = self._continue(running)
        if self._decode_due or not queue:
            self._decode_due = False
            return rows
        admitted = self._admit(queue, pool, budget - sum(n for _, n in rows))
        self._decode_due = bool(admitted)
        return rows + admitted

    def _continue(self, running: list[Sequence]) -> list[tuple[Sequence, int]]:
        left = self.max_batch_prefill_tokens - (len(running) - 1)
        rows = []
        for sequence in running:
            remaining = sequence.prompt_tokens - sequence.computed_tokens
            if remaining > 0:
                # At least one token even over budget, as the server does: no sequence stalls.
                chunk = max(min(remaining, left), 1)
                left -= chunk
                rows.append((sequence, chunk))
            else:
                rows.append((sequence, 1))
        return rows

    def _admit(
        self, queue: deque[Sequence], pool: BlockPool, budget_tokens: int
    ) -> list[tuple[Sequence, int]]:
        rows: list[tuple[Sequence, int]] = []
        while queue and budget_tokens > 0 and pool.free_blocks > 0:
            sequence = queue[0]
            if not sequence.cancelled:
                if not pool.reserve(sequence, self.blocks_needed(sequence)):
                    break
                rows.append((sequence, min(sequence.prompt_tokens, budget_tokens)))
                budget_tokens -= sequence.prompt_tokens
            queue.popleft()
        return rows


@dataclass(frozen=True, slots=True)
class StepWork:
    """A step in progress: when it began, how long it takes, what it draws, its rows."""

    start_s: float
    duration_s: float
    power_w: float
    rows: tuple[Row, ...]


Emission = tuple[Sequence, int, str | None]
"""(sequence, index of the token from 1, finish reason if it is the last)."""


class Engine:
    """A replica: queue, running batch, KV blocks, one step at a time.

    ``submit`` and ``cancel`` may be called at any time, also during a step;
    they take effect when the next one is planned. ``start_step`` and
    ``finish_step`` alternate.
    """

    def __init__(self, model: StepModel, policy: Policy, total_blocks: int) -> None:
        self.pool = BlockPool(total_blocks)
        self._model = model
        self._policy = policy
        self._queue: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._rows: list[tuple[Sequence, int]] | None = None

    @property
    def queue_size(self) -> int:
        """Sequences waiting, the cancelled ones not yet skipped included."""
        return len(self._queue)

    @property
    def batch_size(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._running)

    def next_waiting(self) -> Sequence | None:
        """The first queued sequence that is still wanted; forgets the cancelled ones before it."""
        while self._queue and self._queue[0].cancelled:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def submit(self, sequence: Sequence, now_s: float) -> None:
        """Appends to the queue.

        Raises ValueError when the counts make no sense or when the sequence
        could not be scheduled even by an empty engine.
        """
        if sequence.prompt_tokens < 1 or not 1 <= sequence.reply_tokens <= sequence.max_new_tokens:
            raise ValueError(
                f"sequence {sequence.id}: expected prompt >= 1 and 1 <= reply <= max_new tokens, got "
                f"{sequence.prompt_tokens}, {sequence.reply_tokens}, {sequence.max_new_tokens}"
            )
        needed = self._policy.blocks_needed(sequence)
        if needed > self.pool.total_blocks:
            raise ValueError(
                f"sequence {sequence.id}: needs {needed} KV blocks, the engine has {self.pool.total_blocks}"
            )
        sequence.submitted_s = now_s
        self._queue.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Its client has gone: a queued sequence is skipped, a running one leaves at its next token."""
        sequence.cancelled = True

    def start_step(self, now_s: float) -> StepWork | None:
        """Plans and begins the next step at ``now_s``; None when there is nothing to run.

        A sequence that is admitted here after being submitted later than
        ``now_s`` (a late event loop) counts as scheduled when submitted.
        Raises RuntimeError when a step is in progress.
        """
        if self._rows is not None:
            raise RuntimeError("start_step: the previous step has not finished")
        planned = self._policy.next_rows(self._queue, self._running, self.pool)
        if not planned:
            return None
        prefill = pairs = span = decode = context = emitting = 0
        rows: list[Row] = []
        for sequence, n in planned:
            c = sequence.computed_tokens
            if c >= sequence.prompt_tokens:
                decode += 1
                context += c
                rows.append((sequence.id, 0, 1, c))
                continue
            prefill += n
            pairs += n * c + n * (n + 1) // 2
            span += c + n
            emitting += c + n >= sequence.prompt_tokens
            rows.append((sequence.id, n, 0, c))
            if sequence.scheduled_s is None:
                sequence.scheduled_s = max(now_s, sequence.submitted_s or now_s)
                self._running.append(sequence)
        cost = self._model.step(
            prefill_tokens=prefill,
            prefill_pairs=pairs,
            prefill_span_tokens=span,
            decode_rows=decode,
            decode_context_tokens=context,
            emitting_rows=emitting + decode,
        )
        self._rows = planned
        return StepWork(now_s, cost.duration_s, cost.power_w, tuple(rows))

    def finish_step(self, now_s: float) -> list[Emission]:
        """Ends the step at ``now_s``; the tokens it emitted, in the order of its rows.

        Sequences that are complete, or cancelled and at a token, have left and
        their blocks are free. A cancelled sequence's token is not listed.
        Raises RuntimeError when no step is in progress.
        """
        if self._rows is None:
            raise RuntimeError("finish_step: no step is in progress")
        emitted: list[Emission] = []
        left = False
        for sequence, n in self._rows:
            sequence.computed_tokens = computed = sequence.computed_tokens + n
            if computed < sequence.prompt_tokens:
                continue
            if sequence.cancelled:
                self.pool.release(sequence)
                left = True
                continue
            sequence.emitted_tokens = index = sequence.emitted_tokens + 1
            if index == 1:
                sequence.first_s = now_s
            if index < sequence.reply_tokens:
                emitted.append((sequence, index, None))
                continue
            sequence.done_s = now_s
            self.pool.release(sequence)
            left = True
            emitted.append((sequence, index, sequence.finish_reason))
        if left:
            self._running = [s for s in self._running if s.reserved_blocks]
        self._rows = None
        return emitted


def drive(engine: Engine, arrivals: Iterable[tuple[float, Sequence]]) -> Iterator[StepWork]:
    """Runs the engine against arrivals without any event loop, as fast as it goes.

    ``arrivals`` are (instant_s, sequence), sorted by instant. Yields each step
    when it has finished; what became of a sequence is in its own instants.
    Arrivals at or before the end of a step are in the queue when the next one
    is planned. Gaps between yielded steps are idle.
    """
    pending = iter(arrivals)
    following = next(pending, None)
    now_s = 0.0
    while True:
        while following is not None and following[0] <= now_s:
            engine.submit(following[1], following[0])
            following = next(pending, None)
        work = engine.start_step(now_s)
        if work is not None:
            now_s += work.duration_s
            engine.finish_step(now_s)
            yield work
        elif following is not None:
            now_s = following[0]
        else:
            return
