"""The loop that asks a server for its metrics at fixed instants, on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from loadgen import clock
from loadgen.clients.http import Dial, connect_cause, endpoint, parse_url
from loadgen.clients.redaction import redact_url
from loadgen.metrics.families import FAMILIES, Family, PageError, family_of, server_sample
from loadgen.types import ServerSample

MOST_BYTES = 8 << 20
TIMEOUT_SHARE = 0.9
"""Of the interval: a scrape that was given up must not take the next tick with it."""
LAST_TIMEOUT_S = 1.0
"""For the scrape at the end, which has no next one to make way for."""
_NOT_TOLD = {
    401: "is an API key needed?",
    403: "is an API key needed?",
    404: "this server has none, or has to be told to (SGLang: --enable-metrics)",
    405: "this server has none",
    501: "llama.cpp has to be told to: --metrics",
}
_HEADERS = {  # identity: the server has better to do than to compress
    "accept": "text/plain;version=0.0.4",
    "accept-encoding": "identity",
    "user-agent": "loadgen",
}


@dataclass(slots=True)
class Scraped:
    """What one scraping loop did: ``samples`` written, scrapes ``failed``, ticks ``skipped`` for being late.

    ``family``: whose names the page had; None with the ``reason`` why there is no sample.
    ``warnings``: one line for each kind of trouble, fit for the manifest.
    """

    interval_s: float
    family: str | None = None
    samples: int = 0
    failed: int = 0
    skipped: int = 0
    reason: str | None = None
    warnings: list[str] = field(default_factory=list)


class _NotTold(Exception):
    """The server answers that it has no metrics."""


class _Failed(Exception):
    """This scrape gave no page."""


def metrics_url(base_url: str) -> str:
    """Where a server's metrics are: at its root, also when the address of its API ends in /v1."""
    return endpoint(base_url.partition("?")[0].rstrip("/").removesuffix("/v1"), "/metrics")


async def scrape(
    url: str,
    interval_s: float,
    write: Callable[[ServerSample], None],
    stop: asyncio.Event,
    *,
    headers: Mapping[str, str] | None = None,
    dial: Dial | None = None,
    looked: asyncio.Event | None = None,
) -> Scraped:
    """Asks ``url`` now, then at start + k interval, and once more when ``stop`` is set.

    Ticks are absolute on ``clock.now()``; those that a slow answer covered are
    skipped and counted. A sample is stamped with the middle of its exchange. One
    scrape is under way at a time and is given up before the next; one that fails
    leaves a gap. Whose server it is, the page says. Ends early, with the ``reason``, when the
    server says that it has no metrics. ``looked`` is set when the first scrape is over,
    however it went. Raises ConfigError for an address that is none.
    """
    parse_url(url)
    done = Scraped(interval_s)
    try:
        async with _session(headers or {}, dial) as session:
            await _loop(session, url, write, stop, done, looked or asyncio.Event())
    finally:
        if looked is not None:
            looked.set()
    if done.failed:
        done.warnings.append(f"metrics: {done.failed} of {done.failed + done.samples} scrapes failed")
    if done.skipped:
        done.warnings.append(
            f"metrics: {done.skipped} samples skipped, server or host was slower than {interval_s:g} s"
        )
    return done


async def _loop(
    session: aiohttp.ClientSession,
    url: str,
    write: Callable[[ServerSample], None],
    stop: asyncio.Event,
    done: Scraped,
    looked: asyncio.Event,
) -> None:
    start_s, tick, interval_s = clock.now(), 0, done.interval_s
    family: Family | None = None
    while True:
        last = stop.is_set()
        timeout_s = max(interval_s, LAST_TIMEOUT_S) if last else TIMEOUT_SHARE * interval_s
        before_s = clock.now()
        try:
            page = await _page(session, url, timeout_s)
            now_s = (before_s + clock.now()) / 2
            family = family or family_of(page)
            if family is None:  # not the end: SGLang's page is empty until the first request
                done.reason = f"{redact_url(url)}: no known server's names on the page ({_beginnings()})"
            else:
                sample = server_sample(page, family, now_s)
                done.family, done.reason = family.name, None
                done.samples += 1
                write(sample)
        except _NotTold as exc:
            if done.family is None:
                done.reason = str(exc)
                return
            _fail(done, str(exc))
        except (_Failed, PageError) as exc:
            _fail(done, str(exc))
        looked.set()
        if last:
            return
        following = max(tick + 1, math.floor((clock.now() - start_s) / interval_s + 1e-9) + 1)
        done.skipped += following - tick - 1
        tick = following
        await _wait(stop, start_s + tick * interval_s - clock.now())


def _fail(done: Scraped, why: str) -> None:
    done.failed += 1
    if done.samples == 0:
        done.reason = why
    warning = f"metrics: {why}"
    if warning not in done.warnings:
        done.warnings.append(warning)


async def _page(session: aiohttp.ClientSession, url: str, timeout_s: float) -> bytes:
    """The body of a GET. Raises _NotTold and _Failed."""
    shown = redact_url(url)
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.get(url, headers=_HEADERS, allow_redirects=False) as response,
        ):
            if response.status != 200:
                why = f"{shown}: HTTP {response.status}"
                if response.status in _NOT_TOLD:
                    raise _NotTold(f"{why} ({_NOT_TOLD[response.status]})")
                raise _Failed(why)
            page = bytearray()
            async for part in response.content.iter_any():
                page += part
                if len(page) > MOST_BYTES:
                    raise _Failed(f"{shown}: more than {MOST_BYTES} bytes")
            return bytes(page)
    except TimeoutError:
        raise _Failed(f"{shown}: no answer in {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError) as exc:
        raise _Failed(f"{shown}: {connect_cause(exc)}") from exc


def _session(headers: Mapping[str, str], dial: Dial | None) -> aiohttp.ClientSession:
    """One connection at a time, kept between scrapes."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1) if dial is None else _Dialled(dial),
        headers=dict(headers),
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class _Dialled(aiohttp.BaseConnector):
    """A connection that a function opens: the embedded server's, which has no address in virtual time."""

    def __init__(self, dial: Dial) -> None:
        super().__init__(limit=1, keepalive_timeout=None)  # the pool counts idleness in real time
        self._dial = dial

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        _, protocol = await self._dial(self._factory)
        return cast(ResponseHandler, protocol)


async def _wait(stop: asyncio.Event, delay_s: float) -> None:
    """Until ``stop`` is set, at most ``delay_s``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, delay_s)):
            await stop.wait()


def _beginnings() -> str:
    return ", ".join(family.prefix.decode() + "..." for family in FAMILIES)
