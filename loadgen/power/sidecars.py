"""All sidecars of a run as one: connected, checked and asked for the time before it, followed during it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from yarl import URL

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.feed import Feed, Sink, burst
from loadgen.power.remote import Sidecar
from loadgen.power.serving import port_there, serving
from loadgen.types import Domain

FINISH_S, INTERRUPTED_S = 30.0, 2.0
STARTING_S = 5.0
LEAST_BASELINE_ROWS = 10


class Sidecars:
    """All sidecars of a run, as one thing that is read. Made by `open_sidecars`.

    ``boards``: rows for the manifest. ``reasons``: why a part (gpu, cpu, ram) is not read
    by each of them, None where it is. ``interval_s``: the longest of theirs.
    """

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = tuple(feeds)
        self.boards: tuple[Mapping[str, Any], ...] = tuple(row for f in feeds for row in f.boards)
        self.interval_s = max(f.info.interval_s for f in feeds)
        self.scrapes = any(f.scrapes for f in feeds)
        self.reasons: dict[str, str | None] = {
            part: "; ".join(why for feed in feeds if (why := _unread(feed, part))) or None
            for part in ("gpu", "cpu", "ram")
        }

    def domains(self) -> Sequence[Domain]:
        """What is read, sidecar by sidecar."""
        return [domain for feed in self.feeds for domain in feed.domains]

    @property
    def warnings(self) -> list[str]:
        """What the sidecars said, then what befell the links and clocks."""
        return [w for f in self.feeds for w in (*f.warnings, *f.closing_words())]

    @asynccontextmanager
    async def following(self, sink: Sink) -> AsyncIterator[None]:
        """Fetches in the block, and after it what was taken up to the block's end.

        That is waited for at most `FINISH_S`, or `INTERRUPTED_S` if the block raised.
        """
        stop = asyncio.Event()
        tasks = [asyncio.create_task(feed.follow(sink, stop)) for feed in self.feeds]
        limit_s = INTERRUPTED_S
        try:
            yield
            limit_s = FINISH_S
        finally:
            until_s = clock.now()
            stop.set()
            _, late = await asyncio.wait(tasks, timeout=limit_s)
            for task in late:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(feed.finish(sink, until_s, limit_s) for feed in self.feeds))
            for outcome in ended:  # a full disk, say; not the cancellation above
                if isinstance(outcome, Exception):
                    raise outcome

    def manifest(self, zero_s: float) -> list[dict[str, Any]]:
        """The ``sidecars`` entry of run.json; ``zero_s``: see `Feed.manifest`."""
        return [feed.manifest(zero_s) for feed in self.feeds]


def _unread(feed: Feed, part: str) -> str | None:
    """Why a sidecar does not read a part; None where it does, also if a read failed just now."""
    if any(domain.name.startswith(part) for domain in feed.info.domains):
        return None
    reason = feed.info.reasons.get(part) or f"no {part} there"
    return f"{feed.name}: {reason}" if feed.name else reason


@asynccontextmanager
async def open_sidecars(
    addresses: Sequence[tuple[str, str]],
    *,
    token: str | None,
    server_url: str,
    baseline_s: float,
    connector: Callable[[str], aiohttp.BaseConnector] | None = None,
) -> AsyncIterator[Sidecars]:
    """Connects to every (name, url), names unique or one empty, and sets each one's clock.

    ``connector`` makes the connector for a url, if not TCP. Raises PowerError,
    saying what to do, for one that does not answer, refuses the token, has no fresh
    samples, is given twice, or samples too slowly for ``baseline_s``.
    """
    async with AsyncExitStack() as stack:
        feeds: list[Feed] = []
        for name, url in addresses:
            connect = connector(url) if connector is not None else None
            sidecar = await stack.enter_async_context(Sidecar(url, token, connector=connect))
            feed = await _open(sidecar, name, URL(server_url))
            _refuse(feed, feeds, baseline_s)
            feeds.append(feed)
        yield Sidecars(feeds)


async def _open(sidecar: Sidecar, name: str, server_url: URL) -> Feed:
    give_up_s = clock.now() + STARTING_S
    while (health := await sidecar.health())[0] == "starting" and clock.now() < give_up_s:
        await asyncio.sleep(0.25)
    status, reason = health
    if status != "ok":
        raise PowerError(
            f"sidecar {sidecar.shown}: it takes no samples ({status}: {reason}): "
            "look at its messages, or start it again"
        )
    start = await burst(sidecar)
    info = await sidecar.info()
    if not info.last_seq.get("power"):
        raise PowerError(f"sidecar {sidecar.shown}: it has no sample yet: try again in a second")
    if not info.domains:
        why = "; ".join(f"{part}: {told}" for part, told in info.reasons.items() if told)
        raise PowerError(f"sidecar {sidecar.shown}: it can read nothing there: {why}")
    port = await port_there(server_url, sidecar.host)
    return Feed(sidecar, name, info, start, port, await serving(sidecar, info, port))


def _refuse(feed: Feed, others: Sequence[Feed], baseline_s: float) -> None:
    """Raises PowerError for a sidecar that would be counted twice or cannot see the baseline."""
    uuids = {row.get("uuid") for row in feed.boards} - {None}
    for other in others:
        if other.info.id == feed.info.id or uuids & {row.get("uuid") for row in other.boards}:
            raise PowerError(
                f"sidecar {feed.sidecar.shown}: reads the same boards as {other.sidecar.shown}: "
                "they would be counted twice; leave one out"
            )
    least_s = LEAST_BASELINE_ROWS * feed.info.interval_s
    if 0 < baseline_s < least_s:
        faster_s = baseline_s / LEAST_BASELINE_ROWS
        raise PowerError(
            f"sidecar {feed.sidecar.shown}: samples every {feed.info.interval_s:g} s, too seldom for "
            f"power.baseline_s {baseline_s:g}: raise that to {least_s:g} (or 0: none), "
            f"or start it with --interval {faster_s:g}"
        )
