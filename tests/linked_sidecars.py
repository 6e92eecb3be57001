"""Scripted sidecars linked to a run in virtual time, and what reaches the run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from scripted_sidecar import Memory, Scripted

from loadgen import clock
from loadgen.power.feed import Sink
from loadgen.power.sidecars import Sidecars, open_sidecars
from loadgen.types import BoardState, Reading, ServerSample

URL = "http://127.0.0.1:9400"
SERVER = "http://127.0.0.1:8080"
ASKED_FIRST = ("/health", "/v1/clock", "/v1/info", "/v1/server")
"""What a run asks its sidecar for before it begins."""


@dataclass
class Kept:
    """What reached the run."""

    readings: list[Reading] = field(default_factory=list)
    boards: list[BoardState] = field(default_factory=list)
    samples: list[ServerSample] = field(default_factory=list)

    @property
    def sink(self) -> Sink:
        return Sink(self.readings.append, self.boards.append, self.samples.append)

    def of(self, domain: str) -> list[Reading]:
        return [r for r in self.readings if r.domain == domain]


@asynccontextmanager
async def connected(
    *made: Scripted, names: tuple[str, ...] = ("",), token: str | None = None, baseline_s: float = 2.0
) -> AsyncIterator[tuple[Sidecars, list[Memory]]]:
    runners = [await scripted.runner() for scripted in made]
    links = [Memory(runner) for runner in runners]
    urls = [f"http://127.0.0.1:{9400 + i}" for i in range(len(made))]
    by_url = dict(zip(urls, links, strict=True))
    try:
        async with open_sidecars(
            list(zip(names, urls, strict=True)),
            token=token,
            server_url=SERVER,
            baseline_s=baseline_s,
            connector=by_url.__getitem__,
        ) as opened:
            yield opened, links
    finally:
        for runner in runners:
            await runner.cleanup()


def virtually(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return clock.run_virtual(main())


async def started(**options: Any) -> Scripted:
    """A sidecar that has sampled for 10 s."""
    made = Scripted(**options)
    await asyncio.sleep(10.0)
    return made
