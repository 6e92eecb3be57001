"""What the answers of vLLM's and SGLang's OpenAI routes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.server.dialects.asks import Reply
from loadgen.server.dialects.chunks import Fields
from loadgen.server.dialects.logprobs import chat_content, completion_logprobs


@dataclass(frozen=True, slots=True)
class Form:
    """How one request is to be answered. ``logprobs``: how many per token, None for none.

    ``hide_reply``: only the prompt is wanted back.
    """

    id: str
    created_s: int
    model: str
    chat: bool
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: int | None = None
    echo: bool = False
    hide_reply: bool = False

    @property
    def chunk_kind(self) -> str:
        """The ``object`` of a streamed part."""
        return "chat.completion.chunk" if self.chat else "text_completion"

    @property
    def uniform(self) -> bool:
        """Whether all chunks but the first and last differ in their text alone."""
        return self.logprobs is None and not self.continuous_usage and not self.echo

    def head(self, kind: str) -> Fields:
        """What every part of the answer begins with."""
        return {"id": self.id, "object": kind, "created": self.created_s, "model": self.model}

    def logprobs_of(self, reply: Reply, first: int, last: int) -> Fields | None:
        """The ``logprobs`` of tokens ``first`` to ``last`` (from 1), if they were asked for."""
        if self.logprobs is None:
            return None
        if self.chat:
            return {"content": chat_content(reply.script, first, last, self.logprobs)}
        return completion_logprobs(reply.script, first, last, self.logprobs)


def usage(prompt_tokens: int, completion_tokens: int) -> Fields:
    """The ``usage`` object in tokens, without the details."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }


def total_usage(replies: Sequence[Reply]) -> Fields:
    """The usage of a whole response: each prompt counts once, whatever ``n``."""
    n = replies[0].ask.n
    return usage(
        sum(reply.prompt.tokens for reply in replies[::n]), sum(reply.script.plan.tokens for reply in replies)
    )
