"""What is asked of a server, and the replies that are to answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadgen.server.dialects.script import Hold, Script, hold_nothing
from loadgen.server.prefix_cache import ID_BYTES
from loadgen.server.service import Ticket
from loadgen.server.tokenizer import token_ids

Decode = Callable[[list[int]], str]
"""The text of token ids."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's text and its token ids, 8 bytes each."""

    text: str
    ids: bytes

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids) // ID_BYTES


def prompt_of(text: str) -> Prompt:
    """A prompt from its text."""
    return Prompt(text, token_ids(text))


def prompts_of(given: str | list[Any] | None, decode: Decode) -> list[Prompt]:
    """The prompts of a completion request: a text or token ids, or a list of either."""
    if given is None or isinstance(given, str):
        return [prompt_of(given or "")]
    if given and isinstance(given[0], int):
        return [_of_ids(given, decode)]
    return [prompt_of(p) if isinstance(p, str) else _of_ids(p, decode) for p in given]


def _of_ids(ids: list[int], decode: Decode) -> Prompt:
    return Prompt(decode(ids), b"".join([(i % 2**64).to_bytes(ID_BYTES, "little") for i in ids]))


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
    ticket: Ticket | None = field(default=None)

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
