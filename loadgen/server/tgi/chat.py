"""``/v1/chat/completions`` as TGI v3 speaks it: the request read, the answer and the chunks. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from loadgen.prompts.template import render_llama3
from loadgen.server.body import (
    F32,
    F32S_OR_NULL,
    FLAG,
    FLAG_OR_NULL,
    TEXT_OR_NULL,
    U32,
    Fields,
    Kind,
    chat_messages,
)
from loadgen.server.reply import ReplyPlan
from loadgen.server.stream import event
from loadgen.server.text import WORD_JSON, WORDS, token_fields
from loadgen.server.tgi.errors import generation_failed
from loadgen.server.tgi.grammar import chat_grammar
from loadgen.server.tgi.openai import (
    COMMON,
    FINGERPRINT,
    Envelope,
    OpenAiBody,
    error_event,
    openai_reason,
    parameters,
    usage,
)
from loadgen.server.tgi.validation import GenerateBody, Work

_FIELDS: dict[str, Kind] = COMMON | {
    "max_completion_tokens": U32,
    "presence_penalty": F32,
    "logprobs": FLAG_OR_NULL,
    "top_logprobs": U32,
    "n": U32,
    "logit_bias": F32S_OR_NULL,
    "tool_prompt": TEXT_OR_NULL,
    "guideline": TEXT_OR_NULL,
}


def parse_chat(raw: bytes) -> OpenAiBody:
    """Reads ``/v1/chat/completions``. Raises Unreadable or ApiError (tools)."""
    fields = Fields(raw, "ChatRequest")
    given = fields.take(_FIELDS)
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise fields.refused("max_completion_tokens", "duplicate field `max_tokens`")
    messages = chat_messages(fields)
    options = fields.take({"include_usage": FLAG}, prefix="stream_options", struct="StreamOptions")
    grammar = chat_grammar(fields)
    presence = given.get("presence_penalty")
    top_logprobs = given.get("top_logprobs")
    asked = parameters(
        given,
        max_new_tokens=given.get("max_tokens", given.get("max_completion_tokens")),
        repetition_penalty=None if presence is None else presence + 2.0,
        top_n_tokens=top_logprobs,
        grammar=grammar,
    )
    return OpenAiBody(
        [GenerateBody(render_llama3(messages), asked)],
        model=given.get("model"),
        stream=given.get("stream", False),
        include_usage=options.get("include_usage", False),
        logprobs=bool(given.get("logprobs")),
        top_logprobs=top_logprobs or 0,
    )


def _logprobs(plan: ReplyPlan, index: int, top: int) -> dict[str, Any]:
    word = plan.numbers[index - 1] if index <= len(plan.numbers) else None
    token = token_fields(word)
    runners = [
        {"token": WORDS[((word or 0) + k) % len(WORDS)], "logprob": token["logprob"] - k / 2}
        for k in range(1, top)
    ]
    best = [{"token": token["text"], "logprob": token["logprob"]}, *runners] if top else []
    return {"token": token["text"], "logprob": token["logprob"], "top_logprobs": best}


def chat_body(plan: ReplyPlan, work: Work, body: OpenAiBody, envelope: Envelope) -> dict[str, Any]:
    """The answer of ``/v1/chat/completions`` without streaming."""
    logprobs = None
    if body.logprobs:
        logprobs = {"content": [_logprobs(plan, i, body.top_logprobs) for i in range(1, plan.tokens + 1)]}
    return {
        "object": "chat.completion",
        "id": "",
        "created": envelope.created_s,
        "model": envelope.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join([WORDS[w] for w in plan.numbers])},
                "logprobs": logprobs,
                "finish_reason": openai_reason(plan.finish_reason),
            }
        ],
        "usage": usage([plan], [work]),
    }


_AFTER_TEXT = b'"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'


class ChatDialect:
    """Events of one streamed chat reply; ``role`` stands in every chunk."""

    __slots__ = ("_body", "_head", "_numbers", "_plan", "_prefix", "_work", "token")

    def __init__(self, plan: ReplyPlan, work: Work, body: OpenAiBody, envelope: Envelope) -> None:
        self._plan = plan
        self._work = work
        self._body = body
        self._numbers = plan.numbers
        self._head = {
            "object": "chat.completion.chunk",
            "id": "",
            "created": envelope.created_s,
            "model": envelope.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._prefix = (
            b"data: "
            + orjson.dumps(self._head)[:-1]
            + b',"choices":[{"index":0,"delta":{"role":"assistant","content":"'
        )
        self.token = self._token_with_logprobs if body.logprobs else self._token

    def _token(self, index: int) -> bytes:
        return b"%b%b%b" % (self._prefix, WORD_JSON[self._numbers[index - 1]], _AFTER_TEXT)

    def _token_with_logprobs(self, index: int) -> bytes:
        return self._chunk(index, None)

    def last(self) -> list[bytes]:
        """The last token's chunk and, with ``include_usage``, one without choices."""
        events = [self._chunk(self._plan.tokens, openai_reason(self._plan.finish_reason))]
        if self._body.include_usage:
            events.append(event(self._head | {"choices": [], "usage": usage([self._plan], [self._work])}))
        return events

    def error(self, message: str) -> bytes:
        """A backend failure."""
        return error_event(generation_failed(message))

    def _chunk(self, index: int, finish_reason: str | None) -> bytes:
        text = WORDS[self._numbers[index - 1]] if index <= len(self._numbers) else ""
        logprobs = None
        if self._body.logprobs:
            logprobs = {"content": [_logprobs(self._plan, index, self._body.top_logprobs)]}
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return event(self._head | {"choices": [choice], "usage": None})
