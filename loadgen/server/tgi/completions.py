"""``/v1/completions`` as TGI v3 speaks it: the request read, the answer and the chunks. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from loadgen.server.body import F32, TEXT_OR_NULL, Fields, Kind
from loadgen.server.reply import ReplyPlan
from loadgen.server.stream import event
from loadgen.server.text import EOS_TEXT, WORD_JSON, WORDS
from loadgen.server.tgi.errors import ApiError, generation_failed
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

_FIELDS: dict[str, Kind] = COMMON | {"repetition_penalty": F32, "suffix": TEXT_OR_NULL}


def parse_completion(raw: bytes, max_client_batch_size: int) -> OpenAiBody:
    """Reads ``/v1/completions``. Raises Unreadable, or ApiError (suffix, too many prompts)."""
    fields = Fields(raw, "CompletionRequest")
    given = fields.take(_FIELDS)
    fields.require("prompt")
    prompt = fields.top["prompt"]
    prompts = prompt if type(prompt) is list else [prompt]
    if any(type(p) is not str for p in prompts):
        raise fields.refused("prompt", "data did not match any variant of untagged enum PromptDeserializer")
    if not prompts:
        raise fields.refused("prompt", "Empty array detected. Do not use an empty array for the prompt.")
    if given.get("suffix") is not None:
        message = "Suffix is not supported and can be achieved by preprocessing the prompt."
        raise ApiError(422, "suffix not supported", message)
    if len(prompts) > max_client_batch_size:
        message = f"Number of prompts exceeds the maximum allowed batch size of {max_client_batch_size}"
        raise ApiError(422, "batch size exceeded", message)
    asked = parameters(
        given,
        max_new_tokens=given.get("max_tokens"),
        repetition_penalty=given.get("repetition_penalty"),
    )
    return OpenAiBody(
        [GenerateBody(p, asked) for p in prompts],
        stream=given.get("stream", False),
    )


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
                "finish_reason": openai_reason(plans[i].finish_reason),
            }
            for i in order
        ],
        "usage": usage(plans, works),
    }


class CompletionDialect:
    """Events of one prompt of a streamed completion.

    The last event carries the raw finish reason and, unasked, this prompt's
    usage; the others an empty reason and no ``usage`` at all, their struct having none.
    """

    __slots__ = ("_after", "_envelope", "_index", "_numbers", "_plan", "_prefix", "_work")

    def __init__(self, index: int, plan: ReplyPlan, work: Work, envelope: Envelope) -> None:
        self._index = index
        self._plan = plan
        self._work = work
        self._envelope = envelope
        self._numbers = plan.numbers
        chunk = {
            "object": "text_completion",
            "id": "",
            "created": envelope.created_s,
            "choices": [self._choice("\x00", "")],
            "model": envelope.model,
            "system_fingerprint": FINGERPRINT,
        }
        # Cut where the text stands, so that there is one place that knows the shape.
        prefix, _, after = orjson.dumps(chunk).partition(b"\\u0000")
        self._prefix = b"data: " + prefix
        self._after = after + b"\n\n"

    def token(self, index: int) -> bytes:
        """The event of a token that is not the last."""
        return b"%b%b%b" % (self._prefix, WORD_JSON[self._numbers[index - 1]], self._after)

    def last(self) -> list[bytes]:
        """The last token with reason and usage; here, unlike in a chat, an end marker shows its text."""
        plan = self._plan
        text = WORDS[self._numbers[-1]] if plan.tokens == len(self._numbers) else EOS_TEXT
        final = {
            "object": "text_completion",
            "id": "",
            "created": self._envelope.created_s,
            "model": self._envelope.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [self._choice(text, plan.finish_reason)],
            "usage": usage([plan], [self._work]),
        }
        return [event(final)]

    def error(self, message: str) -> bytes:
        """A backend failure."""
        return error_event(generation_failed(message))

    def _choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": None, "finish_reason": finish_reason}
