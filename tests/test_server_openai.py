"""The OpenAI routes as TGI v3 answers them, and all served JSON against TGI's own schemas."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from served import ask, exact, post, request_bytes

from loadgen.prompts.template import render_llama3
from loadgen.prompts.tokens import count_tokens

MESSAGES = [{"role": "user", "content": "Thank you!"}]
CHAT = "/v1/chat/completions"
SHARED = Path(os.environ.get("LOADGEN_SHARED", Path(__file__).parents[2] / "shared"))


def chat(tokens: int, **more: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "max_tokens": tokens, "ignore_eos": True} | more


def test_chat_answer() -> None:
    response = post(CHAT, chat(4), x_request_id="3")
    body = response.json()
    prompt = count_tokens(render_llama3(MESSAGES))
    assert list(body) == ["object", "id", "created", "model", "system_fingerprint", "choices", "usage"]
    assert body["object"] == "chat.completion"
    assert body["id"] == ""
    assert body["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert body["usage"] == {"prompt_tokens": prompt, "completion_tokens": 4, "total_tokens": prompt + 4}
    (choice,) = body["choices"]
    text = choice["message"].pop("content")
    assert len(text.split()) == 4
    assert choice == {
        "index": 0,
        "message": {"role": "assistant"},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert response.headers["x-generated-tokens"] == "4"
    assert response.headers["x-prompt-tokens"] == str(prompt)


def test_chat_stream_has_a_chunk_per_token_then_usage_then_done() -> None:
    response = post(CHAT, chat(3, stream=True, stream_options={"include_usage": True}, model="dummy"))
    assert response.body.endswith(b"\n\ndata: [DONE]\n\n")
    assert len(response.chunks) == 5
    *chunks, usage = response.events()
    for chunk in chunks:
        assert list(chunk) == ["object", "id", "created", "model", "system_fingerprint", "choices", "usage"]
        assert chunk["model"] == "dummy"
        assert chunk["usage"] is None
        assert chunk["choices"][0]["delta"]["role"] == "assistant"
        assert chunk["choices"][0]["delta"]["content"].startswith(" ")
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, "length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    plain = post(CHAT, chat(3, stream=True)).events()
    assert len(plain) == 3, "no usage unless asked for"


def test_chat_end_marker_is_an_empty_chunk_and_a_stop() -> None:
    body = {"messages": MESSAGES, "max_tokens": 300}
    *_, last = post(CHAT, body | {"stream": True}, x_request_id="4").events()
    assert last["choices"][0]["delta"]["content"] == ""
    assert last["choices"][0]["finish_reason"] == "stop"
    whole = post(CHAT, body, x_request_id="4").json()
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == len(whole["choices"][0]["message"]["content"].split()) + 1


def test_chat_logprobs_and_content_parts() -> None:
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Thank "}, {"type": "text", "text": "you!"}]}
    ]
    body = chat(2, logprobs=True, top_logprobs=2)
    response = post(CHAT, body | {"messages": parts}).json()
    assert response["usage"]["prompt_tokens"] == post(CHAT, chat(2)).json()["usage"]["prompt_tokens"]
    content = response["choices"][0]["logprobs"]["content"]
    assert len(content) == 2
    assert all(len(c["top_logprobs"]) == 2 and c["logprob"] < 0 for c in content)
    streamed = post(CHAT, body | {"stream": True}).events()
    assert [e["choices"][0]["logprobs"]["content"][0] for e in streamed] == content


def test_chat_errors() -> None:
    response = post(CHAT, chat(0))
    message = "Input validation error: `max_new_tokens` must be strictly positive"
    assert (response.status, response.json()) == (422, {"error": message, "error_type": "validation"})
    stream = post(CHAT, chat(0, stream=True))
    assert stream.status == 200
    assert stream.body == (
        b'data: {"error":{"message":"%b","http_status_code":422}}\n\ndata: [DONE]\n\n' % message.encode()
    )


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"stop": "a"}, 'stop: invalid type: string "a", expected a sequence'),
        ({"stream": None}, "stream: invalid type: null, expected a boolean"),
        ({"stream_options": None}, "stream_options: invalid type: null, expected struct StreamOptions"),
        ({"max_completion_tokens": 3}, "duplicate field `max_tokens`"),
        ({"messages": [{"content": "a"}]}, "messages[0]: missing field `role`"),
        ({"messages": "a"}, 'messages: invalid type: string "a", expected a sequence'),
    ],
)
def test_chat_bodies_of_the_wrong_type(more: dict[str, Any], text: str) -> None:
    response = post(CHAT, chat(1) | more)
    assert response.status == 422
    assert response.headers["content-type"].startswith("text/plain")
    assert text in response.body.decode()


def test_overloaded_chat_stream_says_422_in_the_event_and_429_without_streaming() -> None:
    async def call(server: Any) -> None:
        busy = server.connect()
        busy.transport.write(request_bytes(CHAT, chat(50, stream=True)))
        await busy.until(lambda: b"delta" in busy.data)
        stream = await server.post(CHAT, chat(1, stream=True))
        assert stream.events() == [{"error": {"message": "Model is overloaded", "http_status_code": 422}}]
        assert (await server.post(CHAT, chat(1))).status == 429

    ask(call, max_concurrent_requests=1)


def test_completions_of_several_prompts() -> None:
    body = {"prompt": ["one", "two words", "three"], "max_tokens": 4, "ignore_eos": True}
    response = post("/v1/completions", body)
    whole = response.json()
    assert whole["object"] == "text_completion"
    assert sorted(c["index"] for c in whole["choices"]) == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 12
    assert response.headers["x-generated-tokens"] == "12"
    assert "x-compute-time" not in response.headers
    streamed = post("/v1/completions", body | {"stream": True})
    assert streamed.body.count(b"[DONE]") == 1
    texts = {0: "", 1: "", 2: ""}
    last = {}
    for event in streamed.events():
        assert list(event)[:4] == ["object", "id", "created", "choices"]
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        assert choice["index"] not in last
        if event["usage"] is not None:
            last[choice["index"]] = (choice["finish_reason"], event["usage"]["completion_tokens"])
        else:
            assert choice["finish_reason"] == ""
    assert last == dict.fromkeys(range(3), ("length", 4))
    assert texts == {c["index"]: c["text"] for c in whole["choices"]}


def test_completion_refusals() -> None:
    many = post("/v1/completions", {"prompt": list("abcde")})
    assert (many.status, many.json()["error_type"]) == (422, "batch size exceeded")
    suffix = post("/v1/completions", {"prompt": "a", "suffix": "b"})
    assert (suffix.status, suffix.json()["error_type"]) == (422, "suffix not supported")
    assert post("/v1/completions", {"prompt": []}).headers["content-type"].startswith("text/plain")


def _plain_schema(node: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` in the words of JSON Schema."""
    if isinstance(node, list):
        return [_plain_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {k: _plain_schema(v) for k, v in node.items() if k not in ("nullable", "format", "example")}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


def test_served_json_fits_tgi_s_own_schemas() -> None:
    path = SHARED / "data" / "tgi" / "openapi.json"
    if not path.exists():
        pytest.skip(f"TGI's openapi.json is not at {path}")
    jsonschema = pytest.importorskip("jsonschema")
    components = _plain_schema(json.loads(path.read_text())["components"])

    def fits(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        jsonschema.Draft202012Validator(schema).validate(value)

    fits("Info", ask(lambda server: server.get("/info")).json())
    best = exact(3, details=True, best_of=2, do_sample=True, top_n_tokens=2)
    fits("GenerateResponse", post("/generate", best).json())
    for event in post("/generate_stream", exact(3, details=True)).events():
        fits("StreamResponse", event)
    fits("ErrorResponse", post("/generate", exact(0)).json())
    fits("ChatCompletion", post(CHAT, chat(3, logprobs=True, top_logprobs=2)).json())
    for event in post(CHAT, chat(3, stream=True, stream_options={"include_usage": True})).events():
        fits("ChatCompletionChunk", event)
    completion = {"prompt": "a", "max_tokens": 2}
    fits("CompletionFinal", post("/v1/completions", completion).json())
    for event in post("/v1/completions", completion | {"stream": True}).events():
        fits("Chunk", event)
    models = ask(lambda server: server.get("/v1/models")).json()
    fits("ModelInfo", models["data"][0])
