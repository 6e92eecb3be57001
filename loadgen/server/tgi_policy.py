"""The schedulers of Text Generation Inference v3, with prefill chunking (its default) and without.

Both serve first come, first served and admit a sequence only when its whole
stretch (prompt + new - 1 tokens) can be reserved, so nothing is ever preempted.
Source: router and backend v3 of TGI at db931fc.
"""

from __future__ import annotations

from collections import deque
from math import inf

from loadgen.server.batch import Batch, BlockPool, Sequence
from loadgen.server.policy import DECODE, Plan

STRETCH_TOKENS = 1024
"""New tokens of one pass through the queue (DEFAULT_GENERATION_LENGTH, validation.rs:25)."""


def longest_reply_tokens(
    prompt_tokens: int, max_new_tokens: int, max_total_tokens: int, max_input_tokens: int | None = None
) -> int:
    """The most tokens TGI sends for a request, all its stretches together.

    Every stretch is ``min(max_new_tokens, 1024)`` long, also the last one: 1,500
    asked for may give 2,048. It ends early when what would have to be prefilled
    for the next one exceeds ``max_input_tokens``, or when that one no longer fits
    ``max_total_tokens``, unless the request asked for all that fits.
    """
    emitted = 0
    most = min(max_new_tokens, STRETCH_TOKENS)
    while emitted < max_new_tokens:
        if max_input_tokens is not None and prompt_tokens + emitted > max_input_tokens:
            break
        everything = prompt_tokens + max_new_tokens == max_total_tokens
        new = _stretch_tokens(most, max_total_tokens - prompt_tokens - emitted, emitted > 0 and everything)
        if new < 1:
            break
        emitted += new
    return emitted


def _stretch_tokens(most: int, room: int, shorten: bool) -> int:
    """New tokens of a stretch: the ``most`` or, if it may be shorter, the ``room``; 0 when none fits."""
    if most <= room:
        return most
    return max(room, 0) if shorten else 0


class _ReservingPolicy:
    """What both schedulers share: reservation, the prefix cache, stretches of 1,024 tokens.

    The prefix cache is looked up at admission, its blocks stay in place while
    the sequence runs, and the prompt is entered when the stretch ends: equal
    prompts that run at the same time do not share.
    """

    stretch_tokens = STRETCH_TOKENS

    def __init__(
        self,
        max_batch_prefill_tokens: int,
        max_batch_size: int | None = None,
        *,
        max_input_tokens: int | None = None,
    ) -> None:
        if max_batch_prefill_tokens < 1:
            raise ValueError(f"max_batch_prefill_tokens: expected >= 1, got {max_batch_prefill_tokens}")
        if max_batch_size is not None and max_batch_size < 1:
            raise ValueError(f"max_batch_size: expected >= 1 or None, got {max_batch_size}")
        self.max_batch_prefill_tokens = max_batch_prefill_tokens
        self.max_batch_size = max_batch_size
        self.max_input_tokens = max_input_tokens
        # Blocks of the running batch, those shared through the prefix cache counted for each sequence.
        self._batch_blocks = 0
        # The pool's count of releases when the head of the queue last found no blocks.
        self._blocked_at = -1

    def longest_reply_tokens(self, max_new_tokens: int) -> int:
        most = self.stretch_tokens
        return max_new_tokens if max_new_tokens <= most else -(-max_new_tokens // most) * most

    def stretch(self, sequence: Sequence, pool: BlockPool, max_total_tokens: int | None) -> str | None:
        emitted = sequence.emitted
        prompt = sequence.prompt_tokens + emitted
        if self.max_input_tokens is not None and prompt > self.max_input_tokens:
            return f"has {prompt} tokens to prefill, max_input_tokens is {self.max_input_tokens}"
        # The last token of a stretch needs no KV.
        limit = pool.total_blocks * pool.block_tokens + 1 if max_total_tokens is None else max_total_tokens
        most = min(sequence.max_new_tokens, self.stretch_tokens)
        everything = sequence.prompt_tokens + sequence.max_new_tokens == limit
        new = _stretch_tokens(most, limit - prompt, emitted > 0 and everything)
        if new < 1 or pool.blocks(prompt + new - 1) > pool.total_blocks:
            if max_total_tokens is not None and prompt + most > max_total_tokens:
                return f"needs {prompt + most} tokens, max_total_tokens is {max_total_tokens}"
            return f"needs {pool.blocks(prompt + most - 1)} KV blocks, the engine has {pool.total_blocks}"
        sequence.stretch_prompt_tokens = prompt
        sequence.stretch_new_tokens = new
        return None

    def grow(self, steps: int, batch: Batch, pool: BlockPool) -> int:
        return steps

    def decoding(self, sequence: Sequence, pool: BlockPool) -> None:
        """Nothing: all blocks are reserved."""

    def release(self, sequence: Sequence, pool: BlockPool) -> None:
        match = sequence.match
        held = sequence.blocks
        self._batch_blocks -= held
        if sequence.prompt_ids is not None and pool.cache is not None:
            held -= pool.keep(sequence, sequence.stretch_prompt_tokens)
            if match is not None:
                self._batch_blocks -= match.tokens // pool.block_tokens
                pool.unpin(match)
                sequence.match = None
        pool.give(held)
        sequence.blocks = 0

    def _admit(
        self, queue: deque[Sequence], pool: BlockPool, budget_tokens: int, size: float, *, chunking: bool
    ) -> list[tuple[Sequence, int]]:
        """TGI's ``next_batch``: the head of the queue, as far as blocks, tokens and size allow."""
        chunks: list[tuple[Sequence, int]] = []
        if self._batch_blocks >= pool.total_blocks:
            self._blocked_at = pool.releases
            return chunks
        block = pool.block_tokens
        budget = -(-budget_tokens // block) * block
        while queue and budget > 0 and len(chunks) < size:
            sequence = queue[0]
            if sequence.cancelled:
                queue.popleft()
                continue
            prompt = sequence.stretch_prompt_tokens
            match = None if sequence.prompt_ids is None else pool.find(sequence, prompt)
            cached = 0 if match is None else match.tokens
            blocks = pool.blocks(prompt + sequence.stretch_new_tokens - 1) - cached // block
            if not pool.take(blocks):
                pool.unpin(match)
                self._blocked_at = pool.releases
                break
            # A prompt that is cached whole still has its last token computed.
            computed = min(cached, prompt - 1)
            n = prompt - computed
            if n > budget:
                if not chunking:
                    pool.free_blocks += blocks
                    pool.unpin(match)
                    break
                n = budget
            budget -= n
            queue.popleft()
            sequence.match = match
            sequence.blocks = blocks
            sequence.computed = computed
            if sequence.scheduled_s is None:
                sequence.cached_tokens = computed
            self._batch_blocks += blocks + cached // block
            chunks.append((sequence, n))
        return chunks


class TgiPolicy(_ReservingPolicy):
    """TGI v3 with chunked prefill.

    A step feeds at most ``max_batch_prefill_tokens`` tokens; a prompt that does
    not fit is fed in chunks. Admission into a running batch is one forward (new
    chunks plus the running rows) and is always followed by a forward without
    admission: at most one admission every two forwards. ``max_batch_size``
    bounds only the batch that starts from an empty engine; waiting_served_ratio
    and max_waiting_tokens do not exist, as TGI ignores them in this mode.
    """

    _decode_due_at = -1
    _batch_size = 0
    """Sequences of the previous forward, from which the server derives the next chunks."""

    def plan(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> Plan | None:
        budget = self.max_batch_prefill_tokens
        if not batch.members:
            # The router's outer loop: this prefill may be followed at once by an admission.
            self._decode_due_at = -1
            chunks = self._admit(queue, pool, budget, self.max_batch_size or inf, chunking=True)
            self._batch_size = len(chunks)
            return Plan(chunks, True) if chunks else None
        chunks = []
        fed = batch.rows
        if batch.prefilling:
            left = budget - (self._batch_size - 1)
            for sequence in batch.prefilling:
                # At least one token even over budget, as the server does: no sequence stalls.
                n = max(min(sequence.stretch_prompt_tokens - sequence.computed, left), 1)
                left -= n
                fed += n
                chunks.append((sequence, n))
        if queue and self._decode_due_at != batch.forwards and self._blocked_at != pool.releases:
            admitted = self._admit(queue, pool, budget - fed, inf, chunking=True)
            if admitted:
                self._decode_due_at = batch.forwards + 1
                chunks += admitted
                self._batch_size = len(batch.members) + len(admitted)
                return Plan(chunks, True)
        self._batch_size = len(batch.members)
        return Plan(chunks, True) if chunks else DECODE

    def quiet_steps(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> float:
        if not queue or self._blocked_at == pool.releases:
            return inf
        return 1 if self._decode_due_at == batch.forwards else 0


class UnchunkedTgiPolicy(_ReservingPolicy):
    """TGI v3 without prefill chunking: running sequences stall while a new batch is prefilled.

    New sequences join when at least ``waiting_served_ratio`` times as many wait
    as run, or unconditionally after ``max_waiting_tokens`` decode steps without
    an admission; at most ``max_batch_size`` run. A prefill is followed by a
    decode step, except that an engine just woken may admit twice. A prompt
    longer than ``max_batch_prefill_tokens`` is refused.
    """

    def __init__(
        self,
        max_batch_prefill_tokens: int,
        max_batch_size: int | None = None,
        *,
        max_input_tokens: int | None = None,
        waiting_served_ratio: float = 0.3,
        max_waiting_tokens: int = 20,
    ) -> None:
        super().__init__(max_batch_prefill_tokens, max_batch_size, max_input_tokens=max_input_tokens)
        if waiting_served_ratio < 0 or max_waiting_tokens < 0:
            raise ValueError(
                "waiting_served_ratio, max_waiting_tokens: expected >= 0, got "
                f"{waiting_served_ratio}, {max_waiting_tokens}"
            )
        self.waiting_served_ratio = waiting_served_ratio
        self.max_waiting_tokens = max_waiting_tokens
        self._decode_due_at = -1
        self._admitted_at = 0

    def stretch(self, sequence: Sequence, pool: BlockPool, max_total_tokens: int | None) -> str | None:
        prompt = sequence.prompt_tokens + sequence.emitted
        limit = pool.blocks(self.max_batch_prefill_tokens) * pool.block_tokens
        if prompt > limit:
            return f"has {prompt} tokens to prefill, the limit is {limit}"
        return super().stretch(sequence, pool, max_total_tokens)

    def plan(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> Plan | None:
        budget = self.max_batch_prefill_tokens
        if not batch.members:
            self._decode_due_at = -1
            self._admitted_at = batch.forwards
            chunks = self._admit(queue, pool, budget, self.max_batch_size or inf, chunking=False)
            return Plan(chunks, False) if chunks else None
        if queue and not self._certain_steps(queue, batch, pool):
            least = self._least(batch)
            chunks = self._admit(queue, pool, budget, self._size_left(batch), chunking=False)
            if len(chunks) < least:
                self._put_back(chunks, queue, pool)
            elif chunks:
                self._admitted_at = self._decode_due_at = batch.forwards
                return Plan(chunks, False)
        return DECODE

    def quiet_steps(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> float:
        return self._certain_steps(queue, batch, pool) if queue else inf

    def _certain_steps(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> float:
        """Decode steps until the queue is looked at again, if nothing arrives or ends."""
        if self._decode_due_at == batch.forwards:
            return 1
        if self._blocked_at == pool.releases or self._size_left(batch) < 1:
            return inf
        if len(queue) < self._least(batch):
            return self.max_waiting_tokens - self._waiting(batch)
        return 0

    def _waiting(self, batch: Batch) -> int:
        """The router's ``waiting_tokens``: 1 after an admission, and one more for each decode step."""
        return 1 + batch.forwards - self._admitted_at

    def _least(self, batch: Batch) -> int:
        if self._waiting(batch) >= self.max_waiting_tokens:
            return 0
        return int(len(batch.members) * self.waiting_served_ratio)

    def _size_left(self, batch: Batch) -> float:
        return inf if self.max_batch_size is None else self.max_batch_size - len(batch.members)

    def _put_back(self, chunks: list[tuple[Sequence, int]], queue: deque[Sequence], pool: BlockPool) -> None:
        # Who found no blocks, if anybody, was not the head of the queue.
        self._blocked_at = -1
        for sequence, _ in reversed(chunks):
            match = sequence.match
            self._batch_blocks -= sequence.blocks
            if match is not None:
                self._batch_blocks -= match.tokens // pool.block_tokens
                pool.unpin(match)
            pool.free_blocks += sequence.blocks
            sequence.blocks = sequence.computed = sequence.cached_tokens = 0
            sequence.match = None
            queue.appendleft(sequence)
