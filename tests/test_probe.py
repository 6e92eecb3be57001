"""What the probe makes of each kind of server's answers (loopback sockets, no real server)."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from loadgen.clients import CLIENTS
from loadgen.clients.probe import probe
from loadgen.errors import ConfigError

TGI_INFO = {
    "model_id": "meta-llama/Llama-3.1-8B",
    "model_sha": None,
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_input_tokens": 4095,
    "max_total_tokens": 4096,
    "version": "3.3.6-dev0",
}


def models(owner: str | None, **more) -> dict:
    return {"object": "list", "data": [{"id": "m-1", "object": "model", "owned_by": owner} | more]}


def ask(routes: dict, *, base: str = "", headers=None, timeout_s: float = 5.0):
    """Probes a server with these GET routes; returns (target, headers it saw)."""
    seen: list[dict] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.headers))
        reply = routes.get(request.path)
        if reply is None:
            return web.Response(status=404)
        if reply == "hang":
            await asyncio.sleep(60)
        if isinstance(reply, web.Response):
            return reply
        return web.json_response(reply)

    async def main():
        runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await probe(f"http://127.0.0.1:{port}{base}", headers, timeout_s=timeout_s)
        finally:
            await runner.cleanup()

    return asyncio.run(main()), seen


def test_tgi():
    target, _ = ask({"/info": TGI_INFO})
    assert (target.kind, target.protocol, target.model) == ("tgi", "tgi", "meta-llama/Llama-3.1-8B")
    assert target.limits["max_concurrent_requests"] == 128
    assert target.limits["max_total_tokens"] == 4096
    assert target.info["version"] == "3.3.6-dev0"


@pytest.mark.parametrize(
    ("answer", "kind", "limits"),
    [
        (models("vllm", max_model_len=2048), "vllm", {"max_model_len": 2048}),
        (models("sglang", max_model_len=8192), "sglang", {"max_model_len": 8192}),
        (models("llamacpp", meta={"n_ctx_train": 2048, "size": 1}), "llama.cpp", {"n_ctx_train": 2048}),
        (models("someone"), "openai", {}),
        (models(None), "openai", {}),
    ],
)
def test_openai_servers(answer, kind, limits):
    target, _ = ask({"/v1/models": answer})
    assert (target.kind, target.protocol, target.model) == (kind, "openai-chat", "m-1")
    assert target.protocol in CLIENTS
    assert target.limits == limits


def test_sglang_by_its_own_route():
    target, _ = ask(
        {"/v1/models": models("org"), "/get_model_info": {"model_path": "p", "is_generation": True}}
    )
    assert target.kind == "sglang"
    assert target.info["model_path"] == "p"


TRANSFORMERS = {
    "openapi": "3.1.0",
    "info": {"title": "FastAPI", "version": "0.1.0"},
    "paths": {
        "/v1/chat/completions": {"post": {"summary": "Chat Completions"}},
        "/load_model": {"post": {"summary": "Load Model"}},
        "/v1/models": {"get": {}, "options": {}},
    },
}


@pytest.mark.parametrize(
    ("described", "kind"),
    [
        (TRANSFORMERS, "transformers"),
        (TRANSFORMERS | {"info": {"title": "My models"}}, "openai"),
        (TRANSFORMERS | {"paths": {"/v1/chat/completions": {"post": {}}}}, "openai"),
        (TRANSFORMERS | {"paths": {"/v1/chat/completions": {}, "/load_model": {"get": {}}}}, "openai"),
        (TRANSFORMERS | {"paths": [1]}, "openai"),
        ([1], "openai"),
        (web.Response(text="<html>", content_type="text/html"), "openai"),
    ],
)
def test_transformers_by_its_routes(described, kind):
    """Routes of 5.23.0's `transformers serve`; its models' `owned_by` is their author."""
    target, _ = ask({"/v1/models": models("HuggingFaceTB"), "/openapi.json": described})
    assert (target.kind, target.protocol, target.model) == (kind, "openai-chat", "m-1")


def test_base_address_may_end_in_v1():
    target, _ = ask({"/v1/models": models("vllm")}, base="/v1/")
    assert target.kind == "vllm"


def test_headers_are_passed_and_never_printed():
    target, seen = ask({"/info": TGI_INFO}, headers={"Authorization": "Bearer hunter2"})
    assert target.kind == "tgi"
    assert seen[0]["Authorization"] == "Bearer hunter2"
    with pytest.raises(ConfigError) as caught:
        ask({"/info": web.Response(status=401)}, headers={"Authorization": "Bearer hunter2"})
    assert "HTTP 401 (is an API key needed?)" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_alive_but_unknown_says_what_was_tried_and_seen():
    routes = {
        "/health": {"status": "ok"},
        "/info": web.Response(text="<html>hello", content_type="text/html"),
    }
    with pytest.raises(ConfigError) as caught:
        ask(routes)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "/info: HTTP 200 but no JSON",
        "<html>hello",
        "/v1/models: HTTP 404",
        "/health: HTTP 200",
        "alive",
    ):
        assert part in message


@pytest.mark.parametrize("answer", [{"data": []}, {"data": [3]}, [1], {"data": [{"id": 5}]}, {}])
def test_nonsense_models(answer):
    with pytest.raises(ConfigError, match="no known LLM server"):
        ask({"/v1/models": answer})


def test_a_server_that_hangs_is_given_up():
    with pytest.raises(ConfigError, match="no answer in time"):
        ask({"/info": "hang", "/v1/models": "hang", "/health": "hang"}, timeout_s=0.05)


def test_nobody_there():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ConfigError, match="connection refused") as caught:
        asyncio.run(probe(f"http://me:hunter2@127.0.0.1:{port}"))
    assert "hunter2" not in str(caught.value)


def test_unusable_address():
    with pytest.raises(ConfigError, match="expected http"):
        asyncio.run(probe("localhost:8080"))
