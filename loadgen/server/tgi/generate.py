"""TGI's own dialect: the JSON of ``/generate`` and the events of ``/generate_stream``.

Pure; key order is the wire's. ``top_tokens``, ``details`` and
``best_of_sequences`` are absent when not asked for, as TGI leaves them out.
"""

from __future__ import annotations

from typing import Any

from loadgen.server.service import Limits
from loadgen.server.stream import event
from loadgen.server.text import TOKEN_JSON, WORDS, token_fields
from loadgen.server.validation import (
    MAX_BEST_OF,
    MAX_CLIENT_BATCH_SIZE,
    MAX_STOP_SEQUENCES,
    ApiError,
    ReplyPlan,
    Work,
    generation_failed,
)

VERSION = "3.3.6-dev0"
"""The release whose protocol is spoken."""

_TOKEN_TAILS = tuple(
    b',"token":' + token + b',"generated_text":null,"details":null}\n\n' for token in TOKEN_JSON
)


def reply_text(plan: ReplyPlan, work: Work) -> str:
    """``generated_text``: the words, after the prompt if that was asked for; no end marker."""
    text = "".join([WORDS[word] for word in plan.numbers])
    return work.inputs + text if work.parameters.return_full_text else text


def _word(plan: ReplyPlan, index: int) -> int | None:
    return plan.numbers[index - 1] if index <= len(plan.numbers) else None


def _top(plan: ReplyPlan, index: int, count: int) -> list[dict[str, Any]]:
    """The chosen token and runners-up, each half a unit less likely than the one before."""
    first = _word(plan, index)
    chosen = token_fields(first)
    others = [token_fields(((first or 0) + k) % len(WORDS)) for k in range(1, count)]
    for k, other in enumerate(others, 1):
        other["logprob"] = chosen["logprob"] - k / 2
    return [chosen, *others]


class TgiDialect:
    """Events of one streamed reply."""

    __slots__ = ("_numbers", "_plan", "_top_n", "_work", "token")

    def __init__(self, plan: ReplyPlan, work: Work) -> None:
        self._plan = plan
        self._work = work
        self._numbers = plan.numbers
        self._top_n = work.parameters.top_n_tokens or 0
        self.token = self._token_with_top if self._top_n else self._token

    def _token(self, index: int) -> bytes:
        return b'data: {"index":%d%b' % (index, _TOKEN_TAILS[self._numbers[index - 1]])

    def _token_with_top(self, index: int) -> bytes:
        return event(self._fields(index, None, None))

    def last(self) -> list[bytes]:
        """The last token with the whole text and, if asked for, the details."""
        plan = self._plan
        details = None
        if self._work.details:
            details = {
                "finish_reason": plan.finish_reason,
                "generated_tokens": plan.tokens,
                "seed": plan.seed,
                "input_length": self._work.prompt_tokens,
            }
        return [event(self._fields(plan.tokens, reply_text(plan, self._work), details))]

    def error(self, message: str) -> bytes:
        """A 424 as an event."""
        return error_event(generation_failed(message))

    def _fields(self, index: int, text: str | None, details: dict[str, Any] | None) -> dict[str, Any]:
        fields: dict[str, Any] = {"index": index, "token": token_fields(_word(self._plan, index))}
        if self._top_n:
            fields["top_tokens"] = _top(self._plan, index, self._top_n)
        fields["generated_text"] = text
        fields["details"] = details
        return fields


def error_body(error: ApiError) -> dict[str, str]:
    """The JSON of an error."""
    return {"error": str(error), "error_type": error.kind}


def error_event(error: ApiError) -> bytes:
    """An error inside a stream that has begun with HTTP 200."""
    return event(error_body(error))


def _details(plan: ReplyPlan, work: Work, text: str | None) -> dict[str, Any]:
    # `prefill` stays empty: TGI fills it only with the launcher's --enable-prefill-logprobs.
    fields: dict[str, Any] = {} if text is None else {"generated_text": text}
    fields |= {
        "finish_reason": plan.finish_reason,
        "generated_tokens": plan.tokens,
        "seed": plan.seed,
        "prefill": [],
        "tokens": [token_fields(_word(plan, i)) for i in range(1, plan.tokens + 1)],
    }
    if work.parameters.top_n_tokens:
        fields["top_tokens"] = [
            _top(plan, i, work.parameters.top_n_tokens) for i in range(1, plan.tokens + 1)
        ]
    return fields


def generate_body(plans: list[ReplyPlan], work: Work) -> dict[str, Any]:
    """The object ``/generate`` answers; further plans are the other sequences of ``best_of``."""
    best = plans[0]
    body: dict[str, Any] = {"generated_text": reply_text(best, work)}
    if work.details:
        details = _details(best, work, None)
        if len(plans) > 1:
            others = [_details(plan, work, reply_text(plan, work)) for plan in plans[1:]]
            details["best_of_sequences"] = others
        body["details"] = details
    return body


def info_body(limits: Limits) -> dict[str, Any]:
    """``/info``. ``docker_label`` tells an emulator from a real server."""
    return {
        "model_id": limits.model_id,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": MAX_STOP_SEQUENCES,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": 2,
        "max_client_batch_size": MAX_CLIENT_BATCH_SIZE,
        "router": "text-generation-router",
        "version": VERSION,
        "sha": None,
        "docker_label": "loadgen-emulator",
    }
