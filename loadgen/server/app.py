"""The routes: TGI v3's HTTP interface over the embedded service.

A handler reads, validates and submits without giving up the event loop, then
sleeps on one future until the reply has ended; tokens pass it by
(`loadgen.server.stream`). The app must run with ``handler_cancellation=True``,
so that a client that hangs up frees its place at once; it does not drive the
service, its owner does.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, StreamWriter

from loadgen import clock
from loadgen.server import openai, tgi
from loadgen.server.body import Unreadable, is_json
from loadgen.server.metrics import RequestMetrics
from loadgen.server.service import Service, Sink, Ticket
from loadgen.server.stream import DONE, Dialect, EventStream, StreamSink, WholeSink
from loadgen.server.timing import summed, times, timing_headers
from loadgen.server.validation import (
    ApiError,
    GenerateBody,
    Parameters,
    ReplyPlan,
    Work,
    check_before_admission,
    generation_failed,
    overloaded,
    parse_generate,
    plan_reply,
    validate,
)

PAYLOAD_LIMIT_BYTES = 2_000_000
OWN_IDS_FROM = 1_000_000_000
"""Requests that bring no id are numbered from here, clear of any plan's ids."""
_VIRTUAL_EPOCH_S = 1_700_000_000
"""``created`` at virtual time 0: two virtual runs must not differ by the date."""
_REQUEST_ID = re.compile(r"-?[0-9]{1,15}")
_CORS = {
    "access-control-allow-origin": "*",
    "vary": "origin, access-control-request-method, access-control-request-headers",
}
_PREFLIGHT = {
    "access-control-allow-methods": "GET,POST",
    "access-control-allow-headers": "content-type",
}
_STREAM_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-compute-type": "gpu+optimized",
    "x-accel-buffering": "no",
} | _CORS
_JSON_HEADERS = {"content-type": "application/json"} | _CORS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MakeDialect = Callable[[int, ReplyPlan, Work], Dialect]
OnError = Callable[[ApiError], bytes]


def make_app(service: Service, *, seed: int | None = None, api_key: str | None = None) -> web.Application:
    """The application that serves ``service``.

    ``seed`` keys reply lengths (the service's own by default). With ``api_key``
    POST routes want ``Authorization: Bearer <key>`` and answer 401 without.
    """
    routes = _Routes(service, service.seed if seed is None else seed)
    app = web.Application(client_max_size=PAYLOAD_LIMIT_BYTES)
    posts: dict[str, Handler] = {
        "/generate": routes.generate,
        "/generate_stream": routes.generate_stream,
        "/": routes.compat,
        "/v1/chat/completions": routes.chat,
        "/v1/completions": routes.completions,
    }
    gets: dict[str, Handler] = {
        "/": routes.health,
        "/health": routes.health,
        "/ping": routes.health,
        "/info": routes.info,
        "/v1/models": routes.models,
        "/metrics": routes.metrics_page,
    }
    for path, handler in posts.items():
        app.router.add_post(path, _guarded(handler, api_key))
    for path, handler in gets.items():
        app.router.add_get(path, handler)

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        """Preflight, wrong method or unknown path; bodies stay empty."""
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(headers=_CORS | _PREFLIGHT)
        allowed = ["GET,HEAD"] * (request.path in gets) + ["POST"] * (request.path in posts)
        if allowed:
            return web.Response(status=405, headers=_CORS | {"allow": ",".join(allowed)})
        return web.Response(status=404, headers=_CORS)

    app.router.add_route("*", "/{path:.*}", elsewhere)
    return app


def _guarded(handler: Handler, api_key: str | None) -> Handler:
    """The handler behind the API key, with refusals turned into responses."""
    expected = None if api_key is None else f"bearer {api_key}".lower()

    async def guarded(request: web.Request) -> web.StreamResponse:
        if expected is not None and request.headers.get("authorization", "").lower() != expected:
            return web.Response(status=401, headers=_CORS)
        try:
            return await handler(request)
        except ApiError as error:
            return _json(tgi.error_body(error), status=error.status)
        except Unreadable as error:
            return web.Response(status=error.status, text=str(error), headers=_CORS)

    return guarded


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    merged = _JSON_HEADERS if headers is None else _JSON_HEADERS | headers
    return web.Response(body=orjson.dumps(value), status=status, headers=merged)


async def _read(request: web.Request) -> bytes:
    if not is_json(request.headers.get(hdrs.CONTENT_TYPE, "")):
        raise Unreadable(415, "Expected request with `Content-Type: application/json`")
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Unreadable(413, "Failed to buffer the request body: length limit exceeded") from None


class _Routes:
    """The handlers and what they share."""

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._seed = seed
        self._metrics = RequestMetrics(service.limits.max_total_tokens)
        self._next_id = OWN_IDS_FROM

    # TGI's own dialect

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """``POST /generate``."""
        started_s = clock.now()
        body = parse_generate(await _read(request))
        value, headers = await self._whole(request, body, started_s)
        return _json(value, headers=headers)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """``POST /generate_stream``: HTTP 200 whatever follows."""
        started_s = clock.now()
        return await self._stream_native(request, parse_generate(await _read(request)), started_s)

    async def compat(self, request: web.Request) -> web.StreamResponse:
        """``POST /``: as the hub's clients use it; the answer is a list, the prompt is repeated."""
        started_s = clock.now()
        body = parse_generate(await _read(request))
        if body.parameters.return_full_text is None:
            body = _with_full_text(body)
        if body.stream:
            return await self._stream_native(request, body, started_s)
        value, headers = await self._whole(request, body, started_s)
        return _json([value], headers=headers)

    async def _whole(
        self, request: web.Request, body: GenerateBody, started_s: float
    ) -> tuple[dict[str, Any], dict[str, str]]:
        self._metrics.count += 1
        with self._metrics.counting_failures():
            check_before_admission(body.parameters, streaming=False)
            bodies = [body] * (body.parameters.best_of or 1)
            plans, works, tickets, _ = await self._complete(request, bodies, started_s)
        headers = timing_headers(started_s, tickets[0], plans[0], works[0])
        return tgi.generate_body(plans, works[0]), headers

    async def _stream_native(
        self, request: web.Request, body: GenerateBody, started_s: float
    ) -> web.StreamResponse:
        self._metrics.count += 1
        return await self._stream(
            request,
            [body],
            started_s,
            lambda _, plan, work: tgi.TgiDialect(plan, work),
            tgi.error_event,
            b"",
        )

    # OpenAI's dialect

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        started_s = clock.now()
        body = openai.parse_chat(await _read(request))
        self._metrics.count += 2  # TGI counts a chat request on both layers it passes.
        envelope = self._envelope(body)
        if body.stream:
            return await self._stream_openai(
                request, body, started_s, lambda _, plan, work: openai.ChatDialect(plan, work, body, envelope)
            )
        with self._metrics.counting_failures():
            plans, works, tickets, _ = await self._complete(request, body.bodies, started_s)
        headers = timing_headers(started_s, tickets[0], plans[0], works[0])
        return _json(openai.chat_body(plans[0], works[0], body, envelope), headers=headers)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        started_s = clock.now()
        body = openai.parse_completion(await _read(request))
        self._metrics.count += 1 + len(body.bodies)
        envelope = self._envelope(body)
        if body.stream:
            return await self._stream_openai(
                request,
                body,
                started_s,
                lambda i, plan, work: openai.CompletionDialect(i, plan, work, envelope),
            )
        with self._metrics.counting_failures():
            plans, works, tickets, order = await self._complete(request, body.bodies, started_s)
        each = [
            timing_headers(started_s, ticket, plan, work)
            for ticket, plan, work in zip(tickets, plans, works, strict=True)
        ]
        return _json(openai.completion_body(order, plans, works, envelope), headers=summed(each))

    async def _stream_openai(
        self, request: web.Request, body: openai.OpenAiBody, started_s: float, dialect: MakeDialect
    ) -> web.StreamResponse:
        return await self._stream(request, body.bodies, started_s, dialect, openai.error_event, DONE)

    # The rest

    async def health(self, request: web.Request) -> web.StreamResponse:
        """``GET /health``."""
        return web.Response(headers=_CORS)

    async def info(self, request: web.Request) -> web.StreamResponse:
        """``GET /info``."""
        return _json(tgi.info_body(self._service.limits))

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``."""
        return _json(openai.models_body(self._service.limits.model_id))

    async def metrics_page(self, request: web.Request) -> web.StreamResponse:
        """``GET /metrics``."""
        return web.Response(text=self._metrics.text(self._service), headers=_CORS)

    # From a readable body to its tokens

    def _envelope(self, body: openai.OpenAiBody) -> openai.Envelope:
        now_s = _VIRTUAL_EPOCH_S + clock.now() if clock.is_virtual() else time.time()
        served = self._service.limits.model_id
        model = served if body.model is None or body.model == "tgi" else body.model
        return openai.Envelope(int(now_s), model)

    def _ids(self, request: web.Request, count: int) -> list[int]:
        """The ids of a request's replies; the first is the client's if it sent one."""
        given = request.headers.get("x-request-id")
        own = list(range(self._next_id, self._next_id + count))
        self._next_id += count
        if given is not None and _REQUEST_ID.fullmatch(given):
            own[0] = int(given)
        return own

    def _plan(
        self, request: web.Request, bodies: Sequence[GenerateBody]
    ) -> tuple[list[ReplyPlan], list[Work]]:
        """TGI's order: first a free place, even for a bad request, then validation."""
        limit = self._service.limits.max_concurrent_requests
        if self._service.in_flight + len(bodies) > limit:
            raise overloaded()
        works = [validate(body, self._service.limits) for body in bodies]
        for work in works:
            self._metrics.accepted(work.prompt_tokens, work.max_new_tokens)
        ids = self._ids(request, len(bodies))
        return [plan_reply(self._seed, i, work) for i, work in zip(ids, works, strict=True)], works

    def _submit(self, plan: ReplyPlan, work: Work, sink: Sink) -> Ticket:
        # TGI reserves at most 1,024 new tokens at a time; a longer reply is reserved whole here.
        reserved = max(plan.tokens, min(work.max_new_tokens, 1024))
        ticket = self._service.submit(
            plan.request_id, work.prompt_tokens, reserved, plan.tokens, plan.finish_reason, sink
        )
        if ticket is None:
            raise overloaded()
        return ticket

    async def _complete(
        self, request: web.Request, bodies: Sequence[GenerateBody], started_s: float
    ) -> tuple[list[ReplyPlan], list[Work], list[Ticket], list[int]]:
        """Generates without streaming; also the order in which the replies ended."""
        plans, works = self._plan(request, bodies)
        tickets: list[Ticket] = []
        order: list[int] = []
        sinks = [WholeSink(i, order) for i in range(len(plans))]
        try:
            for plan, work, sink in zip(plans, works, sinks, strict=True):
                tickets.append(self._submit(plan, work, sink))
            for sink in sinks:
                failure = await sink.done
                if failure is not None:
                    raise generation_failed(failure)
        finally:
            for ticket in tickets:
                ticket.cancel()
        for plan, ticket in zip(plans, tickets, strict=True):
            self._metrics.succeeded(times(started_s, ticket, plan.tokens), plan.tokens)
        return plans, works, tickets, order

    async def _stream(
        self,
        request: web.Request,
        bodies: Sequence[GenerateBody],
        started_s: float,
        make_dialect: MakeDialect,
        on_error: OnError,
        trailer: bytes,
    ) -> web.StreamResponse:
        characters = sum(len(body.inputs) for body in bodies)
        response = web.StreamResponse(headers=_STREAM_HEADERS | {"x-compute-characters": str(characters)})
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        writer.send_headers()
        # From here the body is framed by EventStream, its end included: write_eof must add nothing.
        writer.chunked = False
        stream = EventStream(
            request.transport,
            chunked=request.version >= HttpVersion11,
            replies=len(bodies),
            trailer=trailer,
        )
        tickets: list[Ticket] = []
        plans: list[ReplyPlan] = []
        try:
            try:
                check_before_admission(bodies[0].parameters, streaming=True)
                plans, works = self._plan(request, bodies)
                for i, (plan, work) in enumerate(zip(plans, works, strict=True)):
                    tickets.append(self._submit(plan, work, StreamSink(stream, make_dialect(i, plan, work))))
            except ApiError as error:
                self._metrics.failed(error.kind)
                stream.abort(on_error(error))
            await stream.done
        except asyncio.CancelledError:
            self._metrics.failed("dropped")
            raise
        finally:
            stream.close()
            for ticket in tickets:
                ticket.cancel()
        for plan, ticket in zip(plans, tickets, strict=False):
            if ticket.done_s is not None:
                self._metrics.succeeded(times(started_s, ticket, plan.tokens), plan.tokens)
            else:
                self._metrics.failed("generation")
        await writer.drain()
        await response.write_eof()
        return response


def _with_full_text(body: GenerateBody) -> GenerateBody:
    fields = {name: getattr(body.parameters, name) for name in Parameters.__slots__}
    return GenerateBody(body.inputs, Parameters(**fields | {"return_full_text": True}), body.stream)
