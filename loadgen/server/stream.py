"""Server-sent events written straight to the connection, one call per token.

A default run streams half a million tokens through this module, in the same
process as the client. So there is no task and no coroutine per token: the
service calls ``token()``, which joins pre-encoded bytes and hands one HTTP chunk
to the transport. The request's coroutine sleeps on one future from the first
token to the last.

aiohttp has sent the response head by then and is told nothing of the body:
this module frames it, terminator included, so the last token, what follows it
and the end of the body leave in one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from loadgen import clock
from loadgen.server.reply import ReplyPlan

KEEP_ALIVE_S = 15.0
"""A stream without an event for this long carries a comment (axum's default)."""
_COMMENT = b":\n\n"
DONE = b"data: [DONE]\n\n"


class Dialect(Protocol):
    """How one reply's tokens and end look on the wire."""

    def token(self, index: int) -> bytes:
        """What is sent at the ``index``-th token, not the last: an event, several, or nothing.

        Nothing where the token is held back, as half a character is.
        """
        ...

    def last(self) -> list[bytes]:
        """The events of the last token and what follows it."""
        ...

    def error(self, message: str) -> bytes:
        """The event of a backend failure."""
        ...


class EventStream:
    """The body of one SSE response, shared by the replies it carries.

    ``done`` resolves when the body has ended. ``ending`` gives what is sent
    after the last reply if none has failed, ``trailer`` is sent at any end. Writing to a connection that has
    gone does nothing; the request's own cancellation tidies up.
    """

    __slots__ = (
        "_chunked",
        "_last_s",
        "_loop",
        "_pending",
        "_timer",
        "_trailer",
        "_transport",
        "done",
        "ending",
    )

    def __init__(
        self, transport: asyncio.Transport | None, *, chunked: bool, replies: int = 1, trailer: bytes = b""
    ) -> None:
        self._transport = transport
        self._chunked = chunked
        self._pending = replies
        self._trailer = trailer
        self.ending: Callable[[], list[bytes]] | None = None
        self._loop = asyncio.get_running_loop()
        self._last_s = clock.now()
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._keep_alive)
        self.done: asyncio.Future[None] = self._loop.create_future()

    def without_comments(self) -> None:
        """Stays silent when nothing is to be said, as servers without keep-alive comments do."""
        self._timer.cancel()

    def event(self, data: bytes) -> None:
        """Sends ``data`` as one HTTP chunk."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._last_s = clock.now()
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_reply(self, events: list[bytes]) -> None:
        """Sends the last events of one reply; after the last reply the body ends."""
        self._pending -= 1
        if self._pending > 0:
            for data in events:
                self.event(data)
        else:
            self._end(events if self.ending is None else [*events, *self.ending()])

    def abort(self, event: bytes) -> None:
        """Sends an error event and ends the body whatever is pending."""
        self._end([event])

    def close(self) -> None:
        """Sends nothing more. Again: nothing."""
        self._timer.cancel()
        self._transport = None
        if not self.done.done():
            self.done.set_result(None)

    def _end(self, events: list[bytes]) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if self._trailer:
                events = [*events, self._trailer]
            if self._chunked:
                body = b"".join([b"%x\r\n%b\r\n" % (len(data), data) for data in events]) + b"0\r\n\r\n"
            else:
                body = b"".join(events)
            transport.write(body)
        self.close()

    def _keep_alive(self) -> None:
        # Checked lazily: moving a timer at every token would cost more than the token.
        quiet_s = clock.now() - self._last_s
        wait_s = KEEP_ALIVE_S - quiet_s
        if wait_s <= 1e-6:
            self.event(_COMMENT)
            wait_s = KEEP_ALIVE_S
        self._timer = self._loop.call_later(wait_s, self._keep_alive)


class StreamSink:
    """One reply of a stream: the service's sink, speaking a dialect.

    ``plan``, when set, is told how the reply ended before the dialect says it.
    """

    __slots__ = ("_event", "_stream", "_token", "dialect", "plan")

    def __init__(self, stream: EventStream, dialect: Dialect) -> None:
        self._stream = stream
        self._event = stream.event
        self._token = dialect.token
        self.dialect = dialect
        self.plan: ReplyPlan | None = None

    def token(self, index: int, finish_reason: str | None) -> None:
        """The service's call at the end of an engine step."""
        if finish_reason is None:
            data = self._token(index)
            if data:
                self._event(data)
        else:
            if self.plan is not None:
                self.plan.end(index, finish_reason)
            self._stream.end_reply(self.dialect.last())

    def failed(self, message: str) -> None:
        """The service's call when no more tokens will come."""
        self._stream.ending = None
        self._stream.end_reply([self.dialect.error(message)])


class WholeSink:
    """Reply number ``number`` of a response without streaming.

    ``done`` resolves to None, or to the failure's message; at a good end the
    number is appended to ``ended`` and ``plan``, when set, is told how the reply ended.
    """

    __slots__ = ("_ended", "_number", "done", "plan")

    def __init__(self, number: int, ended: list[int]) -> None:
        self._number = number
        self._ended = ended
        self.plan: ReplyPlan | None = None
        self.done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def token(self, index: int, finish_reason: str | None) -> None:
        """The service's call at the end of an engine step."""
        if finish_reason is not None and not self.done.done():
            if self.plan is not None:
                self.plan.end(index, finish_reason)
            self._ended.append(self._number)
            self.done.set_result(None)

    def failed(self, message: str) -> None:
        """The service's call when no more tokens will come."""
        if not self.done.done():
            self.done.set_result(message)


def event(payload: Any) -> bytes:
    """An SSE event of one JSON value, with the one space TGI v3 writes."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"
