"""The real app on the virtual clock and in memory, spoken to in raw bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from loadgen import clock
from loadgen.launch import Launch
from loadgen.server.app import make_app
from loadgen.server.service import Service


class RawConnection(asyncio.Protocol):
    """Keeps every read with its instant; knows nothing of HTTP."""

    def __init__(self) -> None:
        self.reads: list[tuple[float, bytes]] = []
        self.closed = False
        self._changed = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reads.append((clock.now(), data))
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._changed.set()

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.reads)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert not self.closed, self.data
            self._changed.clear()
            await self._changed.wait()

    def _may_be_whole(self) -> bool:
        """False while a chunked body has certainly not ended: looking closer costs as much as it is long."""
        tail = b"".join(data for _, data in self.reads[-2:])
        return b"0\r\n\r\n" in tail or b"chunked" not in (self.reads[0][1] if self.reads else b"")

    async def response(self) -> Response:
        """The next whole response on this connection, taken off the reads."""
        if _split(self.data) is None:
            await self.until(lambda: self._may_be_whole() and _split(self.data) is not None)
        split = _split(self.data)
        assert split is not None
        response, rest = split
        self.reads = [(clock.now(), rest)] if rest else []
        return response


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes]

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """Each event's JSON; asserts the exact framing on the way."""
        assert self.body.endswith(b"\n\n")
        found = []
        for block in self.body[:-2].split(b"\n\n"):
            assert block.startswith(b"data: ")
            assert b"\n" not in block
            if block != b"data: [DONE]":
                found.append(json.loads(block[6:]))
        return found


def _split(data: bytes) -> tuple[Response, bytes] | None:
    """One response by RFC 9112, and what follows it; None while it is incomplete."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    lines = head.decode().split("\r\n")
    status = int(lines[0].split()[1])
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", 0))
        return (Response(status, headers, rest[:length], []), rest[length:]) if len(rest) >= length else None
    chunks: list[bytes] = []
    while True:
        size, found, after = rest.partition(b"\r\n")
        if not found or len(after) < int(size, 16) + 2:
            return None
        chunk, rest = after[: int(size, 16)], after[int(size, 16) + 2 :]
        assert after[int(size, 16) :].startswith(b"\r\n")
        if not chunk:
            return Response(status, headers, b"".join(chunks), chunks), rest
        chunks.append(chunk)


@dataclass(frozen=True)
class Served:
    service: Service
    _factory: Callable[[], asyncio.Protocol]

    def connect(self) -> RawConnection:
        connection = RawConnection()
        clock.connect_memory(connection, self._factory())
        return connection

    async def post(self, path: str, body: Any, **headers: str) -> Response:
        """One request on a connection of its own."""
        connection = self.connect()
        connection.transport.write(request_bytes(path, body, **headers))
        response = await connection.response()
        connection.transport.close()
        return response

    async def get(self, path: str, method: str = "GET") -> Response:
        connection = self.connect()
        connection.transport.write(f"{method} {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
        response = await connection.response()
        connection.transport.close()
        return response


def request_bytes(path: str, body: Any, *, version: str = "1.1", **headers: str) -> bytes:
    """A POST; ``body`` is bytes as they are, or a value to encode. Header names take ``_`` for ``-``."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = [f"POST {path} HTTP/{version}", "host: h", f"content-length: {len(data)}"]
    lines += [f"{k}: {v}" for k, v in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


@asynccontextmanager
async def served(*, api_key: str | None = None, **launch: Any) -> AsyncIterator[Served]:
    """Llama-3.1-8B on an H100 behind the real routes, on the running loop; ``launch`` is a `Launch`'s."""
    service = Service(Launch(seed=1, **launch))
    app = make_app(service, api_key=api_key)
    runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False, access_log=None)
    await runner.setup()
    assert runner.server is not None
    engine = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    try:
        yield Served(service, runner.server)
    finally:
        await runner.cleanup()
        service.close()
        await engine


def ask(call: Callable[[Served], Awaitable[Any]], **options: Any) -> Any:
    """Runs ``call`` against a fresh server in virtual time."""

    async def main() -> Any:
        async with served(**options) as server:
            return await call(server)

    return clock.run_virtual(main())


def post(path: str, body: Any, **headers: str) -> Response:
    response = ask(lambda server: server.post(path, body, **headers))
    assert isinstance(response, Response)
    return response


def exact(tokens: int, **more: Any) -> dict[str, Any]:
    return {"inputs": "Hello there", "parameters": {"max_new_tokens": tokens, "ignore_eos": True} | more}
