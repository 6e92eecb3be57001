"""The OpenAI routes as TGI, vLLM, SGLang, llama.cpp and transformers serve them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

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
from loadgen.clients.tgi import prompt_of
from loadgen.types import Reply, Request, Tape

_SPOKEN = ("reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")


class _OpenAiClient:
    """What both routes share. ``model`` None is sent as ``tgi``, which TGI takes for its own.

    ``exact_lengths="ignore_eos"`` sends that key (vLLM, SGLang, llama.cpp and the
    embedded server obey it; TGI ignores it; transformers refuses it).
    """

    route: ClassVar[str]

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
        self._common: dict[str, Any] = {"model": model or "tgi", "temperature": 0, "stream": streaming}
        if streaming:
            self._common["stream_options"] = {"include_usage": True}
        if exact_lengths is not None:
            self._common[exact_lengths] = True
        self._extra_body = dict(extra_body or {})
        self._http = HttpTransport(endpoint(base_url, self.route), headers=headers or {}, dial=dial)

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
        """The request body; extra keys are merged last. Raises ConfigError without a prompt."""
        body = self._common | self.prompt_keys(request)
        max_new_tokens = request.body.get("max_new_tokens")
        if max_new_tokens is not None:
            body["max_tokens"] = max_new_tokens
        return orjson.dumps(body | self._extra_body)

    def prompt_keys(self, request: Request) -> dict[str, Any]:
        raise TypeError("use one of the two routes")

    def decode(self, tape: Tape) -> Reply:
        refused = http_failure(tape)
        if refused is not None:
            return refused
        kind = tape.headers.get("content-type", "")
        if kind.startswith("text/event-stream") or not (kind or tape.data[:1] == b"{"):
            return _decode_stream(tape)
        return _decode_object(tape)


class OpenAiChatClient(_OpenAiClient):
    """``POST /v1/chat/completions``; a plain prompt becomes one user message."""

    route = "/v1/chat/completions"

    def prompt_keys(self, request: Request) -> dict[str, Any]:
        messages = request.body.get("messages")
        if messages is None:
            messages = [{"role": "user", "content": prompt_of(request)}]
        return {"messages": messages}


class OpenAiCompletionsClient(_OpenAiClient):
    """``POST /v1/completions``; messages go through the Llama-3 chat template."""

    route = "/v1/completions"

    def prompt_keys(self, request: Request) -> dict[str, Any]:
        return {"prompt": prompt_of(request)}


class _Choices:
    """Folds the choices of a stream: text, finish reasons and usage by choice index."""

    __slots__ = ("finish", "seen", "texts", "total", "usages")

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.texts: dict[int, list[str]] = {}
        self.finish: dict[int, str] = {}
        self.usages: dict[int, Any] = {}
        self.total: Any = None

    def add(self, choice: dict[str, Any], usage: Any) -> bool:
        """Takes one choice of one chunk; whether it brought a token.

        Non-empty text or a tool call is a token. Empty text is one too when the
        server holds back part of a character (no finish reason yet) or when it is
        TGI's end-of-text token (TGI alone repeats the role there). The opening
        role-only chunk and a finish chunk without text are none.
        """
        index = choice.get("index", 0)
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        reason = choice.get("finish_reason")
        if text:
            self.texts.setdefault(index, []).append(text)
            token = True
        elif delta is not None and any(delta.get(key) for key in _SPOKEN):
            token = True
        else:
            opening = delta is not None and index not in self.seen
            ended = bool(reason) and not (delta is not None and "role" in delta)
            token = text == "" and not opening and not ended
        self.seen.add(index)
        if reason:
            self.finish[index] = reason
        if usage is not None:
            self.usages[index] = usage
        return token

    def count(self, key: str) -> int | None:
        """A usage figure: the whole response's if reported, else summed over choices."""
        if isinstance(self.total, dict):
            return whole_number(self.total.get(key))
        counts = [whole_number(u.get(key)) for u in self.usages.values() if isinstance(u, dict)]
        known = [n for n in counts if n is not None]
        return sum(known) if known and len(known) == len(self.seen) else None

    def finish_reason(self) -> str | None:
        """The first choice's reason, once every choice seen has one."""
        return self.finish[min(self.finish)] if self.seen and self.seen <= self.finish.keys() else None

    def text(self) -> str:
        return "".join("".join(self.texts[index]) for index in sorted(self.texts))


def _decode_stream(tape: Tape) -> Reply:
    values, ends, garbage = sse.json_events(tape.data)
    error = None if garbage is None else (garbage, False)
    choices = _Choices()
    token_ends: list[int] = []
    # The plain token of a single choice, most of any stream, is taken without a call.
    texts = choices.texts[0] = []
    seen = choices.seen
    try:
        for value, end in zip(values, ends, strict=True):
            found = value.get("choices")
            if found:
                if len(found) == 1:
                    (choice,) = found
                    delta = choice.get("delta")
                    text = choice.get("text") if delta is None else delta.get("content")
                    if (
                        text
                        and not choice.get("finish_reason")
                        and value.get("usage") is None
                        and not choice.get("index")
                    ):
                        texts.append(text)
                        token_ends.append(end)
                        seen.add(0)
                        continue
                if value.get("error") is not None:  # routers report a broken upstream beside a last choice
                    error = server_error(value)
                    break
                usage = value.get("usage")
                for choice in found:
                    if choices.add(choice, usage):
                        token_ends.append(end)
            elif (known := server_error(value)) is not None:
                error = known
                break
            elif value.get("usage") is not None:
                choices.total = value["usage"]
        text = choices.text()
        reason = choices.finish_reason()
    except (AttributeError, KeyError, TypeError, ValueError):
        error, text, reason = (
            (f"expected a completion chunk, got {excerpt_of(value)}", False),
            "",
            None,
        )
    return finished(
        tape,
        text=text,
        token_ends=token_ends,
        prompt_tokens=choices.count("prompt_tokens"),
        output_tokens=choices.count("completion_tokens"),
        finish_reason=reason,
        server_times={},
        error=error,
    )


def _decode_object(tape: Tape) -> Reply:
    try:
        value = orjson.loads(tape.data)
    except orjson.JSONDecodeError:
        return failed(f"expected a JSON reply, got {excerpt(tape.data)!r}")
    error = server_error(value)
    choices = _Choices()
    text, reason = "", None
    if error is None:
        try:
            for choice in value["choices"]:
                message = choice.get("message")
                choices.add(choice if message is None else choice | {"delta": message}, None)
            choices.total = value.get("usage")
            text, reason = choices.text(), choices.finish_reason()
        except (AttributeError, KeyError, TypeError):
            error = (f"expected a completion, got {excerpt(tape.data)}", False)
    return finished(
        tape,
        text=text,
        token_ends=[],
        prompt_tokens=choices.count("prompt_tokens"),
        output_tokens=choices.count("completion_tokens"),
        finish_reason=reason,
        server_times={},
        error=error,
    )
