"""SGLang's HTTP interface (0.5.23, read from its sources): OpenAI's routes and its own ``/generate``.

Errors are flat objects with 400; any model name is taken; a chat's finish chunk
stands apart from its last token. A health check answers at once, where the real
one generates a token and takes a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from loadgen import clock
from loadgen.server.desk import GenerationFailed, unix_now_s
from loadgen.server.dialects import fastapi, sglang_requests, sglang_wire
from loadgen.server.dialects.answers import Answers, hex_id
from loadgen.server.dialects.asks import Ask, Reply
from loadgen.server.dialects.chunks import ReplyEvents
from loadgen.server.dialects.fastapi import Invalid, Refused, respond
from loadgen.server.dialects.form import Form
from loadgen.server.dialects.prompts import NotText, Vocabulary, prompt_text
from loadgen.server.dialects.sglang_metrics import SglangMetrics
from loadgen.server.routing import Handler
from loadgen.server.service import Service
from loadgen.server.stream import DONE, event


class SglangRoutes:
    """The handlers and what they share."""

    headers: Mapping[str, str] = fastapi.HEADERS

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers = Answers(service)
        self._metrics = SglangMetrics(self._answers)
        self._vocabulary = Vocabulary()
        self.posts: dict[str, Handler] = {
            "/generate": self.generate,
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/tokenize": self.tokenize,
            "/v1/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/v1/detokenize": self.detokenize,
            "/flush_cache": self.flush_cache,
        }
        self.gets: dict[str, Handler] = {
            "/v1/models": self.models,
            "/health": self.health,
            "/health_generate": self.health,
            "/ready": self.health,
            "/ping": self.health,
            "/get_model_info": self.model_info,
            "/model_info": self.model_info,
            "/get_server_info": self.server_info,
            "/server_info": self.server_info,
            "/metrics": self.metrics,
        }
        self.open_posts: frozenset[str] = frozenset()

    def unauthorized(self) -> web.Response:
        """401."""
        return respond({"error": "Unauthorized"}, status=401)

    def refusal(self, error: Exception) -> web.Response | None:
        """The response for an exception of a handler; None for one that is nobody's answer."""
        if isinstance(error, Refused):
            return respond(error.body, status=error.status)
        if isinstance(error, Invalid):
            return respond(sglang_requests.invalid_body(error.errors), status=400)
        if isinstance(error, GenerationFailed):
            body = sglang_requests.error_body(str(error), "InternalServerError", 500)
            return respond(body, status=500)
        return None

    def elsewhere(self, method: str, allowed: Sequence[str]) -> web.Response:
        """FastAPI's answers to a wrong method and an unknown path."""
        return fastapi.elsewhere(allowed)

    # Generation

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        body = fastapi.fit(await self._json(request), sglang_requests.ChatRequest)
        ask = sglang_requests.chat_ask(body, self._service.limits)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return await self._answer(request, body, ask, chat=True, logprobs=logprobs)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        body = fastapi.fit(await self._json(request), sglang_requests.CompletionRequest)
        ask = sglang_requests.completion_ask(body, self._service.limits, self._vocabulary.decode)
        return await self._answer(request, body, ask, chat=False, logprobs=body.logprobs, echo=body.echo)

    async def _answer(
        self, request: web.Request, body: sglang_requests.Sampling, ask: Ask, *, chat: bool, **more: Any
    ) -> web.StreamResponse:
        replies = self._answers.replies(request, ask)
        options = body.stream_options if body.stream else None
        form = Form(
            self._id(replies[0]),
            unix_now_s(time.time()),
            body.model,
            chat,
            include_usage=options is not None and bool(options.include_usage),
            continuous_usage=options is not None and bool(options.continuous_usage_stats),
            **more,
        )
        if not body.stream:
            await self._answers.whole(replies)
            return respond(sglang_wire.body(replies, form))
        stream = sglang_wire.Stream(replies, form)
        return await self._answers.stream(
            request,
            fastapi.STREAM_HEADERS,
            replies,
            stream.events,
            failed=sglang_wire.failed,
            ending=stream.ending,
            trailer=DONE,
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """``POST /generate``: each event of a stream has all the text so far."""
        body = fastapi.fit(fastapi.parse(await fastapi.read(request)), sglang_requests.NativeRequest)
        ask = sglang_requests.native_ask(body, self._service.limits, self._vocabulary.decode)
        replies = self._answers.replies(request, ask)
        many = len(replies) > 1
        logprobs = bool(body.return_logprob)

        def value(reply: Reply, index: int, done: bool) -> dict[str, Any]:
            name = self._id(reply) if body.rid is None else body.rid
            found = sglang_wire.native(reply, name, index, done=done, now_s=clock.now(), logprobs=logprobs)
            return found | {"index": reply.index} if many and body.stream else found

        def events(reply: Reply) -> ReplyEvents:
            plan = reply.script.plan
            return ReplyEvents(
                reply.script,
                lambda _, index: value(reply, index, False),
                last=lambda: [event(value(reply, plan.tokens, True))],
                failed=_native_failed,
                sends_empty=True,
                uniform=False,
            )

        if body.stream:
            return await self._answers.stream(
                request, fastapi.STREAM_HEADERS, replies, events, failed=_native_failed, trailer=DONE
            )
        await self._answers.whole(replies)
        values = [value(reply, reply.script.plan.tokens, True) for reply in replies]
        return respond(values if many or isinstance(body.text, list) else values[0])

    def _id(self, reply: Reply) -> str:
        return hex_id(self._service.launch.seed, reply.script.plan.request_id, 32)

    # The rest

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """``POST /tokenize``: a prompt, several, or messages."""
        body = await self._json(request)
        given = body if isinstance(body, dict) else {}
        prompt, messages = given.get("prompt"), given.get("messages")
        if (prompt is None) == (messages is None):
            message = "Exactly one of 'prompt' or 'messages' must be provided."
            raise Refused(400, sglang_requests.error_body(message, "Bad Request"))
        if messages is not None:
            fitted = fastapi.fit(given, sglang_requests.ChatRequest)
            try:
                prompt = prompt_text(fitted.messages)
            except NotText as error:
                raise sglang_requests.bad_request(f"Unknown content type: {error.kind}") from None
        texts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
        if not all(isinstance(text, str) for text in texts):
            raise sglang_requests.bad_request("Input should be a valid string", "Bad Request")
        ids = [[token.id for token in self._vocabulary.encode(text)] for text in texts]
        counts = [len(found) for found in ids]
        many = isinstance(prompt, list)
        return respond(
            {
                "tokens": ids if many else ids[0],
                "count": counts if many else counts[0],
                "max_model_len": self._service.limits.max_total_tokens,
            }
        )

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        """``POST /detokenize``: ids, or several lists of them."""
        body = fastapi.fit(await self._json(request), sglang_requests.DetokenizeRequest)
        if body.tokens and isinstance(body.tokens[0], list):
            texts = [self._vocabulary.decode(ids) for ids in body.tokens if isinstance(ids, list)]
            return respond({"text": texts})
        return respond({"text": self._vocabulary.decode(i for i in body.tokens if isinstance(i, int))})

    async def flush_cache(self, request: web.Request) -> web.StreamResponse:
        """``POST /flush_cache``: says so, and flushes nothing."""
        return web.Response(text="Cache flushed.\nPlease check backend logs for more details.\n")

    async def health(self, request: web.Request) -> web.StreamResponse:
        """``/health``, ``/health_generate``, ``/ready`` and ``/ping``: empty."""
        return web.Response()

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``."""
        limits = self._service.limits
        created_s = unix_now_s(time.time())
        return respond(sglang_wire.models_body(limits.model_id, limits.max_total_tokens, created_s))

    async def model_info(self, request: web.Request) -> web.StreamResponse:
        """``GET /get_model_info``."""
        return respond(sglang_wire.model_info(self._service.limits.model_id))

    async def server_info(self, request: web.Request) -> web.StreamResponse:
        """``GET /get_server_info``: the few of its settings that mean something here."""
        limits = self._service.limits
        state = {"effective_max_running_requests_per_dp": limits.max_batch_size}
        return respond(
            {
                "model_path": limits.model_id,
                "served_model_name": limits.model_id,
                "context_length": limits.max_total_tokens,
                "max_prefill_tokens": limits.max_batch_prefill_tokens,
                "max_running_requests": limits.max_batch_size,
                "page_size": limits.block_tokens,
                "tp_size": self._service.launch.launcher.num_shard,
                "max_total_num_tokens": limits.max_batch_total_tokens,
                "internal_states": [state],
                "version": sglang_wire.VERSION,
            }
        )

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """``GET /metrics``, as with ``--enable-metrics``."""
        headers = {"content-type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=self._metrics.text().encode(), headers=headers)

    async def _json(self, request: web.Request) -> Any:
        if not fastapi.is_json_type(request):
            message = "Unsupported Media Type: Only 'application/json' is allowed"
            loc = ("header", "content-type")
            raise Invalid([{"loc": loc, "msg": message, "type": "value_error"}])
        return fastapi.parse(await fastapi.read(request))


def _native_failed(message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "code": 400, "retryable": False}
    return event({"error": error})
