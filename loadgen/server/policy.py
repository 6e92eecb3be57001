"""What the engine asks of a scheduler and of a cost model."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from loadgen.physics.transformer import DecodeLine, StepCost
from loadgen.server.batch import Batch, BlockPool, Sequence


class Plan(NamedTuple):
    """What the next step runs: (sequence, tokens to prefill), and whether the decoding rows run too."""

    chunks: list[tuple[Sequence, int]]
    decode: bool


DECODE = Plan([], True)
"""The plan of a forward of the decoding rows alone."""


class Policy(Protocol):
    """A scheduler: which sequences the next step runs, and who holds which blocks."""

    def longest_reply_tokens(self, max_new_tokens: int) -> int:
        """The most tokens that a request for so many can be sent."""
        ...

    def stretch(self, sequence: Sequence, pool: BlockPool, max_total_tokens: int | None) -> str | None:
        """Sets how long the sequence's next stretch is; a reason instead if it can never be run."""
        ...

    def plan(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> Plan | None:
        """The next step, None for nothing to do.

        Takes what it admits out of ``queue`` with its blocks reserved and its
        cached prefix computed, and leaves entering it into ``batch`` to the
        engine. May preempt: out of ``batch``, back to the front of ``queue``.
        """
        ...

    def quiet_steps(self, queue: deque[Sequence], batch: Batch, pool: BlockPool) -> float:
        """How many forwards of the decoding rows alone will certainly be planned next.

        Under the condition that nothing arrives or ends; 0 when ``plan`` must be asked.
        """
        ...

    def grow(self, steps: int, batch: Batch, pool: BlockPool) -> int:
        """Takes the blocks that so many forwards need: how many of them the pool affords."""
        ...

    def decoding(self, sequence: Sequence, pool: BlockPool) -> None:
        """The sequence has begun to decode."""
        ...

    def release(self, sequence: Sequence, pool: BlockPool) -> None:
        """Returns what the sequence holds, before it leaves the batch."""
        ...


class CostModel(Protocol):
    """What a step costs: see `loadgen.physics.transformer.StepModel`."""

    def step(
        self,
        *,
        prefill_tokens: int = 0,
        prefill_pairs: int = 0,
        prefill_span_tokens: int = 0,
        decode_rows: int = 0,
        decode_context_tokens: int = 0,
        emitting_rows: int = 0,
    ) -> StepCost:
        """The cost of one forward pass over a mix of prefill and decode rows."""
        ...

    def decode_line(self, rows: int) -> DecodeLine | None:
        """The cost of decoding so many rows as a line in their cached tokens, if it is one."""
        ...

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        """Mean watts of one board that does this work in this time."""
        ...
