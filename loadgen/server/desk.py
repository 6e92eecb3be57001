"""Between HTTP and the service: replies are handed in, and come back whole or as a stream.

Every dialect shares this. A handler reads, validates and hands in without giving
up the event loop, then sleeps on one future until the reply has ended; tokens
pass it by (`loadgen.server.stream`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import orjson
from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, StreamWriter

from loadgen import clock
from loadgen.server import faults
from loadgen.server.body import Unreadable, is_json
from loadgen.server.reply import ReplyPlan
from loadgen.server.service import CLOSING, Service, Sink, Ticket
from loadgen.server.stream import EventStream, WholeSink

OWN_IDS_FROM = 1_000_000_000
"""Requests that bring no id are numbered from here, clear of any plan's ids."""
VIRTUAL_EPOCH_S = 1_700_000_000
"""The date at virtual time 0: two virtual runs must not differ by the date."""
BODY_S = 60.0
"""Longest wait for a whole request body [assumed].

TGI has none. Here aiohttp tells a reader nothing of a chunk that is broken in a
later read than the head, so without a limit that request would never be answered.
"""
_REQUEST_ID = re.compile(r"-?[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Job:
    """One reply to generate: the plan of it, and the prompt as the engine sees it.

    ``prompt_ids``: 8 bytes a token, for the prefix cache. Counts are tokens;
    ``max_new_tokens`` is what the request may have at most.
    """

    plan: ReplyPlan
    prompt_tokens: int
    max_new_tokens: int
    prompt_ids: bytes | None


class Overloaded(Exception):
    """No place is free."""


class GenerationFailed(Exception):
    """The backend gave up on a reply, with its own words."""


class PlannedSink(Sink, Protocol):
    """A sink that tells the plan of its reply how the reply ended."""

    plan: ReplyPlan | None


class InternalError(Exception):
    """The server broke down over a request, on demand."""


def _fail_on_demand() -> None:
    if faults.current("http_429"):
        raise Overloaded
    if faults.current("http_500"):
        raise InternalError


def given_id(request: web.Request) -> int | None:
    """The client's own number for its request, if it sent a whole number as ``x-request-id``."""
    given = request.headers.get("x-request-id")
    return int(given) if given is not None and _REQUEST_ID.fullmatch(given) else None


class Desk:
    """Hands replies to ``service`` and keeps their numbers."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._next_id = OWN_IDS_FROM

    def ids(self, request: web.Request, count: int) -> list[int]:
        """The ids of a request's replies; the first is the client's if it sent one."""
        given = given_id(request)
        own = list(range(self._next_id, self._next_id + count))
        self._next_id += count
        if given is not None:
            own[0] = given
        return own

    def require_places(self, count: int) -> None:
        """Raises Overloaded unless ``count`` more replies may be under way, or what a fault demands."""
        _fail_on_demand()
        limit = self.service.limits.max_concurrent_requests
        if limit is not None and self.service.in_flight + count > limit:
            raise Overloaded

    def submit(self, job: Job, sink: PlannedSink) -> Ticket:
        """Queues one reply. Raises Overloaded; GenerationFailed where the service takes none (any more)."""
        sink.plan = job.plan
        _fail_on_demand()
        if self.service.closed:
            raise GenerationFailed(CLOSING)
        try:
            ticket = self.service.submit(
                job.plan.request_id,
                job.prompt_tokens,
                job.max_new_tokens,
                job.plan.tokens,
                job.plan.finish_reason,
                faults.failing(sink, job.plan.tokens),
                prompt_ids=job.prompt_ids,
            )
        except ValueError as error:
            raise GenerationFailed(str(error)) from None
        if ticket is None:
            raise Overloaded
        return ticket

    async def whole(self, jobs: Sequence[Job]) -> tuple[list[Ticket], list[int]]:
        """Generates without streaming; also the order in which the replies ended.

        Raises Overloaded, GenerationFailed. A handler that is cancelled (its
        client has gone) takes its replies back.
        """
        tickets: list[Ticket] = []
        order: list[int] = []
        sinks = [WholeSink(i, order) for i in range(len(jobs))]
        try:
            for job, sink in zip(jobs, sinks, strict=True):
                tickets.append(self.submit(job, sink))
            for sink in sinks:
                failure = await sink.done
                if failure is not None:
                    raise GenerationFailed(failure)
        finally:
            for ticket in tickets:
                ticket.cancel()
        return tickets, order

    @asynccontextmanager
    async def streaming(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        replies: int = 1,
        trailer: bytes = b"",
    ) -> AsyncIterator[OpenStream]:
        """Sends the head of an SSE response; leaving the block waits for the end of its body.

        The block submits the replies through ``OpenStream.submit`` and gives their
        sinks ``OpenStream.body``. However the block is left, no reply of it stays
        in the service.
        """
        response = web.StreamResponse(headers=headers)
        try:
            writer = await response.prepare(request)
            assert isinstance(writer, StreamWriter)
            writer.send_headers()
        except ConnectionError:
            raise asyncio.CancelledError from None  # the client has gone: what aiohttp is about to say
        # From here the body is framed by EventStream, its end included: write_eof must add nothing.
        writer.chunked = False
        body = EventStream(
            request.transport, chunked=request.version >= HttpVersion11, replies=replies, trailer=trailer
        )
        opened = OpenStream(self, response, body, [])
        try:
            yield opened
            await body.done
        finally:
            body.close()
            for ticket in opened.tickets:
                ticket.cancel()
        with suppress(ConnectionError):
            await writer.drain()
            await response.write_eof()


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream whose head has been sent: its body, and the replies it carries."""

    _desk: Desk
    response: web.StreamResponse
    body: EventStream
    tickets: list[Ticket]

    def submit(self, job: Job, sink: PlannedSink) -> None:
        """Queues one reply of this stream. Raises Overloaded, GenerationFailed."""
        self.tickets.append(self._desk.submit(job, sink))


async def read_json(request: web.Request) -> bytes:
    """The body of a request that says it is JSON. Raises Unreadable (400, 408, 413, 415) in axum's words."""
    if not is_json(request.headers.get(hdrs.CONTENT_TYPE, "")):
        raise Unreadable(415, "Expected request with `Content-Type: application/json`")
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise Unreadable(408, f"Failed to buffer the request body: incomplete after {BODY_S:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise Unreadable(413, "Failed to buffer the request body: length limit exceeded") from None
    except web.RequestPayloadError:
        wrong = "Failed to buffer the request body: error reading a body from connection"
        raise Unreadable(400, wrong) from None


def json_response(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON response; ``headers`` on top of the content type."""
    return web.Response(
        body=orjson.dumps(value),
        status=status,
        headers={"content-type": "application/json", **(headers or {})},
    )


def unix_now_s(wall_s: float) -> int:
    """Seconds since 1970: the wall clock's, or virtual time's own."""
    return int(VIRTUAL_EPOCH_S + clock.now() if clock.is_virtual() else wall_s)
