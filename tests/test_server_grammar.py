"""Grammars and tools: read as TGI reads them, then refused as by a TGI started without them."""

from __future__ import annotations

from typing import Any

import pytest
from served import post

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Thank you!"}]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
UNSUPPORTED = "Input validation error: grammar is not supported"
EXCLUSIVE = "Tool error: Grammar and tools are mutually exclusive"


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "max_tokens": 2} | more


GRAMMARS = [
    {"type": "json", "value": SCHEMA},
    {"type": "json_object", "value": SCHEMA},
    {"type": "regex", "value": "[a-z]+"},
    {"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}},
]


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_grammar_is_refused_by_validation(grammar: dict[str, Any]) -> None:
    native = post("/generate", {"inputs": "a", "parameters": {"grammar": grammar}})
    assert (native.status, native.json()) == (422, {"error": UNSUPPORTED, "error_type": "validation"})
    asked = post(CHAT, chat(response_format=grammar))
    assert (asked.status, asked.json()) == (422, {"error": UNSUPPORTED, "error_type": "validation"})
    # Validation comes after the head of a stream.
    stream = post(CHAT, chat(response_format=grammar, stream=True))
    assert stream.events() == [{"error": {"message": UNSUPPORTED, "http_status_code": 422}}]


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ("json", 'invalid type: string "json", expected adjacently tagged enum GrammarType'),
        ({"value": {}}, "missing field `type`"),
        (
            {"type": "yaml", "value": ""},
            "unknown variant `yaml`, expected one of `json`, `regex`, `json_schema`",
        ),
        ({"type": "json"}, "missing field `value`"),
        ({"type": "json_schema", "value": {"name": "n"}}, "missing field `schema`"),
        ({"type": "regex", "value": 5}, "invalid type: integer `5`, expected a string"),
    ],
)
def test_what_is_no_grammar_is_unreadable(grammar: Any, text: str) -> None:
    start = "Failed to deserialize the JSON body into the target type: "
    for path, where, body in (
        ("/generate", "parameters.grammar", {"inputs": "a", "parameters": {"grammar": grammar}}),
        (CHAT, "response_format", chat(response_format=grammar)),
    ):
        response = post(path, body)
        assert response.status == 422
        assert response.headers["content-type"].startswith("text/plain")
        assert response.body.decode().startswith(f"{start}{where}: {text} at line 1 column ")


@pytest.mark.parametrize("stream", [False, True])
def test_what_tools_cannot_do_is_said_before_a_stream(stream: bool) -> None:
    both = post(CHAT, chat(tools=TOOLS, response_format=GRAMMARS[0], stream=stream))
    assert (both.status, both.json()) == (422, {"error": EXCLUSIVE, "error_type": "tool_error"})
    for choice in ("g", {"function": {"name": "g"}}, {"type": "function", "function": {"name": "g"}}):
        lost = post(CHAT, chat(tools=TOOLS, tool_choice=choice, stream=stream))
        said = {"error": "Tool error: Tool with name g not found", "error_type": "tool_error"}
        assert (lost.status, lost.json()) == (422, said)


@pytest.mark.parametrize("choice", ["auto", "required", "f", {"function": {"name": "f"}}, None])
def test_tools_that_could_be_used_impose_a_grammar(choice: Any) -> None:
    response = post(CHAT, chat(tools=TOOLS, tool_choice=choice))
    assert (response.status, response.json()["error"]) == (422, UNSUPPORTED)


@pytest.mark.parametrize(
    "more", [{"tools": TOOLS, "tool_choice": "none"}, {"tools": None}, {"tool_choice": "auto"}]
)
def test_tools_that_nobody_may_use_are_as_good_as_none(more: dict[str, Any]) -> None:
    assert post(CHAT, chat(**more)).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        ("f", 'tools: invalid type: string "f", expected a sequence'),
        ([1], "tools[0]: invalid type: integer `1`, expected struct Tool"),
        ([{"type": "function"}], "tools[0]: missing field `function`"),
        ([{"function": TOOLS[0]["function"]}], "tools[0]: missing field `type`"),
        ([{"type": "function", "function": {"name": "f"}}], "tools[0]: missing field `arguments`"),
        ([{"type": "function", "function": {"parameters": {}}}], "tools[0]: missing field `name`"),
    ],
)
def test_what_is_no_tool_is_unreadable(tools: Any, text: str) -> None:
    response = post(CHAT, chat(tools=tools))
    assert response.status == 422
    assert f"target type: {text} at line 1 column " in response.body.decode()
    wrong = post(CHAT, chat(tools=TOOLS, tool_choice=5))
    assert b"tool_choice: data did not match any variant of untagged enum" in wrong.body
