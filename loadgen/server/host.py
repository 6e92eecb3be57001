"""Puts the embedded server on a TCP port, or hands out its protocol for in-process connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

from aiohttp import web

from loadgen.errors import ConfigError
from loadgen.server.app import make_app
from loadgen.server.service import Service

_SHUTDOWN_S = 1.0


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that answers: ``url`` over TCP (None in process), and its protocol factory."""

    url: str | None
    protocol: Callable[[], asyncio.Protocol]


@asynccontextmanager
async def serving(
    service: Service, *, seed: int, address: tuple[str, int] | None, api_key: str | None = None
) -> AsyncIterator[Serving]:
    """Runs the engine loop and the HTTP app until the block is left.

    ``address`` is (host, port), port 0 for a free one; None serves in process only.
    Raises ConfigError when the port cannot be bound.
    """
    runner = web.AppRunner(
        make_app(service, seed=seed, api_key=api_key),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    service.start()
    engine = asyncio.create_task(service.run())
    try:
        url = None
        if address is not None:
            site = web.TCPSite(runner, *address, backlog=4096)
            try:
                await site.start()
            except OSError as exc:
                raise ConfigError(f"cannot listen on {address[0]}:{address[1]}: {exc.strerror}") from exc
            host, port = runner.addresses[0][:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        yield Serving(url, cast("Callable[[], asyncio.Protocol]", runner.server))
    finally:
        service.close()  # first: open streams end with an error event instead of holding up the server
        await runner.cleanup()
        engine.cancel()
        with suppress(asyncio.CancelledError):
            await engine
