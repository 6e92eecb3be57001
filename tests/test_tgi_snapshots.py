"""TGI's real responses, beside the checkout or skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import orjson
import pytest
from scripted import (
    HEAD,
    LAST_CHUNK,
    chunk,
    event,
    one,
    plain,
)
from served import exact, post

SHARED = Path(os.environ.get("LOADGEN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SNAPSHOTS = SHARED / "data" / "tgi" / "snapshots"


def snapshot(name: str):
    if not SNAPSHOTS.is_dir():
        pytest.skip(f"TGI snapshots are not at {SNAPSHOTS}")
    return json.loads((SNAPSHOTS / name).read_text())


def without(value, keys: set[str]):
    """The snapshot as the server sent it: the client-side models added these nulls."""
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if not (k in keys and v is None)}
    return [without(v, keys) for v in value] if isinstance(value, list) else value


ADDED = {
    "best_of_sequences",
    "top_tokens",
    "tool_calls",
    "function_call",
    "refusal",
    "service_tier",
    "name",
    "completion_tokens_details",
    "prompt_tokens_details",
}


@pytest.mark.parametrize(
    ("name", "reason", "tokens", "begins"),
    [
        ("generate_details_greedy.json", "length", 10, " for /api"),
        ("generate_details_all_params_stop_sequence.json", "stop_sequence", 5, "Test request failed"),
        ("generate_details_raw_body_eos.json", "eos_token", 7, "  11"),
        ("generate_details_prefill_null_logprob_eos.json", "length", 10, "Why is the sky"),
    ],
)
def test_generate_snapshots(name, reason, tokens, begins):
    value = without(snapshot(name), ADDED)
    extra = f"x-prompt-tokens: 4\r\nx-generated-tokens: {tokens}\r\nx-queue-time: 3\r\n"
    _, _, reply, _ = one("tgi", [plain(200, orjson.dumps(value), extra=extra)], streaming=False)
    assert (reply.error, reply.finish_reason, reply.output_tokens, reply.prompt_tokens) == (
        None,
        reason,
        tokens,
        4,
    )
    assert reply.text.startswith(begins)
    assert reply.server_times == {"queue": 0.003}


@pytest.mark.parametrize("name", ["generate_details_greedy.json", "generate_details_raw_body_eos.json"])
def test_generate_snapshots_as_streams(name):
    value = snapshot(name)
    details = value["details"]
    tokens = details["tokens"]
    events = [
        event({"index": i + 1, "token": t, "generated_text": None, "details": None})
        for i, t in enumerate(tokens[:-1])
    ]
    end = {k: details[k] for k in ("finish_reason", "generated_tokens", "seed")} | {"input_length": 4}
    last = {
        "index": len(tokens),
        "token": tokens[-1],
        "generated_text": value["generated_text"],
        "details": end,
    }
    _, _, reply, _ = one("tgi", [HEAD, *map(chunk, [*events, event(last)]), LAST_CHUNK])
    assert (reply.error, reply.text) == (None, value["generated_text"])
    assert sum(reply.chunk_tokens) == reply.output_tokens == len(tokens)


@pytest.mark.parametrize(
    ("name", "reason", "prompt_tokens", "tokens"),
    [
        ("chat_completion_nostream.json", "length", 61, 100),
        ("chat_json_schema_raw_body.json", "stop", 32, 35),
        ("chat_tools_nostream.json", "stop", 501, 29),
    ],
)
def test_chat_snapshots(name, reason, prompt_tokens, tokens):
    value = without(snapshot(name), ADDED)
    _, _, reply, _ = one("openai-chat", [plain(200, orjson.dumps(value))], streaming=False)
    assert (reply.error, reply.finish_reason) == (None, reason)
    assert (reply.prompt_tokens, reply.output_tokens, reply.tokens_from) == (prompt_tokens, tokens, "server")
    assert reply.text == (value["choices"][0]["message"]["content"] or "")


@pytest.mark.parametrize("name", ["chat_completion_stream_usage.json", "chat_completion_stream_nousage.json"])
def test_chat_stream_snapshots(name):
    chunks = without(snapshot(name), ADDED)
    body = [*map(event, chunks), b"data: [DONE]\n\n"]
    _, _, reply, _ = one("openai-chat", [HEAD, *map(chunk, body), LAST_CHUNK])
    usage = next((c["usage"] for c in chunks if c["usage"]), None)
    assert (reply.error, reply.text, reply.finish_reason) == (None, "OK!", "stop")
    assert reply.output_tokens == (usage["completion_tokens"] if usage else 3) == sum(reply.chunk_tokens)
    assert reply.tokens_from == ("server" if usage else "chunks")


@pytest.mark.parametrize(
    ("name", "tokens"), [("completion_single.json", 10), ("completion_many_prompts.json", 40)]
)
def test_completion_snapshots(name, tokens):
    value = snapshot(name)
    _, _, reply, _ = one("openai-completions", [plain(200, orjson.dumps(value))], streaming=False)
    assert (reply.error, reply.output_tokens) == (None, tokens)
    ordered = sorted(value["choices"], key=lambda c: c["index"])
    assert reply.text == "".join(c["text"] for c in ordered)


def test_completion_stream_snapshot_of_many_prompts():
    chunks = snapshot("completion_many_prompts_stream.json")
    body = [*map(event, chunks), b"data: [DONE]\n\n"]
    _, _, reply, _ = one("openai-completions", [HEAD, *map(chunk, body), LAST_CHUNK])
    reported = sum(c["usage"]["completion_tokens"] for c in chunks if c["usage"])
    assert (reply.error, reply.tokens_from, reply.output_tokens) == (None, "server", reported)
    assert sum(reply.chunk_tokens) == len(chunks)


# The embedded server's answers have the shape of the real ones: the same keys, holding the same types.


def shape(value):
    """Keys and types; of a list, the shapes that occur in it."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = []
        for item in map(shape, value):
            if item not in shapes:
                shapes.append(item)
        return shapes
    return "number" if type(value) in (int, float) else type(value).__name__


WHOLE = {"messages": [{"role": "user", "content": "Thank you!"}], "max_tokens": 9}
STREAM = WHOLE | {"stream": True, "temperature": 0.0}


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("generate_details_greedy.json", "/generate", exact(10, details=True)),
        (
            "generate_details_all_params_stop_sequence.json",
            "/generate",
            exact(10, details=True, do_sample=True, seed=0, return_full_text=True),
        ),
        ("generate_details_raw_body_eos.json", "/generate", {"inputs": "a", "parameters": {"details": True}}),
        ("chat_completion_nostream.json", "/v1/chat/completions", WHOLE),
        ("chat_json_schema_raw_body.json", "/v1/chat/completions", WHOLE),
        ("completion_single.json", "/v1/completions", {"prompt": "a", "max_tokens": 10}),
        ("completion_many_prompts.json", "/v1/completions", {"prompt": list("abcd"), "max_tokens": 10}),
    ],
)
def test_served_answers_have_the_shape_of_the_snapshots(name, path, body):
    real = without(snapshot(name), ADDED)
    for choice in real.get("choices", []):
        choice.pop("usage", None)  # another null of the client's
    real, served = shape(real), shape(post(path, body).json())
    assert served == real


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        (
            "chat_completion_stream_usage.json",
            "/v1/chat/completions",
            STREAM | {"stream_options": {"include_usage": True}},
        ),
        ("chat_completion_stream_nousage.json", "/v1/chat/completions", STREAM),
        (
            "completion_many_prompts_stream.json",
            "/v1/completions",
            {"prompt": list("abcd"), "max_tokens": 10, "stream": True},
        ),
    ],
)
def test_served_chunks_have_the_shapes_of_the_snapshots(name, path, body):
    # The completion snapshot is a dump of a client's model, which adds a null `usage` to each chunk.
    added = ADDED | {"usage"} if "many_prompts" in name else ADDED
    real, served = without(snapshot(name), added), without(post(path, body).events(), added)
    assert shape(served) == shape(real)
