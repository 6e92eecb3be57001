"""Everything served as JSON, and everything taken, against TGI's own ``openapi.json``.

The file lies beside the checkout (``LOADGEN_SHARED``); without it these tests are
skipped. Where the code of TGI differs from its description (TGI v3 protocol notes,
section 12) the difference is written down here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from served import Served, ask

OPENAPI = (
    Path(os.environ.get("LOADGEN_SHARED", Path(__file__).parents[2] / "shared"))
    / "data"
    / "tgi"
    / "openapi.json"
)
MESSAGES = [{"role": "user", "content": "Thank you!"}]
UNDESCRIBED = {
    "ChatCompletion": {"object"},
    "ChatCompletionChunk": {"object"},
    "CompletionFinal": {"object"},
    "Chunk": {"object", "usage"},
}
"""Keys that TGI sends and its description leaves out: serde's tag, and the usage of a completion's stream."""


@pytest.fixture(scope="module")
def components() -> dict[str, Any]:
    if not OPENAPI.exists():
        pytest.skip(f"TGI's openapi.json is not at {OPENAPI}")
    found: dict[str, Any] = json.loads(OPENAPI.read_text())["components"]
    return found


def closed(name: str | None, node: Any) -> Any:
    """OpenAPI 3.0 in the words of JSON Schema, with every object closed to undescribed keys."""
    if isinstance(node, list):
        return [closed(None, item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {
        k: {key: closed(key, item) for key, item in v.items()}
        if k in ("schemas", "properties")
        else closed(None, v)
        for k, v in node.items()
        if k not in ("nullable", "format", "example", "default")
    }
    if isinstance(plain.get("properties"), dict) and plain.get("type") == "object":
        plain["properties"] |= {key: {} for key in UNDESCRIBED.get(name or "", ())}
        plain["additionalProperties"] = False
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


def check(components: dict[str, Any], name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": closed(None, components)}
    jsonschema.Draft202012Validator(schema).validate(value)


def test_the_schemas_refuse_what_they_should(components: dict[str, Any]) -> None:
    check(components, "ErrorResponse", {"error": "a", "error_type": "b"})
    for wrong in ({"error": "a"}, {"error": 1, "error_type": "b"}, {"error": "a", "error_type": "b", "c": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check(components, "ErrorResponse", wrong)
    token = {"id": 1, "text": "a", "logprob": None, "special": False}
    check(components, "StreamResponse", {"index": 1, "token": token, "generated_text": None, "details": None})
    with pytest.raises(jsonschema.ValidationError):
        check(components, "StreamResponse", {"index": 1, "token": token | {"special": None}})


RICH = {"max_new_tokens": 3, "details": True, "do_sample": True, "top_n_tokens": 2, "ignore_eos": True}
CHAT = {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETION = {"prompt": ["a", "b"], "max_tokens": 2}
ANSWERS: list[tuple[str, str, Any]] = [
    ("GenerateResponse", "/generate", {"inputs": "a"}),
    ("GenerateResponse", "/generate", {"inputs": "a", "parameters": RICH}),
    ("GenerateResponse", "/generate", {"inputs": "a", "parameters": RICH | {"best_of": 2}}),
    (
        "GenerateResponse",
        "/generate",
        {"inputs": "a", "parameters": RICH | {"decoder_input_details": True}},
    ),
    ("StreamResponse", "/generate_stream", {"inputs": "a", "parameters": RICH}),
    ("StreamResponse", "/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 200}}),
    ("GenerateResponse", "/", {"inputs": "a", "parameters": RICH}),
    ("StreamResponse", "/", {"inputs": "a", "parameters": RICH, "stream": True}),
    ("ChatCompletion", "/v1/chat/completions", {"messages": MESSAGES}),
    ("ChatCompletion", "/v1/chat/completions", CHAT),
    ("ChatCompletionChunk", "/v1/chat/completions", CHAT | STREAM),
    ("CompletionFinal", "/v1/completions", COMPLETION),
    ("Chunk", "/v1/completions", COMPLETION | {"stream": True}),
    ("TokenizeResponse", "/tokenize", {"inputs": "Grüße, Welt"}),
    ("ChatTokenizeResponse", "/chat_tokenize", {"messages": MESSAGES}),
    ("StreamResponse", "/invocations", {"inputs": "a", "parameters": RICH, "stream": True}),
    ("ChatCompletion", "/invocations", CHAT),
    ("CompletionFinal", "/invocations", COMPLETION),
    ("ErrorResponse", "/generate", {"inputs": ""}),
    ("ErrorResponse", "/generate_stream", {"inputs": ""}),
    ("ErrorResponse", "/v1/chat/completions", CHAT | {"max_tokens": 0}),
    ("ErrorResponse", "/v1/completions", COMPLETION | {"suffix": "a"}),
]


@pytest.mark.parametrize(("name", "path", "body"), ANSWERS)
def test_answers_fit(components: dict[str, Any], name: str, path: str, body: Any) -> None:
    response = ask(lambda server: server.post(path, body))
    assert response.status == (422 if name == "ErrorResponse" and path != "/generate_stream" else 200)
    if response.headers["content-type"] == "text/event-stream":
        values = response.events()
    else:
        found = response.json()
        values = found if path == "/" else [found]
    assert values
    for value in values:
        check(components, name, value)


def test_info_and_models_fit(components: dict[str, Any]) -> None:
    async def call(server: Served) -> None:
        check(components, "Info", (await server.get("/info")).json())
        (model,) = (await server.get("/v1/models")).json()["data"]
        check(components, "ModelInfo", model)

    ask(call)


def test_every_route_of_the_description_is_served(components: dict[str, Any]) -> None:
    paths = json.loads(OPENAPI.read_text())["paths"]

    async def call(server: Served) -> None:
        for path, methods in paths.items():
            for method in methods:
                if method == "get":
                    assert (await server.get(path)).status == 200, path
                else:
                    # An empty body is refused as such, not as an unknown route.
                    assert (await server.post(path, b"")).status == 400, path

    ask(call)


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("GenerateParameters", "/generate", {"inputs": "a"}),
        ("ChatRequest", "/v1/chat/completions", {"messages": MESSAGES}),
        ("CompletionRequest", "/v1/completions", {"prompt": "a"}),
    ],
)
def test_every_described_field_is_read_with_its_type(
    components: dict[str, Any], name: str, path: str, body: dict[str, Any]
) -> None:
    """A value of another type is refused in text/plain, so the field is not one of the ignored ones."""
    properties = components["schemas"][name]["properties"]
    assert len(properties) >= 10

    async def call(server: Served) -> list[str]:
        unread = []
        for key, schema in properties.items():
            wrong: Any = (
                {"wrong": [1]}
                if schema.get("type") in ("string", "array", "number", "integer", "boolean")
                else 1
            )
            request = body | ({"parameters": {key: wrong}} if name == "GenerateParameters" else {key: wrong})
            response = await server.post(path, request)
            if response.status != 422 or not response.headers["content-type"].startswith("text/plain"):
                unread.append(f"{key}: {wrong!r} -> {response.status}")
        return unread

    assert ask(call) == [], "read as if it were unknown"
