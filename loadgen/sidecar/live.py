"""Rows as they come, as server-sent events, read from the table's files at the reader's pace.

Nothing is queued for a reader: one that stops reading holds a full socket buffer and
its place in the table, and is let go of after `STALL_S`; it resumes with the header
``Last-Event-ID`` where it was.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import hdrs, web

from loadgen import clock
from loadgen.sidecar.encoding import as_events
from loadgen.sidecar.table import TableReader

MOST_READERS = 64
STALL_S = 30.0
"""A reader that takes nothing for so long is disconnected."""
KEEP_ALIVE_S = 15.0
POLL_S = 0.1
BUFFER_BYTES = 32 * 1024
"""Most that waits for a reader in this process, besides one step's rows."""
_STEP_ROWS = 100


@dataclass(slots=True)
class _Step:
    """The rows behind ``after`` as events, up to ``last``, seen at ``seen_s``."""

    after: int
    last: int
    events: bytes
    seen_s: float


class _Feed:
    """One table's rows as events. Readers that are level share one look at the files per `POLL_S`."""

    def __init__(self, table: TableReader) -> None:
        self.table = table
        self._newest: _Step | None = None

    def behind(self, after: int) -> _Step:
        """The next rows behind ``after``, at most `_STEP_ROWS`; none yet: the same ``last``."""
        newest, now_s = self._newest, clock.now()
        if newest is not None and newest.after == after and now_s - newest.seen_s < POLL_S:
            return newest
        found = self.table.arrays(after=after, limit=_STEP_ROWS)
        seqs = found.seq.tolist()
        events = as_events(found)
        step = _Step(after, seqs[-1] if seqs else after, events, now_s)
        if len(seqs) < _STEP_ROWS:  # one that catches up is alone in its place
            self._newest = step
        return step


class Live:
    """The live readers of all tables. ``readers``: how many there are now."""

    def __init__(self) -> None:
        self.readers = 0
        self._feeds: dict[TableReader, _Feed] = {}
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Every stream ends after what it is writing."""
        self._ending.set()

    async def stream(self, request: web.Request, table: TableReader, after: int | None) -> web.StreamResponse:
        """Rows behind ``after`` (None: those to come) until the reader or the sidecar leaves."""
        if self.readers >= MOST_READERS:
            raise web.HTTPServiceUnavailable(text=f"there are {MOST_READERS} live readers already")
        feed = self._feeds.setdefault(table, _Feed(table))
        self.readers += 1
        try:
            response = web.StreamResponse(
                headers={hdrs.CONTENT_TYPE: "text/event-stream", hdrs.CACHE_CONTROL: "no-store"}
            )
            await response.prepare(request)
            if request.transport is not None:
                request.transport.set_write_buffer_limits(high=BUFFER_BYTES)
            await self._write(response, request, feed, table.last_seq or 0 if after is None else after)
        except (TimeoutError, ConnectionError):
            # Aborted: a graceful end would wait for the reader to take what it does not take.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.readers -= 1
        return response

    async def _write(self, response: web.StreamResponse, request: web.Request, feed: _Feed, at: int) -> None:
        async def send(data: bytes) -> None:
            async with asyncio.timeout(STALL_S):
                await response.write(data)
                await request.writer.drain()

        await send(b"retry: 1000\n\n")
        sent_s = clock.now()
        while not self._ending.is_set():
            step = feed.behind(at)
            if step.events:
                await send(step.events)
                at, sent_s = step.last, clock.now()
                if step.last - step.after >= _STEP_ROWS:
                    continue
            elif clock.now() - sent_s >= KEEP_ALIVE_S:
                await send(b": still here\n\n")
                sent_s = clock.now()
            await clock.wait(self._ending, POLL_S)
