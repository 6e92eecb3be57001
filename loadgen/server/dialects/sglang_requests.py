"""What may be asked of SGLang: its fields, its checks and its words (0.5.23, read from its sources).

Unknown fields are ignored and any model name is taken. Message types are not
spelled out; tools, structured output and sessions are accepted and do nothing.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, field_validator

from loadgen.server.dialects.asks import Ask
from loadgen.server.dialects.fastapi import ErrorDict, Refused
from loadgen.server.dialects.prompts import Decode, NotText, Prompt, prompt_of, prompt_text, prompts_of
from loadgen.server.limits import Limits

NATIVE_NEW_TOKENS = 128
MOST_CHOICES = 16384
"""Replies of one prompt: the real server has no limit but its memory."""


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Sampling(BaseModel):
    """The fields both OpenAI routes share."""

    model: str = "default"
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int = 0
    repetition_penalty: float | None = None
    no_stop_trim: bool = False
    ignore_eos: bool = False


class ChatRequest(Sampling):
    messages: list[dict[str, Any]]
    logprobs: bool = False
    top_logprobs: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class CompletionRequest(Sampling):
    prompt: list[int] | list[list[int]] | str | list[str]
    echo: bool = False
    logprobs: int | None = None
    max_tokens: int = 16

    @field_validator("max_tokens")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value <= 0:
            raise ValueError("max_tokens must be positive")
        return value


class NativeSampling(BaseModel):
    """``sampling_params`` of ``/generate``."""

    max_new_tokens: int | None = NATIVE_NEW_TOKENS
    min_new_tokens: int = 0
    stop: str | list[str] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    no_stop_trim: bool = False
    n: int = 1


class NativeRequest(BaseModel):
    """The body of ``/generate``."""

    text: str | list[str] | None = None
    input_ids: list[int] | list[list[int]] | None = None
    sampling_params: NativeSampling | None = None
    return_logprob: bool | None = None
    top_logprobs_num: int | None = None
    stream: bool = False
    rid: str | None = None


class DetokenizeRequest(BaseModel):
    tokens: list[int] | list[list[int]]


def error_body(message: str, kind: str = "BadRequestError", code: int = 400) -> dict[str, Any]:
    """SGLang's flat error object."""
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


def bad_request(message: str, kind: str = "BadRequest") -> Refused:
    """A 400 of SGLang's own checks."""
    return Refused(400, error_body(message, kind))


def invalid_body(errors: list[ErrorDict]) -> dict[str, Any]:
    """The answer to a body that does not fit, with the errors twice as there."""
    count = len(errors)
    lines = [f"{count} validation error{'s' * (count > 1)}:", *(f"  {error}" for error in errors)]
    return error_body("\n".join(lines) + f" {errors}", "Bad Request")


def chat_ask(request: ChatRequest, limits: Limits) -> Ask:
    """What a chat request asks for. Raises Refused."""
    if not request.messages:
        raise bad_request("Messages cannot be empty.", "BadRequestError")
    try:
        text = prompt_text(request.messages)
    except NotText as error:
        raise bad_request(f"Unknown content type: {error.kind}") from None
    most = request.max_completion_tokens or request.max_tokens
    return _ask(request, [prompt_of(text)], most or None, limits)


def completion_ask(request: CompletionRequest, limits: Limits, decode: Decode) -> Ask:
    """What a completion request asks for; ``decode`` gives the text of token ids. Raises Refused."""
    prompt = request.prompt
    if not prompt or (isinstance(prompt, list) and all(not p for p in prompt)):
        raise bad_request("Prompt cannot be empty", "BadRequestError")
    return _ask(request, prompts_of(prompt, decode), request.max_tokens, limits)


def _ask(request: Sampling, prompts: list[Prompt], most: int | None, limits: Limits) -> Ask:
    native = NativeSampling(
        max_new_tokens=most,
        min_new_tokens=request.min_tokens,
        stop=request.stop,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=-1 if request.top_k is None else request.top_k,
        min_p=0.0 if request.min_p is None else request.min_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        ignore_eos=request.ignore_eos,
        no_stop_trim=request.no_stop_trim,
        n=request.n,
    )
    return sampled_ask(native, prompts, limits)


def native_ask(request: NativeRequest, limits: Limits, decode: Decode) -> Ask:
    """What ``/generate`` asks for. Raises Refused."""
    if (request.text is None) == (request.input_ids is None):
        message = "Either text, input_ids or input_embeds should be provided."
        raise Refused(400, {"error": {"message": message}})
    given = request.text if request.text is not None else request.input_ids
    try:
        return sampled_ask(request.sampling_params or NativeSampling(), prompts_of(given, decode), limits)
    except Refused as refused:
        raise Refused(400, {"error": {"message": refused.body["message"]}}) from None


def sampled_ask(p: NativeSampling, prompts: list[Prompt], limits: Limits) -> Ask:
    """The length checks, then those of the sampling parameters. Raises Refused."""
    longest = limits.max_total_tokens
    if not prompts or any(not prompt.tokens for prompt in prompts):
        raise bad_request("Prompt cannot be empty")
    tokens = max(prompt.tokens for prompt in prompts)
    if tokens >= longest:
        raise bad_request(
            f"The input ({tokens} tokens) is longer than the model's context length ({longest} tokens)."
        )
    if p.max_new_tokens is not None and tokens + p.max_new_tokens > longest:
        raise bad_request(
            f"Requested token count exceeds the model's maximum context length of {longest} tokens. You "
            f"requested a total of {tokens + p.max_new_tokens} tokens: {tokens} tokens from the input "
            f"messages and {p.max_new_tokens} tokens for the completion. Please reduce the number of tokens "
            "in the input messages or the completion to fit within the limit."
        )
    _check(p)
    room = longest - tokens
    stop = [p.stop] if isinstance(p.stop, str) else p.stop or []
    return Ask(
        prompts=prompts,
        max_new_tokens=room if p.max_new_tokens is None else max(p.max_new_tokens, 1),
        n=p.n,
        exact=p.ignore_eos,
        min_new_tokens=p.min_new_tokens,
        stop=[s for s in stop if s],
        keep_stop=p.no_stop_trim,
    )


def _check(p: NativeSampling) -> None:
    if not math.isfinite(p.temperature) or p.temperature < 0.0:
        raise bad_request(f"temperature must be a non-negative finite number, got {p.temperature}.")
    if not 0.0 < p.top_p <= 1.0:
        raise bad_request(f"top_p must be in (0, 1], got {p.top_p}.")
    if not 0.0 <= p.min_p <= 1.0:
        raise bad_request(f"min_p must be in [0, 1], got {p.min_p}.")
    if p.top_k < 1 and p.top_k != -1:
        raise bad_request(f"top_k must be -1 (disable) or at least 1, got {p.top_k}.")
    for name in ("frequency_penalty", "presence_penalty"):
        value = getattr(p, name)
        if not -2.0 <= value <= 2.0:
            raise bad_request(f"{name} must be in [-2, 2], got {value}.")
    if not 0.0 < p.repetition_penalty <= 2.0:
        value = p.repetition_penalty
        raise bad_request(f"repetition_penalty must be in (0, 2] (1.0 = no penalty), got {value}.")
    if p.min_new_tokens < 0:
        raise bad_request(f"min_new_tokens must be in [0, max_new_tokens], got {p.min_new_tokens}.")
    most = p.max_new_tokens
    if most is not None and most < 0:
        raise bad_request(f"max_new_tokens must be at least 0, got {most}.")
    if most is not None and p.min_new_tokens > most:
        raise bad_request(f"min_new_tokens must be in [0, max_new_tokens({most})], got {p.min_new_tokens}.")
    if not 1 <= p.n <= MOST_CHOICES:
        raise bad_request(f"n must be in [1, {MOST_CHOICES}], got {p.n}.")
