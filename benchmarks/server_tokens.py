"""CPU of the embedded server's HTTP side: per streamed token and per request.

    python benchmarks/server_tokens.py [--requests 400] [--repeats 5]

A raw protocol that only looks for the end of the chunked body stands in for the
client. Each row fits CPU = requests x (a + b x tokens) through two reply
lengths. "no engine" hands out tokens from a bare callback, so its b is the cost
of writing an event; "engine" is the real service. "memory" is the virtual clock
and the in-process pipe of a default run, "tcp" the loopback with real sockets.
The client's share (its reads, and the loop's) is inside the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import orjson
from aiohttp import web

from loadgen import clock
from loadgen.server.app import make_app
from loadgen.server.service import Service, Sink

SHORT_TOKENS, LONG_TOKENS = 4, 132


class _Raw(asyncio.Protocol):
    """Sends one request and waits for the terminating chunk."""

    def __init__(self) -> None:
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n0\r\n\r\n") and not self.ended.done():
            self.ended.set_result(None)


class _Bare(Service):
    """A service without an engine: all tokens of a reply, one callback each."""

    def submit(
        self,
        request_id: int,
        prompt_tokens: int,
        max_new_tokens: int,
        reply_tokens: int,
        finish_reason: str,
        sink: Sink,
        *,
        prompt_ids: bytes | None = None,
    ) -> Any:
        """Hands the tokens to the event loop."""
        loop = asyncio.get_running_loop()
        for index in range(1, reply_tokens + 1):
            loop.call_soon(sink.token, index, finish_reason if index == reply_tokens else None)
        now_s = clock.now()
        values = dict.fromkeys(("submitted_s", "scheduled_s", "first_s", "done_s"), now_s)
        return type("Ticket", (), {**values, "cancel": lambda self: None})()


def _request(tokens: int) -> bytes:
    prompt = "Could you tell me how a bicycle stays upright, step by step? " * 80
    parameters = {"max_new_tokens": tokens, "ignore_eos": True, "details": True}
    body = orjson.dumps({"inputs": prompt, "parameters": parameters})
    head = f"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    return f"{head}content-type: application/json\r\n\r\n".encode() + body


async def _measure(bare: bool, tcp: bool, tokens: int, requests: int) -> float:
    """CPU seconds for ``requests`` replies, 32 at a time."""
    service = _Bare() if bare else Service()
    runner = web.AppRunner(make_app(service), handler_cancellation=True, access_log=None)
    await runner.setup()
    engine = asyncio.create_task(service.run())
    dial: Callable[[], Awaitable[_Raw]]
    if tcp:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]

        async def dial() -> _Raw:
            loop = asyncio.get_running_loop()
            return (await loop.create_connection(_Raw, host, port))[1]
    else:

        async def dial() -> _Raw:
            raw = _Raw()
            assert runner.server is not None
            clock.connect_memory(raw, runner.server())
            return raw

    data = _request(tokens)

    async def worker(count: int) -> None:
        raw = await dial()
        for _ in range(count):
            raw.ended = asyncio.get_running_loop().create_future()
            raw.transport.write(data)
            await raw.ended
        raw.transport.close()

    await worker(5)
    before_s = time.process_time()
    await asyncio.gather(*(worker(requests // 32) for _ in range(32)))
    used_s = time.process_time() - before_s
    await runner.cleanup()
    service.close()
    await engine
    return used_s / (requests // 32 * 32)


def main() -> None:
    """Prints one row per arrangement: medians over interleaved repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = [("engine", "memory"), ("no engine", "tcp"), ("engine", "tcp")]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {row: [] for row in rows}
    for _ in range(args.repeats):
        for row in rows:
            bare, tcp = row[0] == "no engine", row[1] == "tcp"
            run = asyncio.run if tcp else clock.run_virtual
            low, high = (run(_measure(bare, tcp, n, args.requests)) for n in (SHORT_TOKENS, LONG_TOKENS))
            token_s = (high - low) / (LONG_TOKENS - SHORT_TOKENS)
            found[row].append((token_s, low - SHORT_TOKENS * token_s))
    print(f"{'service':<10} {'transport':<9} {'us/token':>9} {'us/request':>11}   (n = {args.repeats})")
    for row, pairs in found.items():
        token, request = (statistics.median(p[k] for p in pairs) * 1e6 for k in (0, 1))
        print(f"{row[0]:<10} {row[1]:<9} {token:>9.2f} {request:>11.1f}")


if __name__ == "__main__":
    main()
