"""The OpenAI dialect as TGI v3 speaks it: chat completions and completions.

Pure. A body is read into the same `GenerateBody` that the native routes use, so
one validation serves all. Where TGI departs from OpenAI (empty ``id``, ``role``
in every chunk, ``stop`` a list only, raw finish reasons in completion streams)
so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from loadgen.prompts.template import render_llama3
from loadgen.server.body import (
    ANY,
    F32,
    FLAG,
    FLAG_OR_NULL,
    TEXT_OR_NULL,
    TEXTS_OR_NULL,
    U32,
    U64,
    Fields,
    Kind,
    chat_messages,
)
from loadgen.server.stream import event
from loadgen.server.text import WORD_JSON, WORDS, token_fields
from loadgen.server.tgi import VERSION
from loadgen.server.validation import (
    MAX_CLIENT_BATCH_SIZE,
    ApiError,
    GenerateBody,
    Parameters,
    ReplyPlan,
    Work,
    generation_failed,
)

FINGERPRINT = f"{VERSION}-native"

_COMMON: dict[str, Kind] = {
    "model": TEXT_OR_NULL,
    "max_tokens": U32,
    "stream": FLAG,
    "stop": TEXTS_OR_NULL,
    "seed": U64,
    "temperature": F32,
    "top_p": F32,
    "frequency_penalty": F32,
    "ignore_eos": FLAG,
}
_CHAT = _COMMON | {
    "max_completion_tokens": U32,
    "presence_penalty": F32,
    "logprobs": FLAG_OR_NULL,
    "top_logprobs": U32,
    "response_format": ANY,
}
_COMPLETION = _COMMON | {"repetition_penalty": F32, "suffix": TEXT_OR_NULL}


@dataclass(frozen=True, slots=True)
class OpenAiBody:
    """A request of either route: one `GenerateBody` per prompt, and how to answer."""

    bodies: list[GenerateBody]
    model: str | None
    stream: bool
    include_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0


def parse_chat(raw: bytes) -> OpenAiBody:
    """Reads ``/v1/chat/completions``. Raises Unreadable or ApiError."""
    fields = Fields(raw, "ChatRequest")
    given = fields.take(_CHAT)
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise fields.refused("max_completion_tokens", "duplicate field `max_tokens`")
    messages = chat_messages(fields)
    options = fields.take({"include_usage": FLAG}, prefix="stream_options", struct="StreamOptions")
    presence = given.get("presence_penalty")
    grammar = given.get("response_format")
    if grammar is None and fields.top.get("tools") and fields.top.get("tool_choice") != "none":
        grammar = {"type": "tools"}
    parameters = _parameters(
        given,
        max_new_tokens=given.get("max_tokens", given.get("max_completion_tokens")),
        repetition_penalty=None if presence is None else presence + 2.0,
        grammar=grammar,
    )
    return OpenAiBody(
        [GenerateBody(render_llama3(messages), parameters)],
        model=given.get("model"),
        stream=given.get("stream", False),
        include_usage=options.get("include_usage", False),
        logprobs=bool(given.get("logprobs")),
        top_logprobs=given.get("top_logprobs") or 0,
    )


def parse_completion(raw: bytes) -> OpenAiBody:
    """Reads ``/v1/completions``. Raises Unreadable or ApiError."""
    fields = Fields(raw, "CompletionRequest")
    given = fields.take(_COMPLETION)
    fields.require("prompt")
    prompt = fields.top["prompt"]
    prompts = prompt if type(prompt) is list else [prompt]
    if not prompts:
        raise fields.refused("prompt", "Empty array detected. Do not use an empty array for the prompt.")
    if any(type(p) is not str for p in prompts):
        raise fields.refused("prompt", "data did not match any variant of untagged enum Prompt")
    if given.get("suffix") is not None:
        message = "Suffix is not supported and can be achieved by preprocessing the prompt."
        raise ApiError(422, "suffix not supported", message)
    if len(prompts) > MAX_CLIENT_BATCH_SIZE:
        message = f"Number of prompts exceeds the maximum allowed batch size of {MAX_CLIENT_BATCH_SIZE}"
        raise ApiError(422, "batch size exceeded", message)
    parameters = _parameters(
        given,
        max_new_tokens=given.get("max_tokens"),
        repetition_penalty=given.get("repetition_penalty"),
        grammar=None,
    )
    return OpenAiBody(
        [GenerateBody(p, parameters) for p in prompts],
        model=given.get("model"),
        stream=given.get("stream", False),
    )


def _parameters(
    given: dict[str, Any], *, max_new_tokens: int | None, repetition_penalty: float | None, grammar: Any
) -> Parameters:
    # Temperature 0 is OpenAI's word for greedy; anything else, also nothing, samples.
    temperature = given.get("temperature")
    greedy = temperature is not None and temperature == 0
    return Parameters(
        temperature=None if greedy else temperature,
        repetition_penalty=repetition_penalty,
        frequency_penalty=given.get("frequency_penalty"),
        top_p=given.get("top_p"),
        do_sample=not greedy,
        max_new_tokens=max_new_tokens,
        stop=given.get("stop") or [],
        seed=given.get("seed"),
        grammar=grammar,
        ignore_eos=given.get("ignore_eos", False),
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one response share: ``created`` in Unix seconds, the echoed model."""

    created_s: int
    model: str


def usage(plans: list[ReplyPlan], works: list[Work]) -> dict[str, int]:
    """The ``usage`` object over all replies of a response, in tokens."""
    prompt = sum(work.prompt_tokens for work in works)
    completion = sum(plan.tokens for plan in plans)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _openai_reason(finish_reason: str) -> str:
    return "stop" if finish_reason == "eos_token" else finish_reason


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
                "finish_reason": _openai_reason(plan.finish_reason),
            }
        ],
        "usage": usage([plan], [work]),
    }


def completion_body(
    order: list[int], plans: list[ReplyPlan], works: list[Work], envelope: Envelope
) -> dict[str, Any]:
    """The answer of ``/v1/completions``; choices in ``order`` of completion, as TGI lists them."""
    return {
        "object": "text_completion",
        "id": "",
        "created": envelope.created_s,
        "model": envelope.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": i,
                "text": "".join([WORDS[w] for w in plans[i].numbers]),
                "logprobs": None,
                "finish_reason": _openai_reason(plans[i].finish_reason),
            }
            for i in order
        ],
        "usage": usage(plans, works),
    }


def error_event(error: ApiError) -> bytes:
    """An error inside an OpenAI stream: 422 whatever the cause (infer/mod.rs:445-454)."""
    return event({"error": {"message": str(error), "http_status_code": 422}})


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
        events = [self._chunk(self._plan.tokens, _openai_reason(self._plan.finish_reason))]
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


class CompletionDialect:
    """Events of one prompt of a streamed completion.

    The last event carries the raw finish reason and, unasked, this prompt's
    usage; the others an empty reason.
    """

    __slots__ = ("_after", "_envelope", "_index", "_numbers", "_plan", "_prefix", "_work")

    def __init__(self, index: int, plan: ReplyPlan, work: Work, envelope: Envelope) -> None:
        self._index = index
        self._plan = plan
        self._work = work
        self._envelope = envelope
        self._numbers = plan.numbers
        # Cut where the text stands, so that there is one place that knows the shape.
        mark = "\x00"
        prefix, after = orjson.dumps(self._fields(mark, "", None)).split(orjson.dumps(mark)[1:-1])
        self._prefix = b"data: " + prefix
        self._after = after + b"\n\n"

    def token(self, index: int) -> bytes:
        """The event of a token that is not the last."""
        return b"%b%b%b" % (self._prefix, WORD_JSON[self._numbers[index - 1]], self._after)

    def last(self) -> list[bytes]:
        """The last token with reason and usage."""
        plan = self._plan
        text = WORDS[self._numbers[-1]] if plan.tokens == len(self._numbers) else ""
        return [event(self._fields(text, plan.finish_reason, usage([plan], [self._work])))]

    def error(self, message: str) -> bytes:
        """A backend failure."""
        return error_event(generation_failed(message))

    def _fields(self, text: str, finish_reason: str, used: dict[str, int] | None) -> dict[str, Any]:
        choice = {"index": self._index, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return {
            "object": "text_completion",
            "id": "",
            "created": self._envelope.created_s,
            "choices": [choice],
            "model": self._envelope.model,
            "system_fingerprint": FINGERPRINT,
            "usage": used,
        }


def models_body(model_id: str) -> dict[str, Any]:
    """``/v1/models``."""
    model = {"id": model_id, "object": "model", "created": 0, "owned_by": model_id}
    return {"object": "list", "data": [model]}
