"""Reading bodies as FastAPI does: JSON, then a pydantic model, whose errors the servers put into words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError

from loadgen.server.desk import BODY_S

ErrorDict = dict[str, Any]
M = TypeVar("M", bound=BaseModel)

HEADERS = {"server": "uvicorn"}
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8"}


class Refused(Exception):
    """A request is answered with ``status`` and this JSON."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class Invalid(Exception):
    """A body does not fit: pydantic's error dicts, ``loc`` with the leading ``body``."""

    def __init__(self, errors: list[ErrorDict]) -> None:
        super().__init__(errors)
        self.errors = errors


async def read(request: web.Request) -> bytes:
    """The body's bytes. Raises Refused: 413 past the payload limit, 400 or 408 when the body breaks off."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise Refused(408, {"detail": f"Request body incomplete after {BODY_S:g} s"}) from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, {"detail": "Request Entity Too Large"}) from None
    except web.RequestPayloadError:
        raise Refused(400, {"detail": "There was an error parsing the body"}) from None


def client_id(request: web.Request) -> str | None:
    """The client's ``x-request-id`` as Starlette reads it (Latin-1), None if it sent none."""
    given = request.headers.get("x-request-id")
    return None if given is None else given.encode("utf-8", "surrogateescape").decode("latin-1")


def is_json_type(request: web.Request) -> bool:
    """Whether the request says ``application/json``."""
    kind = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    return kind == "application/json"


def parse(raw: bytes) -> Any:
    """The JSON value of a body. Raises Invalid as FastAPI words it."""
    if not raw:
        raise Invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise Invalid([_json_invalid(error.pos, error.msg)]) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number too long, nested too deeply
        raise Invalid([_json_invalid(0, str(error))]) from None


def _json_invalid(place: int, reason: str) -> ErrorDict:
    return {
        "type": "json_invalid",
        "loc": ("body", place),
        "msg": "JSON decode error",
        "input": {},
        "ctx": {"error": reason},
    }


def fit(value: Any, model: type[M]) -> M:
    """The value as ``model``. Raises Invalid."""
    try:
        return model.model_validate(value, from_attributes=True)
    except ValidationError as error:
        raise Invalid([{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]) from None


def respond(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response, also of texts that are no Unicode (lone surrogates in what is echoed)."""
    try:
        body = orjson.dumps(value)
    except TypeError:
        body = json.dumps(value, separators=(",", ":"), default=str).encode()
    return web.Response(
        body=body, status=status, headers={"content-type": "application/json", **(headers or {})}
    )


def elsewhere(allowed: Sequence[str]) -> web.Response:
    """The answer where no handler is: 405 with the allowed methods, 404 for an unknown path."""
    if allowed:
        methods = ", ".join(method.removesuffix(",HEAD") for method in allowed)
        return respond({"detail": "Method Not Allowed"}, status=405, headers={"allow": methods})
    return respond({"detail": "Not Found"}, status=404)
