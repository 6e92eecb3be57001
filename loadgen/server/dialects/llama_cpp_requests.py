"""What may be asked of llama.cpp's server: its lenient reading, its errors (b1-7e4c0a9, recorded).

Any model name, any unknown field and nearly any value is taken; what is not JSON
is a 500, in nlohmann's words where the body is empty or a number too large and in
Python's elsewhere. Tools and response formats are accepted and do nothing.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from loadgen.server.dialects.asks import Ask
from loadgen.server.dialects.fastapi import Refused
from loadgen.server.dialects.prompts import Decode, NotText, Prompt, prompt_of, prompt_of_ids, prompt_text
from loadgen.server.dialects.script import hold_beginnings
from loadgen.server.limits import Limits
from loadgen.server.text import EOS_ID

_EMPTY = (
    "[json.exception.parse_error.101] parse error at line 1, column 1: attempting to parse an empty input; "
    "check that your input string or stream contains the expected JSON"
)
_PROMPT = (
    '"prompt" elements must be a string, a list of tokens, a JSON object containing a prompt string, '
    "or a list of mixed strings & tokens."
)
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGITS_64_BITS = 20
_INT_MAX = 2**31 - 1
_ALL_LOGPROBS = 20
"""``top_logprobs`` of a chat that asks for log-probabilities and not how many."""
_KINDS = {"number": (int, float, bool), "boolean": (bool,), "string": (str,), "array": (list,)}
_CHECKED = {
    "max_tokens": "number", "max_completion_tokens": "number", "n_predict": "number", "temperature": "number",
    "logprobs": "number",
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
        value = json.loads(raw, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer)
        if _ESCAPED_SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = "invalid string: surrogate U+D800..U+DBFF must be followed by U+DC00..U+DFFF"
        wrong = f"syntax error while parsing value - {text}"
        raise broken(f"[json.exception.parse_error.101] parse error: {wrong}") from None
    except OverflowError as error:
        raise broken(f"[json.exception.out_of_range.406] {error}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        text = f"syntax error while parsing value - {error.msg}"
        raise broken(f"[json.exception.parse_error.101] parse error at {place}: {text}") from None
    except (ValueError, RecursionError) as error:
        raise broken(f"[json.exception.parse_error.101] parse error: {error}") from None
    return value if isinstance(value, dict) else {}


def _no_constant(name: str) -> float:
    raise ValueError(f"invalid literal; last read: '{name}'")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise OverflowError(f"number overflow parsing '{digits}'")
    return value


def _integer(digits: str) -> int | float:
    """An integer of 64 bits, else the nearest floating point number."""
    value = _finite(digits) if len(digits) > _DIGITS_64_BITS else int(digits)
    return value if -(2**63) <= value < 2**64 else float(value)


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
    options = body.get("stream_options")
    include = options.get("include_usage") if isinstance(options, dict) else None
    if include is not None and not isinstance(include, bool):
        raise bad_request(f"Field 'include_usage': {wrong_type('boolean', include)}")


def probabilities(body: dict[str, Any], *, chat: bool = False) -> int | None:
    """How many likeliest tokens are told for each token; None for none. ``body`` has been checked."""
    wanted = body.get("logprobs")
    if chat and wanted:
        wanted = body.get("top_logprobs")
        wanted = _ALL_LOGPROBS if wanted is None else wanted
    count = int(wanted or body.get("n_probs") or 0)
    return count if count > 0 else None


def chat_ask(body: dict[str, Any], limits: Limits, slots: int) -> Ask:
    """What a chat request asks for. Raises Refused."""
    text = chat_prompt(body)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise bad_request("top_logprobs requires logprobs to be set to true")
    return _ask(body, [prompt_of(text)], limits, slots)


def chat_prompt(body: dict[str, Any]) -> str:
    """The prompt of a body with ``messages``. Raises Refused."""
    if "messages" not in body:
        raise bad_request("'messages' is required")
    messages = body["messages"]
    if not isinstance(messages, list):
        raise bad_request("Expected 'messages' to be an array")
    for message in messages:
        _check_message(message if isinstance(message, dict) else {})
    try:
        return prompt_text(messages)
    except NotText as error:
        if error.kind == "image_url":
            hint = "hint: if this is unexpected, you may need to provide the mmproj"
            raise broken(f"image input is not supported - {hint}") from None
        raise bad_request("unsupported content[].type") from None


def _check_message(message: dict[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if "content" not in message and role != "assistant":
        raise bad_request("All non-assistant messages must contain 'content'")
    if "content" not in message and not message.get("tool_calls"):
        raise bad_request("Assistant message must contain either 'content' or 'tool_calls'!")
    if not isinstance(content, str | list | None):
        raise bad_request("Expected 'content' to be a string or an array")
    for part in content if isinstance(content, list) else []:
        if not isinstance(part, dict):
            raise bad_request("unsupported content[].type")
        if part.get("type") == "text" and not isinstance(part.get("text"), str):
            missing = "[json.exception.out_of_range.403] key 'text' not found"
            wrong = wrong_type("string", part["text"]) if "text" in part else missing
            raise broken(f"Failed to parse messages: {wrong}")
    if not isinstance(role, str):
        shown = json.dumps(message, separators=(",", ":"))
        wrong = wrong_type("string", role) if "role" in message else f"Missing 'role' in message: {shown}"
        raise broken(f"Failed to parse messages: {wrong}")


def completion_ask(body: dict[str, Any], limits: Limits, slots: int, decode: Decode) -> Ask:
    """What a completion request asks for. Raises Refused."""
    if "prompt" not in body:
        raise bad_request("[json.exception.out_of_range.403] key 'prompt' not found")
    return _ask(body, _prompts(body["prompt"], decode), limits, slots)


def _prompts(given: Any, decode: Decode) -> list[Prompt]:
    if given == []:
        raise bad_request('"prompt" must not be empty')
    several = isinstance(given, list) and not any(map(_is_id, given))
    return [_prompt(p, decode) for p in (given if several else [given])]


def _prompt(given: Any, decode: Decode) -> Prompt:
    if isinstance(given, dict) and "prompt_string" in given:
        given = given["prompt_string"]
        if not isinstance(given, str):
            raise bad_request(wrong_type("string", given))
    if isinstance(given, str):
        return prompt_of(given)
    if not isinstance(given, list) or not all(_is_id(p) or isinstance(p, str) for p in given):
        raise bad_request(_PROMPT)
    if given and not any(map(_is_id, given)):
        raise bad_request(_PROMPT)
    if not all(0 <= p <= EOS_ID for p in given if _is_id(p)):
        raise bad_request("Prompt contains invalid tokens")
    if all(map(_is_id, given)):
        return prompt_of_ids(given, decode)
    # Strings and ids mixed are one prompt.
    return prompt_of("".join([p if isinstance(p, str) else decode([p]) for p in given]))


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
    names = ("n_predict", "max_completion_tokens", "max_tokens")
    name = next((name for name in names if body.get(name) is not None), None)
    given = -1 if name is None else int(body[name])
    if not -1 <= given <= _INT_MAX:
        message = f"Value must be between -1 <= value <= {_INT_MAX}, but got {given}"
        raise bad_request(f"Field '{name}': {message}")
    # -1: until the context is full. Zero still yields the token of the prefill.
    most = context - tokens if given < 0 else max(min(given, context - tokens), 1)
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
