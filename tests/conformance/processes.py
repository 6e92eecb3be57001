"""``loadgen serve`` as a process of its own, and raw requests to it over TCP."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from served import RawConnection, Response, request_bytes

ANSWER_S = 20.0
"""Nothing asked of a server here takes a tenth of it."""


@dataclass(frozen=True)
class Server:
    """A server that listens; each request goes on a connection of its own."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[RawConnection]:
        """A connection that is gone when the block is left."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(RawConnection, "127.0.0.1", self.port)
        try:
            yield connection
        finally:
            connection.transport.abort()
            while not connection.closed:
                await asyncio.sleep(0)

    async def exchange(self, request: bytes) -> Response:
        async with self.connected() as connection:
            connection.transport.write(request)
            return await asyncio.wait_for(connection.response(), ANSWER_S)

    def send(self, request: bytes) -> Response:
        return asyncio.run(self.exchange(request))

    def post(self, path: str, body: Any, **headers: str) -> Response:
        return self.send(request_bytes(path, body, **headers))

    def get(self, path: str) -> Response:
        return self.send(f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode())


def start(*flags: str, port: int = 0) -> subprocess.Popen[str]:
    """The process, not waited for."""
    command = [sys.executable, "-m", "loadgen", "serve", f"--port={port}", "--seed=1", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def listening(process: subprocess.Popen[str]) -> Server:
    """The server once it has said where it listens."""
    assert process.stderr is not None
    said = []
    for line in iter(process.stderr.readline, ""):
        said.append(line)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if found:
            return Server(process, int(found[1]))
    raise AssertionError(f"the server ended: {''.join(said)}")


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


@contextmanager
def servers(**flags: tuple[str, ...]) -> Iterator[dict[str, Server]]:
    """One server for each name, started together."""
    processes = {name: start(*given) for name, given in flags.items()}
    try:
        yield {name: listening(process) for name, process in processes.items()}
    finally:
        for close in [partial(stop, process) for process in processes.values()]:
            close()


@contextmanager
def occupied(server: Server) -> Iterator[Server]:
    """The server while one long stream holds a place of it."""
    body = {"inputs": "a", "parameters": {"max_new_tokens": 100_000, "ignore_eos": True}}
    with socket.create_connection(("127.0.0.1", server.port)) as holder:
        holder.sendall(request_bytes("/generate_stream", body))
        seen = b""
        while b'"index":1,' not in seen:
            piece = holder.recv(65536)
            assert piece, seen
            seen += piece
        yield server
