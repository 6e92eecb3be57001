"""A client without a server: answers at once, to measure what the runner itself costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from loadgen import clock
from loadgen.types import Reply, Request, Tape

_DEFAULT_TOKENS = 128


class NullClient:
    """Every request succeeds immediately with its planned number of tokens, in one read."""

    def __init__(
        self,
        base_url: str = "",
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        streaming: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        dial: object = None,
        exact_lengths: str | None = None,
    ) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def exchange(self, request: Request, tape: Tape) -> None:
        body = request.body
        tokens = body.get("output_tokens", body.get("max_new_tokens", _DEFAULT_TOKENS))
        tape.data = str(tokens).encode()
        tape.http_status = 200
        tape.complete = True
        tape.mark(clock.now(), len(tape.data))

    def decode(self, tape: Tape) -> Reply:
        tokens = int(tape.data)
        return Reply("", (0,), (tokens,), None, tokens, "planned", "length", {}, None)
