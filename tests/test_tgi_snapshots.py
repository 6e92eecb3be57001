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


ADDED = {"best_of_sequences", "top_tokens", "tool_calls", "function_call", "refusal", "service_tier", "name"}


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
