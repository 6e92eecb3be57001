"""What is behind an address: which server, which protocol, which model, which limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import aiohttp
import orjson

from loadgen.clients.http import connect_cause, endpoint, parse_url
from loadgen.clients.redaction import redact_url
from loadgen.clients.replies import excerpt
from loadgen.errors import ConfigError

Kind = Literal["tgi", "vllm", "sglang", "llama.cpp", "transformers", "openai"]

TIMEOUT_S = 5.0
_BODY_LIMIT_BYTES = 1 << 20
_OWNERS: dict[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answered. ``protocol`` is a key of `loadgen.clients.CLIENTS`.

    ``limits`` are the integer limits it declares, under its own names, such as
    ``max_concurrent_requests`` (TGI) or ``max_model_len`` (vLLM); ``info`` is
    what it said about itself, for the manifest.
    """

    kind: Kind
    protocol: str
    model: str | None
    limits: Mapping[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


async def probe(
    base_url: str, headers: Mapping[str, str] | None = None, *, timeout_s: float = TIMEOUT_S
) -> Target:
    """Finds out what serves ``base_url``, by GET requests that cost it nothing.

    Tries ``/info`` (TGI), then ``/v1/models`` (the others, told apart by
    ``owned_by``; SGLang also by ``/get_model_info``, transformers by the routes in its
    ``/openapi.json``), then ``/health``. Each has ``timeout_s``. Raises ConfigError
    naming every address tried and what it gave.
    """
    parse_url(base_url)
    tried: list[str] = []
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        headers=dict(headers or {}),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        info = await _get_json(session, endpoint(base_url, "/info"), tried)
        if isinstance(info, dict) and isinstance(info.get("model_id"), str):
            return Target("tgi", "tgi", info["model_id"], _limits(info), info)
        models = await _get_json(session, endpoint(base_url, "/v1/models"), tried)
        target = _openai_target(models)
        if target is not None and target.kind == "openai":
            more = await _get_json(session, endpoint(base_url, "/get_model_info"), [])
            if isinstance(more, dict) and "model_path" in more:
                return replace(target, kind="sglang", info={**target.info, **more})
            described = await _get_json(session, endpoint(base_url, "/openapi.json"), [])
            if _is_transformers(described):
                return replace(target, kind="transformers")
        if target is not None:
            return target
        health = await _get_json(session, endpoint(base_url, "/health"), tried)
    if health is not None:
        tried.append("the server is alive, but names no model: pass the protocol and model explicitly")
    raise ConfigError(f"{redact_url(base_url)}: no known LLM server: {'; '.join(tried)}")


def _openai_target(models: Any) -> Target | None:
    if not isinstance(models, dict) or not isinstance(models.get("data"), list):
        return None
    entries = [m for m in models["data"] if isinstance(m, dict) and isinstance(m.get("id"), str)]
    if not entries:
        return None
    first = entries[0]
    owner = first.get("owned_by")
    kind: Kind = _OWNERS.get(owner, "openai") if isinstance(owner, str) else "openai"
    meta = first.get("meta")
    limits = _limits(first) | (_limits(meta) if isinstance(meta, dict) else {})
    return Target(kind, "openai-chat", first["id"], limits, {"models": entries})


def _is_transformers(described: Any) -> bool:
    """Whether FastAPI's description of a server is that of ``transformers serve``: untitled, with its routes.

    It says nothing else of itself: ``owned_by`` is the model's author there.
    """
    match described:
        case {"info": {"title": "FastAPI"}, "paths": {"/load_model": {"post": _}, "/v1/chat/completions": _}}:
            return True
    return False


def _limits(said: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: value
        for name, value in said.items()
        if name.startswith(("max_", "n_ctx")) and isinstance(value, int) and not isinstance(value, bool)
    }


async def _get_json(session: aiohttp.ClientSession, url: str, tried: list[str]) -> Any:
    """The JSON at an address, {} for any other 200; None with a line in ``tried`` if neither."""
    shown = f"GET {redact_url(url)}"
    try:
        async with session.get(url, allow_redirects=False) as response:
            body = await response.content.read(_BODY_LIMIT_BYTES)
            while not response.content.at_eof() and len(body) < _BODY_LIMIT_BYTES:
                body += await response.content.read(_BODY_LIMIT_BYTES)
            status = response.status
    except TimeoutError:
        tried.append(f"{shown}: no answer in time")
        return None
    except aiohttp.ClientConnectorError as exc:  # no other address of this server will do better
        raise ConfigError(f"{redact_url(url)}: nothing answers: {connect_cause(exc)}") from exc
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as exc:
        tried.append(f"{shown}: {connect_cause(exc)}")
        return None
    except ValueError as exc:  # no host name at all, or a header that cannot be sent
        raise ConfigError(
            f"{redact_url(url)}: expected an address and headers that can be sent: {exc}"
        ) from exc
    if status != 200:
        hint = " (is an API key needed?)" if status in (401, 403) else ""
        tried.append(f"{shown}: HTTP {status}{hint} {excerpt(body)[:80]}".rstrip())
        return None
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        tried.append(f"{shown}: HTTP 200 but no JSON: {excerpt(body)[:80]!r}")
        return {}
    tried.append(f"{shown}: HTTP 200 {excerpt(body)[:80]}")
    return value
