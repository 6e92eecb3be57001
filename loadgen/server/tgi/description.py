"""What this server says of its own interface: OpenAPI, and a page that lists the routes. Pure.

TGI generates both from its types; these name every route that is served and what
its body must hold, no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from loadgen.server.routing import Handler
from loadgen.server.tgi.generate import VERSION

_TEXT = {"type": "string"}
_GENERATE = {"inputs": _TEXT, "parameters": {"type": "object"}}
_CHAT = {
    "messages": {"type": "array", "items": {"type": "object", "required": ["role"]}},
    "model": _TEXT,
    "max_tokens": {"type": "integer", "minimum": 0},
    "stream": {"type": "boolean"},
}
_COMPLETION = {
    "prompt": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "model": _TEXT,
    "max_tokens": {"type": "integer", "minimum": 0},
    "stream": {"type": "boolean"},
}
_BODIES: dict[str, dict[str, Any]] = {
    "/": _GENERATE | {"stream": {"type": "boolean"}},
    "/generate": _GENERATE,
    "/generate_stream": _GENERATE,
    "/tokenize": _GENERATE,
    "/v1/chat/completions": _CHAT,
    "/chat_tokenize": _CHAT,
    "/v1/completions": _COMPLETION,
    "/vertex": {"instances": {"type": "array", "items": {"type": "object"}, "minItems": 1}},
}
"""Fields of the bodies, the first of each required."""


def openapi(posts: Mapping[str, Handler], gets: Mapping[str, Handler]) -> dict[str, Any]:
    """The interface as OpenAPI 3.0; summaries are the handlers' own."""
    paths: dict[str, dict[str, Any]] = {}
    for path, method, summary in _routes(posts, gets):
        operation: dict[str, Any] = {"summary": summary, "responses": {"200": {"description": "success"}}}
        if method == "post":
            schema: dict[str, Any] = {"type": "object"}
            fields = _BODIES.get(path)
            if fields is not None:
                schema |= {"required": [next(iter(fields))], "properties": fields}
            content = {"application/json": {"schema": schema}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Text Generation Inference",
            "description": "loadgen's embedded server, which answers as Text Generation Inference does",
            "version": VERSION,
        },
        "paths": paths,
    }


def documentation_page(posts: Mapping[str, Handler], gets: Mapping[str, Handler]) -> str:
    """The routes as HTML."""
    rows = "\n".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td><td>{escape(summary)}</td></tr>"
        for path, method, summary in _routes(posts, gets)
    )
    title = "loadgen's embedded server: Text Generation Inference"
    return (
        f"<!doctype html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1>\n"
        f'<p><a href="/api-doc/openapi.json">OpenAPI</a></p>\n<table>\n{rows}\n</table></body></html>\n'
    )


def _routes(posts: Mapping[str, Handler], gets: Mapping[str, Handler]) -> Iterator[tuple[str, str, str]]:
    for method, handlers in (("post", posts), ("get", gets)):
        for path, handler in handlers.items():
            yield path, method, (handler.__doc__ or "").partition("\n")[0].rstrip(".")
