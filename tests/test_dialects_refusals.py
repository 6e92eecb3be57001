"""What each dialect refuses, status and words, against answers recorded from the real servers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from served import ask, request_bytes

from loadgen.launch import Launcher

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Say hi"}]
CONTEXT_TOKENS = 512
PEERS = ["vllm", "sglang", "llama.cpp", "transformers"]


def post(dialect, path, body, **headers):
    limits = Launcher(max_total_tokens=CONTEXT_TOKENS)
    return ask(lambda server: server.post(path, body, **headers), dialect=dialect, launcher=limits)


def chat(**more):
    return {"messages": MESSAGES} | more


RECORDED = yaml.safe_load((Path(__file__).parent / "recordings" / "refusals.yaml").read_text())


@pytest.mark.parametrize(
    "case", RECORDED, ids=lambda case: f"{case['dialect']} {case.get('raw', case.get('body'))}"[:60]
)
def test_refusals_are_the_recorded_ones(case):
    body = case["raw"].encode() if "raw" in case else case["body"]
    response = post(case["dialect"], case["path"], body)
    answer = json.loads(response.body.decode().replace(MODEL, "MODEL"))
    assert (response.status, answer) == (case["status"], case["answer"])


def test_vllm_wants_json_and_takes_unknown_fields():
    refused = post("vllm", CHAT, chat(max_tokens=1), content_type="text/plain")
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    error = {"message": message, "type": "Bad Request", "param": None, "code": 400}
    assert (refused.status, refused.json()) == (400, {"error": error})
    assert post("vllm", CHAT, chat(max_tokens=1, frobnicate=[1])).status == 200
    cut = post(
        "vllm", CHAT, chat(messages=[{"role": "user", "content": "word " * 300}], max_tokens=500)
    ).json()
    assert cut["usage"]["total_tokens"] <= CONTEXT_TOKENS  # no refusal: the reply is cut


PARSE = "[json.exception.parse_error.101] parse error at line 1, column "


def test_llama_cpp_says_what_does_not_fit():
    response = post("llama.cpp", COMPLETIONS, {"prompt": "word " * 1500, "stream": True})
    error = response.json()["error"]
    tokens = error["n_prompt_tokens"]
    context = "exceeds the available context size (512 tokens), try increasing it"
    assert (response.status, error) == (
        400,
        {
            "code": 400,
            "message": f"request ({tokens} tokens) {context}",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": tokens,
            "n_ctx": 512,
        },
    )
    assert tokens > CONTEXT_TOKENS


def test_llama_cpp_bad_json_is_a_500():
    response = post("llama.cpp", CHAT, b"{bad")
    assert response.status == 500
    assert response.json()["error"]["message"].startswith(PARSE + "2: syntax error while parsing ")


@pytest.mark.parametrize(
    "body", [chat(model="nope", max_tokens=1), chat(max_tokens=0), chat(max_tokens=1, stop=5, temperature=-1)]
)
def test_llama_cpp_takes_nearly_anything(body):
    response = post("llama.cpp", CHAT, body, content_type="text/plain")
    assert (response.status, response.json()["usage"]["completion_tokens"]) == (200, 1)


def test_llama_cpp_answers_an_empty_prompt_with_nothing():
    whole = post("llama.cpp", COMPLETIONS, {"prompt": "", "max_tokens": 2}).json()
    assert (whole["choices"][0]["text"], whole["usage"]["total_tokens"]) == ("", 0)
    streamed = post("llama.cpp", COMPLETIONS, {"prompt": "", "max_tokens": 2, "stream": True})
    (only,) = streamed.events()
    assert (only["choices"][0]["finish_reason"], only["usage"]["total_tokens"]) == ("length", 0)


@pytest.mark.parametrize(
    "body", [{"max_tokens": 2}, chat(max_tokens="x"), chat(messages=[]), chat(messages="x")]
)
def test_transformers_falls_over_what_it_does_not_check(body):
    response = post("transformers", CHAT, body)
    assert (response.status, response.body) == (500, b"Internal Server Error")


def test_transformers_ignores_openai_s_other_fields():
    """Recorded: n, logprobs and stop do nothing."""
    more = {
        "n": 2,
        "logprobs": True,
        "stop": ["e"],
        "max_tokens": 9,
        "stream_options": {"include_usage": True},
    }
    value = post("transformers", CHAT, chat(**more)).json()
    assert len(value["choices"]) == 1
    assert (value["choices"][0]["finish_reason"], value["usage"]["completion_tokens"]) == ("length", 9)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, {"messages": []}, ("BadRequestError", "Messages cannot be empty.")),
        (CHAT, chat(temperature=-1), ("BadRequest", "must be a non-negative finite number, got -1.0.")),
        (COMPLETIONS, {"prompt": ""}, ("BadRequestError", "Prompt cannot be empty")),
        (COMPLETIONS, {"prompt": "word " * 1500}, ("BadRequest", "model's context length (512 tokens).")),
        (CHAT, chat(max_tokens=600), ("BadRequest", "messages and 600 tokens for the completion.")),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 0}, ("Bad Request", "max_tokens must be positive")),
    ],
)
def test_sglang(path, body, expected):
    response = post("sglang", path, body)
    error = response.json()
    assert list(error) == ["object", "message", "type", "param", "code"]
    assert (response.status, error["object"], error["type"], error["code"]) == (
        400,
        "error",
        expected[0],
        400,
    )
    assert expected[1] in error["message"]


def test_sglang_takes_any_model_and_echoes_it():
    assert post("sglang", CHAT, chat(model="nope", max_tokens=1)).json()["model"] == "nope"


def test_sglang_tells_at_most_its_words_however_many_are_asked_for():
    value = post("sglang", CHAT, chat(max_tokens=2, logprobs=True, top_logprobs=10**8)).json()
    assert [len(t["top_logprobs"]) for t in value["choices"][0]["logprobs"]["content"]] == [128, 128]


def test_vllm_tokenizes_no_images():
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
    response = post("vllm", "/tokenize", {"messages": picture})
    assert (response.status, response.json()["error"]["message"]) == (
        400,
        f"{MODEL} is not a multimodal model",
    )


@pytest.mark.parametrize("dialect", ["vllm", "transformers"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_id_that_is_not_utf_8_is_echoed_in_latin_1(dialect, stream):
    async def main(server):
        connection = server.connect()
        asked = request_bytes(CHAT, chat(max_tokens=1, stream=stream), x_request_id="ID")
        connection.transport.write(asked.replace(b"ID", b"caf\xe9"))
        return await connection.response()

    response = ask(main, dialect=dialect)
    value = response.events()[0] if stream else response.json()
    assert (response.status, value["id"].removeprefix("chatcmpl-")) == (200, "café")


@pytest.mark.parametrize("stream", [True, False])
def test_transformers_falls_over_a_suffix_that_is_no_unicode(stream):
    asked = {"prompt": "x", "suffix": "\ud800", "max_tokens": 1, "stream": stream}
    assert post("transformers", COMPLETIONS, asked).status == 500
    assert post("transformers", COMPLETIONS, asked | {"suffix": "é"}).status == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": MODEL}, (200, [{"status": "ready", "model": f"{MODEL}@main", "cached": True}])),
        ({"model": f"{MODEL}@main"}, (200, [{"status": "ready", "model": f"{MODEL}@main", "cached": True}])),
        ({}, (422, "Missing `model` field in the request body.")),
        ({"model": "other"}, (400, f"Server is pinned to '{MODEL}'; requested 'other'.")),
    ],
)
def test_transformers_has_its_model_loaded(body, expected):
    response = post("transformers", "/load_model", body)
    found = response.events() if response.status == 200 else response.json()["detail"]
    assert (response.status, found) == expected


@pytest.mark.parametrize("dialect", PEERS)
def test_a_body_that_breaks_off_is_answered(dialect):
    """A chunk that is none, at once and in a later read; and a body that never ends."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n".encode()
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"

    async def main(server):
        statuses = []
        for parts in ([chunked + b"zz\r\n"], [chunked, b"zz\r\n"], [head + b"content-length: 9\r\n\r\n{"]):
            connection = server.connect()
            for part in parts:
                connection.transport.write(part)
                await asyncio.sleep(0.1)
            async with asyncio.timeout(100):
                statuses.append((await connection.response()).status)
        return statuses

    at_once, later, never = ask(main, dialect=dialect)
    assert (at_once, never) == (400, 408)
    assert later in (400, 408)


NOT_FOUND = {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}


@pytest.mark.parametrize(
    ("dialect", "missing", "wrong_method"),
    [
        ("vllm", (404, {"detail": "Not Found"}), (405, {"detail": "Method Not Allowed"})),
        ("sglang", (404, {"detail": "Not Found"}), (405, {"detail": "Method Not Allowed"})),
        ("transformers", (404, {"detail": "Not Found"}), (405, {"detail": "Method Not Allowed"})),
        ("llama.cpp", (404, NOT_FOUND), (404, NOT_FOUND)),
    ],
)
def test_elsewhere(dialect, missing, wrong_method):
    async def main(server):
        return await server.get("/nope"), await server.get(CHAT), await server.get("/info")

    nope, method, info = ask(main, dialect=dialect)
    assert (nope.status, nope.json()) == missing
    assert (method.status, method.json()) == wrong_method
    assert info.status == 404  # what tells TGI from the others


@pytest.mark.parametrize("dialect", PEERS)
def test_api_key(dialect):
    async def main(server):
        refused = await server.post(CHAT, chat(max_tokens=1))
        taken = await server.post(CHAT, chat(max_tokens=1), authorization="Bearer s3cret")
        return refused.status, taken.status

    assert ask(main, dialect=dialect, api_key="s3cret") == (401, 200)


@pytest.mark.parametrize("dialect", PEERS)
def test_nobody_is_turned_away_however_many_come(dialect):
    """40 requests for 4 places: they wait, none gets a 429, and each has its tokens."""

    async def main(server):
        asks = [server.post(CHAT, chat(max_tokens=5)) for _ in range(40)]
        responses = await asyncio.gather(*asks)
        return {(r.status, r.json()["usage"]["completion_tokens"]) for r in responses}

    limits = Launcher(max_num_seqs=4)
    assert ask(main, dialect=dialect, launcher=limits, max_concurrent_requests=1) == {(200, 5)}


@pytest.mark.parametrize("dialect", PEERS)
@pytest.mark.parametrize("after_s", [0.0, 1e-4, 0.02, 0.2])
@pytest.mark.parametrize(
    "more",
    [{"stream": True}, {}, {"stream": True, "n": 3}, {"n": 3}],
    ids=["stream", "whole", "three", "3 whole"],
)
def test_hanging_up_frees_the_places(dialect, more, after_s):
    """At once, before the first token, and in the middle; queued (2 places) or running."""

    async def main(server):
        connections = [server.connect() for _ in range(3)]
        asked = chat(max_tokens=400, temperature=1.0) | more
        if dialect != "transformers":
            asked["ignore_eos"] = True
        for connection in connections:
            connection.transport.write(request_bytes(CHAT, asked))
        await asyncio.sleep(after_s)
        if after_s >= 0.02:
            one = 1 if dialect == "transformers" else more.get("n", 1)
            assert server.service.in_flight == 3 * one
        for connection in connections:
            connection.transport.close()
        await asyncio.sleep(0.1)
        again = await server.post(CHAT, chat(max_tokens=2))
        return server.service.in_flight, server.service.batch_size, server.service.queue_size, again.status

    limits = Launcher(max_num_seqs=3 if dialect == "llama.cpp" else 2)
    assert ask(main, dialect=dialect, launcher=limits) == (0, 0, 0, 200)
