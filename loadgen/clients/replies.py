"""What all protocols share when a tape is decoded: HTTP errors, overload, failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from loadgen.clients.redaction import redact_url
from loadgen.clients.sse import group_by_read
from loadgen.types import Reply, Tape, TokensFrom

_EXCERPT_CHARS = 200
_COUNT_DIGITS = 15  # more is garbage, and past 19 no longer fits the integers of a record's JSON


def excerpt(text: str | bytes) -> str:
    """The first 200 characters, in one line, without credentials in addresses."""
    if isinstance(text, bytes):
        text = text[: 4 * _EXCERPT_CHARS].decode("utf-8", "replace")
    return redact_url(" ".join(text.split()))[:_EXCERPT_CHARS]


def excerpt_of(value: Any) -> str:
    """The excerpt of a decoded JSON value; orjson reads deeper nesting (1,024) than it writes (254)."""
    try:
        return excerpt(orjson.dumps(value))
    except orjson.JSONEncodeError:
        return f"a {type(value).__name__} nested too deeply to show"


def server_error(value: Any) -> tuple[str, bool] | None:
    """``(message, overloaded)`` if a JSON value is an error object, else None.

    Knows TGI's flat ``{"error": str, "error_type": str}`` and OpenAI's
    ``{"error": {"message": str, ...}}``, and vLLM's older ``{"object": "error"}``.
    """
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    kind = value.get("error_type")
    code: Any = None
    if error is None and value.get("object") == "error":
        error = value
    if error is None and kind is None:
        return None
    if isinstance(error, dict):
        kind = error.get("type", kind)
        code = error.get("code", error.get("http_status_code"))
        message = error.get("message")
        text = message if isinstance(message, str) else excerpt_of(error)
    else:
        text = error if isinstance(error, str) else str(error)
    overloaded = "overloaded" in text.lower() or "overloaded" in str(kind).lower() or code in (429, "429")
    named = f"{text} ({kind})" if isinstance(kind, str) and kind else text
    return excerpt(named), overloaded


def failed(error: str, *, rejected: bool = False) -> Reply:
    """A reply of which nothing could be read."""
    return Reply("", (), (), None, None, None, None, {}, error, rejected)


def http_failure(tape: Tape) -> Reply | None:
    """The reply to a response that is not 200, else None. Any body is accepted."""
    status = tape.http_status
    if status == 200:
        return None
    if status is None:
        return failed("no response")
    try:
        known = server_error(orjson.loads(tape.data))
    except orjson.JSONDecodeError:
        known = None
    message, overloaded = known or (excerpt(tape.data), False)
    return failed(
        f"HTTP {status}: {message}" if message else f"HTTP {status} with an empty body",
        rejected=status == 429 or overloaded,
    )


def finished(
    tape: Tape,
    *,
    text: str,
    token_ends: list[int],
    prompt_tokens: int | None,
    output_tokens: int | None,
    finish_reason: str | None,
    server_times: Mapping[str, float],
    error: tuple[str, bool] | None,
) -> Reply:
    """A decoded 200 response. Success needs a finish reason, a whole body and no error.

    ``output_tokens`` is the server's own count or None; then token events are
    counted instead and the reply says so.
    """
    reads, counts = group_by_read(token_ends, tape.sizes)
    tokens_from: TokensFrom | None = "server"
    if output_tokens is None:
        output_tokens, tokens_from = (len(token_ends), "chunks") if token_ends else (None, None)
    if error is None and finish_reason is None:
        error = (f"the response ended without a finish event after {len(token_ends)} token events", False)
    if error is None and not tape.complete:
        error = ("the response broke off after its finish event", False)
    message, rejected = error if error is not None else (None, False)
    return Reply(
        text=text,
        chunk_reads=reads,
        chunk_tokens=counts,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        tokens_from=tokens_from,
        finish_reason=finish_reason,
        server_times=server_times,
        error=message,
        rejected=rejected,
    )


def whole_number(value: Any) -> int | None:
    """A non-negative count from a server's report (JSON or header), else None."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _COUNT_DIGITS:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
