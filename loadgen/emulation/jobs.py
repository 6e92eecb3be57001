"""What a replica is to serve: when each request comes and how long it is, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loadgen.prompts.replies import reply_tokens
from loadgen.prompts.template import render_llama3
from loadgen.prompts.tokens import count_tokens
from loadgen.server.tokenizer import token_ids
from loadgen.types import Floats, Overflow, Plan, Request

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of n requests, (n,) each: prompt, reply, and the most the reply may have.

    ``prompt_ids``: the prompts' token ids for the prefix cache, 8 bytes each; None: nothing is shared.
    """

    prompt_tokens: Ints
    reply_tokens: Ints
    max_new_tokens: Ints
    prompt_ids: tuple[bytes, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    def head(self, n: int) -> Lengths:
        """The first n."""
        ids = None if self.prompt_ids is None else self.prompt_ids[:n]
        return Lengths(self.prompt_tokens[:n], self.reply_tokens[:n], self.max_new_tokens[:n], ids)


@dataclass(frozen=True, slots=True)
class Jobs:
    """Requests to serve. Instants are seconds, sorted by ``due_s``, (n,) each.

    ``demand_s`` when it was wanted, ``due_s`` when the shaper releases it. At most ``max_in_flight``
    are under way at once; the others wait at the client (``overflow`` queue) or are dropped. A closed
    loop has all due times 0.
    """

    demand_s: Floats
    due_s: Floats
    lengths: Lengths
    max_in_flight: int | None = None
    overflow: Overflow = "queue"
    closed: bool = False

    def __post_init__(self) -> None:
        n = len(self.due_s)
        if n == 0 or len(self.demand_s) != n or len(self.lengths) != n:
            raise ValueError(
                f"jobs: expected as many instants as lengths, got {len(self.demand_s)} demands, "
                f"{n} due times and {len(self.lengths)} lengths"
            )
        if np.any(np.diff(self.due_s) < 0) or np.any(self.due_s < self.demand_s - 1e-9):
            raise ValueError("jobs: expected due times sorted and none before its demand")

    def __len__(self) -> int:
        return len(self.due_s)

    def at(self, demand_s: Floats, due_s: Floats | None = None) -> Jobs:
        """The same requests at other times (common random numbers)."""
        return replace(self, demand_s=demand_s, due_s=demand_s if due_s is None else due_s)


def constant_lengths(n: int, prompt_tokens: int, reply: int) -> Lengths:
    """n requests alike."""
    return Lengths(np.full(n, prompt_tokens), np.full(n, reply), np.full(n, reply))


def lengths_of(
    requests: Sequence[Request], seed: int, *, exact: bool = False, shared_prefixes: bool = False
) -> Lengths:
    """The lengths that the embedded server gives these requests under its seed.

    Chats are counted with the template around them. ``exact``: replies have the length their request
    knows; else the server's law of id and seed. ``shared_prefixes``: with token ids, so that prompts
    that begin alike meet in the prefix cache.
    """
    texts = [_prompt(request.body) for request in requests]
    limits = [int(request.body["max_new_tokens"]) for request in requests]
    replies = [
        limit if exact else reply_tokens(seed, request.id, limit)
        for request, limit in zip(requests, limits, strict=True)
    ]
    return Lengths(
        np.array([count_tokens(text) for text in texts], dtype=np.int64),
        np.array(replies, dtype=np.int64),
        np.array(limits, dtype=np.int64),
        tuple(token_ids(text) for text in texts) if shared_prefixes else None,
    )


def jobs_of(plan: Plan, *, exact_lengths: bool, shared_prefixes: bool = False) -> Jobs:
    """A measured plan as jobs."""
    arrivals = plan.arrivals
    return Jobs(
        np.array([a.demand_s for a in arrivals], dtype=np.float64),
        np.array([a.due_s for a in arrivals], dtype=np.float64),
        lengths_of(
            [a.request for a in arrivals], plan.seed, exact=exact_lengths, shared_prefixes=shared_prefixes
        ),
        plan.max_in_flight,
        plan.overflow,
        plan.closed,
    )


def _prompt(body: Any) -> str:
    return str(body["prompt"]) if "prompt" in body else render_llama3(body["messages"])
