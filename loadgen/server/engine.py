"""Iteration-level continuous batching: a pure state machine.

The engine knows sequences, a queue, a pool of KV blocks and what a step costs;
it has no clock, every instant is passed in. Which sequences a step runs is the
policy's decision, so a second scheduler is a second policy and nothing else.
Exactly one step is in progress or none.

Where nobody needs the instant of each token, forwards *leap*: between arrivals,
admissions and completions the decoding rows stay the same and the time of a
forward is linear in the cached tokens, so k of them close in O(1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from math import ceil, inf, sqrt
from typing import NamedTuple

from loadgen.physics.transformer import DecodeLine, StepCost
from loadgen.server.batch import Batch, BlockPool, Sequence
from loadgen.server.policy import DECODE, CostModel, Plan, Policy

__all__ = [
    "Batch", "BlockPool", "CostModel", "Emission", "Engine", "Plan", "Policy", "Row", "Sequence",
    "StepWork", "drive",
]  # fmt: skip

Row = tuple[int, int, int, int]
"""(sequence id, prefill tokens, decode tokens, context tokens before the step)."""

Emission = tuple[Sequence, int, str | None]
"""(sequence, index of the token from 1, finish reason if it is the last)."""


class StepWork(NamedTuple):
    """A step in progress: when it began, how long it takes, what one board draws meanwhile, its rows.

    After a leap it stands for ``steps`` steps: their total duration, their mean
    power, and no rows.
    """

    start_s: float
    duration_s: float
    power_w: float
    rows: tuple[Row, ...]
    steps: int = 1


class Engine:
    """A replica: queue, running batch, KV blocks, one step at a time.

    ``total_blocks`` KV blocks of ``block_tokens`` tokens; ``max_total_tokens``
    bounds prompt plus reply of a sequence (None: the blocks alone do).

    ``submit`` and ``cancel`` may be called at any time, also during a step;
    they take effect when the next one is planned. ``start_step`` and
    ``finish_step`` alternate.
    """

    def __init__(
        self,
        model: CostModel,
        policy: Policy,
        total_blocks: int,
        *,
        block_tokens: int = 1,
        max_total_tokens: int | None = None,
        prefix_caching: bool = True,
    ) -> None:
        self.pool = BlockPool(total_blocks, block_tokens, prefix_caching=prefix_caching)
        self._model = model
        self._policy = policy
        self._max_total_tokens = max_total_tokens
        self._queue: deque[Sequence] = deque()
        self._batch = Batch()
        self._plan: Plan | None = None
        self._steps = 0
        self._lines: dict[int, DecodeLine | None] = {}

    @property
    def queue_size(self) -> int:
        """Sequences waiting, the cancelled ones not yet skipped included."""
        return len(self._queue)

    @property
    def batch_size(self) -> int:
        """Sequences that hold KV blocks."""
        return len(self._batch.members)

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
        ids = sequence.prompt_ids
        if (
            sequence.prompt_tokens < 1
            or not 1 <= sequence.reply_tokens <= self._policy.longest_reply_tokens(sequence.max_new_tokens)
            or (ids is not None and len(ids) != 8 * sequence.prompt_tokens)
        ):
            raise ValueError(
                f"sequence {sequence.id}: expected prompt >= 1, 1 <= reply <= max_new tokens and 8 bytes of "
                f"ids a token; got {sequence.prompt_tokens}, {sequence.reply_tokens}, "
                f"{sequence.max_new_tokens}, {'none' if ids is None else len(ids)}"
            )
        reason = self._policy.stretch(sequence, self.pool, self._max_total_tokens)
        if reason is not None:
            raise ValueError(f"sequence {sequence.id}: {reason}")
        sequence.submitted_s = now_s
        self._queue.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Its client has gone: a queued sequence is skipped, a running one leaves at its next token."""
        if sequence.cancelled:
            return
        sequence.cancelled = True
        self.pool.releases += 1
        if sequence.batch is not None:
            self._batch.end_after(sequence, 1)

    def start_step(self, now_s: float) -> StepWork | None:
        """Plans and begins the next step at ``now_s``; None when there is nothing to run.

        A sequence that is admitted here after being submitted later than
        ``now_s`` (a late event loop) counts as scheduled when submitted, and
        gets no token before that.
        Raises RuntimeError when a step is in progress.
        """
        cost = self._begin(now_s)
        if cost is None:
            return None
        return StepWork(now_s, cost.duration_s, cost.power_w, self._rows())

    def finish_step(self, now_s: float) -> list[Emission]:
        """Ends the step at ``now_s``; the tokens it emitted, in the order of its rows.

        Sequences that are complete, or cancelled and at a token, have left and
        their blocks are free. A cancelled sequence's token is not listed.
        Raises RuntimeError when no step is in progress.
        """
        plan = self._plan
        batch = self._batch
        if plan is DECODE and batch.forwards_left() > 1:
            self._plan = None
            batch.advance(1)
            forwards = batch.forwards
            return [(s, s.emitted + forwards, None) for s in batch.members]
        members = list(batch.members)
        ended = self.finish(now_s)
        assert plan is not None
        forwards = batch.forwards
        emitted: list[Emission] = []
        chunked = {s for s, _ in plan.chunks}
        for s in members:
            if s in ended:
                if not s.cancelled:
                    emitted.append((s, s.emitted, ended[s]))
            elif s.batch is not None and (plan.decode or s in chunked):
                emitted.append((s, s.emitted + forwards, None))
        return emitted

    def start_leap(self, now_s: float, until_s: float = inf) -> StepWork | None:
        """Begins as many steps at once as are alike, or one; None when there is nothing to run.

        The steps end with the first that ends at or after ``until_s``, with the
        first at which a sequence ends, or before the first that may admit one.
        `finish` ends them; their single tokens are not listed.
        Raises RuntimeError when a step is in progress.
        """
        batch = self._batch
        rows = batch.rows
        if rows and not batch.prefilling and self._plan is None:
            quiet = inf if not self._queue else self._policy.quiet_steps(self._queue, batch, self.pool)
            if quiet:
                line = self._line(rows)
                if line is not None:
                    steps = min(batch.forwards_left(), quiet)
                    work = self._leap(now_s, until_s, int(steps), line)
                    if work is not None:
                        return work
        cost = self._begin(now_s)
        return None if cost is None else StepWork(now_s, cost.duration_s, cost.power_w, ())

    def finish(self, now_s: float) -> dict[Sequence, str | None]:
        """Ends what is in progress at ``now_s``: the sequences that have left the batch.

        Each with its finish reason, None when it waits again. Cancelled ones are among them.
        Raises RuntimeError when no step is in progress.
        """
        if self._plan is None:
            raise RuntimeError("finish_step: no step is in progress")
        chunks, decode = self._plan
        self._plan = None
        batch = self._batch
        ended: dict[Sequence, str | None] = {}
        if decode:
            batch.advance(self._steps)
            while (sequence := batch.ending()) is not None:
                ended[sequence] = self._leave(sequence, now_s)
        for sequence, n in chunks:
            sequence.computed += n
            if sequence.computed < sequence.stretch_prompt_tokens:
                continue
            sequence.emitted += 1
            if sequence.first_s is None and not sequence.cancelled:
                assert sequence.scheduled_s is not None
                sequence.first_s = max(now_s, sequence.scheduled_s)
            # One of the stretch's tokens has just come out.
            left = min(sequence.stretch_new_tokens - 1, sequence.reply_tokens - sequence.emitted)
            if left and not sequence.cancelled:
                batch.decode(sequence, left)
                self._policy.decoding(sequence, self.pool)
            else:
                ended[sequence] = self._leave(sequence, now_s)
        return ended

    def _leave(self, sequence: Sequence, now_s: float) -> str | None:
        """A sequence is at its last token, or at the last of its stretch, or cancelled and at a token."""
        self._policy.release(sequence, self.pool)
        self._batch.leave(sequence)
        if sequence.cancelled:
            sequence.emitted -= 1
            return None
        reason = sequence.finish_reason
        if sequence.emitted < sequence.reply_tokens:
            if self._policy.stretch(sequence, self.pool, self._max_total_tokens) is None:
                sequence.computed = 0
                self._queue.append(sequence)
                return None
            reason = "length"
        assert sequence.first_s is not None
        sequence.done_s = max(now_s, sequence.first_s)
        return reason

    def _begin(self, now_s: float) -> StepCost | None:
        if self._plan is not None:
            raise RuntimeError("start_step: the previous step has not finished")
        batch = self._batch
        plan = self._policy.plan(self._queue, batch, self.pool)
        if plan is None:
            return None
        self._plan = plan
        self._steps = 1
        if plan is DECODE:
            batch.begun = batch.forwards + 1
            rows = batch.rows
            return self._model.step(
                decode_rows=rows, decode_context_tokens=batch.context_tokens, emitting_rows=rows
            )
        prefill = pairs = span = emitting = decode = 0
        for sequence, n in plan.chunks:
            c = sequence.computed
            prefill += n
            pairs += n * c + n * (n + 1) // 2
            span += c + n
            emitting += c + n >= sequence.stretch_prompt_tokens
            if sequence not in batch.members:
                batch.admit(sequence)
                if sequence.scheduled_s is None:
                    sequence.scheduled_s = max(now_s, sequence.submitted_s or now_s)
        if plan.decode:
            decode = batch.rows
            batch.begun = batch.forwards + 1
        return self._model.step(
            prefill_tokens=prefill,
            prefill_pairs=pairs,
            prefill_span_tokens=span,
            decode_rows=decode,
            decode_context_tokens=batch.context_tokens if decode else 0,
            emitting_rows=emitting + decode,
        )

    def _rows(self) -> tuple[Row, ...]:
        assert self._plan is not None
        chunks, decode = self._plan
        forwards = self._batch.forwards
        if not chunks:
            return tuple([(s.id, 0, 1, s.computed + forwards) for s in self._batch.members])
        fed = dict(chunks)
        rows: list[Row] = []
        for s in self._batch.members:
            if s in fed:
                rows.append((s.id, fed[s], 0, s.computed))
            elif decode and s.batch is not None:
                rows.append((s.id, 0, 1, s.computed + forwards))
        return tuple(rows)

    def _line(self, rows: int) -> DecodeLine | None:
        try:
            return self._lines[rows]
        except KeyError:
            line = self._lines[rows] = self._model.decode_line(rows)
            return line

    def _leap(self, now_s: float, until_s: float, steps: int, line: DecodeLine) -> StepWork | None:
        """Begins up to ``steps`` forwards of the decoding rows; None when the pool affords none.

        Step i of k starts with ``c + i n`` cached tokens, so it takes ``d + 2 a i``
        seconds with ``a = slope n / 2`` and all take ``k d + a k (k - 1)``. Energy
        is a smooth function of i: k times its mean at the two nodes
        ``(k - 1)/2 +- sqrt((k^2 - 1)/12)``, which sums cubics exactly.
        """
        batch = self._batch
        rows, context = batch.rows, batch.context_tokens
        base_s, slope_s, flop, flop_slope, traffic, traffic_slope = line
        first_s = base_s + slope_s * context
        bend_s = 0.5 * slope_s * rows
        gap_s = max(until_s - now_s, 0.0)
        k = steps
        duration_s = k * (first_s + bend_s * (k - 1))
        if duration_s - first_s - 2.0 * bend_s * (k - 1) >= gap_s:
            linear_s = first_s - bend_s
            # The root of bend k^2 + linear k = gap, in the form that holds for bend = 0 too.
            k = max(1, ceil(2.0 * gap_s / (linear_s + sqrt(linear_s * linear_s + 4.0 * bend_s * gap_s))))
            duration_s = k * (first_s + bend_s * (k - 1))
        granted = self._policy.grow(k, batch, self.pool)
        if granted < k:
            if not granted:
                return None
            k = granted
            duration_s = k * (first_s + bend_s * (k - 1))
        power_w = self._model.power_w
        middle = context + rows * 0.5 * (k - 1)
        if k == 1:
            watts = power_w(duration_s, flop + flop_slope * middle, traffic + traffic_slope * middle)
        else:
            away = rows * sqrt((k * k - 1) / 12.0)
            low, high = middle - away, middle + away
            low_s, high_s = base_s + slope_s * low, base_s + slope_s * high
            watts = (
                low_s * power_w(low_s, flop + flop_slope * low, traffic + traffic_slope * low)
                + high_s * power_w(high_s, flop + flop_slope * high, traffic + traffic_slope * high)
            ) / (low_s + high_s)
        batch.begun = batch.forwards + k
        self._plan = DECODE
        self._steps = k
        return StepWork(now_s, duration_s, watts, (), k)


def drive(
    engine: Engine, arrivals: Iterable[tuple[float, Sequence]], *, leap: bool = True
) -> Iterator[StepWork]:
    """Runs the engine against arrivals without any event loop, as fast as it goes.

    ``arrivals`` are (instant_s, sequence), sorted by instant. Yields work when
    it has finished; what became of a sequence is in its own instants. Arrivals
    at or before the end of a step are in the queue when the next one is
    planned. Gaps between yielded works are idle.

    With ``leap`` alike steps come as one work and no work lists its rows;
    instants and energies are the same.
    """
    pending = iter(arrivals)
    due_s, arriving = next(pending, (inf, None))
    now_s = 0.0
    submit, finish = engine.submit, engine.finish
    while True:
        work = engine.start_leap(now_s, due_s) if leap else engine.start_step(now_s)
        if work is not None:
            now_s += work.duration_s
        elif arriving is not None:
            now_s = max(now_s, due_s)
        else:
            return
        while arriving is not None and due_s <= now_s:
            submit(arriving, due_s)
            due_s, arriving = next(pending, (inf, None))
        if work is not None:
            finish(now_s)
            yield work
