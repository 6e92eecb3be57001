"""Text Generation Inference's own protocol: ``/generate_stream`` and ``/generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import orjson

from loadgen.clients import sse
from loadgen.clients.http import Dial, HttpTransport, endpoint
from loadgen.clients.replies import (
    excerpt,
    excerpt_of,
    failed,
    finished,
    http_failure,
    server_error,
    whole_number,
)
from loadgen.errors import ConfigError
from loadgen.types import Reply, Request, Tape

_TIME_HEADERS = {
    "total": "x-total-time",
    "validation": "x-validation-time",
    "queue": "x-queue-time",
    "inference": "x-inference-time",
}


class TgiClient:
    """Speaks TGI v2 and v3. ``model`` is not sent: a TGI server has one.

    Decoding is greedy and ``details`` are always asked for, since they hold the
    server's own token counts. ``exact_lengths="ignore_eos"`` asks the embedded
    server for exactly ``max_new_tokens``; a real TGI ignores that key.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        streaming: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        dial: Dial | None = None,
        exact_lengths: Literal["ignore_eos"] | None = None,
    ) -> None:
        self._streaming = streaming
        self._extra_body = dict(extra_body or {})
        self._exact_lengths = exact_lengths
        route = "/generate_stream" if streaming else "/generate"
        self._http = HttpTransport(endpoint(base_url, route), headers=headers or {}, dial=dial)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.__aexit__(*exc)

    @property
    def resent(self) -> int:
        """Requests that were sent again because a pooled connection was stale."""
        return self._http.resent

    async def exchange(self, request: Request, tape: Tape) -> None:
        await self._http.post(request.id, self.encode(request), tape)

    def encode(self, request: Request) -> bytes:
        """The request body. Extra keys are merged last, ``parameters`` key by key.

        Raises ConfigError when the request has neither prompt nor messages.
        """
        parameters: dict[str, Any] = {
            # Explicit: without a parameters key TGI would sample.
            "do_sample": False,
            "return_full_text": False,
            "details": True,
            "decoder_input_details": False,
        }
        max_new_tokens = request.body.get("max_new_tokens")
        if max_new_tokens is not None:
            parameters["max_new_tokens"] = max_new_tokens
        if self._exact_lengths is not None:
            parameters[self._exact_lengths] = True
        body: dict[str, Any] = {"inputs": prompt_of(request), "parameters": parameters}
        for key, value in self._extra_body.items():
            if key == "parameters" and isinstance(value, Mapping):
                parameters.update(value)
            else:
                body[key] = value
        return orjson.dumps(body)

    def decode(self, tape: Tape) -> Reply:
        refused = http_failure(tape)
        if refused is not None:
            return refused
        return self._decode_stream(tape) if _is_stream(tape) else self._decode_object(tape)

    def _decode_stream(self, tape: Tape) -> Reply:
        values, ends, garbage = sse.json_events(tape.data)
        error = None if garbage is None else (garbage, False)
        texts: list[str] = []
        token_ends: list[int] = []
        last: dict[str, Any] | None = None
        try:
            for value, end in zip(values, ends, strict=True):
                token = value.get("token")
                if token is not None:
                    token_ends.append(end)
                    if not token.get("special"):
                        texts.append(token["text"])
                    if value.get("details") is not None or value.get("generated_text") is not None:
                        last = value
                elif (known := server_error(value)) is not None:
                    error = known
                    break
            text = "".join(texts)
        except (AttributeError, KeyError, TypeError):
            error, text = (f"expected a token event, got {excerpt_of(value)}", False), ""
        details = last.get("details") if last is not None else None
        details = details if isinstance(details, dict) else {}
        generated = last.get("generated_text") if last is not None else None
        return finished(
            tape,
            text=generated if isinstance(generated, str) else text,
            token_ends=token_ends,
            prompt_tokens=whole_number(details.get("input_length")),
            output_tokens=whole_number(details.get("generated_tokens")),
            # Without details the last event still says that it is the last.
            finish_reason=None if last is None else str(details.get("finish_reason") or "unknown"),
            server_times={},
            error=error,
        )

    def _decode_object(self, tape: Tape) -> Reply:
        try:
            value = orjson.loads(tape.data)
        except orjson.JSONDecodeError:
            return failed(f"expected a JSON reply, got {excerpt(tape.data)!r}")
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # the compat route wraps it
        error = server_error(value)
        if error is None and not (isinstance(value, dict) and isinstance(value.get("generated_text"), str)):
            error = (f"expected generated_text, got {excerpt(tape.data)}", False)
        value = value if isinstance(value, dict) else {}
        details = value.get("details")
        details = details if isinstance(details, dict) else {}
        headers = tape.headers
        output_tokens = whole_number(details.get("generated_tokens"))
        if output_tokens is None:
            output_tokens = whole_number(headers.get("x-generated-tokens"))
        text = value.get("generated_text")
        return finished(
            tape,
            text=text if isinstance(text, str) else "",
            token_ends=[],
            prompt_tokens=whole_number(headers.get("x-prompt-tokens")),
            output_tokens=output_tokens,
            finish_reason=None if error is not None else str(details.get("finish_reason") or "unknown"),
            server_times=_server_times(headers),
            error=error,
        )


def prompt_of(request: Request) -> str:
    """The prompt as one string; messages go through the Llama-3 chat template."""
    prompt = request.body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    messages = request.body.get("messages")
    if messages is None:
        raise ConfigError(f"request {request.id}: expected a prompt or messages, got neither")
    from loadgen.prompts.template import render_llama3

    return render_llama3(messages)


def _is_stream(tape: Tape) -> bool:
    kind = tape.headers.get("content-type", "")
    return kind.startswith("text/event-stream") or not (kind or tape.data[:1] in (b"{", b"["))


def _server_times(headers: Mapping[str, str]) -> dict[str, float]:
    """TGI's own split, seconds (whole milliseconds on the wire); absent ones left out."""
    times: dict[str, float] = {}
    for name, header in _TIME_HEADERS.items():
        milliseconds = whole_number(headers.get(header))
        if milliseconds is not None:
            times[name] = milliseconds / 1000.0
    return times
