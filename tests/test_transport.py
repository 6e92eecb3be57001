"""Connections: reuse, staleness, pooling, and real sockets on both loops."""

from __future__ import annotations

import asyncio
import socket

import orjson
import pytest
import uvloop
from scripted import (
    ABORT,
    ASK,
    CLOSE,
    HEAD,
    LAST_CHUNK,
    TGI_FLAT,
    ScriptedServer,
    chunk,
    good,
    one,
    plain,
    talk,
    tgi_events,
)

from loadgen import clock
from loadgen.clients import make_client
from loadgen.errors import ExchangeError
from loadgen.types import Request, Tape

# Connections


def test_a_stale_pooled_connection_costs_no_request():
    """Found against llama.cpp, which closes some connections right after a reply."""
    asks = [Request(i, "text", {"prompt": f"p{i}"}) for i in range(3)]
    server, got = talk("tgi", [good()], [CLOSE], [good()], [0.3, CLOSE], asks=asks)
    assert [str(error) for _, _, error in got[:2]] == ["None", "None"]
    assert server.connections == 2 and len(server.requests) == 4
    # A server that thinks first and closes then has failed the request.
    assert "closed by the server before any response" in str(got[2][2])


def test_a_request_is_sent_again_on_a_new_connection_when_the_whole_pool_is_stale():
    """Found against llama.cpp on a busy machine: the second pooled connection had been closed as well."""
    server = ScriptedServer([0.1, good()], [0.1, good()], [CLOSE], [good()])

    async def main() -> list[bool]:
        async with make_client("tgi", "http://embedded:80", dial=server.dial, headers={}) as client:
            tapes = [Tape() for _ in range(3)]
            asks = [Request(i, "text", {"prompt": f"p{i}"}) for i in range(3)]
            await asyncio.gather(*(client.exchange(asks[i], tapes[i]) for i in range(2)))
            await client.exchange(asks[2], tapes[2])
            return [tape.complete for tape in tapes]

    assert clock.run_virtual(main()) == [True] * 3
    assert server.connections == 3 and len(server.requests) == 4


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
