"""What a reply will be, decided before it starts: its length, its words, why it ends. Pure.

A reply is not computed, only its timing is; so a dialect plans it, the service
times it, and the dialect writes down the part that has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.prompts.replies import reply_tokens
from loadgen.server.text import stopped_at, word_numbers


@dataclass(slots=True)
class ReplyPlan:
    """One reply: ``numbers`` are its words (an end marker comes on top and is one of ``tokens``).

    The engine may end it sooner than planned; from its last token on (``ended``)
    the plan says what truly came.
    """

    request_id: int
    tokens: int
    finish_reason: str
    numbers: list[int]
    ended: bool = False

    def end(self, tokens: int, finish_reason: str) -> None:
        """The reply has ended with its ``tokens``-th token, for this reason."""
        self.ended = True
        self.tokens = tokens
        self.finish_reason = finish_reason
        del self.numbers[tokens:]


def plan_reply(
    seed: int, request_id: int, max_new_tokens: int, *, exact: bool, stop: Sequence[str]
) -> ReplyPlan:
    """A reply of at most ``max_new_tokens``, ``>= 1``.

    Exactly that long when ``exact`` (the request ignores the end marker), else
    lognormal and keyed by the server's seed and the id. When both limits meet,
    ``length`` wins over a stop sequence and the end marker, as in TGI's stopping
    criteria.
    """
    tokens = max_new_tokens if exact else reply_tokens(seed, request_id, max_new_tokens)
    finish_reason = "length" if tokens >= max_new_tokens else "eos_token"
    numbers = word_numbers(request_id, tokens - (finish_reason == "eos_token"))
    if stop:
        stopped = stopped_at(numbers, list(stop))
        if stopped is not None and stopped < max_new_tokens:
            tokens, finish_reason, numbers = stopped, "stop_sequence", numbers[:stopped]
    return ReplyPlan(request_id, tokens, finish_reason, numbers)


def sampling_seed(request_id: int) -> int:
    """The seed a server reports when it sampled and was given none."""
    return (request_id * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
