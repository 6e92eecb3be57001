"""vLLM's HTTP interface (0.32.0): OpenAI's routes with everything refused in pydantic's words.

It queues without limit; usage comes in a chunk of its own, only when asked for;
a token held back still is a chunk, with empty text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from loadgen.server.desk import GenerationFailed, unix_now_s
from loadgen.server.dialects import fastapi, vllm_requests, vllm_wire
from loadgen.server.dialects.answers import Answers, hex_id
from loadgen.server.dialects.asks import Ask
from loadgen.server.dialects.fastapi import Invalid, Refused, respond
from loadgen.server.dialects.form import Form
from loadgen.server.dialects.prompts import Vocabulary
from loadgen.server.dialects.vllm_metrics import VllmMetrics
from loadgen.server.routing import Handler
from loadgen.server.service import Service
from loadgen.server.stream import DONE


class VllmRoutes:
    """The handlers and what they share."""

    headers: Mapping[str, str] = {**fastapi.HEADERS, "vary": "Origin"}

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers = Answers(service)
        self._metrics = VllmMetrics(self._answers)
        self._vocabulary = Vocabulary()
        self._requests = 0
        self.posts: dict[str, Handler] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/ping": self.health,
        }
        self.gets: dict[str, Handler] = {
            "/v1/models": self.models,
            "/health": self.health,
            "/ping": self.health,
            "/load": self.load,
            "/version": self.version,
            "/metrics": self.metrics,
        }
        self.open_posts: frozenset[str] = frozenset({"/tokenize", "/detokenize", "/ping"})

    def unauthorized(self) -> web.Response:
        """401 for the routes under ``/v1``."""
        return respond({"error": "Unauthorized"}, status=401)

    def refusal(self, error: Exception) -> web.Response | None:
        """The response for an exception of a handler; None for one that is nobody's answer."""
        if isinstance(error, Refused):
            return respond(error.body, status=error.status)
        if isinstance(error, Invalid):
            return respond(vllm_requests.invalid_body(error.errors), status=400)
        if isinstance(error, GenerationFailed):
            return respond(vllm_requests.error_body(str(error), "InternalServerError", 500), status=500)
        return None

    def elsewhere(self, method: str, allowed: Sequence[str]) -> web.Response:
        """FastAPI's answers to a wrong method and an unknown path."""
        return fastapi.elsewhere(allowed)

    # Generation

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        body = vllm_requests.read_chat(await self._json(request))
        vllm_requests.check_model(body.model, self._model)
        ask = vllm_requests.chat_ask(body, self._service.limits)
        logprobs = body.top_logprobs if body.logprobs else None
        return await self._answer(request, body, ask, chat=True, logprobs=logprobs)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        body = vllm_requests.read_completion(await self._json(request))
        vllm_requests.check_model(body.model, self._model)
        ask = vllm_requests.completion_ask(body, self._service.limits, self._vocabulary.decode)
        return await self._answer(
            request,
            body,
            ask,
            chat=False,
            logprobs=body.logprobs,
            echo=body.echo,
            hide_reply=body.max_tokens == 0,
        )

    async def _answer(
        self, request: web.Request, body: vllm_requests.Sampling, ask: Ask, *, chat: bool, **more: Any
    ) -> web.StreamResponse:
        replies = self._answers.replies(request, ask)
        given = fastapi.client_id(request)
        number = replies[0].script.plan.request_id
        own = hex_id(self._service.launch.seed, number, 16) if given is None else given
        options = body.stream_options if body.stream else None
        include = options is not None and bool(options.include_usage)
        form = Form(
            f"{'chatcmpl' if chat else 'cmpl'}-{own}",
            unix_now_s(time.time()),
            body.model or self._model,
            chat,
            include_usage=include,
            continuous_usage=include and options is not None and bool(options.continuous_usage_stats),
            **more,
        )
        if not body.stream:
            await self._answers.whole(replies)
            return respond(vllm_wire.body(replies, form))
        stream = vllm_wire.Stream(replies, form)
        return await self._answers.stream(
            request,
            fastapi.STREAM_HEADERS,
            replies,
            stream.events,
            failed=vllm_wire.failed,
            ending=stream.ending,
            trailer=DONE,
        )

    # The rest

    async def tokenize(self, request: web.Request) -> web.StreamResponse:
        """``POST /tokenize``: a prompt or messages."""
        body = await self._json(request)
        if not isinstance(body, dict) or not ({"prompt", "messages"} & body.keys()):
            raise Invalid(
                [
                    {"type": "missing", "loc": ("body", name), "msg": "Field required", "input": body}
                    for name in ("prompt", "messages")
                ]
            )
        vllm_requests.check_model(body.get("model"), self._model)
        if "prompt" in body:
            text = body["prompt"]
            if not isinstance(text, str):
                raise Invalid([_no_text("prompt", text)])
        else:
            text = vllm_requests.chat_prompt(vllm_requests.read_chat(body), self._service.limits).text
        tokens = self._vocabulary.encode(text)
        strings = [token.text for token in tokens] if body.get("return_token_strs") else None
        return respond(
            {
                "count": len(tokens),
                "max_model_len": self._service.limits.max_total_tokens,
                "tokens": [token.id for token in tokens],
                "token_strs": strings,
            }
        )

    async def detokenize(self, request: web.Request) -> web.StreamResponse:
        """``POST /detokenize``."""
        body = fastapi.fit(await self._json(request), vllm_requests.DetokenizeRequest)
        vllm_requests.check_model(body.model, self._model)
        return respond({"prompt": self._vocabulary.decode(body.tokens)})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """``/health`` and ``/ping``: empty."""
        return web.Response()

    async def load(self, request: web.Request) -> web.StreamResponse:
        """``GET /load``: 0, as without ``--enable-server-load-tracking``."""
        return respond({"server_load": 0})

    async def version(self, request: web.Request) -> web.StreamResponse:
        """``GET /version``."""
        return respond({"version": vllm_wire.VERSION})

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``."""
        created_s = unix_now_s(time.time())
        permission = hex_id(self._service.launch.seed, created_s, 16)
        length = self._service.limits.max_total_tokens
        return respond(vllm_wire.models_body(self._model, length, created_s, permission))

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """``GET /metrics``."""
        headers = {"content-type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=self._metrics.text().encode(), headers=headers)

    @property
    def _model(self) -> str:
        return self._service.limits.model_id

    async def _json(self, request: web.Request) -> Any:
        if not fastapi.is_json_type(request):
            raise vllm_requests.unsupported_media_type()
        return fastapi.parse(await fastapi.read(request))


def _no_text(name: str, value: object) -> fastapi.ErrorDict:
    message = "Input should be a valid string"
    return {"type": "string_type", "loc": ("body", name), "msg": message, "input": value}
