"""loadgen doctor --url and --sidecar: scripted servers and sidecars, and the verb's exit status."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_doctor import made_report, printed

from loadgen import cli, clock, doctor
from loadgen.doctor import answers, power
from loadgen.types import Domain

TGI_INFO = {"model_id": "m/chat", "max_concurrent_requests": 128, "max_total_tokens": 4096}


async def at(
    routes: dict[str, Any], key: str | None = None, api_key: str | None = None, *, user: str = ""
) -> dict[str, Any]:
    """`server_at` of a server with these GET routes that demands ``key``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            return web.Response(status=401, text="no")
        reply = routes.get(request.path)
        if reply == "hang":
            await asyncio.sleep(60)
        if isinstance(reply, bytes):
            return web.Response(body=reply, content_type="text/plain")
        return web.Response(status=404) if reply is None else web.json_response(reply)

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        return await answers.server_at(f"http://{user}127.0.0.1:{runner.addresses[0][1]}", api_key)
    finally:
        await runner.cleanup()


def models(owner: str, **more: int) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "m-1", "object": "model", "owned_by": owner, **more}]}


@pytest.mark.parametrize(
    ("routes", "kind", "protocol", "model", "limits"),
    [
        (
            {"/info": TGI_INFO},
            "tgi",
            "tgi",
            "m/chat",
            {"max_concurrent_requests": 128, "max_total_tokens": 4096},
        ),
        (
            {"/v1/models": models("vllm", max_model_len=2048)},
            "vllm",
            "openai-chat",
            "m-1",
            {"max_model_len": 2048},
        ),
        ({"/v1/models": models("sglang")}, "sglang", "openai-chat", "m-1", {}),
        ({"/v1/models": models("llamacpp")}, "llama.cpp", "openai-chat", "m-1", {}),
    ],
)
def test_a_server_is_named_with_its_model_and_limits(
    routes: dict[str, Any], kind: str, protocol: str, model: str, limits: dict[str, int]
) -> None:
    facts = asyncio.run(at(routes, user="u:secret@"))
    assert facts["reason"] is None and facts["local"] is True
    assert (facts["kind"], facts["protocol"], facts["model"], facts["limits"]) == (
        kind,
        protocol,
        model,
        limits,
    )
    assert "secret" not in json.dumps(facts)


def test_a_server_that_wants_a_key_says_so_in_one_line_and_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOADGEN_API_KEY", raising=False)
    refused = asyncio.run(at({"/info": TGI_INFO}, "k1"))
    assert refused["kind"] is None
    assert "is an API key needed?" in refused["reason"] and "\n" not in refused["reason"]
    monkeypatch.setenv("LOADGEN_API_KEY", "k1\n")
    assert asyncio.run(at({"/info": TGI_INFO}, "k1"))["kind"] == "tgi"
    assert asyncio.run(at({"/info": TGI_INFO}, "k2", "k2"))["kind"] == "tgi"


def test_a_server_that_never_answers_is_given_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PROBE_TIMEOUT_S", 0.05)
    facts = asyncio.run(at({"/info": "hang", "/v1/models": "hang"}, user="u:secret@"))
    told = "no answer in 0.05 s: start the server, or open or forward its port"
    assert facts["reason"] == f"{facts['url']}: {told}"
    assert facts["kind"] is None and "secret" not in facts["url"]


@pytest.mark.parametrize(
    ("measured", "server", "status"),
    [
        (["gpu0"], None, 0),
        ([], None, 1),
        ([], {"/info": TGI_INFO}, 0),
        (["gpu0"], {}, 1),
    ],
)
def test_exit_status_is_the_answer_to_what_was_asked(
    measured: list[str],
    server: dict[str, Any] | None,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = tuple(power.Finding(name, "counter") for name in measured)
    estimate = power.Finding("ram", "estimated", power_w=10.0)
    seen = power.Power((*findings, estimate), (), ())
    monkeypatch.setattr(doctor, "power_here", lambda **_: seen)

    words = ["doctor", "--json"]
    if server is not None:
        real = doctor.server_at

        async def behind(url: str, api_key: str | None) -> dict[str, Any]:
            monkeypatch.setattr(doctor, "server_at", real)
            return await at(server, api_key=api_key)

        monkeypatch.setattr(doctor, "server_at", behind)
        words += ["--url", "http://127.0.0.1:9"]
    assert cli.main(words) == status
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is (status == 0)
    assert found["measured"] == measured
    assert (found["server"] is None) is (server is None)


def test_an_impossible_address_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--url", "gpu-host"]) == 2
    assert "url: expected http://HOST" in capsys.readouterr().err


SIDECAR: dict[str, Any] = {
    "schema": 1,
    "id": "7d1f",
    "interval_s": 0.05,
    "domains": [asdict(Domain("gpu0", "counter", None, "NVML total energy; H200", 0.1))],
    "boards": [{"domain": "gpu0", "uuid": "GPU-1", "name": "NVIDIA H200", "power_limit_w": 700.0}],
    "reasons": {"gpu": None, "cpu": "rapl: permission denied: chmod a+r it", "ram": None},
    "warnings": ["power: gpu0: one thing"],
    "overhead": {"cpu_share": 0.012, "wake_late_p99_s": 3e-4},
    "processes": {"gpu0": [{"pid": 41, "name": "tgi", "memory_bytes": 1 << 30}]},
    "pids": None,
    "tables": {"power": {"last_seq": 5}},
}


async def beside(
    info: dict[str, Any], *, health: str = "ok", delay_s: float = 0.0, token: str | None = None
) -> dict[str, Any]:
    """`sidecar_at` of a sidecar with this ``info`` that asks for the token T and is an hour ahead."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            return web.json_response(
                {"status": health, "reason": "no sample"}, status=200 if health == "ok" else 503
            )
        if request.headers.get("authorization") != "Bearer T":
            return web.json_response({"error": "who?"}, status=401)
        if request.path == "/v1/clock":
            await asyncio.sleep(delay_s)
            return web.json_response({"t_s": clock.now() + 3600.0})
        return web.json_response(info)

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        return await answers.sidecar_at(f"http://127.0.0.1:{runner.addresses[0][1]}", token)
    finally:
        await runner.cleanup()


def test_a_sidecar_is_examined_with_its_domains_overhead_and_clock() -> None:
    found = asyncio.run(beside(SIDECAR, token="T"))
    assert found["reason"] is None and found["measured"] == ["gpu0"]
    assert found["clock"]["round_trips"] == 16 and 0 < found["clock"]["bound_s"] < 0.01
    assert found["clock"]["offset_s"] == pytest.approx(3600.0, abs=found["clock"]["bound_s"])
    text = printed(made_report(sidecar=found))
    for words in (
        "a sample every 50 ms",
        "gpu0: counter (every 100 ms); NVML total energy",
        "gpu0: NVIDIA H200 GPU-1",
        "power limit 700 W, driver unknown, MIG off",
        "by the sidecar: gpu0",
        "cpu: rapl: permission denied",
        "note: power: gpu0: one thing",
        "tgi (41, 1.0 GiB)",
        "fastest of 16 round trips",
        "1.2 % of a core, p99 of its lateness 300 us",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": None}, "asks for a token"),
        ({"token": "t"}, "refuses this token"),
        ({"health": "stale"}, "is stale: no sample"),
        ({"delay_s": 0.025}, "a run needs 10 ms"),
        ({"info": SIDECAR | {"schema": 2}}, "speaks schema 2"),
        ({"info": SIDECAR | {"domains": []}}, "measures nothing: rapl: permission denied"),
    ],
)
def test_a_sidecar_that_is_unfit_for_a_run_says_why_in_one_line(change: dict[str, Any], words: str) -> None:
    found = asyncio.run(beside(**({"info": SIDECAR, "token": "T"} | change)))
    assert words in found["reason"] and "\n" not in found["reason"]
    assert words in printed(made_report(sidecar=found))


def test_nothing_at_either_address_is_one_clean_sentence_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "power_here", lambda **_: power.Power((), (), ()))
    (tmp_path / "token").write_text("T\n")
    words = ["doctor", "--url", "http://127.0.0.1:9", "--sidecar", "http://127.0.0.1:9"]
    assert cli.main([*words, "--sidecar-token-file", str(tmp_path / "token")]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    server = next(line for line in lines if line.startswith("server"))
    refused = "nothing answers: connection refused: start the server, or open or forward its port"
    assert server == f"server   http://127.0.0.1:9/info: {refused}"
    sidecar = next(line for line in lines if line.startswith("sidecar"))
    assert "nothing answers: connection refused: start `loadgen sidecar`" in sidecar
    assert cli.main([*words, "--sidecar-token-file", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_servers_metrics_are_named_or_their_absence_has_a_reason() -> None:
    page = b"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\n"
    assert asyncio.run(at({"/info": TGI_INFO, "/metrics": page}))["metrics"] == "tgi"
    without = asyncio.run(at({"/info": TGI_INFO}))
    assert without["metrics"] is None and "this server has none" in without["metrics_reason"]
    foreign = asyncio.run(at({"/info": TGI_INFO, "/metrics": b"python_gc_total 3\n"}))
    assert foreign["metrics"] is None and "no known server's names" in foreign["metrics_reason"]
