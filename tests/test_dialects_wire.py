"""The bytes of each dialect, against recordings of the real servers.

What a recording cannot share with this server is blanked in both: ids, dates,
the model's name, texts, token counts and times. SGLang was not recorded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from served import ask, request_bytes

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Say hi"}]
USAGE = {"include_usage": True}

RECORDINGS = Path(__file__).parent / "recordings"
STREAMS, WHOLES = (
    yaml.safe_load((RECORDINGS / f"{name}.yaml").read_text()) for name in ("streams", "answers")
)

CONTENT_TYPES = {
    "vllm": ("text/event-stream; charset=utf-8", "application/json"),
    "sglang": ("text/event-stream; charset=utf-8", "application/json"),
    "llama.cpp": ("text/event-stream", "application/json; charset=utf-8"),
    "transformers": ("text/event-stream; charset=utf-8", "application/json"),
}


def blank(text: str) -> str:
    """What depends on model, moment and prompt, blanked; keys, their order and all else stay."""
    text = re.sub(r'"id":"(chatcmpl-|cmpl-)?[^"]*"', r'"id":"\1*"', text)
    text = re.sub(r'"model":"[^"]*?(@main)?"', r'"model":"*\1"', text)
    text = re.sub(r'"(content|text|token)":"[^"]+"', r'"\1":"*"', text)
    text = re.sub(r'"(tokens|bytes|text_offset|token_logprobs)":\[[^\]]*\]', r'"\1":[*]', text)
    text = re.sub(r'\{"[^"]*":(-[0-9.]+)\}', r'{"*":\1}', text)
    text = re.sub(r'"system_fingerprint":"vllm-0.32.0-[^"]*"', '"system_fingerprint":"vllm-0.32.0-*"', text)
    return re.sub(r"(?<=[:\[])-?[0-9][0-9.e-]*(?=[,}\]])", "#", text)


def body_for(path: str) -> dict:
    return {"messages": MESSAGES} if path == CHAT else {"prompt": "The capital of France is"}


def test_blanking_keeps_the_shape():
    assert blank('{"id":"cmpl-a","created":17,"content":"x","content":""}') == (
        '{"id":"cmpl-*","created":#,"content":"*","content":""}'
    )


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case["name"])
def test_streams_are_the_recorded_ones(case):
    dialect, path = case["dialect"], case["path"]
    body = body_for(path) | {"max_tokens": 3, "stream": True} | case["more"]
    response = ask(lambda server: server.post(path, body), dialect=dialect)
    assert (response.status, response.headers["content-type"]) == (200, CONTENT_TYPES[dialect][0])
    events = response.body.decode().removesuffix("\n\n").split("\n\n")
    assert [blank(e.removeprefix("data: ")) for e in events] == [blank(e) for e in case["events"]]


@pytest.mark.parametrize("case", WHOLES, ids=lambda case: case["name"])
def test_answers_without_streaming_are_the_recorded_ones(case):
    dialect, path = case["dialect"], case["path"]
    response = ask(lambda server: server.post(path, body_for(path) | {"max_tokens": 3}), dialect=dialect)
    assert (response.status, response.headers["content-type"]) == (200, CONTENT_TYPES[dialect][1])
    assert blank(response.body.decode()) == blank(case["body"])


def test_llama_cpp_sends_role_with_the_first_text_and_usage_with_the_finish():
    """Recorded HTTP chunks: role and first token together, finish and usage together, [DONE] alone."""
    body = {"messages": MESSAGES, "max_tokens": 3, "stream": True, "stream_options": USAGE}
    response = ask(lambda server: server.post(CHAT, body), dialect="llama.cpp")
    assert [chunk.count(b"data: ") for chunk in response.chunks] == [2, 1, 1, 2, 1]
    assert response.chunks[-1] == b"data: [DONE]\n\n"


def test_transformers_sends_the_role_before_any_token():
    async def main(server):
        connection = server.connect()
        body = {"messages": MESSAGES, "max_tokens": 2, "stream": True}
        connection.transport.write(request_bytes(CHAT, body))
        await connection.until(lambda: connection.data.endswith(b"0\r\n\r\n"))
        return [(t_s, data.count(b'"role"'), data.count(b'"content"')) for t_s, data in connection.reads]

    reads = ask(main, dialect="transformers")
    roles = [t_s for t_s, roles, _ in reads if roles]
    tokens = [t_s for t_s, _, contents in reads if contents]
    assert (roles, len(tokens)) == ([0.0], 2)
    assert tokens[0] > 0.001


@pytest.mark.parametrize(
    ("dialect", "chunks"),
    [("vllm", [0, 0, 1, 0, 0, 1, 0, 0]), ("sglang", [1, 1]), ("llama.cpp", [1, 1]), ("transformers", [1, 1])],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_reply_in_emoji_has_fewer_chunks_than_tokens(dialect, chunks, path):
    """8 tokens, 2 characters: vLLM sends empty chunks for what it holds back, SGLang on completions only."""
    body = {"messages": [{"role": "user", "content": "🦩?"}]} if path == CHAT else {"prompt": "🦩?"}
    asked = body | {"max_tokens": 8, "stream": True, "stream_options": USAGE}
    response = ask(lambda server: server.post(path, asked), dialect=dialect)
    values = response.events()
    choices = [v["choices"][0] for v in values if v["choices"]]
    texts = [c["text"] if path == COMPLETIONS else c["delta"].get("content") for c in choices]
    texts = [t for c, t in zip(choices, texts, strict=True) if "role" not in c.get("delta", {})]
    if path == COMPLETIONS and dialect == "sglang":
        chunks = [0, 0, 1, 0, 0, 1, 0, 0]
    if dialect in ("llama.cpp", "transformers") or (dialect == "sglang" and path == CHAT):
        assert not texts.pop()  # the finish chunk
    assert [len(t) for t in texts] == chunks
    used = next(v["usage"] for v in reversed(values) if v.get("usage"))
    assert used["completion_tokens"] == 8
    assert used["total_tokens"] == used["prompt_tokens"] + 8
    # llama.cpp lost its role chunk when the first token was held back: recorded.
    roles = sum("role" in c.get("delta", {}) for c in choices)
    assert roles == (path == CHAT and dialect != "llama.cpp")


@pytest.mark.parametrize("dialect", CONTENT_TYPES)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_reply_too_short_for_its_first_character_ends(dialect, path, tokens):
    """A SGLang chat of one silent token once never ended: nothing stood where its role was to go."""
    body = {"messages": [{"role": "user", "content": "🦩?"}]} if path == CHAT else {"prompt": "🦩?"}
    asked = body | {"max_tokens": tokens, "stream": True, "stream_options": USAGE}
    values = ask(lambda server: server.post(path, asked), dialect=dialect).events()
    choices = [c for v in values for c in v["choices"]]
    assert [c["finish_reason"] for c in choices if c.get("finish_reason")] == ["length"]
    assert [v["usage"]["completion_tokens"] for v in values if v.get("usage")] == [tokens]
    roles = sum("role" in c.get("delta", {}) for c in choices)
    # llama.cpp's role leaves with the first token's text or not at all.
    assert roles == (path == CHAT and dialect != "llama.cpp")


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "llama.cpp"])
@pytest.mark.parametrize("stream", [True, False])
def test_two_choices_of_two_prompts(dialect, stream):
    body = {"prompt": ["One.", "Two two."], "n": 2, "max_tokens": 3, "temperature": 0.5, "stream": stream}
    if stream:
        body["stream_options"] = USAGE
    response = ask(lambda server: server.post(COMPLETIONS, body), dialect=dialect)
    assert response.status == 200
    values = response.events() if stream else [response.json()]
    if stream and dialect == "llama.cpp":
        assert values.pop(0) is None  # recorded: b1-7e4c0a9 begins the stream of several prompts so
    texts = {}
    for value in values:
        for choice in value["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert sorted(texts) == [0, 1, 2, 3]
    assert all(len(text.split()) == 3 for text in texts.values())
    used = [v["usage"] for v in values if v.get("usage")]
    if dialect == "llama.cpp":  # each choice reports itself
        assert {u["completion_tokens"] for u in used} == {3}
    else:
        assert [u["completion_tokens"] for u in used] == [12]


def test_sglang_finishes_all_choices_of_a_chat_at_the_end():
    body = {"messages": MESSAGES, "n": 2, "max_tokens": 3, "stream": True}
    response = ask(lambda server: server.post(CHAT, body), dialect="sglang")
    reasons = [v["choices"][0]["finish_reason"] for v in response.events()]
    assert reasons == [None] * 8 + ["length", "length"]
    assert response.body.endswith(b"data: [DONE]\n\n")


def test_sglang_generate_repeats_everything_so_far():
    asked = {"text": "Hello", "sampling_params": {"max_new_tokens": 3}, "stream": True}
    values = ask(lambda server: server.post("/generate", asked), dialect="sglang").events()
    assert [v["meta_info"]["completion_tokens"] for v in values] == [1, 2, 3]
    assert values[2]["text"].startswith(values[1]["text"])
    assert [v["meta_info"]["finish_reason"] for v in values] == [None, None, {"type": "length", "length": 3}]
    del asked["stream"]
    whole = ask(lambda server: server.post("/generate", asked), dialect="sglang").json()
    assert (whole["text"], len(whole["output_ids"])) == (values[2]["text"], 3)


def test_llama_cpp_s_own_completion():
    asked = {"prompt": "Hello", "n_predict": 2, "stream": True}
    response = ask(lambda server: server.post("/completion", asked), dialect="llama.cpp")
    assert b"[DONE]" not in response.body
    *tokens, last = response.events()
    assert [list(t) for t in tokens] == [
        ["index", "content", "tokens", "stop", "id_slot", "tokens_predicted", "tokens_evaluated"]
    ] * 2
    assert (last["stop"], last["stop_type"], last["tokens_predicted"], last["content"]) == (
        True,
        "limit",
        2,
        "",
    )
    whole = ask(lambda s: s.post("/completion", asked | {"stream": False}), dialect="llama.cpp").json()
    assert whole["content"] == "".join(t["content"] for t in tokens)
    assert whole["tokens_cached"] == whole["tokens_evaluated"] + 1


@pytest.mark.parametrize("dialect", CONTENT_TYPES)
def test_a_server_that_goes_down_ends_streams_with_an_error(dialect):
    async def main(server):
        connection = server.connect()
        body = {"messages": MESSAGES, "max_tokens": 500, "stream": True}
        connection.transport.write(request_bytes(CHAT, body))
        await connection.until(lambda: connection.data.count(b"data: ") > 5)
        server.service.close()
        return await connection.response()

    response = ask(main, dialect=dialect)
    blocks = response.body.decode().removesuffix("\n\n").split("\n\n")
    ended = blocks.pop() if dialect != "transformers" else "data: [DONE]"
    assert ended == "data: [DONE]"
    error = json.loads(blocks.pop().removeprefix("data: "))["error"]
    assert "shutting down" in (error if dialect == "transformers" else error["message"])
