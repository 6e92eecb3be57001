"""A scripted HTTP server, in virtual time over memory, and the bytes TGI and OpenAI servers send."""

from __future__ import annotations

import asyncio
import socket
import struct

import orjson

from loadgen import clock
from loadgen.clients import make_client
from loadgen.errors import ExchangeError
from loadgen.types import Request, Tape

ASK = Request(7, "text", {"prompt": "Hello", "max_new_tokens": 3})
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CLOSE, ABORT = "close", "abort"
TGI_FLAT = {"error": "Model is overloaded", "error_type": "overloaded"}


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


def good() -> bytes:
    return HEAD + b"".join(map(chunk, tgi_events())) + LAST_CHUNK
