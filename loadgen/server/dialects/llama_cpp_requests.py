"""What may be asked of llama.cpp's server: its lenient reading, its errors (b1-7e4c0a9, recorded).

Any model name, any unknown field and nearly any value is taken; what is not JSON
is a 500, in nlohmann's words where the body is empty and in Python's elsewhere.
"""

from __future__ import annotations

import json
from typing import Any

from loadgen.server.dialects.asks import Ask, Decode, Prompt, prompt_of, prompts_of
from loadgen.server.dialects.conversation import NotText, prompt_text
from loadgen.server.dialects.fastapi import Refused
from loadgen.server.dialects.script import hold_beginnings
from loadgen.server.limits import Limits

_EMPTY = (
    "[json.exception.parse_error.101] parse error at line 1, column 1: attempting to parse an empty input; "
    "check that your input string or stream contains the expected JSON"
)
_PROMPT = (
    '"prompt" elements must be a string, a list of tokens, a JSON object containing a prompt string, '
    "or a list of mixed strings & tokens."
)
_KINDS = {"number": (int, float, bool), "boolean": (bool,), "string": (str,), "array": (list,)}
_CHECKED = {
    "max_tokens": "number", "max_completion_tokens": "number", "n_predict": "number", "temperature": "number",
    "top_p": "number", "top_k": "number", "min_p": "number", "seed": "number", "n": "number",
    "top_logprobs": "number", "n_probs": "number",
    "frequency_penalty": "number", "presence_penalty": "number", "repeat_penalty": "number",
    "stream": "boolean", "ignore_eos": "boolean", "timings_per_token": "boolean", "cache_prompt": "boolean",
}  # fmt: skip


def error_body(code: int, message: str, kind: str, **more: int) -> dict[str, Any]:
    """The error object."""
    return {"error": {"code": code, "message": message, "type": kind, **more}}


def bad_request(message: str) -> Refused:
    """A 400."""
    return Refused(400, error_body(400, message, "invalid_request_error"))


def broken(message: str) -> Refused:
    """A 500: an exception of its libraries."""
    return Refused(500, error_body(500, message, "server_error"))


def parse(raw: bytes) -> dict[str, Any]:
    """The body; a value that is no object has no fields. Raises Refused."""
    if not raw:
        raise broken(_EMPTY)
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        text = f"syntax error while parsing value - {error.msg}"
        raise broken(f"[json.exception.parse_error.101] parse error at {place}: {text}") from None
    except (ValueError, RecursionError) as error:
        raise broken(f"[json.exception.parse_error.101] parse error: {error}") from None
    return value if isinstance(value, dict) else {}


def _no_constant(name: str) -> float:
    raise ValueError(f"invalid literal; last read: '{name}'")


def kind_of(value: Any) -> str:
    """The name of a JSON value's type."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def wrong_type(expected: str, value: Any) -> str:
    """nlohmann's message."""
    return f"[json.exception.type_error.302] type must be {expected}, but is {kind_of(value)}"


def _check_fields(body: dict[str, Any], slots: int) -> None:
    for name, expected in _CHECKED.items():
        value = body.get(name)
        if value is not None and not isinstance(value, _KINDS[expected]):
            raise bad_request(f"Field '{name}': {wrong_type(expected, value)}")
    n = body.get("n")
    if n is not None and not 1 <= n <= slots:
        raise bad_request(f"Field 'n': Value must be between 1 <= value <= {slots}, but got {int(n)}")


def chat_ask(body: dict[str, Any], limits: Limits, slots: int) -> Ask:
    """What a chat request asks for. Raises Refused."""
    text = chat_prompt(body)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise bad_request("top_logprobs requires logprobs to be set to true")
    return _ask(body, [prompt_of(text)], limits, slots)


def chat_prompt(body: dict[str, Any]) -> str:
    """The prompt of a body with ``messages``. Raises Refused."""
    messages = body.get("messages")
    if messages is None:
        raise bad_request("'messages' is required")
    if not isinstance(messages, list):
        raise bad_request("Expected 'messages' to be an array")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        role = message.get("role") if isinstance(message, dict) else None
        if content is None and (role != "assistant" or not isinstance(message, dict)):
            raise bad_request("All non-assistant messages must contain 'content'")
        if not isinstance(content, str | list | None):
            raise bad_request("Expected 'content' to be a string or an array")
        if not isinstance(role, str):
            shown = json.dumps(message, separators=(",", ":"))
            raise broken(f"Failed to parse messages: Missing 'role' in message: {shown}")
    try:
        return prompt_text(messages)
    except NotText as error:
        if error.kind == "image_url":
            hint = "hint: if this is unexpected, you may need to provide the mmproj"
            raise broken(f"image input is not supported - {hint}") from None
        raise bad_request("unsupported content[].type") from None


def completion_ask(body: dict[str, Any], limits: Limits, slots: int, decode: Decode) -> Ask:
    """What a completion request asks for. Raises Refused."""
    logprobs = body.get("logprobs")
    if logprobs is not None and not isinstance(logprobs, int | float):
        raise bad_request(f"Field 'logprobs': {wrong_type('number', logprobs)}")
    if "prompt" not in body:
        raise bad_request("[json.exception.out_of_range.403] key 'prompt' not found")
    return _ask(body, _prompts(body["prompt"], decode), limits, slots)


def _prompts(given: Any, decode: Decode) -> list[Prompt]:
    if isinstance(given, dict) and isinstance(given.get("prompt_string"), str):
        given = given["prompt_string"]
    if isinstance(given, list):
        if not given:
            raise bad_request('"prompt" must not be empty')
        if all(map(_is_id, given)):
            return prompts_of(given, decode)
        if any(map(_is_id, given)) and all(_is_id(p) or isinstance(p, str) for p in given):
            parts = [p if isinstance(p, str) else decode([p]) for p in given]
            return [prompt_of("".join(parts))]  # strings and ids mixed are one prompt
        if all(isinstance(p, str) or (isinstance(p, list) and all(map(_is_id, p))) for p in given):
            return [prompt_of(p) if isinstance(p, str) else prompts_of(p, decode)[0] for p in given]
    elif isinstance(given, str):
        return [prompt_of(given)]
    raise bad_request(_PROMPT)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ask(body: dict[str, Any], prompts: list[Prompt], limits: Limits, slots: int) -> Ask:
    _check_fields(body, slots)
    context = limits.max_total_tokens
    tokens = max(prompt.tokens for prompt in prompts)
    if tokens >= context:
        message = (
            f"request ({tokens} tokens) exceeds the available context size ({context} tokens), "
            "try increasing it"
        )
        more = {"n_prompt_tokens": tokens, "n_ctx": context}
        raise Refused(400, error_body(400, message, "exceed_context_size_error", **more))
    names = ("max_completion_tokens", "max_tokens", "n_predict")
    given = next((body[name] for name in names if body.get(name) is not None), -1)
    # Below zero: until the context is full. Zero still yields the token of the prefill.
    most = context - tokens if given < 0 else max(min(int(min(given, context)), context - tokens), 1)
    stop = body.get("stop")
    if isinstance(stop, list):
        for item in stop:
            if not isinstance(item, str):
                raise bad_request(f"Field 'stop': {wrong_type('string', item)}")
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return Ask(
        prompts=prompts,
        max_new_tokens=most,
        n=int(body.get("n") or 1),
        exact=bool(body.get("ignore_eos")),
        stop=[s for s in stops if s],
        hold=hold_beginnings,
    )
