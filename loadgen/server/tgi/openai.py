"""What TGI's two OpenAI routes share: the request's common fields, the envelope, usage, errors.

Pure. A body is read into the same `GenerateBody` that the native routes use, so
one validation serves all. Where TGI departs from OpenAI (empty ``id``, ``role``
in every chunk, ``stop`` a list only, raw finish reasons in completion streams)
so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loadgen.server.body import F32, FLAG, TEXT_OR_NULL, TEXTS_OR_NULL, U32, U64, Kind
from loadgen.server.reply import ReplyPlan
from loadgen.server.stream import event
from loadgen.server.tgi.errors import ApiError
from loadgen.server.tgi.generate import VERSION
from loadgen.server.tgi.validation import GenerateBody, Parameters, Work

FINGERPRINT = f"{VERSION}-native"

COMMON: dict[str, Kind] = {
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
"""Fields that both routes take."""


@dataclass(frozen=True, slots=True)
class OpenAiBody:
    """A request of either route: one `GenerateBody` per prompt, and how to answer.

    ``model`` is what a chat echoes; a completion names the served model whatever was asked for.
    """

    bodies: list[GenerateBody]
    stream: bool
    model: str | None = None
    include_usage: bool = False
    logprobs: bool = False
    top_logprobs: int = 0


def parameters(
    given: dict[str, Any],
    *,
    max_new_tokens: int | None,
    repetition_penalty: float | None,
    top_n_tokens: int | None = None,
    grammar: Any = None,
) -> Parameters:
    """The generation parameters that a request of either route stands for."""
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
        top_n_tokens=top_n_tokens,
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


def openai_reason(finish_reason: str) -> str:
    """TGI's finish reason as OpenAI names it, where TGI does so (lib.rs:1432-1438)."""
    return "stop" if finish_reason == "eos_token" else finish_reason


def error_event(error: ApiError) -> bytes:
    """An error inside an OpenAI stream: 422 whatever the cause (infer/mod.rs:445-454)."""
    return event({"error": {"message": str(error), "http_status_code": 422}})


def models_body(model_id: str) -> dict[str, Any]:
    """``/v1/models``."""
    model = {"id": model_id, "object": "model", "created": 0, "owned_by": model_id}
    return {"object": "list", "data": [model]}
