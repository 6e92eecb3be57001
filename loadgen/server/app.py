"""The HTTP application: one dialect's routes behind the API key, the payload limit and the faults.

The app must run with ``handler_cancellation=True``, so that a client that hangs up
frees its place at once; it does not drive the service, its owner does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module

from aiohttp import hdrs, web

from loadgen.server.desk import InternalError, Overloaded, given_id
from loadgen.server.faults import Injector, strikes
from loadgen.server.routing import Handler, Routes
from loadgen.server.service import Service

DIALECTS = {
    "tgi": "loadgen.server.tgi.routes:TgiRoutes",
    "vllm": "loadgen.server.dialects.vllm:VllmRoutes",
    "sglang": "loadgen.server.dialects.sglang:SglangRoutes",
    "llama.cpp": "loadgen.server.dialects.llama_cpp:LlamaCppRoutes",
    "transformers": "loadgen.server.dialects.transformers:TransformersRoutes",
}

_WITHOUT_GENERATION = frozenset(
    {
        *("/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/chat_tokenize"),
        *("/apply-template", "/props", "/flush_cache"),
    }
)
"""Routes of any dialect that are POSTed to and generate nothing: no faults there."""


def make_app(
    service: Service, *, api_key: str | None = None, crash: Callable[[], Awaitable[None]] | None = None
) -> web.Application:
    """The application that serves ``service`` in its launch's dialect.

    With ``api_key``, routes that generate want ``Authorization: Bearer <key>``.
    ``crash`` ends the server when its faults say so; without it such a request
    is never answered.
    """
    module, _, name = DIALECTS[service.launch.dialect].partition(":")
    routes: Routes = getattr(import_module(module), name)(service)
    app = web.Application(client_max_size=service.launch.launcher.payload_limit)
    launch = service.launch
    injector = Injector(launch.faults, launch.seed, crash or _never) if strikes(launch.faults) else None
    for path, handler in routes.posts.items():
        key = None if path in routes.open_posts else api_key
        faulty = injector if path not in routes.open_posts and path not in _WITHOUT_GENERATION else None
        app.router.add_post(path, _guarded(handler, routes, key, faulty))
    for path, handler in routes.gets.items():
        app.router.add_get(path, _guarded(handler, routes, None, None))

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        allowed = ["GET,HEAD"] * (request.path in routes.gets) + ["POST"] * (request.path in routes.posts)
        return routes.elsewhere(request.method, allowed)

    app.router.add_route("*", "/{path:.*}", elsewhere)

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.pop(hdrs.SERVER, None)  # aiohttp's own; a dialect names itself, if it does
        response.headers.update(routes.headers)

    app.on_response_prepare.append(sign)
    return app


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


def _guarded(handler: Handler, routes: Routes, api_key: str | None, injector: Injector | None) -> Handler:
    """The handler behind the API key and its faults, with refusals turned into responses."""
    expected = None if api_key is None else f"bearer {api_key}".lower()

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except ConnectionResetError:  # the client hung up before its answer began: nobody reads this
            return web.Response()
        except Exception as error:
            response = routes.refusal(error) or _gateway_refusal(error)
            if response is None:
                raise
            return response

    async def guarded(request: web.Request) -> web.StreamResponse:
        if expected is not None and request.headers.get(hdrs.AUTHORIZATION, "").lower() != expected:
            return routes.unauthorized()
        if injector is None:
            return await answered(request)
        return await injector.answer(request, given_id(request), answered)

    return guarded


def _gateway_refusal(error: Exception) -> web.Response | None:
    """What a proxy in front answers where a dialect knows no such failure."""
    if isinstance(error, Overloaded):
        return web.Response(status=429, text="Too Many Requests")
    if isinstance(error, InternalError):
        return web.Response(status=500, text="Internal Server Error")
    return None
