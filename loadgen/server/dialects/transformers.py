"""``transformers serve --continuous-batching`` (5.23.0, recorded).

Usage always, inside the finish chunk; no ``[DONE]``; unknown fields are refused
with 422 and OpenAI's own that it cannot do (``n``, ``logprobs``, ``stream_options``)
ignored, as is ``stop`` with continuous batching. What it does not check is a 500 in
plain text. An empty prompt kills its worker, after which every request gets 503;
here only the request that brought it does. ``/v1/models`` lists the model served,
not a hub cache; ``max_tokens`` 0 yields one token instead of none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from loadgen.server.desk import GenerationFailed, unix_now_s
from loadgen.server.dialects import fastapi
from loadgen.server.dialects.answers import Answers, hex_id
from loadgen.server.dialects.asks import Ask, Reply
from loadgen.server.dialects.chunks import Fields, ReplyEvents
from loadgen.server.dialects.fastapi import Invalid, Refused, respond
from loadgen.server.dialects.prompts import NotText, prompt_of, prompt_text
from loadgen.server.dialects.script import CHARACTER_TOKENS
from loadgen.server.routing import Handler
from loadgen.server.service import Service
from loadgen.server.stream import event

_COMMON_FIELDS = frozenset(
    {
        "frequency_penalty", "generation_config", "logit_bias", "logprobs", "max_tokens", "model", "n",
        "presence_penalty", "seed", "stop", "stream", "stream_options", "temperature",
        "top_p", "user",
    }
)  # fmt: skip
CHAT_FIELDS = _COMMON_FIELDS | {
    "audio", "chat_template_kwargs", "function_call", "functions", "max_completion_tokens", "messages",
    "metadata", "modalities", "moderation", "parallel_tool_calls", "prediction", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "response_format",
    "safety_identifier", "service_tier", "store", "tool_choice", "tools", "top_logprobs", "verbosity",
    "web_search_options",
}  # fmt: skip
COMPLETION_FIELDS = _COMMON_FIELDS | {"best_of", "echo", "prompt", "suffix"}
DEFAULT_NEW_TOKENS = 1024
_EMPTY_PROMPT = (
    "cannot reshape tensor of 0 elements into shape [1, 0, -1, 64] because the unspecified dimension size "
    "-1 can be any value and is ambiguous"
)


class _Broken(Exception):
    """Something the server does not check, and falls over."""


class TransformersRoutes:
    """The handlers and what they share."""

    headers: Mapping[str, str] = fastapi.HEADERS

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers = Answers(service)
        self._names = 0
        self.posts: dict[str, Handler] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/load_model": self.load_model,
        }
        self.gets: dict[str, Handler] = {
            "/v1/models": self.models,
            "/health": self.health,
            "/openapi.json": self.openapi,
        }
        self.open_posts = frozenset({"/load_model"})

    def unauthorized(self) -> web.Response:
        """401: it has no keys of its own, so this is a proxy's."""
        return respond({"detail": "Unauthorized"}, status=401)

    def refusal(self, error: Exception) -> web.Response | None:
        """The response for an exception of a handler; None for one that is nobody's answer."""
        if isinstance(error, Refused):
            return respond(error.body, status=error.status)
        if isinstance(error, Invalid):
            return respond({"detail": error.errors}, status=422)
        if isinstance(error, _Broken):
            return web.Response(status=500, text="Internal Server Error")
        if isinstance(error, GenerationFailed):
            return respond({"error": str(error)}, status=503)
        return None

    def elsewhere(self, method: str, allowed: Sequence[str]) -> web.Response:
        """FastAPI's answers to a wrong method and an unknown path."""
        return fastapi.elsewhere(allowed)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        body = await self._body(request, CHAT_FIELDS)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise _Broken
        try:
            text = prompt_text([_without_images(message) for message in messages])
        except NotText:
            raise _Broken from None
        most = body.get("max_completion_tokens")
        return await self._answer(request, body, text, body.get("max_tokens") if most is None else most)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        body = await self._body(request, COMPLETION_FIELDS)
        prompt = body.get("prompt", "")
        if not isinstance(prompt, str):
            raise Refused(400, {"detail": "prompt must be a string."})
        if not prompt:
            name = self._name(request)
            raise Refused(503, {"error": f"CB worker died during request {name}: {_EMPTY_PROMPT}"})
        return await self._answer(request, body, prompt, body.get("max_tokens"))

    async def health(self, request: web.Request) -> web.StreamResponse:
        """``GET /health``."""
        return respond({"status": "ok"}, headers={"x-request-id": self._name(request)})

    async def models(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/models``: the owner is the author of the repository."""
        model = self._service.limits.model_id
        owner = model.split("/")[0] if "/" in model else ""
        card = {"owned_by": owner, "id": model, "object": "model", "created": unix_now_s(time.time())}
        return respond({"object": "list", "data": [card]}, headers={"x-request-id": self._name(request)})

    async def load_model(self, request: web.Request) -> web.StreamResponse:
        """``POST /load_model``, which ``transformers chat`` sends first: the model served is loaded."""
        model = (await self._dictionary(request)).get("model")
        if model is None:
            raise Refused(422, {"detail": "Missing `model` field in the request body."})
        if model not in (served := self._service.limits.model_id, f"{served}@main"):
            raise Refused(400, {"detail": f"Server is pinned to '{served}'; requested '{model}'."})
        ready = event({"status": "ready", "model": f"{served}@main", "cached": True})
        headers = fastapi.STREAM_HEADERS | {"x-request-id": self._name(request)}
        return web.Response(body=ready, headers=headers)

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        """``GET /openapi.json``, FastAPI's own page: what is served, without the schemas."""
        paths: dict[str, Fields] = {path: {"post": {}} for path in self.posts}
        paths |= {path: {"get": {}} for path in self.gets if path != "/openapi.json"}
        page = {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}, "paths": paths}
        return respond(page, headers={"x-request-id": self._name(request)})

    def _name(self, request: web.Request) -> str:
        """The request's id: the client's, or one of our own."""
        given = fastapi.client_id(request)
        if given is not None:
            return given
        self._names += 1
        return _uuid(hex_id(self._service.launch.seed, -self._names, 32))

    async def _dictionary(self, request: web.Request) -> dict[str, Any]:
        raw = await fastapi.read(request)
        # What is not called JSON stays a text, which is no dictionary.
        if raw and not fastapi.is_json_type(request):
            body: Any = raw.decode("utf-8", "replace")
        else:
            body = fastapi.parse(raw)
        if not isinstance(body, dict):
            message = "Input should be a valid dictionary"
            raise Invalid([{"type": "dict_type", "loc": ("body",), "msg": message, "input": body}])
        return body

    async def _body(self, request: web.Request, fields: frozenset[str]) -> dict[str, Any]:
        body = await self._dictionary(request)
        unexpected = sorted(body.keys() - fields)
        if unexpected:
            names = ", ".join(map(repr, unexpected))
            raise Refused(422, {"detail": f"Unexpected fields in the request: {{{names}}}"})
        model = body.get("model")
        served = self._service.limits.model_id
        if model is not None and model != served:
            raise Refused(400, {"detail": f"Server is pinned to '{served}'; requested '{model}'."})
        return body

    async def _answer(
        self, request: web.Request, body: dict[str, Any], text: str, most: Any
    ) -> web.StreamResponse:
        chat = "messages" in body
        suffix = body.get("suffix")
        if suffix is not None and not (isinstance(suffix, str) and _is_unicode(suffix)):
            raise _Broken
        prompt = prompt_of(text)
        room = self._service.limits.max_total_tokens - prompt.tokens
        wanted = _number(most)
        if room < 1:
            raise _Broken
        ask = Ask(
            prompts=[prompt],
            max_new_tokens=max(min(DEFAULT_NEW_TOKENS if wanted is None else wanted, room), 1),
        )
        (reply,) = self._answers.replies(request, ask)
        given = fastapi.client_id(request)
        own = _uuid(hex_id(self._service.launch.seed, reply.script.plan.request_id, 32))
        wire = _Wire(reply, own if given is None else given, self._service.limits.model_id, chat, suffix)
        headers = {"x-request-id": wire.id}
        if not body.get("stream"):
            await self._answers.whole([reply])
            return respond(wire.body(), headers=headers)
        return await self._answers.stream(
            request,
            fastapi.STREAM_HEADERS | headers,
            [reply],
            lambda _: wire.events(),
            failed=_failed,
            first=wire.role() if chat else b"",
        )


class _Wire:
    """The JSON of one answer."""

    def __init__(self, reply: Reply, request_id: str, model: str, chat: bool, suffix: str | None) -> None:
        self.id = request_id
        self._reply = reply
        self._chat = chat
        self._suffix = suffix
        self._tail: Fields = {
            "created": unix_now_s(time.time()),
            "model": f"{model}@main",
            "object": "chat.completion.chunk" if chat else "text_completion",
        }

    def body(self) -> Fields:
        """Without streaming; a character cut short is shown as the replacement character."""
        script = self._reply.script
        text = script.text
        words = len(script.plan.numbers)
        if script.released is not None and words % CHARACTER_TOKENS:
            text += "\N{REPLACEMENT CHARACTER}"
        choice: Fields = {"finish_reason": script.plan.finish_reason, "index": 0}
        if self._chat:
            choice["message"] = {"content": text, "role": "assistant"}
            tail = self._tail | {"object": "chat.completion"}
        else:
            choice["text"] = text + (self._suffix or "")
            tail = self._tail
        return {"id": self.id, "choices": [choice]} | tail | {"usage": self._usage()}

    def role(self) -> bytes:
        """The chunk that opens a chat, before any token."""
        return event(self._fields({"delta": {"role": "assistant"}, "index": 0}))

    def events(self) -> ReplyEvents:
        """The dialect of the reply."""
        return ReplyEvents(
            self._reply.script,
            lambda text, _: self._fields(self._choice(text)),
            last=self._last,
            failed=_failed,
        )

    def _choice(self, text: str) -> Fields:
        return {"delta": {"content": text}, "index": 0} if self._chat else {"index": 0, "text": text}

    def _fields(self, choice: Fields, **more: Any) -> Fields:
        fields = {"id": self.id, "choices": [choice]} | self._tail
        return fields | ({"system_fingerprint": ""} if self._chat else {}) | more

    def _last(self) -> list[bytes]:
        plan = self._reply.script.plan
        texts = [self._reply.script.piece(plan.tokens), self._suffix or ""]
        events = [event(self._fields(self._choice(text))) for text in texts if text]
        reason = plan.finish_reason
        if self._chat:
            choice: Fields = {"delta": {}, "index": 0, "finish_reason": reason}
        else:
            choice = {"finish_reason": reason, "index": 0, "text": ""}
        return [*events, event(self._fields(choice, usage=self._usage()))]

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._reply.prompt.tokens, self._reply.script.plan.tokens
        return {"completion_tokens": completion, "prompt_tokens": prompt, "total_tokens": prompt + completion}


def _uuid(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _failed(message: str) -> bytes:
    return event({"error": message})


def _number(value: Any) -> int | None:
    """``int(value)`` as Python does it, None for null."""
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise _Broken from None


def _is_unicode(text: str) -> bool:
    """Whether a text can be sent: it has no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _without_images(message: dict[str, Any]) -> dict[str, Any]:
    """A text model is given the texts alone."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [p for p in content if isinstance(p, dict) and p.get("type") == "text"]}
