"""What may be asked of the server: TGI's parameters, its checks in its order and its words.

Pure. A `GenerateBody` has been read (`loadgen.server.body`); `validate` turns it
into `Work`, which says everything the engine and the response need.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from loadgen.server.body import (
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
from loadgen.server.desk import Job
from loadgen.server.limits import Limits
from loadgen.server.prefix_cache import ID_BYTES
from loadgen.server.reply import plan_reply
from loadgen.server.tgi.errors import invalid
from loadgen.server.tgi.grammar import check_grammar
from loadgen.server.tgi_policy import STRETCH_TOKENS, longest_reply_tokens
from loadgen.server.tokenizer import token_ids

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
    "adapter_id": TEXT_OR_NULL,
    "ignore_eos": FLAG,
}


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

    def with_full_text(self) -> GenerateBody:
        """The same, with the prompt repeated unless that was asked otherwise (``POST /``)."""
        if self.parameters.return_full_text is not None:
            return self
        return replace(self, parameters=replace(self.parameters, return_full_text=True))


@dataclass(frozen=True, slots=True)
class Work:
    """A valid request. Counts are tokens.

    ``max_new_tokens`` is what was asked for, or all that fits; ``longest_tokens``
    is what can come, in stretches of 1,024 each of which must fit.
    """

    inputs: str
    prompt_ids: bytes
    max_new_tokens: int
    longest_tokens: int
    parameters: Parameters
    details: bool
    sampling: bool

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, after truncation."""
        return len(self.prompt_ids) // ID_BYTES

    @property
    def stretch_tokens(self) -> int:
        """New tokens that the first stretch may have."""
        return min(self.max_new_tokens, STRETCH_TOKENS)


def parse_generate(raw: bytes, *, null_parameters: bool = False) -> GenerateBody:
    """Reads the body of ``/generate``, ``/generate_stream``, ``/tokenize`` and ``/``. Raises Unreadable.

    ``null_parameters``: null is as good as no parameters.
    """
    fields = Fields(raw, "GenerateRequest")
    top = fields.take({"inputs": TEXT, "stream": FLAG})
    fields.require("inputs")
    if "parameters" in fields.top and not (null_parameters and fields.top["parameters"] is None):
        given = fields.take(_PARAMETERS, prefix="parameters", struct="GenerateParameters")
        grammar = fields.top["parameters"].get("grammar")
        check_grammar(fields, "parameters.grammar", grammar)
        parameters = Parameters(grammar=grammar, **given)
    else:
        # TGI's trap: without the key, sampling is on (lib.rs, default_parameters).
        parameters = Parameters(do_sample=True)
    return GenerateBody(top["inputs"], parameters, top.get("stream", False))


def check_before_admission(parameters: Parameters, limits: Limits, *, streaming: bool) -> None:
    """What TGI looks at before it takes a concurrency permit. Raises ApiError."""
    best_of = parameters.best_of
    if streaming:
        if best_of is not None and best_of != 1:
            raise invalid("`best_of` != 1 is not supported when streaming tokens")
        if parameters.decoder_input_details:
            raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    elif best_of is not None and best_of > 1:
        if limits.max_best_of == 1:
            raise invalid("`best_of` != 1 is not allowed for this endpoint")
        if best_of > limits.max_best_of:
            raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")


def validate(body: GenerateBody, limits: Limits) -> Work:
    """Checks a request in TGI's order. Raises ApiError with TGI's wording."""
    p = body.parameters
    _check_parameters(p, limits)
    if not body.inputs:
        raise invalid("`inputs` cannot be empty")
    if p.truncate is not None and not 0 < p.truncate <= limits.max_input_tokens:
        most = limits.max_input_tokens
        raise invalid(f"`truncate` must be strictly positive and less than {most}. Given: {p.truncate}")
    prompt_ids = token_ids(body.inputs)
    if p.truncate is not None:
        prompt_ids = prompt_ids[-p.truncate * ID_BYTES :]
    input_tokens = len(prompt_ids) // ID_BYTES
    asked = max(limits.max_total_tokens - input_tokens, 0) if p.max_new_tokens is None else p.max_new_tokens
    stretch = min(asked, STRETCH_TOKENS)
    if input_tokens + stretch > limits.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {stretch} `max_new_tokens`"
        )
    if input_tokens > limits.max_input_tokens:
        raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_tokens}")
    if p.grammar is not None:
        raise invalid("grammar is not supported")
    return Work(
        inputs=body.inputs,
        prompt_ids=prompt_ids,
        max_new_tokens=asked,
        longest_tokens=longest_reply_tokens(
            input_tokens, asked, limits.max_total_tokens, limits.max_input_tokens
        ),
        parameters=p,
        details=p.details or p.decoder_input_details,
        sampling=p.do_sample
        or (p.temperature is not None and p.temperature != 1.0)
        or p.top_k is not None
        or p.top_p is not None
        or p.typical_p is not None,
    )


def _check_parameters(p: Parameters, limits: Limits) -> None:
    several = p.best_of is not None and p.best_of > 1
    samples = p.do_sample or any(v is not None for v in (p.temperature, p.top_k, p.top_p, p.typical_p))
    if several and not samples:
        raise invalid("you must use sampling when `best_of` is > 1")
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
    most = limits.max_stop_sequences
    if len(p.stop) > most:
        raise invalid(f"`stop` supports up to {most} stop sequences. Given: {len(p.stop)}")
    if several and p.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    most = limits.max_top_n_tokens
    if p.top_n_tokens is not None and p.top_n_tokens > most:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {most}. Given: {p.top_n_tokens}")


def plan(seed: int, request_id: int, work: Work) -> Job:
    """What the engine is to do for a valid request, keyed by the server's seed and the id.

    A reply that ignores the end marker has exactly ``max_new_tokens``, where they
    fit: experiments ask for lengths, and get no second stretch beyond them.
    """
    p = work.parameters
    longest = min(work.max_new_tokens, work.longest_tokens) if p.ignore_eos else work.longest_tokens
    reply = plan_reply(seed, request_id, longest, exact=p.ignore_eos, stop=p.stop)
    return Job(reply, work.prompt_tokens, work.max_new_tokens, work.prompt_ids)
