"""What may be asked of the server: TGI's parameters, its checks in its order and its words.

Pure. A `GenerateBody` has been read (`loadgen.server.body`); `validate` turns it
into `Work`, which says everything the engine and the response need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loadgen.prompts.replies import reply_tokens
from loadgen.prompts.tokens import count_tokens
from loadgen.server.body import (
    ANY,
    F32,
    FLAG,
    FLAG_OR_NULL,
    I32,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    U32,
    U64,
    USIZE,
    Fields,
)
from loadgen.server.service import Limits
from loadgen.server.text import stopped_at, word_numbers

MAX_BEST_OF = 2
MAX_STOP_SEQUENCES = 4
MAX_TOP_N_TOKENS = 5
MAX_CLIENT_BATCH_SIZE = 4
RESERVED_NEW_TOKENS = 1024
"""TGI reserves and budgets at most this many new tokens at a time (validation.rs:25)."""

_PARAMETERS = {
    "best_of": USIZE,
    "temperature": F32,
    "repetition_penalty": F32,
    "frequency_penalty": F32,
    "top_k": I32,
    "top_p": F32,
    "typical_p": F32,
    "do_sample": FLAG,
    "max_new_tokens": U32,
    "return_full_text": FLAG_OR_NULL,
    "stop": TEXTS,
    "truncate": USIZE,
    "watermark": FLAG,
    "details": FLAG,
    "decoder_input_details": FLAG,
    "seed": U64,
    "top_n_tokens": U32,
    "grammar": ANY,
    "adapter_id": TEXT_OR_NULL,
    "ignore_eos": FLAG,
}


class ApiError(Exception):
    """An error of TGI's own: HTTP ``status``, ``kind`` (``error_type``) and message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def invalid(text: str) -> ApiError:
    """A 422 of validation."""
    return ApiError(422, "validation", f"Input validation error: {text}")


def overloaded() -> ApiError:
    """The 429 beyond the limit of concurrent requests."""
    return ApiError(429, "overloaded", "Model is overloaded")


def generation_failed(text: str) -> ApiError:
    """The 424 of a backend failure."""
    return ApiError(424, "generation", f"Request failed during generation: {text}")


@dataclass(frozen=True, slots=True)
class Parameters:
    """TGI's generation parameters with their defaults when ``parameters`` is given.

    ``ignore_eos`` is not TGI's: true makes the reply exactly ``max_new_tokens``
    long, as the field of the same name does in vLLM and SGLang.
    """

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = field(default_factory=list)
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: Any = None
    adapter_id: str | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerateBody:
    """A body as TGI's own routes take it; ``stream`` only counts on ``POST /``."""

    inputs: str
    parameters: Parameters
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """A valid request. Counts are tokens; ``max_new_tokens`` is what can come at most."""

    inputs: str
    prompt_tokens: int
    max_new_tokens: int
    parameters: Parameters
    details: bool
    sampling: bool


@dataclass(frozen=True, slots=True)
class ReplyPlan:
    """One reply, decided before it starts: ``numbers`` are its words (an end marker comes on top)."""

    request_id: int
    tokens: int
    finish_reason: str
    numbers: list[int]
    seed: int | None


def parse_generate(raw: bytes) -> GenerateBody:
    """Reads the body of ``/generate``, ``/generate_stream`` and ``/``. Raises Unreadable."""
    fields = Fields(raw, "GenerateRequest")
    top = fields.take({"inputs": TEXT, "stream": FLAG})
    fields.require("inputs")
    if "parameters" in fields.top:
        given = fields.take(_PARAMETERS, prefix="parameters", struct="GenerateParameters")
        parameters = Parameters(**given)
    else:
        # TGI's trap: without the key, sampling is on (lib.rs, default_parameters).
        parameters = Parameters(do_sample=True)
    return GenerateBody(top["inputs"], parameters, top.get("stream", False))


def check_before_admission(parameters: Parameters, *, streaming: bool) -> None:
    """What TGI looks at before it takes a concurrency permit. Raises ApiError."""
    best_of = parameters.best_of
    if streaming:
        if best_of is not None and best_of != 1:
            raise invalid("`best_of` != 1 is not supported when streaming tokens")
        if parameters.decoder_input_details:
            raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    elif best_of is not None and best_of > MAX_BEST_OF:
        raise invalid(f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}")


def validate(body: GenerateBody, limits: Limits) -> Work:
    """Checks a request in TGI's order. Raises ApiError with TGI's wording."""
    p = body.parameters
    _check_parameters(p)
    if not body.inputs:
        raise invalid("`inputs` cannot be empty")
    if p.truncate is not None and not 0 < p.truncate <= limits.max_input_tokens:
        most = limits.max_input_tokens
        raise invalid(f"`truncate` must be strictly positive and less than {most}. Given: {p.truncate}")
    input_tokens = max(count_tokens(body.inputs), 1)
    if p.truncate is not None:
        input_tokens = min(input_tokens, p.truncate)
    room = limits.max_total_tokens - input_tokens
    asked = max(room, 0) if p.max_new_tokens is None else p.max_new_tokens
    reserved = min(asked, RESERVED_NEW_TOKENS)
    if input_tokens + reserved > limits.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {reserved} `max_new_tokens`"
        )
    if input_tokens > limits.max_input_tokens:
        raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_tokens}")
    if p.grammar is not None:
        # Simulated text cannot obey a grammar, so the server is one started without them.
        raise invalid("grammar is not supported")
    return Work(
        inputs=body.inputs,
        prompt_tokens=input_tokens,
        max_new_tokens=min(asked, room),
        parameters=p,
        details=p.details or p.decoder_input_details,
        sampling=p.do_sample
        or (p.temperature is not None and p.temperature != 1.0)
        or p.top_k is not None
        or p.top_p is not None
        or p.typical_p is not None,
    )


def _check_parameters(p: Parameters) -> None:
    if p.best_of is not None and p.best_of > 1:
        if not (p.do_sample or any(v is not None for v in (p.temperature, p.top_k, p.top_p, p.typical_p))):
            raise invalid("you must use sampling when `best_of` is > 1")
        if p.seed is not None:
            raise invalid("`seed` must not be set when `best_of` > 1")
    if p.temperature is not None and p.temperature <= 0:
        raise invalid("`temperature` must be strictly positive")
    if p.repetition_penalty is not None and p.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive")
    if p.frequency_penalty is not None and not -2 <= p.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0")
    if p.typical_p is not None and not 0 < p.typical_p < 1:
        raise invalid("`typical_p` must be > 0.0 and < 1.0")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive")
    if p.max_new_tokens == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if len(p.stop) > MAX_STOP_SEQUENCES:
        raise invalid(f"`stop` supports up to {MAX_STOP_SEQUENCES} stop sequences. Given: {len(p.stop)}")
    if p.top_n_tokens is not None and p.top_n_tokens > MAX_TOP_N_TOKENS:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {p.top_n_tokens}")


def plan_reply(seed: int, request_id: int, work: Work) -> ReplyPlan:
    """How the reply will read and why it will end.

    Exactly ``max_new_tokens`` with ``ignore_eos``, else lognormal and keyed by
    the server's seed and the id. When both limits meet, ``length`` wins over a
    stop sequence and the end marker, as in TGI's stopping criteria. The end
    marker is one of the tokens.
    """
    p = work.parameters
    limit = work.max_new_tokens
    tokens = limit if p.ignore_eos else reply_tokens(seed, request_id, limit)
    finish_reason = "length" if tokens >= limit else "eos_token"
    numbers = word_numbers(request_id, tokens - (finish_reason == "eos_token"))
    if p.stop:
        stop = stopped_at(numbers, p.stop)
        if stop is not None and stop < limit:
            tokens, finish_reason, numbers = stop, "stop_sequence", numbers[:stop]
    drawn = (request_id * 0x9E3779B97F4A7C15 + seed) & 0xFFFFFFFFFFFFFFFF
    used = (drawn if p.seed is None else p.seed) if work.sampling else None
    return ReplyPlan(request_id, tokens, finish_reason, numbers, used)
