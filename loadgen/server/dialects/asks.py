"""What is asked of a server, and the replies that are to answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.server.dialects.prompts import Prompt
from loadgen.server.dialects.script import Hold, Script, hold_nothing
from loadgen.server.service import Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be generated: ``n`` replies to each prompt. Counts are tokens.

    ``max_new_tokens`` is at least 1 and fits the model with every prompt.
    """

    prompts: Sequence[Prompt]
    max_new_tokens: int
    n: int = 1
    exact: bool = False
    min_new_tokens: int = 0
    stop: Sequence[str] = ()
    keep_stop: bool = False
    hold: Hold = hold_nothing


@dataclass(slots=True, eq=False)
class Reply:
    """One choice of a response: its number, its prompt, what it says; its ticket once it is queued."""

    index: int
    prompt: Prompt
    script: Script
    ask: Ask
    ticket: Ticket | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had."""
        return 0 if self.ticket is None else self.ticket.cached_tokens

    @property
    def preemptions(self) -> int:
        """How often its blocks were taken away."""
        return 0 if self.ticket is None else self.ticket.preemptions

    @property
    def emitted_tokens(self) -> int:
        """Tokens that have come so far."""
        return 0 if self.ticket is None else self.ticket.emitted_tokens
