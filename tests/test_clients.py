"""Clients against scripted servers: in virtual time over memory, and over loopback TCP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from pathlib import Path

import orjson
import pytest
import uvloop

from loadgen import clock
from loadgen.clients import CLIENTS, make_client
from loadgen.clients.http import endpoint
from loadgen.clients.redaction import redact, redact_url
from loadgen.errors import ConfigError, ExchangeError
from loadgen.types import Client, Request, Tape

SHARED = Path(os.environ.get("LOADGEN_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SNAPSHOTS = SHARED / "data" / "tgi" / "snapshots"
ASK = Request(7, "text", {"prompt": "Hello", "max_new_tokens": 3})
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CLOSE, ABORT = "close", "abort"


def event(value) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def tgi_token(index: int, text: str, **last) -> dict:
    token = {"id": index, "text": text, "logprob": -1.5, "special": False}
    return {"index": index, "token": token, "generated_text": None, "details": None} | last


def tgi_events() -> list[bytes]:
    details = {"finish_reason": "length", "generated_tokens": 3, "seed": None, "input_length": 9}
    return [
        event(tgi_token(1, "a")),
        event(tgi_token(2, "b")),
        event(tgi_token(3, "c", generated_text="abc", details=details)),
    ]


def chat(delta: dict, finish: str | None = None, **more) -> dict:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more


def plain(status: int, body: bytes, kind: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class ScriptedServer(asyncio.Protocol):
    """Answers the n-th request of all its connections with the n-th script.

    A script is a list of bytes, seconds to wait, CLOSE and ABORT.
    """

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.lost_s: list[float] = []
        self.tasks: set[asyncio.Task] = set()

    def make(self) -> _Connection:
        self.connections += 1
        return _Connection(self)

    async def dial(self, factory):
        protocol = factory()
        transport, _ = clock.connect_memory(protocol, self.make())
        return transport, protocol


class _Connection(asyncio.Protocol):
    def __init__(self, server: ScriptedServer):
        self.server = server
        self.held = b""

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        self.server.lost_s.append(clock.now())

    def data_received(self, data):
        self.held += data
        head, end, rest = self.held.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers.get("content-length", "0"))
        if len(rest) >= size:
            self.held = rest[size:]
            self.server.requests.append((first, headers, rest[:size]))
            task = asyncio.get_running_loop().create_task(self.play(self.server.scripts.pop(0)))
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)

    async def play(self, script):
        for step in script:
            if step == CLOSE:
                self.transport.close()
            elif step == ABORT:
                # RST instead of FIN, as a crashed process with unread input gives.
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.transport.abort()
            elif isinstance(step, bytes):
                self.transport.write(step)
            else:
                await asyncio.sleep(step)


def talk(protocol: str, *scripts, asks=(ASK,), timeout_s: float | None = None, **options):
    """Plays the scripts in virtual time; returns (server, [(tape, reply, error)])."""
    server = ScriptedServer(*scripts)

    async def main():
        out = []
        async with make_client(
            protocol, "http://embedded:80", dial=server.dial, headers=options.pop("headers", {}), **options
        ) as client:
            for ask in asks:
                tape, error = Tape(), None
                try:
                    async with asyncio.timeout(timeout_s):
                        await client.exchange(ask, tape)
                except (ExchangeError, TimeoutError) as exc:
                    error = exc
                out.append((tape, client.decode(tape), error))
        await asyncio.sleep(0.001)  # closing travels by callbacks
        return out

    return server, clock.run_virtual(main())


def one(protocol: str, script, **options):
    server, [(tape, reply, error)] = talk(protocol, script, **options)
    return server, tape, reply, error


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


# Failures


TGI_FLAT = {"error": "Model is overloaded", "error_type": "overloaded"}
OPENAI_NESTED = {"error": {"message": "Model is overloaded", "http_status_code": 422}}


@pytest.mark.parametrize(("protocol", "value"), [("tgi", TGI_FLAT), ("openai-chat", OPENAI_NESTED)])
def test_overload_inside_a_200_stream_is_a_rejection(protocol, value):
    _, tape, reply, error = one(protocol, [HEAD + chunk(event(value)) + LAST_CHUNK])
    assert (tape.http_status, error, reply.rejected) == (200, None, True)
    assert "Model is overloaded" in reply.error


def test_error_in_the_middle_of_a_stream_keeps_the_tokens_before_it():
    failure = {"error": "Request failed during generation: CUDA", "error_type": "generation"}
    body = tgi_events()[0] + event(failure)
    _, _, reply, _ = one("tgi", [HEAD + chunk(body) + LAST_CHUNK])
    assert (reply.rejected, sum(reply.chunk_tokens), reply.output_tokens) == (False, 1, 1)
    assert reply.tokens_from == "chunks"
    assert "CUDA" in reply.error
    assert "generation" in reply.error


@pytest.mark.parametrize(
    ("status", "body", "kind", "rejected", "said"),
    [
        (
            422,
            orjson.dumps({"error": "Input validation error: x", "error_type": "validation"}),
            "application/json",
            False,
            "Input validation error",
        ),
        (
            422,
            b"Failed to deserialize the JSON body into the target type: inputs",
            "text/plain",
            False,
            "deserialize",
        ),
        (
            424,
            orjson.dumps({"error": "Request failed", "error_type": "generation"}),
            "application/json",
            False,
            "failed",
        ),
        (429, orjson.dumps(TGI_FLAT), "application/json", True, "overloaded"),
        (429, b"", "text/plain", True, "HTTP 429"),
        (500, b"<html>\r\n<b>oops</b>", "text/html", False, "oops"),
        (401, b"", "text/plain", False, "HTTP 401"),
        (
            503,
            orjson.dumps({"error": {"message": "Loading model", "code": 503}}),
            "application/json",
            False,
            "Loading",
        ),
        (302, b"", "text/plain", False, "HTTP 302"),
    ],
)
@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
def test_http_errors(protocol, status, body, kind, rejected, said):
    server, tape, reply, error = one(protocol, [plain(status, body, kind)])
    assert (error, tape.http_status, tape.complete) == (None, status, True)
    assert reply.rejected is rejected
    assert said in reply.error
    assert "\n" not in reply.error
    assert server.connections == 1


def test_stream_without_a_finish_event_is_no_success():
    for done in (b"", b"data: [DONE]\n\n"):
        body = event(chat({"content": "a"})) + done
        _, tape, reply, _ = one("openai-chat", [HEAD + chunk(body) + LAST_CHUNK])
        assert tape.complete
        assert "without a finish event after 1 token" in reply.error
    _, _, reply, _ = one("tgi", [HEAD + b"".join(map(chunk, tgi_events()[:2])) + LAST_CHUNK])
    assert "without a finish event after 2 token" in reply.error


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
@pytest.mark.parametrize(
    "body",
    [
        b'data: {"a\n\n',
        b"data: 17\n\n",
        b"data: [1]\n\n",
        b'data: {"token":5}\n\n',
        b'data: {"choices":[3]}\n\n',
        b'data: {"choices":7}\n\n',
        b"\x00\xff\xfe garbage",
        b"",
        b'data: {"choices":[{"index":[],"delta":{}}]}\n\n',
    ],
)
def test_garbage_events_are_an_error_never_an_exception(protocol, body):
    wire = HEAD + (chunk(body) if body else b"") + LAST_CHUNK
    _, _, reply, error = one(protocol, [wire])
    assert error is None
    assert reply.error


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
@pytest.mark.parametrize("body", [b"nonsense", b"[]", b"{}", b'{"choices":[]}', b'{"choices":7}', b"null"])
def test_garbage_objects_are_an_error(protocol, body):
    _, _, reply, _ = one(protocol, [plain(200, body)], streaming=False)
    assert reply.error


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
@pytest.mark.parametrize("value", [b"%b", b'{"error":{"a":%b}}'])
def test_deep_nesting_is_an_error_never_an_exception(protocol, value):
    """Found: orjson reads deeper than it writes, so the excerpt of the garbage raised."""
    body = value % (b"[" * 600 + b"]" * 600)
    for script, streaming in (
        ([HEAD + chunk(b"data: " + body + b"\n\n") + LAST_CHUNK], True),
        ([plain(200, body)], False),
    ):
        _, _, reply, error = one(protocol, script, streaming=streaming)
        assert error is None and reply.error


@pytest.mark.parametrize("digits", [5000, 30])
def test_a_count_of_absurd_length_is_no_count(digits):
    """Found: int() raised on it, or the record's JSON could not hold it."""
    extra = f"x-generated-tokens: {'9' * digits}\r\n"
    _, _, reply, _ = one("tgi", [plain(200, b'{"generated_text":"x"}', extra=extra)], streaming=False)
    assert reply.error is None and reply.output_tokens is None


def test_an_error_beside_a_last_choice_is_no_success():
    """Found: a router's chunk with both an error and a finish reason counted as ok."""
    broken = chat({"content": ""}, "error", error={"message": "upstream died", "code": 502})
    _, _, reply, _ = one(
        "openai-chat", [HEAD + chunk(event(chat({"content": "a"})) + event(broken)) + LAST_CHUNK]
    )
    assert reply.error is not None and "upstream died" in reply.error


def test_truncated_chunked_body_keeps_what_came():
    a, b, c = map(chunk, tgi_events())
    for script in ([HEAD + a + b, CLOSE], [HEAD + a + b, 1.0, CLOSE], [HEAD + a + b + c[:30], CLOSE]):
        _, tape, reply, error = one("tgi", script)
        assert "closed by the server in the middle" in str(error)
        assert not tape.complete
        assert sum(reply.chunk_tokens) == 2
        assert reply.error is not None


def test_a_finish_event_in_a_broken_body_is_no_success():
    body = b"".join(map(chunk, tgi_events()))
    _, tape, reply, error = one("tgi", [HEAD + body, CLOSE])
    assert error is not None
    assert not tape.complete
    assert reply.error is not None
    assert reply.finish_reason == "length"


def test_body_that_ends_with_the_connection_is_complete():
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    a, b, c = tgi_events()
    _, tape, reply, error = one("tgi", [head + a, 1.0, b + c, CLOSE])
    assert (error, tape.complete, reply.error, reply.text) == (None, True, None, "abc")
    assert tape.stamps == [0.0, 1.0]


def test_short_content_length_body():
    wire = plain(200, b'{"generated_text":"abc"}')
    _, tape, reply, error = one("tgi", [wire[:-4], CLOSE], streaming=False)
    assert "closed by the server in the middle" in str(error)
    assert tape.data == b'{"generated_text":"a'
    assert reply.error


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([b"\x16\x03\x01 nonsense\r\n\r\n"], "not an HTTP response"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not an HTTP response"),
        ([HEAD + b"this is no chunk size\r\n"], "garbage in the response"),
        ([HEAD + chunk(b"data: {}\n\n") + b"zzzz"], "garbage in the response"),
        ([CLOSE], "closed by the server before any response"),
        ([b"HTTP/1.1 200 OK\r\ncontent-", CLOSE], "closed by the server before any response"),
    ],
)
def test_bytes_that_are_not_http(script, said):
    server, tape, reply, error = one("tgi", script)
    assert said in str(error)
    assert "\n" not in str(error)
    assert not tape.complete
    assert reply.error
    assert len(server.lost_s) == 1


def test_hang_is_cut_by_the_callers_timeout_and_disconnects():
    a = chunk(tgi_events()[0])
    server, tape, reply, error = one("tgi", [1.0, HEAD + a, 1000.0], timeout_s=5.0)
    assert isinstance(error, TimeoutError)
    assert server.lost_s[0] == 5.0
    assert (tape.http_status, tape.complete) == (200, False)
    assert tape.data == tgi_events()[0]
    assert sum(reply.chunk_tokens) == 1


def test_hang_before_the_head():
    server, tape, reply, error = one("tgi", [1000.0], timeout_s=5.0)
    assert isinstance(error, TimeoutError)
    assert server.lost_s[0] == 5.0
    assert (tape.http_status, tape.data, reply.error) == (None, b"", "no response")


# Connections


def good() -> bytes:
    return HEAD + b"".join(map(chunk, tgi_events())) + LAST_CHUNK


def test_a_stale_pooled_connection_costs_no_request():
    """Found against llama.cpp, which closes some connections right after a reply."""
    asks = [Request(i, "text", {"prompt": f"p{i}"}) for i in range(3)]
    server, got = talk("tgi", [good()], [CLOSE], [good()], [0.3, CLOSE], asks=asks)
    assert [str(error) for _, _, error in got[:2]] == ["None", "None"]
    assert server.connections == 2 and len(server.requests) == 4
    # A server that thinks first and closes then has failed the request.
    assert "closed by the server before any response" in str(got[2][2])


def test_a_connection_is_tried_again_once_only_and_never_after_a_byte():
    asks = [Request(i, "text", {"prompt": f"p{i}"}) for i in range(2)]
    server, got = talk("tgi", [good()], [CLOSE], [CLOSE], asks=asks)
    assert "closed by the server" in str(got[1][2]) and len(server.requests) == 3
    server, got = talk("tgi", [good()], [b"HTTP/1.1", CLOSE], asks=asks)
    assert "closed by the server" in str(got[1][2]) and len(server.requests) == 2


def test_connections_are_reused_and_tapes_do_not_mix():
    asks = [Request(i, "text", {"prompt": f"p{i}"}) for i in range(6)]
    scripts = [
        [good()],
        [plain(429, orjson.dumps(TGI_FLAT))],
        [good()],
        [plain(204, b"")],
        [0.5, good()],
        [good()],
    ]
    server, out = talk("tgi", *scripts, asks=asks)
    assert server.connections == 1
    assert [r[1]["x-request-id"] for r in server.requests] == ["0", "1", "2", "3", "4", "5"]
    assert [reply.error is None for _, reply, _ in out] == [True, False, True, False, True, True]
    stream_bytes = sum(map(len, tgi_events()))
    flat_bytes = len(orjson.dumps(TGI_FLAT))
    sizes = [len(tape.data) for tape, *_ in out]
    assert sizes == [stream_bytes, flat_bytes, stream_bytes, 0, stream_bytes, stream_bytes]


def test_informational_responses_are_skipped():
    _, tape, reply, error = one("tgi", [b"HTTP/1.1 100 Continue\r\n\r\n" + good()[:30], 0.1, good()[30:]])
    assert (error, reply.error, tape.http_status, reply.text) == (None, None, 200, "abc")


@pytest.mark.parametrize("extra", [b"leftover", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("chunked", [True, False])
def test_bytes_behind_a_response_spoil_the_connection_not_the_reply(extra, chunked):
    whole = plain(200, b'{"generated_text":"abc","details":{"finish_reason":"length"}}')
    server, out = talk("tgi", [(good() if chunked else whole) + extra], [good()], asks=[ASK, ASK])
    assert [(reply.error, reply.text) for _, reply, _ in out] == [(None, "abc")] * 2
    assert extra not in out[0][0].data
    assert server.connections == 2


def test_a_server_that_speaks_unasked_is_disconnected():
    server = ScriptedServer([good(), 1.0, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"], [good()])

    async def main():
        async with make_client("tgi", "http://embedded", headers={}, dial=server.dial) as client:
            texts = []
            for _ in range(2):
                tape = Tape()
                await client.exchange(ASK, tape)
                texts.append(client.decode(tape).text)
                await asyncio.sleep(2.0)
            return texts

    assert clock.run_virtual(main()) == ["abc", "abc"]
    assert server.connections == 2


def test_connection_close_is_obeyed():
    closing = HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    wire = closing + b"".join(map(chunk, tgi_events())) + LAST_CHUNK
    server, out = talk("tgi", [wire, CLOSE], [good()], asks=[ASK, ASK])
    assert [reply.error for _, reply, _ in out] == [None, None]
    assert server.connections == 2


def test_large_bodies_arrive_whole():
    text = "x" * 3_000_000
    body = orjson.dumps(
        {"generated_text": text, "details": {"finish_reason": "length", "generated_tokens": 1}}
    )
    _, tape, reply, _ = one("tgi", [plain(200, body)], streaming=False)
    assert tape.data == body
    assert reply.text == text


def test_a_thousand_at_once_need_no_pool_slot():
    asks = [Request(i, "text", {"prompt": "x"}) for i in range(1000)]
    server = ScriptedServer(*[[1.0, good()] for _ in asks])

    async def main():
        async with make_client("tgi", "http://embedded", headers={}, dial=server.dial) as client:
            tapes = [Tape() for _ in asks]
            await asyncio.gather(*[client.exchange(a, t) for a, t in zip(asks, tapes, strict=True)])
            return clock.now(), [client.decode(t).error for t in tapes]

    took_s, errors = clock.run_virtual(main())
    assert took_s == 1.0
    assert errors == [None] * 1000
    assert server.connections == 1000


# Real sockets, both loops

LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])


def over_tcp(loop_factory, *scripts, asks=(ASK,)):
    server = ScriptedServer(*scripts)

    async def main():
        listener = await asyncio.get_running_loop().create_server(server.make, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        out = []
        async with make_client("tgi", f"http://127.0.0.1:{port}", headers={}) as client:
            for ask in asks:
                tape, error = Tape(), None
                try:
                    await client.exchange(ask, tape)
                except ExchangeError as exc:
                    error = exc
                out.append((tape, client.decode(tape), error))
        listener.close()
        await listener.wait_closed()
        return out

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return server, runner.run(main())


@LOOPS
def test_tcp_stream_and_reuse(loop_factory):
    server, out = over_tcp(loop_factory, [good()], [good()], asks=[ASK, ASK])
    assert [(reply.error, reply.text) for _, reply, _ in out] == [(None, "abc")] * 2
    assert server.connections == 1
    for tape, *_ in out:
        assert tape.stamps == sorted(tape.stamps)


@LOOPS
def test_tcp_reset_in_the_middle_of_a_stream(loop_factory):
    _, [(tape, reply, error)] = over_tcp(loop_factory, [HEAD + chunk(tgi_events()[0]), 0.02, ABORT])
    assert "reset by the server in the middle" in str(error)
    assert sum(reply.chunk_tokens) == 1
    assert not tape.complete


@LOOPS
def test_tcp_reset_of_a_body_that_ends_with_the_connection_is_an_error(loop_factory):
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    _, [(tape, _, error)] = over_tcp(loop_factory, [head + b"".join(tgi_events()), 0.02, ABORT])
    assert "reset" in str(error)
    assert not tape.complete


@LOOPS
def test_connection_refused(loop_factory):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

    async def main():
        async with make_client("tgi", f"http://u:hunter2@127.0.0.1:{port}", headers={}) as client:
            await client.exchange(ASK, Tape())

    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(ExchangeError) as caught:
        runner.run(main())
    assert "connection refused" in str(caught.value)
    assert str(port) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_unknown_host_is_an_exchange_error():
    async def main():
        async with make_client("tgi", "http://no-such-host.invalid", headers={}) as client:
            await client.exchange(ASK, Tape())

    with pytest.raises(ExchangeError, match="no-such-host"):
        asyncio.run(main())


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


# TGI's real responses


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
