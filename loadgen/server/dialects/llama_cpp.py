"""llama.cpp's HTTP interface (b1-7e4c0a9, recorded): OpenAI's routes, ``/completion``, its own state.

Excess requests wait for a slot without a word, and the stream of several prompts has
an event ``null``. The 401 of ``--api-key`` is from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from loadgen import clock
from loadgen.server.desk import GenerationFailed, unix_now_s
from loadgen.server.dialects import fastapi, llama_cpp_requests, llama_cpp_wire
from loadgen.server.dialects.answers import Answers, hex_id
from loadgen.server.dialects.asks import Ask, Reply
from loadgen.server.dialects.chunks import ReplyEvents
from loadgen.server.dialects.fastapi import Refused
from loadgen.server.dialects.llama_cpp_status import LlamaCppStatus
from loadgen.server.dialects.logprobs import token_bytes
from loadgen.server.dialects.prompts import Vocabulary
from loadgen.server.routing import Handler
from loadgen.server.service import Service
from loadgen.server.stream import DONE, event

_JSON = {"content-type": "application/json; charset=utf-8"}
_STREAM_HEADERS = {"content-type": "text/event-stream", "x-accel-buffering": "no"}
_PREFLIGHT = {
    "access-control-allow-credentials": "true",
    "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
    "access-control-allow-headers": "*",
    "content-type": "text/html",
}


class LlamaCppRoutes:
    """The handlers and what they share."""

    headers: Mapping[str, str] = {"server": "llama.cpp", "access-control-allow-origin": ""}

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers = Answers(service)
        self._vocabulary = Vocabulary()
        self._slots = service.limits.max_batch_size or 1
        self._status = LlamaCppStatus(self._answers, self._slots)
        self.posts: dict[str, Handler] = {
            "/completion": self.completion,
            "/completions": self.completion,
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat,
            "/chat/completions": self.chat,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/apply-template": self.apply_template,
        }
        self.gets: dict[str, Handler] = {
            "/health": self.health,
            "/v1/health": self.health,
            "/v1/models": self.models,
            "/models": self.models,
            "/props": self.props,
            "/slots": self.slots,
            "/metrics": self.metrics,
        }
        self.open_posts: frozenset[str] = frozenset()

    def unauthorized(self) -> web.Response:
        """401."""
        return _json(_error("Invalid API Key", "authentication_error", 401), status=401)

    def refusal(self, error: Exception) -> web.Response | None:
        """The response for an exception of a handler; None for one that is nobody's answer."""
        if isinstance(error, Refused):
            return _json(error.body, status=error.status)
        if isinstance(error, GenerationFailed):
            return _json(llama_cpp_requests.error_body(500, str(error), "server_error"), status=500)
        return None

    def elsewhere(self, method: str, allowed: Sequence[str]) -> web.Response:
        """Preflight; else the same 404 for a wrong method and an unknown path."""
        if method == "OPTIONS":
            return web.Response(headers=_PREFLIGHT)
        return _json(_error("File Not Found", "not_found_error", 404), status=404)

    # Generation

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        body = await self._body(request)
        ask = llama_cpp_requests.chat_ask(body, self._service.limits, self._slots)
        return await self._answer(request, body, ask, chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        body = await self._body(request)
        ask = self._completion_ask(body)
        return await self._answer(request, body, ask, chat=False)

    def _completion_ask(self, body: dict[str, Any]) -> Ask:
        decode = self._vocabulary.decode
        return llama_cpp_requests.completion_ask(body, self._service.limits, self._slots, decode)

    async def _answer(
        self, request: web.Request, body: dict[str, Any], ask: Ask, *, chat: bool
    ) -> web.StreamResponse:
        replies = self._answers.replies(request, ask)
        number = replies[0].script.plan.request_id
        options = body.get("stream_options")
        form = llama_cpp_wire.Form(
            f"chatcmpl-{hex_id(self._service.launch.seed, number, 32)}",
            unix_now_s(time.time()),
            self._service.limits.model_id,
            chat,
            include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
            timings_per_token=bool(body.get("timings_per_token")),
            logprobs=llama_cpp_requests.probabilities(body, chat=chat),
        )
        if not body.get("stream"):
            await self._answers.whole(replies)
            return _json(llama_cpp_wire.body(replies, form, clock.now()))
        events = llama_cpp_wire.Stream(form, clock.now).events
        return await self._stream(request, replies, events, trailer=DONE)

    async def _stream(
        self,
        request: web.Request,
        replies: Sequence[Reply],
        events: Callable[[Reply], ReplyEvents],
        *,
        trailer: bytes = b"",
    ) -> web.StreamResponse:
        return await self._answers.stream(
            request,
            _STREAM_HEADERS,
            replies,
            events,
            failed=llama_cpp_wire.failed,
            first=event(None) if len(replies[0].ask.prompts) > 1 else b"",
            trailer=trailer,
        )

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """``POST /completion``: its own format, without ``[DONE]``."""
        body = await self._body(request)
        replies = self._answers.replies(request, self._completion_ask(body))
        model = self._service.limits.model_id
        probabilities = llama_cpp_requests.probabilities(body)

        def end(reply: Reply, streamed: bool) -> dict[str, Any]:
            now_s = clock.now()
            fields = llama_cpp_wire.native_end(reply, body, model, self._slots, now_s, streamed=streamed)
            if probabilities is not None and not streamed:
                last = reply.script.plan.tokens
                fields |= llama_cpp_wire.native_probabilities(reply, 1, last, probabilities)
            return fields

        def events(reply: Reply) -> ReplyEvents:
            script = reply.script

            def last() -> list[bytes]:
                index = script.plan.tokens
                text = script.piece(index)
                chunk = llama_cpp_wire.native_chunk(reply, text, index, probabilities)
                return [*([event(chunk)] if text else []), event(end(reply, True))]

            return ReplyEvents(
                script,
                lambda text, index: llama_cpp_wire.native_chunk(reply, text, index, probabilities),
                last=last,
                failed=llama_cpp_wire.failed,
                uniform=False,
            )

        if body.get("stream"):
            return await self._stream(request, replies, events)
        await self._answers.whole(replies)
        values = [end(reply, False) for reply in replies]
        return _json(values if len(values) > 1 else values[0])

    # The rest

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """``POST /tokenize``."""
        body = await self._body(request)
        text = body.get("content", "")
        if not isinstance(text, str):
            raise llama_cpp_requests.broken(llama_cpp_requests.wrong_type("string", text))
        tokens = self._vocabulary.encode(text)
        if not body.get("with_pieces"):
            return _json({"tokens": [token.id for token in tokens]})
        pieces: list[Any] = []
        for token in tokens:
            encodable = token.text.isprintable() or token.text.isascii()
            pieces.append({"id": token.id, "piece": token.text if encodable else token_bytes(token.text)})
        return _json({"tokens": pieces})

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        """``POST /detokenize``."""
        ids = (await self._body(request)).get("tokens", [])
        if not isinstance(ids, list):
            raise llama_cpp_requests.broken(llama_cpp_requests.wrong_type("array", ids))
        for i in ids:
            if not isinstance(i, int):
                raise llama_cpp_requests.broken(llama_cpp_requests.wrong_type("number", i))
        return _json({"content": self._vocabulary.decode(ids)})

    async def apply_template(self, request: web.Request) -> web.StreamResponse:
        """``POST /apply-template``."""
        return _json({"prompt": llama_cpp_requests.chat_prompt(await self._body(request))})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """``GET /health``."""
        return _json({"status": "ok"})

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``."""
        return _json(self._status.models(unix_now_s(time.time())))

    async def props(self, request: web.Request) -> web.StreamResponse:
        """``GET /props``."""
        return _json(self._status.props())

    async def slots(self, request: web.Request) -> web.StreamResponse:
        """``GET /slots``."""
        return _json(self._status.slots())

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """``GET /metrics``."""
        headers = {"content-type": "text/plain; version=0.0.4"}
        return web.Response(body=self._status.metrics().encode(), headers=headers)

    async def _body(self, request: web.Request) -> dict[str, Any]:
        return llama_cpp_requests.parse(await fastapi.read(request))


def _json(value: Any, *, status: int = 200) -> web.Response:
    response = fastapi.respond(value, status=status)
    response.headers.update(_JSON)
    return response


def _error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code}}
