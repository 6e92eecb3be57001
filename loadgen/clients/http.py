"""The transport that all HTTP clients share: one aiohttp session, reads stamped on arrival.

A read is stamped in the connection's ``data_received``, before anything else
happens to it, and no task wakes up for it: the task that sent a request sleeps
until its response has ended (one wake-up a response, where reading a stream line
by line costs one a token). aiohttp opens, secures, pools and closes connections
and parses the response head; chunked bodies are undone by `loadgen.clients.chunked`.

Requests go to the session's connector directly: building aiohttp's request and
response objects for every call costs 0.2 ms, as much as 100 tokens.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.streams import StreamReader
from yarl import URL

from loadgen import clock
from loadgen.clients.chunked import ChunkedBody, ChunkedError
from loadgen.clients.redaction import redact_url
from loadgen.errors import ConfigError, ExchangeError
from loadgen.types import Tape

Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[tuple[asyncio.Transport, asyncio.Protocol]]]
"""Opens a connection: takes a protocol factory, returns the transport and its protocol."""

# llama.cpp and uvicorn close idle connections after 5 s; a request sent at that
# very moment would fail for no fault of the server's load.
KEEPALIVE_S = 4.0
# A pooled connection that dies this soon after being used again, without a byte of
# response, had been closed by the server before the request reached it.
STALE_S = 0.25
_NEVER_PAUSE_BYTES = 1 << 30
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_END_OF_CHUNKS = b"0\r\n\r\n"


class StampingHandler(ResponseHandler):
    """aiohttp's connection protocol, stamping each read of one response at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._tape: Tape | None = None
        self._ended: asyncio.Future[None] | None = None
        self._chunked: ChunkedBody | None = None
        self._stream: StreamReader | None = None
        self._parts: list[bytes] = []
        self._head = b""
        self._in_head = True
        self.exchanges = 0
        self.cause: str | None = None
        """Why the response broke off; None while nothing has gone wrong."""

    def begin(self, tape: Tape) -> asyncio.Future[None]:
        """Prepares for the response to the request about to be written.

        The future is resolved when that response has ended, well or badly, and
        `finish` then says which. It never holds an exception.
        """
        self.set_response_params(
            read_until_eof=True, auto_decompress=False, read_bufsize=_NEVER_PAUSE_BYTES, read_timeout=None
        )
        self._tape = tape
        self.exchanges += 1
        self._ended = self._loop.create_future()
        self._chunked = self._stream = None
        self._parts = []
        self._head = b""
        self._in_head = True
        self.cause = None
        if self.transport is None:  # lost between the pool and here
            self._break_off("connection closed by the server before the request was sent")
        return self._ended

    @property
    def heard_nothing(self) -> bool:
        """Whether not a byte of the response has come."""
        return self._in_head and not self._head

    def finish(self) -> None:
        """Puts the body, as much as came, on the tape and forgets the exchange."""
        tape = self._tape
        if tape is None:
            return
        if self._chunked is not None:
            tape.data = b"".join(self._chunked.parts)
        elif self._stream is not None:
            tape.data = b"".join(self._parts)[: self._stream.total_bytes]
        self._tape = self._ended = self._chunked = self._stream = None
        self._parts = []

    def data_received(self, data: bytes) -> None:
        stamp_s = clock.now()
        chunked = self._chunked
        if chunked is not None:
            if chunked.done:  # nothing may follow a response that nobody asked for
                self.force_close()
                return
            self._feed_chunked(chunked, data, stamp_s)
        elif self._tape is None:  # a server that speaks unasked is out of step
            if self.transport is not None:
                self.transport.abort()
        elif self._in_head:
            self._feed_head(data, stamp_s)
        else:
            self._feed_plain(data, stamp_s)

    def _feed_chunked(self, chunked: ChunkedBody, data: bytes, stamp_s: float) -> None:
        before = chunked.size_bytes
        try:
            chunked.feed(data)
        except ChunkedError as exc:
            self._break_off(f"garbage in the response: {exc}")
        size_bytes = chunked.size_bytes
        tape = self._tape
        if tape is not None and size_bytes > before:
            tape.stamps.append(stamp_s)
            tape.sizes.append(size_bytes)
        if chunked.done:
            if chunked.rest:
                self.force_close()
            # aiohttp has seen the head only: tell it that the message is over, so
            # that the connection can be pooled.
            super().data_received(_END_OF_CHUNKS)
            self._complete()

    def _feed_head(self, data: bytes, stamp_s: float) -> None:
        """Gives aiohttp the head alone; what follows it in this read is body."""
        head = self._head + data
        end = _head_end(head)
        if end < 0:
            self._head = head[-3:]
            super().data_received(data)
            return
        body_at = len(data) - (len(head) - end)
        self._head = b""
        super().data_received(data[:body_at])  # may come back through feed_data below
        rest = data[body_at:]
        if not rest or self.cause is not None:
            return
        if self._chunked is not None:
            self._feed_chunked(self._chunked, rest, stamp_s)
        elif self._in_head:  # that was a 1xx head; the real one follows
            self._feed_head(rest, stamp_s)
        else:
            self._feed_plain(rest, stamp_s)

    def _feed_plain(self, data: bytes, stamp_s: float) -> None:
        """A body with a content length, or one that ends with the connection."""
        tape, stream = self._tape, self._stream
        if tape is None or stream is None or tape.complete:
            self.force_close()
            return
        before = stream.total_bytes
        self._parts.append(data)
        super().data_received(data)
        if stream.total_bytes > before:
            tape.mark(stamp_s, stream.total_bytes)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Called by aiohttp with each parsed head and the stream of its body."""
        message, payload = data
        if self._tape is None or not self._in_head or 100 <= message.code < 200:
            return
        self._in_head = False
        self._tape.http_status = message.code
        self._tape.headers = message.headers
        if message.chunked and not payload.is_eof():
            self._chunked = ChunkedBody()
        else:
            self._stream = payload
            payload.on_eof(self._complete)

    def set_exception(self, exc: BaseException, *args: Any) -> None:
        if self._tape is not None:
            self._break_off(_transport_cause(exc, self._tape))
        super().set_exception(exc, *args)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._tape is not None and exc is not None:
            self._break_off(_transport_cause(exc, self._tape))
        # The base class tells the body's stream that the end has come, which
        # completes a body that is delimited by it; otherwise it is a breach.
        super().connection_lost(exc)
        if self._tape is not None:
            self._break_off(_transport_cause(exc, self._tape))

    def _complete(self) -> None:
        tape, ended = self._tape, self._ended
        if tape is not None and ended is not None and not ended.done():
            tape.complete = True
            ended.set_result(None)

    def _break_off(self, cause: str) -> None:
        ended = self._ended
        if ended is None or ended.done():
            return
        self.cause = cause
        self.force_close()
        ended.set_result(None)


class _TcpConnector(aiohttp.TCPConnector):
    """aiohttp's connector, making `StampingHandler` connections."""

    def __init__(self) -> None:
        super().__init__(limit=0, ttl_dns_cache=300, keepalive_timeout=KEEPALIVE_S)
        self._factory = cast(
            "functools.partial[ResponseHandler]", functools.partial(StampingHandler, loop=self._loop)
        )


class _DialConnector(aiohttp.BaseConnector):
    """A pool over connections that a function opens (the embedded server's)."""

    def __init__(self, dial: Dial) -> None:
        # The pool measures idleness by real time; none keeps virtual runs repeatable.
        super().__init__(limit=0, keepalive_timeout=None)
        self._dial = dial
        self._factory = cast(
            "functools.partial[ResponseHandler]", functools.partial(StampingHandler, loop=self._loop)
        )

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        _, protocol = await self._dial(self._factory)
        return cast(ResponseHandler, protocol)


class HttpTransport:
    """POSTs bodies to one address and tapes the responses. An async context manager.

    ``url`` is absolute; ``headers`` go with every request. Credentials in the
    address become a basic ``authorization`` header. Timeouts are the caller's:
    cancelling `post` closes the connection, which is how a server is told to stop.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str], dial: Dial | None = None) -> None:
        target = parse_url(url)
        self._url = target.with_user(None)
        self._headers = {name.lower(): value for name, value in headers.items()}
        if target.user is not None and "authorization" not in self._headers:
            pair = f"{target.user}:{target.password or ''}".encode()
            self._headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        for name, value in self._headers.items():
            if any(c in name + value for c in "\r\n\0"):
                raise ConfigError(f"header {name!r}: expected no line breaks in name and value")
        self._dial = dial
        self._session: aiohttp.ClientSession | None = None
        self._head = b""
        self._request: ClientRequest
        self.resent = 0

    async def __aenter__(self) -> Self:
        connector = _TcpConnector() if self._dial is None else _DialConnector(self._dial)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=_NO_TIMEOUT,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # Only the connection's key (host, port, TLS) is read from it; one serves all.
        self._request = ClientRequest(
            "POST", self._url, loop=asyncio.get_running_loop(), session=self._session
        )
        fields = {
            "host": self._url.host_port_subcomponent or "",
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": "loadgen",
            "content-type": "application/json",
        } | self._headers
        lines = [f"POST {self._url.raw_path_qs} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        self._head = ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, request_id: int, body: bytes, tape: Tape) -> None:
        """Sends one request and fills the tape until the response has ended.

        Raises ExchangeError when no connection can be had, when it breaks, or
        when what comes back is not HTTP. However it ends, also by cancellation,
        the tape holds every byte of the body that had arrived.

        A connection out of the pool that closes within `STALE_S` and without a byte
        of response was stale (llama.cpp closes some right after a reply): the
        request is sent once more, on a new connection, and ``resent`` counts it.
        """
        if await self._attempt(request_id, body, tape, await self._connected(new=False)):
            return
        self.resent += 1
        await self._attempt(request_id, body, tape, await self._connected(new=True))

    async def _connected(self, *, new: bool) -> Connection:
        """A connection out of the pool or, emptying the pool of its idle ones, a ``new`` one."""
        if self._session is None or self._session.connector is None:
            raise ExchangeError("the client is not open")
        while True:
            try:
                connection = await self._session.connector.connect(
                    self._request, traces=[], timeout=_NO_TIMEOUT
                )
            except (aiohttp.ClientError, OSError, ssl.SSLError) as exc:
                raise ExchangeError(
                    f"connect to {self._url.host}:{self._url.port}: {connect_cause(exc)}"
                ) from exc
            if not new or cast(StampingHandler, connection.protocol).exchanges == 0:
                return connection
            connection.close()

    async def _attempt(self, request_id: int, body: bytes, tape: Tape, connection: Connection) -> bool:
        """One exchange on one connection; False when that was a stale one out of the pool."""
        handler = cast(StampingHandler, connection.protocol)
        transport = handler.transport
        reused, began_s = handler.exchanges > 0, clock.now()
        try:
            ended = handler.begin(tape)
            if transport is not None:
                transport.write(
                    b"%bx-request-id: %d\r\ncontent-length: %d\r\n\r\n%b"
                    % (self._head, request_id, len(body), body)
                )
            await ended
        except BaseException:
            # Not close(): that would first send what is left of the request.
            if transport is not None:
                transport.abort()
            connection.close()
            handler.finish()
            raise
        cause = handler.cause
        handler.finish()
        if cause is None:
            connection.release()
            return True
        connection.close()
        if reused and handler.heard_nothing and clock.now() - began_s < STALE_S:
            return False
        raise ExchangeError(cause)


def parse_url(text: str, place: str = "url") -> URL:
    """An absolute http(s) address. Raises ConfigError naming its ``place``, never repeating credentials."""
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{place}: expected http://HOST[:PORT] or https://..., got {redact_url(text)!r}")
    return url


def endpoint(base_url: str, path: str) -> str:
    """``base_url`` with a route behind it; a base ending in /v1 does not double it."""
    base = base_url.partition("?")[0].rstrip("/")
    if path.startswith("/v1/") and base.endswith("/v1"):
        base = base[: -len("/v1")]
    return base + path


def connect_cause(exc: BaseException) -> str:
    """Why a connection could not be opened, in one line without credentials or an object's names."""
    os_error = getattr(exc, "os_error", None) or exc
    if isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        cause = f"TLS failed ({os_error})"
    elif isinstance(os_error, ConnectionRefusedError):
        cause = "connection refused"
    elif isinstance(exc, aiohttp.ClientConnectorDNSError):
        cause = "host name not found"
    elif isinstance(exc, aiohttp.ClientConnectorError):
        # Its own text wraps the system's in "Cannot connect to host ... ssl:default [...]".
        number = getattr(os_error, "errno", None) or 0
        cause = os.strerror(number) if number > 0 else str(os_error)
    else:
        cause = f"{type(exc).__name__} ({exc})"
    return redact_url(" ".join(cause.split()))


def _head_end(head: bytes) -> int:
    """Where the head ends, or -1. llhttp takes bare line feeds, so they count."""
    strict = head.find(b"\r\n\r\n")
    lax = head.find(b"\n\n")
    if lax >= 0 and (strict < 0 or lax < strict):
        return lax + 2
    lax = head.find(b"\n\r\n")
    return lax + 3 if lax >= 0 else -1


def _transport_cause(exc: BaseException | None, tape: Tape) -> str:
    got = "before any response" if tape.http_status is None else "in the middle of the response"
    if exc is None or isinstance(exc, aiohttp.ServerDisconnectedError):
        return f"connection closed by the server {got}"
    if isinstance(exc, ConnectionResetError | BrokenPipeError | aiohttp.ClientOSError):
        return f"connection reset by the server {got}"
    if isinstance(exc, aiohttp.http_exceptions.HttpProcessingError):
        first = " ".join(exc.message.split())[:120]
        return f"not an HTTP response: {first}"
    return f"{type(exc).__name__} {got}: {' '.join(str(exc).split())[:120]}"
