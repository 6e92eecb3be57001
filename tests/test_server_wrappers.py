"""TGI's smaller routes: tokens, SageMaker's and Vertex's wrappers, the interface's own description."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from served import Served, ask, exact, post

from loadgen.prompts.template import render_llama3
from loadgen.server.tgi.wrappers import parse_vertex

MESSAGES = [{"role": "user", "content": "Thank you!"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("text", ["Hello there", "Grüße, 世界 🙂", "  two  spaces\n", "", "x" * 5000])
def test_tokenize_cuts_the_whole_text_at_byte_offsets(text: str) -> None:
    tokens = post("/tokenize", {"inputs": text, "parameters": {"truncate": 1}}).json()
    raw = text.encode()
    assert [t["text"] for t in tokens] == [raw[t["start"] : t["stop"]].decode() for t in tokens]
    assert b"".join(raw[t["start"] : t["stop"]] for t in tokens) == raw
    if text:
        header = post("/generate", {"inputs": text, "parameters": {"max_new_tokens": 1}}).headers
        assert int(header["x-prompt-tokens"]) == len(tokens)


def test_tokenize_is_not_validated_and_takes_no_place() -> None:
    async def call(server: Served) -> None:
        assert (await server.post("/tokenize", {"inputs": "a", "parameters": {"top_k": 0}})).status == 200
        assert (await server.post("/generate", exact(1))).status == 429

    ask(call, max_concurrent_requests=0)


def test_chat_tokenize_shows_the_template_and_needs_no_key() -> None:
    async def call(server: Served) -> None:
        body = {"messages": MESSAGES}
        found = (await server.post("/chat_tokenize", body)).json()
        assert found["templated_text"] == render_llama3(MESSAGES)
        assert (await server.post("/tokenize", body)).status == 401
        key = {"authorization": "Bearer k"}
        alone = await server.post("/tokenize", {"inputs": found["templated_text"]}, **key)
        assert found["tokenize_response"] == alone.json()
        usage = (await server.post("/v1/chat/completions", body | {"max_tokens": 1}, **key)).json()["usage"]
        assert usage["prompt_tokens"] == len(found["tokenize_response"])

    ask(call, api_key="k")


WRAPPED: list[tuple[str, dict[str, Any]]] = [
    ("/", exact(2, details=True)),
    ("/", exact(2) | {"stream": True}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2, "stream": True}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True}),
    ("/v1/completions", {"prompt": "a", "suffix": "b"}),
    ("/", exact(2, top_k=0)),
    # `inputs` of another type is not a body of "/", so the next one is tried.
    ("/v1/chat/completions", {"inputs": 5, "messages": MESSAGES, "max_tokens": 2}),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "tools": TOOLS, "response_format": {"type": "json", "value": {}}},
    ),
]


@pytest.mark.parametrize(("path", "body"), WRAPPED)
def test_an_invocation_is_answered_as_by_the_route_it_stands_for(path: str, body: dict[str, Any]) -> None:
    wrapped, straight = post("/invocations", body, x_request_id="3"), post(path, body, x_request_id="3")
    assert (wrapped.status, wrapped.body) == (straight.status, straight.body)
    assert wrapped.headers["content-type"] == straight.headers["content-type"]


@pytest.mark.parametrize("raw", [b"{}", b'{"prompt": 1}', b"[]", b'{"messages": [{}]}'])
def test_an_invocation_that_nobody_reads(raw: bytes) -> None:
    response = post("/invocations", raw)
    assert response.status == 422
    assert response.body == (
        b"Failed to deserialize the JSON body into the target type: "
        b"data did not match any variant of untagged enum SagemakerRequest"
    )
    assert post("/invocations", b"{").status == 400


def test_vertex_predicts_a_text_for_each_instance() -> None:
    parameters = {"max_new_tokens": 3, "ignore_eos": True, "top_k": 0, "stop": list("abcdefgh")}
    instances = [
        {"inputs": "a", "parameters": parameters},
        {"messages": MESSAGES, "max_tokens": 2, "ignore_eos": True},
        {"inputs": "b", "parameters": None},
    ]
    response = post("/vertex", {"instances": instances})
    assert response.status == 200
    predictions = response.json()["predictions"]
    # top_k and stop are not passed on, so neither refuses nor ends anything.
    assert [len(text.split()) for text in predictions[:2]] == [3, 2]
    assert predictions[2]


def test_vertex_passes_on_two_parameters() -> None:
    given = {"max_new_tokens": 3, "seed": 4, "temperature": 0.5, "stop": ["a"]}
    (body,) = parse_vertex(orjson.dumps({"instances": [{"inputs": "a", "parameters": given}]}))
    p = body.parameters
    assert (p.max_new_tokens, p.seed, p.do_sample, p.temperature, p.stop) == (3, 4, True, None, [])


def test_vertex_refusals() -> None:
    nothing = post("/vertex", {"instances": []})
    said = {"error": "Input validation error", "error_type": "Input validation error"}
    assert (nothing.status, nothing.json()) == (422, said)
    unread = post("/vertex", {"instances": [{"question": 1}]})
    assert unread.status == 422
    assert b"instances[0]: data did not match any variant of untagged enum VertexInstance" in unread.body
    failed = post("/vertex", {"instances": [{"inputs": ""}]})
    said = {"error": "Incomplete generation", "error_type": "Incomplete generation"}
    assert (failed.status, failed.json()) == (500, said)


def test_the_description_names_every_route_that_is_served() -> None:
    async def call(server: Served) -> None:
        description = (await server.get("/api-doc/openapi.json")).json()
        assert description["openapi"].startswith("3.")
        methods = {(m, path) for path, operations in description["paths"].items() for m in operations}
        assert ("post", "/generate") in methods
        assert ("get", "/metrics") in methods
        assert ("get", "/generate") not in methods
        page = (await server.get("/docs")).body.decode()
        for method, path in methods:
            assert f"<td>{method.upper()}</td><td><code>{path}</code></td>" in page
            if method == "get":
                assert (await server.get(path)).status == 200
                head = await server.get(path, method="DELETE")
                assert head.status == 405
            else:
                assert (await server.post(path, b"{")).status == 400
                required = description["paths"][path][method]["requestBody"]["content"]["application/json"]
                fields = required["schema"].get("required", [])
                missing = await server.post(path, {})
                assert missing.status == 422
                assert all(f"missing field `{field}`".encode() in missing.body for field in fields)

    ask(call)


def test_the_server_header_is_not_ours_and_empty_bodies_have_no_type() -> None:
    async def call(server: Served) -> None:
        for path, status in (("/health", 200), ("/nowhere", 404), ("/generate", 405)):
            response = await server.get(path)
            assert (response.status, response.body) == (status, b"")
            assert not {"server", "content-type"} & response.headers.keys()
            assert response.headers["access-control-allow-origin"] == "*"
            assert response.headers["content-length"] == "0"
        both = await server.get("/", method="PUT")
        assert (both.status, both.headers["allow"]) == (405, "POST,GET,HEAD")
        preflight = await server.get("/nowhere", method="OPTIONS")
        assert (preflight.status, preflight.body) == (200, b"")
        assert preflight.headers["access-control-allow-methods"] == "GET,POST"
        assert preflight.headers["access-control-allow-headers"] == "content-type"

    ask(call)


def test_the_compute_type_is_the_environment_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPUTE_TYPE", "cpu")
    assert post("/generate", exact(1)).headers["x-compute-type"] == "cpu"
    assert post("/generate_stream", exact(1)).headers["x-compute-type"] == "cpu"
