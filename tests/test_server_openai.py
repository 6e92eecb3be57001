"""The OpenAI routes as TGI v3 answers them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from served import Served, ask, post, request_bytes

from loadgen.launch import Launcher
from loadgen.prompts.template import render_llama3
from loadgen.prompts.tokens import count_tokens
from loadgen.server.tgi.chat import parse_chat
from loadgen.server.tgi.completions import parse_completion
from loadgen.server.tgi.validation import Parameters

MESSAGES = [{"role": "user", "content": "Thank you!"}]
CHAT = "/v1/chat/completions"


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
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
        assert choice["index"] not in last
        head = ["object", "id", "created"]
        if "usage" in event:
            assert list(event) == [*head, "model", "system_fingerprint", "choices", "usage"]
            last[choice["index"]] = (choice["finish_reason"], event["usage"]["completion_tokens"])
        else:
            assert list(event) == [*head, "choices", "model", "system_fingerprint"]
            assert choice["finish_reason"] == ""
    assert last == dict.fromkeys(range(3), ("length", 4))
    assert texts == {c["index"]: c["text"] for c in whole["choices"]}


def test_completion_refusals() -> None:
    many = post("/v1/completions", {"prompt": list("abcde")})
    assert (many.status, many.json()["error_type"]) == (422, "batch size exceeded")
    suffix = post("/v1/completions", {"prompt": "a", "suffix": "b"})
    assert (suffix.status, suffix.json()["error_type"]) == (422, "suffix not supported")
    assert post("/v1/completions", {"prompt": []}).headers["content-type"].startswith("text/plain")


def test_completion_stream_ends_with_the_raw_reason_and_the_end_marker() -> None:
    body = {"prompt": "a", "max_tokens": 300}
    *_, last = post("/v1/completions", body | {"stream": True}, x_request_id="4").events()
    assert last["choices"][0]["finish_reason"] == "eos_token"
    assert last["choices"][0]["text"] == "<|eot_id|>", "only a chat hides special tokens"
    whole = post("/v1/completions", body, x_request_id="4").json()
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert "<|eot_id|>" not in whole["choices"][0]["text"]
    assert whole["usage"] == last["usage"]


def test_prompts_of_a_stream_fail_one_by_one() -> None:
    """A list-prompt request takes a permit for each prompt; who gets none says so, the others go on."""

    async def call(server: Served) -> None:
        body = {"prompt": ["one", "two", "three"], "max_tokens": 4, "ignore_eos": True}
        streamed = await server.post("/v1/completions", body | {"stream": True})
        events = streamed.events()
        refused = {"error": {"message": "Model is overloaded", "http_status_code": 422}}
        assert [e for e in events if "error" in e] == [refused]
        indices = [e["choices"][0]["index"] for e in events if "error" not in e]
        assert sorted(indices) == [0] * 4 + [1] * 4
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        whole = await server.post("/v1/completions", body)
        assert (whole.status, whole.json()["error_type"]) == (429, "overloaded")
        empty = await server.post("/v1/completions", body | {"prompt": ["", "two"], "stream": True})
        messages = [e["error"]["message"] for e in empty.events() if "error" in e]
        assert messages == ["Input validation error: `inputs` cannot be empty"]
        assert [e["choices"][0]["index"] for e in empty.events() if "error" not in e] == [1] * 4

    ask(call, max_concurrent_requests=2)


def test_a_model_is_echoed_and_tgi_is_the_served_one() -> None:
    served = "meta-llama/Llama-3.1-8B-Instruct"
    for given, shown in (("tgi", served), (None, served), ("my/adapter", "my/adapter"), ("", "")):
        assert post(CHAT, chat(1, model=given)).json()["model"] == shown
        (event,) = post(CHAT, chat(1, model=given, stream=True)).events()
        assert event["model"] == shown


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_temperature_0_is_greedy_here(path: str) -> None:
    body = {"messages": MESSAGES, "prompt": "a", "max_tokens": 1}
    assert post(path, body | {"temperature": 0}).status == 200
    negative = post(path, body | {"temperature": -0.1})
    assert negative.json()["error"] == "Input validation error: `temperature` must be strictly positive"


def test_top_logprobs_are_top_n_tokens() -> None:
    refused = post(CHAT, chat(1, top_logprobs=6))
    expected = "Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 6"
    assert (refused.status, refused.json()["error"]) == (422, expected)
    (choice,) = post(CHAT, chat(1, top_logprobs=2)).json()["choices"]
    assert choice["logprobs"] is None, "logprobs were not asked for"


def test_a_chat_without_max_tokens_has_all_that_fits() -> None:
    body = {"messages": MESSAGES, "ignore_eos": True}

    async def call(server: Served) -> int:
        usage: dict[str, int] = (await server.post(CHAT, body)).json()["usage"]
        return usage["total_tokens"]

    assert ask(call, launcher=Launcher(max_total_tokens=700)) == 700


def test_fields_become_the_parameters_of_generate() -> None:
    common = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.1, "seed": 7}
    expected = Parameters(
        max_new_tokens=3,
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.1,
        seed=7,
        stop=["x"],
        do_sample=True,
        repetition_penalty=2.5,
    )
    chat_fields = {"messages": MESSAGES, "stop": ["x"], "presence_penalty": 0.5, "top_logprobs": 2}
    (body,) = parse_chat(orjson.dumps(common | chat_fields)).bodies
    assert body.parameters == replace(expected, top_n_tokens=2)
    fields = {"prompt": ["a", "b"], "stop": ["x"], "repetition_penalty": 2.5}
    bodies = parse_completion(orjson.dumps(common | fields), 4).bodies
    assert [each.inputs for each in bodies] == ["a", "b"]
    assert {id(each.parameters) for each in bodies} == {id(bodies[0].parameters)}
    assert bodies[0].parameters == expected
    (greedy,) = parse_completion(orjson.dumps({"prompt": "a", "temperature": 0}), 4).bodies
    assert greedy.parameters == Parameters()
    (unsaid,) = parse_completion(orjson.dumps({"prompt": "a"}), 4).bodies
    assert unsaid.parameters == Parameters(do_sample=True)


def test_a_stream_of_several_prompts_says_all_their_characters() -> None:
    streamed = post("/v1/completions", {"prompt": ["Grüße", "two"], "max_tokens": 1, "stream": True})
    assert streamed.headers["x-compute-characters"] == "8"
