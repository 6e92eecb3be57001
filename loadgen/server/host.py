"""Puts the embedded server on a TCP port, or hands out its protocol for in-process connections."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from aiohttp import web

from loadgen import clock
from loadgen.errors import ConfigError
from loadgen.server.app import make_app
from loadgen.server.faulty_transport import reset
from loadgen.server.service import Service

_SHUTDOWN_S = 1.0
_DRAIN_POLL_S = 0.02
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that answers: ``url`` over TCP (None in process), and its protocol factory.

    ``protocol()`` raises ConnectionRefusedError where a port would refuse: in a slow
    start and after a crash. ``crashed`` is set when a fault has ended the server.
    """

    url: str | None
    protocol: Callable[[], asyncio.Protocol]
    crashed: asyncio.Event
    _service: Service
    _runner: web.AppRunner

    async def drain(self) -> None:
        """Graceful termination: requests under way may end, up to a timeout.

        No new connections; kept-alive ones close, idle ones at once and the others
        after the response under way, as hyper's graceful shutdown does.
        """
        for site in list(self._runner.sites):
            await site.stop()
        server = self._runner.server
        assert server is not None
        server.pre_shutdown()
        closing = [asyncio.ensure_future(connection.shutdown(None)) for connection in server.connections]
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._service.launch.launcher.graceful_termination_timeout
        # Looked at after a wait: what has just been read is in no handler's hands yet.
        await asyncio.sleep(_DRAIN_POLL_S)
        while self._service.in_flight and loop.time() < end_s:
            await asyncio.sleep(_DRAIN_POLL_S)
        for task in closing:
            task.cancel()


@asynccontextmanager
async def serving(
    service: Service, *, address: tuple[str, int] | None, api_key: str | None = None
) -> AsyncIterator[Serving]:
    """Warms up, then runs the engine loop and the HTTP app until the block is left.

    ``address`` is (host, port), port 0 for a free one; None serves in process only.
    The port opens after the warm-up, and after a slow start if the launch's faults
    ask for one: a server that starts refuses connections.
    Raises ConfigError when the port cannot be bound.
    """
    crashed = asyncio.Event()

    async def crash() -> None:
        crashed.set()
        await _crash(runner)
        service.die()

    runner = web.AppRunner(
        make_app(service, api_key=api_key, crash=crash),
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,  # as TGI: a compressed body is not JSON, and no bomb is unpacked
        shutdown_timeout=_SHUTDOWN_S,
    )
    slow_start_s = service.launch.faults.slow_start_s
    opens_s = math.inf

    def accept() -> asyncio.Protocol:
        if crashed.is_set() or clock.now() < opens_s:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the server is starting or has crashed")
        assert runner.server is not None
        return runner.server()

    async with AsyncExitStack() as stack:
        await runner.setup()
        service.start()
        stack.push_async_callback(_close, service, runner, asyncio.create_task(service.run()))
        if service.launch.launcher.warm_up:
            await service.warm_up()
        opens_s = clock.now() + slow_start_s
        url = None
        if address is not None:
            try:
                if slow_start_s > 0:
                    host, port = await stack.enter_async_context(
                        _listening_later(runner, address, slow_start_s)
                    )
                else:
                    await web.TCPSite(runner, *address, backlog=_BACKLOG).start()
                    host, port = runner.addresses[0][:2]
            except OSError as exc:
                raise ConfigError(f"cannot listen on {address[0]}:{address[1]}: {exc.strerror}") from exc
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        yield Serving(url, accept, crashed, service, runner)


async def _close(service: Service, runner: web.AppRunner, engine: asyncio.Task[None]) -> None:
    service.close()  # first: open streams end with an error event instead of holding up the server
    await runner.cleanup()
    engine.cancel()
    with suppress(asyncio.CancelledError):
        await engine


@asynccontextmanager
async def _listening_later(
    runner: web.AppRunner, address: tuple[str, int], delay_s: float
) -> AsyncIterator[tuple[str, int]]:
    """Takes the address now and listens ``delay_s`` later: a bound port that does not listen refuses."""
    found = await asyncio.get_running_loop().getaddrinfo(*address, type=socket.SOCK_STREAM)
    family, kind, number, _, place = found[0]
    with socket.socket(family, kind, number) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(place)
        site = web.SockSite(runner, bound, backlog=_BACKLOG)

        async def listen() -> None:
            await asyncio.sleep(delay_s)
            await site.start()

        opening = asyncio.create_task(listen())
        try:
            yield bound.getsockname()[:2]
        finally:
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await opening
            if site in runner.sites:
                await site.stop()  # before the block closes its socket under it


async def _crash(runner: web.AppRunner) -> None:
    """What a killed process leaves behind: a closed port, and every connection reset."""
    for site in list(runner.sites):
        await site.stop()
    assert runner.server is not None
    for connection in runner.server.connections:
        if connection.transport is not None:
            reset(connection.transport)
