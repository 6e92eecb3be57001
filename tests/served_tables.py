"""The sidecar's HTTP interface over tables made by hand, spoken to over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from loadgen import clock
from loadgen.sidecar.directory import DataDirectory
from loadgen.sidecar.routes import Routes
from loadgen.sidecar.table import TableWriter

INTERVALS = {"power": 0.05, "state": 1.0, "metrics": 0.5}


@dataclass
class Sampling:
    """A sampler that is as it is told."""

    interval_s: float = 0.05
    started_s: float = field(default_factory=lambda: clock.now() - 60)
    restarts: int = 0
    trouble: str | None = None
    pid: int | None = None


@dataclass
class Sidecar:
    """What a test holds: a client, the address, the server's end."""

    session: aiohttp.ClientSession
    url: str
    runner: web.AppRunner
    sampling: Sampling

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers=headers) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(body) if is_json else body.decode()

    def buffered(self) -> int:
        """Bytes that wait in this process for all clients together."""
        assert self.runner.server is not None
        transports = [connection.transport for connection in self.runner.server.connections]
        return sum(t.get_write_buffer_size() for t in transports if t is not None)


def over(
    folder: Path,
    call: Callable[[Sidecar], Awaitable[None]],
    *,
    token: str | None = None,
    sampling: Sampling | None = None,
    pid: int | None = None,
) -> None:
    """Runs ``call`` against a sidecar over ``folder``."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[Sidecar]:
        told = sampling or Sampling()
        app = Routes(DataDirectory(folder), told, intervals_s=INTERVALS, pid=pid).app(token)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as session:
            yield Sidecar(session, f"http://{host}:{port}", runner, told)
        await runner.cleanup()

    async def main() -> None:
        async with serving() as sidecar:
            await call(sidecar)

    asyncio.run(main())


def written(
    folder: Path, rows: int, *, columns: int = 2, end_s: float | None = None, session: str = "s"
) -> float:
    """A table power of so many rows, 50 ms apart, the last at ``end_s`` (now), and its first instant.

    Column k of row i is ``100 i + k``, taken k ms after the row's instant; the last
    column is missing in every third row.
    """
    names = [f"gpu{k}" for k in range(columns)]
    start_s = (clock.now() if end_s is None else end_s) - 0.05 * (rows - 1)
    table = TableWriter.open(folder, "power", names, session=session)
    for i in range(rows):
        t_s = start_s + 0.05 * i
        known = names if i % 3 else names[:-1]
        table.append(t_s, {n: (t_s + 0.001 * k, 100.0 * i + k) for k, n in enumerate(known)})
    table.close()
    return start_s


def told(folder: Path, **said: Any) -> None:
    (folder / "sampler.json").write_bytes(orjson.dumps(said))
