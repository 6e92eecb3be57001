"""What clients send, what they make of the replies, and what they show of secrets."""

from __future__ import annotations

import json

import orjson
import pytest
from scripted import (
    ASK,
    HEAD,
    LAST_CHUNK,
    ScriptedServer,
    chat,
    chunk,
    event,
    good,
    one,
    plain,
    tgi_events,
)

from loadgen import clock
from loadgen.clients import CLIENTS, make_client
from loadgen.clients.http import endpoint
from loadgen.clients.redaction import redact, redact_url
from loadgen.errors import ConfigError
from loadgen.types import Client, Request, Tape

# What is sent


def sent(protocol: str, **options) -> tuple[str, dict[str, str], dict]:
    server, *_ = one(protocol, [plain(500, b"{}")], **options)
    first, headers, body = server.requests[0]
    return first, headers, json.loads(body)


def test_tgi_request_is_explicit_and_numbered():
    first, headers, body = sent("tgi", headers={"Authorization": "Bearer k"})
    assert first == "POST /generate_stream HTTP/1.1"
    assert headers["x-request-id"] == "7"
    assert headers["host"] == "embedded"
    assert headers["authorization"] == "Bearer k"
    assert body == {
        "inputs": "Hello",
        "parameters": {
            "do_sample": False,
            "return_full_text": False,
            "details": True,
            "decoder_input_details": False,
            "max_new_tokens": 3,
        },
    }


def test_tgi_without_streaming_exact_lengths_and_extra_body():
    first, _, body = sent(
        "tgi", streaming=False, exact_lengths="ignore_eos", extra_body={"parameters": {"seed": 1}, "x": 2}
    )
    assert first == "POST /generate HTTP/1.1"
    assert body["x"] == 2
    assert (body["parameters"]["ignore_eos"], body["parameters"]["seed"]) == (True, 1)
    assert body["parameters"]["details"] is True


def test_chat_request():
    first, _, body = sent("openai-chat", model="m", extra_body={"temperature": 0.5})
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }


def test_completions_request_without_streaming():
    first, _, body = sent("openai-completions", model="m", streaming=False, exact_lengths="ignore_eos")
    assert first == "POST /v1/completions HTTP/1.1"
    assert body == {
        "model": "m",
        "prompt": "Hello",
        "max_tokens": 3,
        "stream": False,
        "temperature": 0,
        "ignore_eos": True,
    }


def test_messages_are_sent_as_messages_or_rendered():
    pytest.importorskip("loadgen.prompts.template")
    from loadgen.prompts.template import render_llama3

    messages = [{"role": "user", "content": "Thank you!"}]
    ask = Request(1, "text", {"messages": messages})
    assert sent("openai-chat", asks=[ask])[2]["messages"] == messages
    assert sent("openai-completions", asks=[ask])[2]["prompt"] == render_llama3(messages)
    body = sent("tgi", asks=[ask])[2]
    assert body["inputs"] == render_llama3(messages)
    assert "max_new_tokens" not in body["parameters"]


# What comes back


def test_every_read_is_stamped_when_it_arrives():
    a, b, c = map(chunk, tgi_events())
    script = [0.5, HEAD + a, 0.25, b + c[:20], 0.25, c[20:], 0.25, LAST_CHUNK]
    _, tape, reply, error = one("tgi", script)
    assert error is None
    assert tape.stamps == [0.5, 0.75, 1.0]
    assert tape.sizes[0] == len(tgi_events()[0])
    assert tape.sizes[-1] == len(tape.data) == sum(map(len, tgi_events()))
    assert tape.complete
    assert (reply.chunk_reads, reply.chunk_tokens) == ((0, 1, 2), (1, 1, 1))
    assert (reply.text, reply.prompt_tokens, reply.output_tokens, reply.tokens_from) == (
        "abc",
        9,
        3,
        "server",
    )
    assert (reply.finish_reason, reply.error, reply.rejected) == ("length", None, False)


def test_any_split_of_the_wire_gives_the_same_reply():
    """Byte by byte, head included, chunk boundaries included."""
    wire = HEAD + b"".join(map(chunk, tgi_events())) + LAST_CHUNK
    whole = one("tgi", [wire])[2]
    for size in (1, 2, 3, 5, 50):
        pieces = [wire[i : i + size] for i in range(0, len(wire), size)]
        script = [x for piece in pieces for x in (piece, 0.01)]
        _, tape, reply, error = one("tgi", script)
        assert error is None
        assert (reply.text, sum(reply.chunk_tokens)) == (whole.text, 3)
        assert tape.sizes == sorted(set(tape.sizes))
        assert tape.sizes[-1] == len(tape.data)


def test_tgi_keep_alive_comments_are_not_the_first_token():
    events = tgi_events()
    script = [HEAD + chunk(b":\n\n"), 15.0, chunk(b":\n\n"), 1.0, *map(chunk, events), LAST_CHUNK]
    _, tape, reply, _ = one("tgi", script)
    assert reply.error is None
    assert tape.stamps[reply.chunk_reads[0]] == 16.0
    assert sum(reply.chunk_tokens) == 3


def test_tgi_non_streamed_reply_with_headers():
    details = {"finish_reason": "eos_token", "generated_tokens": 3, "prefill": [], "tokens": []}
    body = orjson.dumps({"generated_text": "abc", "details": details})
    extra = "x-total-time: 41\r\nx-queue-time: 1\r\nx-inference-time: 38\r\nx-validation-time: 2\r\n"
    extra += "x-prompt-tokens: 5\r\n"
    for wire in (body, b"[" + body + b"]"):
        _, tape, reply, _ = one("tgi", [plain(200, wire, extra=extra)], streaming=False)
        assert tape.complete
        assert (reply.text, reply.prompt_tokens, reply.output_tokens) == ("abc", 5, 3)
        assert reply.server_times == {"total": 0.041, "queue": 0.001, "inference": 0.038, "validation": 0.002}
        assert (reply.finish_reason, reply.tokens_from, reply.error) == ("eos_token", "server", None)


OPENING = chat({"role": "assistant", "content": ""})
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}


@pytest.mark.parametrize(
    ("stream", "tokens", "counted"),
    [
        # vLLM, SGLang, the mock: role first, a finish chunk, usage alone, [DONE].
        (
            [
                OPENING,
                chat({"content": "a"}),
                chat({"content": "b"}),
                chat({}, "stop"),
                {"choices": [], "usage": USAGE},
            ],
            3,
            2,
        ),
        # transformers: usage in the finish chunk, no [DONE].
        ([OPENING, chat({"content": "a"}), chat({"content": "b"}), chat({}, "stop", usage=USAGE)], 3, 2),
        # llama.cpp opens with null content.
        (
            [
                chat({"role": "assistant", "content": None}),
                chat({"content": "a"}),
                chat({"content": "b"}, "length"),
            ],
            2,
            2,
        ),
        # TGI: role everywhere, the end-of-text token is an empty one with the finish reason.
        (
            [
                chat({"role": "assistant", "content": "a"}),
                chat({"role": "assistant", "content": "b"}),
                chat({"role": "assistant", "content": ""}, "stop"),
            ],
            3,
            3,
        ),
        # A piece of a character is held back: the token is there, its text is not.
        ([OPENING, chat({"content": "a"}), chat({"content": ""}), chat({"content": "b"}, "stop")], 3, 3),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_chat_dialects(stream, tokens, counted, done):
    body = b"".join(map(event, stream)) + (b"data: [DONE]\n\n" if done else b"")
    _, _, reply, error = one("openai-chat", [HEAD + chunk(body) + LAST_CHUNK])
    assert (error, reply.error) == (None, None)
    assert reply.text == "ab"
    assert (reply.output_tokens, sum(reply.chunk_tokens)) == (tokens, counted)
    assert reply.tokens_from == ("server" if b"completion_tokens" in body else "chunks")
    assert reply.prompt_tokens == (11 if b"completion_tokens" in body else None)


def test_role_only_chunk_is_not_the_first_token():
    script = [
        HEAD + chunk(event(OPENING)),
        1.0,
        chunk(event(chat({"content": "x"}))),
        1.0,
        chunk(event(chat({}, "stop"))) + LAST_CHUNK,
    ]
    _, tape, reply, _ = one("openai-chat", script)
    assert tape.stamps == [0.0, 1.0, 2.0]
    assert (reply.chunk_reads, reply.chunk_tokens) == ((1,), (1,))


def test_chunks_are_not_tokens():
    """llama.cpp and vLLM send an emoji of several tokens as one chunk."""
    usage = {"prompt_tokens": 4, "completion_tokens": 48}
    events = [event(chat({"content": "🌊"}))] * 16 + [
        event(chat({}, "stop")),
        event({"choices": [], "usage": usage}),
    ]
    _, _, reply, _ = one("openai-chat", [HEAD, *map(chunk, events), LAST_CHUNK])
    assert (sum(reply.chunk_tokens), reply.output_tokens, reply.tokens_from) == (16, 48, "server")
    assert reply.text == "🌊" * 16


def test_completions_finish_chunk_without_text_is_no_token():
    def part(text, reason):
        return event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})

    body = part("a", None) + part("", None) + part("b", None) + part("", "length")
    _, _, reply, _ = one("openai-completions", [HEAD + chunk(body) + LAST_CHUNK])
    assert (reply.text, reply.output_tokens, reply.finish_reason) == ("ab", 3, "length")


def test_tool_call_counts_as_a_token():
    body = event(OPENING) + event(chat({"tool_calls": [{"index": 0}]})) + event(chat({}, "tool_calls"))
    _, _, reply, _ = one("openai-chat", [HEAD + chunk(body) + LAST_CHUNK])
    assert (reply.output_tokens, reply.finish_reason, reply.error) == (1, "tool_calls", None)


# The rest


def test_registry_names_clients_that_obey_the_protocol():
    for protocol in CLIENTS:
        client: Client = make_client(protocol, "http://h:1", model="m", headers={})
        assert callable(client.exchange)
        assert callable(client.decode)
    with pytest.raises(ConfigError, match="expected one of tgi"):
        make_client("grpc", "http://h")


def test_null_client_replies_at_once_with_planned_tokens():
    async def main():
        async with make_client("null", "") as client:
            tape = Tape()
            await client.exchange(Request(1, "text", {"prompt": "x", "max_new_tokens": 9}), tape)
            return client.decode(tape), tape

    reply, tape = clock.run_virtual(main())
    assert (reply.output_tokens, reply.tokens_from, reply.chunk_tokens, reply.error) == (
        9,
        "planned",
        (9,),
        None,
    )
    assert tape.stamps == [0.0]


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "ftp://x", "http://", "http://u:hunter2@:x/", "http://h:99999"]
)
def test_unusable_addresses(url):
    with pytest.raises(ConfigError) as caught:
        make_client("tgi", url, headers={})
    assert "hunter2" not in str(caught.value)


def test_header_injection_is_refused():
    with pytest.raises(ConfigError, match="x-a"):
        make_client("tgi", "http://h", headers={"x-a": "1\r\nx-b: 2"})


def test_credentials_in_the_address_become_a_header():
    server = ScriptedServer([good()])

    async def main():
        async with make_client(
            "tgi", "http://me:secret@host:81/base/", headers={}, dial=server.dial
        ) as client:
            await client.exchange(ASK, Tape())

    clock.run_virtual(main())
    first, headers, _ = server.requests[0]
    assert first == "POST /base/generate_stream HTTP/1.1"
    assert headers["host"] == "host:81"
    assert headers["authorization"] == "Basic bWU6c2VjcmV0"


def test_redaction():
    headers = {
        "Authorization": "Bearer k",
        "X-API-Key": "k",
        "api-key": "k",
        "Cookie": "k",
        "x-auth-token": "k",
        "my-Secret": "k",
        "accept": "*/*",
        "x-prompt-tokens": "5",
        "referer": "http://u:k@h/p",
    }
    shown = redact(headers)
    assert [name for name, value in shown.items() if value == "***"] == list(headers)[:6]
    assert (shown["accept"], shown["x-prompt-tokens"], shown["referer"]) == ("*/*", "5", "http://***@h/p")
    assert redact_url("http://u:p@ss@host/x?mail=a@b") == "http://***@host/x?mail=a@b"
    assert set(redact(dict.fromkeys(("x_api_key", "Ocp-Apim-Subscription-Key", "X-Auth"), "k")).values()) == {
        "***"
    }
    assert redact_url("see https://a:b@c:1/d and http://e/f") == "see https://***@c:1/d and http://e/f"


def test_endpoint():
    assert endpoint("http://h:1/", "/generate") == "http://h:1/generate"
    assert endpoint("http://h/v1", "/v1/models") == "http://h/v1/models"
    assert endpoint("http://h/proxy", "/v1/models") == "http://h/proxy/v1/models"
