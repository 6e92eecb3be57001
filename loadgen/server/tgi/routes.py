"""TGI v3's routes over the embedded service."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from aiohttp import web

from loadgen.server.body import Unreadable
from loadgen.server.desk import json_response, read_json, unix_now_s
from loadgen.server.routing import Handler
from loadgen.server.service import Service
from loadgen.server.stream import DONE
from loadgen.server.tgi import openai
from loadgen.server.tgi.chat import ChatDialect, chat_body, parse_chat
from loadgen.server.tgi.completions import CompletionDialect, completion_body, parse_completion
from loadgen.server.tgi.description import documentation_page, openapi
from loadgen.server.tgi.errors import ApiError, error_body, incomplete, unhealthy
from loadgen.server.tgi.generate import TgiDialect, error_event, generate_body, info_body, reply_text
from loadgen.server.tgi.infer import Infer, MakeDialect
from loadgen.server.tgi.timing import summed
from loadgen.server.tgi.validation import GenerateBody, parse_generate
from loadgen.server.tgi.wrappers import parse_invocation, parse_vertex
from loadgen.server.tokenizer import Token, tokenize

_CORS = {
    "access-control-allow-origin": "*",
    "vary": "origin, access-control-request-method, access-control-request-headers",
}
_PREFLIGHT = {
    "access-control-allow-methods": "GET,POST",
    "access-control-allow-headers": "content-type",
}


class TgiRoutes:
    """The handlers and what they share.

    ``x-compute-type`` is the environment's COMPUTE_TYPE, as in TGI.
    """

    headers: Mapping[str, str] = _CORS

    def __init__(self, service: Service) -> None:
        self._service = service
        self._infer = Infer(service, os.environ.get("COMPUTE_TYPE", "gpu+optimized"))
        self._batch_size = service.limits.max_client_batch_size
        self.posts: dict[str, Handler] = {
            "/": self.compat,
            "/generate": self.generate,
            "/generate_stream": self.generate_stream,
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/vertex": self.vertex,
            "/invocations": self.invocations,
            "/tokenize": self.tokenize,
            "/chat_tokenize": self.chat_tokenize,
        }
        self.gets: dict[str, Handler] = {
            "/": self.health,
            "/health": self.health,
            "/ping": self.health,
            "/info": self.info,
            "/v1/models": self.models,
            "/metrics": self.metrics_page,
            "/docs": self.documentation,
            "/api-doc/openapi.json": self.schema,
        }
        self.open_posts = frozenset({"/chat_tokenize"})

    # What every route answers with

    def unauthorized(self) -> web.Response:
        """401, empty (server.rs:2213-2236)."""
        return web.Response(status=401)

    def refusal(self, error: Exception) -> web.Response | None:
        """The response for an exception of a handler; None for one that is nobody's answer."""
        if isinstance(error, ApiError):
            return json_response(error_body(error), status=error.status)
        if isinstance(error, Unreadable):
            return web.Response(status=error.status, text=str(error))
        return None

    def elsewhere(self, method: str, allowed: Sequence[str]) -> web.Response:
        """Preflight, wrong method or unknown path; bodies stay empty."""
        if method == "OPTIONS":
            return web.Response(headers=_PREFLIGHT)
        if allowed:
            return web.Response(status=405, headers={"allow": ",".join(reversed(allowed))})
        return web.Response(status=404)

    # TGI's own dialect

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Generate tokens."""
        value, headers = await self._native(request, parse_generate(await read_json(request)))
        return json_response(value, headers=headers)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        """Generate a stream of tokens as server-sent events: HTTP 200 whatever follows."""
        return await self._native_stream(request, parse_generate(await read_json(request)))

    async def compat(self, request: web.Request) -> web.StreamResponse:
        """Generate tokens, or a stream of them with `stream`; the prompt is repeated."""
        return await self._compat(request, parse_generate(await read_json(request)))

    async def _compat(self, request: web.Request, given: GenerateBody) -> web.StreamResponse:
        body = given.with_full_text()
        if body.stream:
            return await self._native_stream(request, body)
        value, headers = await self._native(request, body)
        return json_response([value], headers=headers)

    async def _native(
        self, request: web.Request, body: GenerateBody
    ) -> tuple[dict[str, object], dict[str, str]]:
        reply = await self._infer.one(request, body)
        prefill_logprobs = self._service.launch.launcher.enable_prefill_logprobs
        value = generate_body(reply.plan, reply.others, reply.work, prefill_logprobs=prefill_logprobs)
        return value, reply.headers

    async def _native_stream(self, request: web.Request, body: GenerateBody) -> web.StreamResponse:
        return await self._infer.stream(
            request, [body], lambda _, job, work: TgiDialect(job.plan, work), error_event
        )

    # OpenAI's dialect

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Generate a chat completion."""
        return await self._chat(request, await read_json(request))

    async def _chat(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        # TGI counts a chat request on both layers it passes; a body that cannot be read on neither.
        try:
            body = parse_chat(raw)
        except ApiError:
            self._infer.requests.count += 1
            raise
        self._infer.requests.count += 1
        envelope = self._envelope(body.model)
        if body.stream:
            return await self._openai_stream(
                request, body, lambda _, job, work: ChatDialect(job.plan, work, body, envelope)
            )
        reply = await self._infer.one(request, body.bodies[0])
        return json_response(chat_body(reply.plan, reply.work, body, envelope), headers=reply.headers)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Complete one prompt or a list of them."""
        return await self._completions(request, await read_json(request))

    async def _completions(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        try:
            body = parse_completion(raw, self._batch_size)
        except ApiError as error:
            self._infer.requests.count += 1
            self._infer.requests.failed(error.counted_as)
            raise
        self._infer.requests.count += 1
        envelope = self._envelope()
        if body.stream:
            return await self._openai_stream(
                request,
                body,
                lambda i, job, work: CompletionDialect(i, job.plan, work, envelope),
            )
        replies, order = await self._infer.several(request, body.bodies)
        plans, works = [reply.plan for reply in replies], [reply.work for reply in replies]
        return json_response(
            completion_body(order, plans, works, envelope),
            headers=summed([reply.headers for reply in replies]),
        )

    async def _openai_stream(
        self, request: web.Request, body: openai.OpenAiBody, dialect: MakeDialect
    ) -> web.StreamResponse:
        return await self._infer.stream(request, body.bodies, dialect, openai.error_event, trailer=DONE)

    def _envelope(self, model: str | None = None) -> openai.Envelope:
        served = self._service.limits.model_id
        return openai.Envelope(unix_now_s(time.time()), served if model in (None, "tgi") else model)

    # Bodies that wrap those of other routes

    async def invocations(self, request: web.Request) -> web.StreamResponse:
        """SageMaker's route: the body of `/`, of a chat or of a completion."""
        raw = await read_json(request)
        body = parse_invocation(raw)
        if isinstance(body, GenerateBody):
            return await self._compat(request, body)
        answer = self._chat if body == "chat" else self._completions
        return await answer(request, raw)

    async def vertex(self, request: web.Request) -> web.StreamResponse:
        """Vertex's route: instances in, predicted texts out; any failure is a 500, as there."""
        raw = await read_json(request)
        self._infer.requests.count += 1
        bodies = parse_vertex(raw)
        try:
            replies, _ = await self._infer.several(request, bodies)
        except ApiError:
            raise ApiError(500, "Incomplete generation", str(incomplete(streaming=False))) from None
        return json_response({"predictions": [reply_text(reply.plan, reply.work) for reply in replies]})

    # The rest

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """Tokenize inputs."""
        return json_response(_tokens(tokenize(parse_generate(await read_json(request)).inputs)))

    async def chat_tokenize(self, request: web.Request) -> web.StreamResponse:
        """Template and tokenize a chat."""
        raw = await read_json(request)
        self._infer.requests.count += 1
        text = parse_chat(raw).bodies[0].inputs
        return json_response({"tokenize_response": _tokens(tokenize(text)), "templated_text": text})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Health: 503 once the backend has stopped."""
        if self._service.closed:
            raise unhealthy()
        return web.Response()

    async def info(self, request: web.Request) -> web.StreamResponse:
        """The served model and the server's limits."""
        return json_response(info_body(self._service.limits))

    async def models(self, request: web.Request) -> web.StreamResponse:
        """The served model, as OpenAI lists it."""
        return json_response(openai.models_body(self._service.limits.model_id))

    async def metrics_page(self, request: web.Request) -> web.StreamResponse:
        """Prometheus metrics."""
        lines = self._infer.requests.lines() + self._infer.batches.lines()
        return web.Response(text="\n".join(lines) + "\n")

    async def documentation(self, request: web.Request) -> web.StreamResponse:
        """This list."""
        return web.Response(text=documentation_page(self.posts, self.gets), content_type="text/html")

    async def schema(self, request: web.Request) -> web.StreamResponse:
        """This list as OpenAPI."""
        return json_response(openapi(self.posts, self.gets))


def _tokens(tokens: Sequence[Token]) -> list[dict[str, object]]:
    return [{"id": t.id, "text": t.text, "start": t.start, "stop": t.stop} for t in tokens]
