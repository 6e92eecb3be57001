"""TGI's own dialect: the JSON of ``/generate`` and the events of ``/generate_stream``.

Pure; key order is the wire's. ``top_tokens``, ``details`` and
``best_of_sequences`` are absent when not asked for, as TGI leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadgen.server.limits import Limits
from loadgen.server.reply import ReplyPlan, sampling_seed
from loadgen.server.stream import event
from loadgen.server.text import TOKEN_JSON, WORDS, token_fields
from loadgen.server.tgi.errors import ApiError, error_body, generation_failed
from loadgen.server.tgi.validation import Work
from loadgen.server.tokenizer import tokenize

VERSION = "3.3.6-dev0"
"""The release whose protocol is spoken."""

_TOKEN_TAILS = tuple(
    b',"token":' + token + b',"generated_text":null,"details":null}\n\n' for token in TOKEN_JSON
)


def reply_text(plan: ReplyPlan, work: Work) -> str:
    """``generated_text``: the words, after the prompt if that was asked for; no end marker."""
    text = "".join([WORDS[word] for word in plan.numbers])
    return work.inputs + text if work.parameters.return_full_text else text


def mean_logprob(plan: ReplyPlan) -> float:
    """Mean log-probability of a reply's tokens, by which ``best_of`` chooses."""
    total: float = sum(token_fields(_word(plan, i))["logprob"] for i in range(1, plan.tokens + 1))
    return total / plan.tokens


def _seed(plan: ReplyPlan, work: Work) -> int | None:
    if not work.sampling:
        return None
    given = work.parameters.seed
    return sampling_seed(plan.request_id) if given is None else given


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
                "seed": _seed(plan, self._work),
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


def error_event(error: ApiError) -> bytes:
    """An error inside a stream that has begun with HTTP 200."""
    return event(error_body(error))


def _prefill(work: Work) -> list[dict[str, Any]]:
    """The prompt's tokens with fillers for log-probabilities; nothing precedes the first, so it has none."""
    kept = tokenize(work.inputs)[-work.prompt_tokens :]
    return [
        {"id": token.id, "text": token.text, "logprob": -(1 + token.id % 320) / 128 if i else None}
        for i, token in enumerate(kept)
    ]


def _details(plan: ReplyPlan, work: Work, prefill: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "finish_reason": plan.finish_reason,
        "generated_tokens": plan.tokens,
        "seed": _seed(plan, work),
        "prefill": prefill,
        "tokens": [token_fields(_word(plan, i)) for i in range(1, plan.tokens + 1)],
    }


def generate_body(
    best: ReplyPlan, others: Sequence[ReplyPlan], work: Work, *, prefill_logprobs: bool = False
) -> dict[str, Any]:
    """The object ``/generate`` answers; ``others`` are the further sequences of ``best_of``.

    ``prefill_logprobs``: the launcher's ``--enable-prefill-logprobs``, without which
    ``prefill`` stays empty.
    """
    body: dict[str, Any] = {"generated_text": reply_text(best, work)}
    if not work.details:
        return body
    asked = prefill_logprobs and work.parameters.decoder_input_details
    prefill = _prefill(work) if asked else []
    top_n = work.parameters.top_n_tokens or 0

    def tops(plan: ReplyPlan) -> dict[str, Any]:
        return {"top_tokens": [_top(plan, i, top_n) for i in range(1, plan.tokens + 1)]} if top_n else {}

    details = _details(best, work, prefill)
    if others:
        details["best_of_sequences"] = [
            {"generated_text": reply_text(plan, work)} | _details(plan, work, prefill) | tops(plan)
            for plan in others
        ]
    body["details"] = details | tops(best)
    return body


def info_body(limits: Limits) -> dict[str, Any]:
    """``/info``. ``docker_label`` tells an emulator from a real server."""
    return {
        "model_id": limits.model_id,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": limits.max_best_of,
        "max_stop_sequences": limits.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": limits.validation_workers,
        "max_client_batch_size": limits.max_client_batch_size,
        "router": "text-generation-router",
        "version": VERSION,
        "sha": None,
        "docker_label": "loadgen-emulator",
    }
