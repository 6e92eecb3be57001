"""What may be asked of vLLM: its fields, its checks and its words (0.32.0, recorded).

Unknown fields are accepted. The types of chat messages are not spelled out one
by one as its unions do; any object with a role is one. Beam search, tools,
structured output and prompt log-probabilities are accepted and do nothing.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from loadgen.server.dialects import fastapi
from loadgen.server.dialects.asks import Ask
from loadgen.server.dialects.fastapi import ErrorDict, Invalid, Refused
from loadgen.server.dialects.prompts import Decode, NotText, Prompt, prompt_of, prompt_text, prompts_of
from loadgen.server.dialects.script import hold_longest
from loadgen.server.limits import Limits

MAX_LOGPROBS = 20
MOST_CHOICES = 16384
_INT64 = 2**63
_SHOWN_ERRORS = 10
_SHOWN_CHARACTERS = 200

ZeroForNull = Annotated[int, BeforeValidator(lambda v: 0 if v is None else v)]


class StreamOptions(BaseModel):
    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class Sampling(BaseModel):
    """The fields both routes share."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    n: int | None = 1
    seed: int | None = Field(None, ge=-_INT64, le=_INT64 - 1)
    stop: str | list[str] | None = []
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    echo: bool = False


class ChatRequest(Sampling):
    messages: list[dict[str, Any]]
    logprobs: bool | None = False
    top_logprobs: ZeroForNull = 0
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class CompletionRequest(Sampling):
    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    logprobs: int | None = None
    max_tokens: int | None = 16
    suffix: str | None = None


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=_INT64 - 1)]]


def error_body(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """vLLM's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(message: str, param: str | None = None, value: object = None) -> Refused:
    """A 400 of vLLM's own checks, which put parameter and value behind the message."""
    extra = [] if param is None else [f"parameter={param}"]
    if value is not None:
        extra.append(f"value={value}")
    text = f"{message} ({', '.join(extra)})" if extra else message
    return Refused(400, error_body(text, "BadRequestError", 400, param))


def invalid_body(errors: list[ErrorDict]) -> dict[str, Any]:
    """The answer to a body that does not fit."""
    count = len(errors)
    shown = [_shown(error) for error in errors[:_SHOWN_ERRORS]]
    lines = [f"{count} validation error{'s' * (count > 1)}:", *(f"  {text}" for text in shown)]
    if count > _SHOWN_ERRORS:
        lines.append(f"  ...and {count - _SHOWN_ERRORS} more error{'s' * (count > 1)}")
    return error_body("\n".join(lines), HTTPStatus.BAD_REQUEST.phrase, 400, _place(errors[0]["loc"]))


def unsupported_media_type() -> Refused:
    """The answer to a body that is not called JSON."""
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return Refused(400, error_body(message, HTTPStatus.BAD_REQUEST.phrase, 400))


def _place(loc: tuple[str | int, ...]) -> str:
    # The branches of a union carry names of types, which vLLM leaves out.
    return ".".join(str(p) for p in loc if not (isinstance(p, str) and (p in _TYPE_NAMES or "[" in p)))


_TYPE_NAMES = {"str", "int", "float", "bool", "list", "dict", "none"}


def _shown(error: ErrorDict) -> str:
    fields = {key: error[key] for key in ("type", "loc", "msg", "input", "ctx") if key in error}
    fields["loc"] = _place(error["loc"])
    value = error.get("input")
    if isinstance(value, list | dict):
        fields["input"] = f"<{type(value).__name__} of {len(value)} items>"
    else:
        text = str(value)
        cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...[truncated]"
        fields["input"] = cut
    return str(fields)


def check_model(model: str | None, served: str) -> None:
    """Raises Refused (404) for a model that is not served."""
    if model and model != served:
        message = f"The model `{model}` does not exist. Valid aliases: {served}."
        raise Refused(404, error_body(message, "NotFoundError", 404, "model"))


def _before(value: Any) -> None:
    """What is looked at before the types."""
    if not isinstance(value, dict):
        return
    if value.get("tools") == []:
        message = (
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        )
        raise bad_request(message, "tools")
    if value.get("tool_choice") not in (None, "none") and value.get("tools") is None:
        raise bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if value.get("stream_options") and not value.get("stream"):
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")


def read_chat(value: Any) -> ChatRequest:
    """A body of ``/v1/chat/completions``. Raises Invalid or Refused."""
    _before(value)
    if isinstance(value, dict):
        top = value.get("top_logprobs")
        if top is not None and not isinstance(top, int | float):
            raise bad_request("`top_logprobs` must be an integer.", "top_logprobs", top)
        if top is not None and top < 0 and top != -1:
            raise bad_request("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
        if top and not value.get("logprobs"):
            raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    request = fastapi.fit(value, ChatRequest)
    for place, message in enumerate(request.messages):
        if not isinstance(message.get("role"), str):
            loc = ("body", "messages", place, "role")
            raise Invalid([{"type": "missing", "loc": loc, "msg": "Field required", "input": message}])
        content = message.get("content")
        if not isinstance(content, str | list | None):
            loc = ("body", "messages", place, "content")
            text = "Input should be a valid string"
            raise Invalid([{"type": "string_type", "loc": loc, "msg": text, "input": content}])
    return request


def read_completion(value: Any) -> CompletionRequest:
    """A body of ``/v1/completions``. Raises Invalid or Refused."""
    _before(value)
    if isinstance(value, dict):
        if value.get("prompt") in (None, "") and not value.get("prompt_embeds"):
            message = "Either prompt or prompt_embeds must be provided and non-empty."
            raise bad_request(message, "prompt")
        if value.get("max_tokens", 16) is None:
            value = {**value, "max_tokens": 16}
    return fastapi.fit(value, CompletionRequest)


def chat_prompt(request: ChatRequest, limits: Limits) -> Prompt:
    """The prompt of messages. Raises Refused."""
    if not request.messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise bad_request(message)
    try:
        text = prompt_text(request.messages)
    except NotText as error:
        if error.kind in ("image_url", "video_url", "input_audio", "audio_url"):
            raise bad_request(f"{limits.model_id} is not a multimodal model") from None
        raise bad_request(f"Unknown content part type: {error.kind}") from None
    return prompt_of(text)


def chat_ask(request: ChatRequest, limits: Limits) -> Ask:
    """What a chat request asks for. Raises Refused."""
    prompt = chat_prompt(request, limits)
    chosen = request.max_completion_tokens
    name = "max_tokens" if chosen is None else "max_completion_tokens"
    most = request.max_tokens if chosen is None else chosen
    logprobs = request.top_logprobs if request.logprobs else None
    return _ask(request, [prompt], most, name, logprobs, limits)


def completion_ask(request: CompletionRequest, limits: Limits, decode: Decode) -> Ask:
    """What a completion request asks for; ``decode`` gives the text of token ids. Raises Refused."""
    if request.suffix:
        message = "suffix is only supported for models with FIM completion rendering"
        raise Refused(400, error_body(message, "BadRequestError", 400, "suffix"))
    prompts = prompts_of(request.prompt, decode)
    if not prompts:
        raise bad_request("You must pass at least one prompt")
    if any(not prompt.tokens for prompt in prompts):
        raise bad_request("The decoder prompt cannot be empty")
    most = request.max_tokens
    if request.echo and most == 0:
        most = 1  # vLLM computes one token and shows none of it
    return _ask(request, prompts, most, "max_tokens", request.logprobs, limits)


def _ask(
    request: Sampling,
    prompts: list[Prompt],
    max_tokens: int | None,
    max_tokens_name: str,
    logprobs: int | None,
    limits: Limits,
) -> Ask:
    longest = limits.max_total_tokens
    if max_tokens is not None and max_tokens > longest:
        message = (
            f"{max_tokens_name}={max_tokens} cannot be greater than max_model_len={longest}. "
            "Please request fewer output tokens."
        )
        raise bad_request(message, max_tokens_name, max_tokens)
    prompt_tokens = max(prompt.tokens for prompt in prompts)
    if prompt_tokens > longest:
        # It stops counting one past the limit.
        message = (
            f"This model's maximum context length is {longest} tokens. However, your prompt contains "
            f"at least {longest + 1} input tokens, which exceeds this limit even without any output "
            "tokens. Please reduce the length of the input prompt."
        )
        raise bad_request(message, "input_tokens", longest + 1)
    room = longest - prompt_tokens
    most = room if max_tokens is None else min(max_tokens, room)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    n = 1 if request.n is None else request.n
    check_sampling(request, most, n, stop)
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        message = (
            f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {MAX_LOGPROBS}"
        )
        raise bad_request(message, "logprobs", logprobs)
    return Ask(
        prompts=prompts,
        max_new_tokens=most,
        n=n,
        exact=request.ignore_eos,
        min_new_tokens=request.min_tokens,
        stop=stop,
        keep_stop=request.include_stop_str_in_output,
        hold=hold_longest,
    )


def check_sampling(request: Sampling, max_tokens: int, n: int, stop: list[str]) -> None:
    """vLLM's checks of sampling parameters, in its order. Raises Refused."""
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    top_k = 0 if request.top_k is None else request.top_k
    min_p = 0.0 if request.min_p is None else request.min_p
    repetition = 1.0 if request.repetition_penalty is None else request.repetition_penalty
    if n < 1:
        raise bad_request(f"n must be at least 1, got {n}.")
    if n > MOST_CHOICES:
        raise bad_request(
            f"n must be at most {MOST_CHOICES}, got {n}. To increase this limit, set the "
            "VLLM_MAX_N_SEQUENCES environment variable."
        )
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(request, name) or 0.0
        if not -2.0 <= value <= 2.0:
            raise bad_request(f"{name} must be in [-2, 2], got {value}.")
    if not math.isfinite(repetition):
        raise bad_request(f"repetition_penalty must be a finite number, got {repetition}.")
    if repetition <= 0.0:
        raise bad_request(f"repetition_penalty must be greater than zero, got {repetition}.")
    if not math.isfinite(temperature):
        message = f"temperature must be a finite number, got {temperature}."
        raise bad_request(message, "temperature", temperature)
    if temperature < 0.0:
        message = f"temperature must be non-negative, got {temperature}."
        raise bad_request(message, "temperature", temperature)
    if temperature > 2.0:
        raise bad_request(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    if not 0.0 < top_p <= 1.0:
        raise bad_request(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if top_k < -1:
        raise bad_request(f"top_k must be 0 (disable), or at least 1, got {top_k}.")
    if not 0.0 <= min_p <= 1.0:
        raise bad_request(f"min_p must be in [0, 1], got {min_p}.")
    if max_tokens < 1:
        message = f"max_tokens must be at least 1, got {max_tokens}."
        raise bad_request(message, "max_tokens", max_tokens)
    if request.min_tokens < 0:
        raise bad_request(f"min_tokens must be greater than or equal to 0, got {request.min_tokens}.")
    if request.min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {request.min_tokens}."
        )
    if any(not s for s in stop):
        raise bad_request("stop cannot contain an empty string.")
    if temperature < 1e-5 and n > 1:
        raise bad_request(f"n must be 1 when using greedy sampling, got {n}.")
