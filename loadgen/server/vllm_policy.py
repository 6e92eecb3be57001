"""The scheduler of vLLM V1: one token budget a step, blocks on demand, preemption by recomputing."""

from __future__ import annotations

from collections import deque
from math import inf

from loadgen.server.batch import Batch, BlockPool, Sequence
from loadgen.server.policy import DECODE, Plan


class VllmPolicy:
    """vLLM V1, first come, first served.

    Every step may admit. Running sequences come first, one token for each that
    decodes, then waiting ones while ``max_num_batched_tokens`` and
    ``max_num_seqs`` allow; a prompt that does not fit is fed in chunks. Blocks
    are taken when they are written. When there is none, the sequence admitted
    last loses its own and goes to the front of the queue, to be computed anew;
    nothing is admitted in such a step. The whole blocks of a prompt are in the
    prefix cache from the step on that computes them, so that equal prompts share
    them even in that step, and stay there until their memory is needed; at least
    the last token of a prompt is always computed. What was generated is cached
    only for the sequence itself, when it is preempted. A cancelled sequence
    leaves at the end of its step, also in the middle of its prompt.

    Raises ValueError for limits below 1 or fewer tokens than sequences a step.
    """

    def __init__(self, max_num_batched_tokens: int, max_num_seqs: int) -> None:
        if not 1 <= max_num_seqs <= max_num_batched_tokens:
            raise ValueError(
                "max_num_batched_tokens, max_num_seqs: expected 1 <= sequences <= tokens, got "
                f"{max_num_batched_tokens}, {max_num_seqs}"
            )
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        # _growing[r]: decoding rows that need a block at every forward that is r modulo the block.
        self._growing: list[int] = []
        self._blocked_at = -1

    def longest_reply_tokens(self, max_new_tokens: int) -> int:
        return max_new_tokens

    def stretch(self, sequence: Sequence, pool: BlockPool, max_total_tokens: int | None) -> str | None:
        whole = sequence.prompt_tokens + sequence.max_new_tokens
        # The last token of a reply needs no KV.
        needed = pool.blocks(whole - 1)
        if needed > pool.total_blocks:
            return f"needs {needed} KV blocks, the engine has {pool.total_blocks}"
        if max_total_tokens is not None and whole > max_total_tokens:
            return f"needs {whole} tokens, max_total_tokens is {max_total_tokens}"
        sequence.stretch_prompt_tokens = sequence.prompt_tokens + sequence.emitted
        sequence.stretch_new_tokens = sequence.max_new_tokens - sequence.emitted
        return None

    def plan(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> Plan | None:
        for sequence in [s for s in batch.prefilling if s.cancelled]:
            self.release(sequence, pool)
            batch.leave(sequence)
        chunks: list[tuple[Sequence, int]] = []
        admitting = bool(queue) and self._blocked_at != pool.releases
        if batch.members and not self._continue(chunks, batch, pool):
            chunks.clear()
            self._continue_preempting(chunks, queue, batch, pool)
            admitting = False
        if admitting:
            budget = self.max_num_batched_tokens - batch.rows - sum(n for _, n in chunks)
            self._admit(chunks, budget, queue, batch, pool)
        if chunks:
            return Plan(chunks, True)
        return DECODE if batch.rows else None

    def quiet_steps(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> float:
        full = batch.rows >= min(self.max_num_seqs, self.max_num_batched_tokens)
        return inf if not queue or full or self._blocked_at == pool.releases else 0

    def grow(self, steps: int, batch: Batch, pool: BlockPool) -> int:
        growing, block = self._growing, pool.block_tokens
        rows, available = batch.rows, pool.available_blocks
        cycles, rest = divmod(steps, block)
        if cycles * rows > available:
            cycles, rest = available // rows, block - 1
        needed = cycles * rows
        granted = cycles * block
        at = batch.forwards % block
        for _ in range(rest):
            if needed + growing[at] > available:
                break
            needed += growing[at]
            granted += 1
            at = (at + 1) % block
        pool.take(needed)
        return granted

    def decoding(self, sequence: Sequence, pool: BlockPool) -> None:
        block = pool.block_tokens
        if not self._growing:
            self._growing = [0] * block
        sequence.blocks = pool.blocks(sequence.computed_tokens) - sequence.blocks
        sequence.grows_by = block
        self._growing[-sequence.computed % block] += 1

    def release(self, sequence: Sequence, pool: BlockPool) -> None:
        pool.give(self._detach(sequence, pool))

    def _detach(self, sequence: Sequence, pool: BlockPool) -> int:
        """Ends the growth of a sequence and its hold on the prefix cache: the blocks of its own."""
        blocks = sequence.reserved_blocks
        if sequence.batch is not None:
            self._growing[-sequence.computed % pool.block_tokens] -= 1
        pool.unpin(sequence.match)
        sequence.match = None
        sequence.blocks = sequence.grows_by = 0
        return blocks

    def _continue(self, chunks: list[tuple[Sequence, int]], batch: Batch, pool: BlockPool) -> bool:
        """Feeds the running sequences; False, and nothing taken, when blocks are missing.

        Only the last admitted can have prompt left, and there are at most as many
        sequences as tokens: each gets at least one.
        """
        budget = self.max_num_batched_tokens - batch.rows
        needed = self._growing[batch.forwards % pool.block_tokens] if batch.rows else 0
        for sequence in batch.prefilling:
            n = min(sequence.stretch_prompt_tokens - sequence.computed, budget)
            budget -= n
            needed += self._blocks_for(sequence, n, pool)
            chunks.append((sequence, n))
        if needed > pool.available_blocks:
            return False
        pool.take(needed)
        for sequence, n in chunks:
            sequence.blocks += self._blocks_for(sequence, n, pool)
            self._share(sequence, n, pool)
        return True

    def _continue_preempting(
        self, chunks: list[tuple[Sequence, int]], queue: deque[Sequence], batch: Batch, pool: BlockPool
    ) -> None:
        """The same, oldest first, each taking what it needs from the last admitted."""
        budget = self.max_num_batched_tokens
        at = batch.forwards % pool.block_tokens
        for sequence in list(batch.members):
            if sequence not in batch.members:
                break
            if sequence.batch is not None:
                n = 1
                needed = int(-sequence.computed % pool.block_tokens == at)
            else:
                n = min(sequence.stretch_prompt_tokens - sequence.computed, budget)
                needed = self._blocks_for(sequence, n, pool)
            while needed > pool.available_blocks:
                last = next(reversed(batch.members))
                self._preempt(last, queue, batch, pool)
                if last is sequence:
                    return
            pool.take(needed)
            budget -= n
            if sequence.batch is None:
                sequence.blocks += needed
                self._share(sequence, n, pool)
                chunks.append((sequence, n))

    def _preempt(self, sequence: Sequence, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> None:
        sequence.preemptions += 1
        match = sequence.match
        sequence.match = None
        blocks = self._detach(sequence, pool)
        batch.leave(sequence)
        sequence.stretch_prompt_tokens = sequence.prompt_tokens + sequence.emitted
        sequence.stretch_new_tokens = sequence.max_new_tokens - sequence.emitted
        # What it computed stays in the prefix cache for as long as nobody needs the memory.
        blocks -= pool.keep(sequence, sequence.computed)
        pool.unpin(match)
        pool.give(blocks)
        sequence.computed = 0
        queue.appendleft(sequence)

    def _admit(
        self,
        chunks: list[tuple[Sequence, int]],
        budget: int,
        queue: deque[Sequence],
        batch: Batch,
        pool: BlockPool,
    ) -> None:
        room = self.max_num_seqs - len(batch.members)
        while queue and budget > 0 and room > 0:
            sequence = queue[0]
            if sequence.cancelled:
                queue.popleft()
                continue
            prompt = sequence.stretch_prompt_tokens
            match = None if sequence.prompt_ids is None else pool.find(sequence, prompt - 1)
            cached = 0 if match is None else match.tokens
            n = min(prompt - cached, budget)
            blocks = pool.blocks(cached + n) - cached // pool.block_tokens
            if blocks > pool.available_blocks:
                pool.unpin(match)
                self._blocked_at = pool.releases
                return
            pool.take(blocks)
            queue.popleft()
            budget -= n
            room -= 1
            sequence.match = match
            sequence.blocks = blocks
            sequence.computed = cached
            if sequence.scheduled_s is None:
                sequence.cached_tokens = cached
            self._share(sequence, n, pool)
            chunks.append((sequence, n))

    def _blocks_for(self, sequence: Sequence, tokens: int, pool: BlockPool) -> int:
        computed = sequence.computed
        return pool.blocks(computed + tokens) - pool.blocks(computed)

    def _share(self, sequence: Sequence, tokens: int, pool: BlockPool) -> None:
        """Enters the whole blocks that the next ``tokens`` complete into the prefix cache, and pins them."""
        if sequence.prompt_ids is None:
            return
        computed = sequence.computed + tokens
        new = pool.keep(sequence, computed)
        if new:
            whole = pool.find(sequence, computed)
            pool.unpin(sequence.match)
            sequence.match = whole
            sequence.blocks -= new
