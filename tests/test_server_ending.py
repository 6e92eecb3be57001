"""What clients see when the backend fails, the service has stopped, or the server is told to go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from served import RawConnection, Served, ask, exact, request_bytes

from loadgen import clock
from loadgen.launch import Faults, Launch, Launcher
from loadgen.server.desk import Desk, GenerationFailed, Job
from loadgen.server.host import Serving, serving
from loadgen.server.reply import ReplyPlan
from loadgen.server.service import Service

CHAT = {"messages": [{"role": "user", "content": "Thank you!"}], "max_tokens": 500}
FAILED = {
    "error": "Request failed during generation: the server is shutting down",
    "error_type": "generation",
}
EVENT = {"error": {"message": FAILED["error"], "http_status_code": 422}}


def get_bytes(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode()


def test_health_is_503_once_the_service_has_stopped_and_generation_a_424() -> None:
    async def call(server: Served) -> None:
        assert (await server.get("/health")).status == 200
        server.service.close()
        for path in ("/health", "/ping", "/"):
            found = await server.get(path)
            said = {"error": "unhealthy", "error_type": "healthcheck"}
            assert (found.status, found.json()) == (503, said)
        whole = await server.post("/generate", exact(2))
        assert (whole.status, whole.json()) == (424, FAILED)
        stream = await server.post("/generate_stream", exact(2))
        assert (stream.status, stream.events()) == (200, [FAILED])
        chat = await server.post("/v1/chat/completions", CHAT | {"stream": True})
        assert chat.events() == [EVENT]
        assert chat.body.endswith(b"data: [DONE]\n\n")
        assert (await server.get("/info")).status == 200

    ask(call)


def test_a_backend_that_stops_without_a_last_token_is_an_incomplete_generation() -> None:
    async def call(server: Served) -> None:
        whole = await server.post("/generate", exact(2))
        said = {"error": "Incomplete generation", "error_type": "incomplete_generation"}
        assert (whole.status, whole.json()) == (500, said)
        stream = await server.post("/generate_stream", exact(2))
        said = {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}
        assert (stream.status, stream.events()) == (200, [said])
        chat = await server.post("/v1/chat/completions", CHAT | {"stream": True})
        assert chat.events() == [{"error": {"message": said["error"], "http_status_code": 422}}]
        metrics = (await server.get("/metrics")).body.decode()
        assert 'tgi_request_failure{err="incomplete"} 3' in metrics

    ask(call, faults=Faults(http_500_rate=1))


@pytest.mark.parametrize("tokens_before", [0, 3])
def test_a_failure_ends_every_stream_with_its_own_event(tokens_before: int) -> None:
    async def call(server: Served) -> None:
        native, chat, list_ = (server.connect() for _ in range(3))
        native.transport.write(request_bytes("/generate_stream", exact(500)))
        chat.transport.write(
            request_bytes("/v1/chat/completions", CHAT | {"stream": True, "ignore_eos": True})
        )
        prompts = {"prompt": ["a", "b"], "max_tokens": 500, "stream": True, "ignore_eos": True}
        list_.transport.write(request_bytes("/v1/completions", prompts))
        for connection in (native, chat, list_):
            await connection.until(lambda c=connection: c.data.count(b"\n\n") >= tokens_before)  # type: ignore[misc]
            await connection.until(lambda c=connection: b"\r\n\r\n" in c.data)  # type: ignore[misc]
        server.service.close()
        events = (await native.response()).events()
        assert len(events) >= tokens_before + 1
        assert [e for e in events if "error" in e] == [events[-1]] == [FAILED]
        events = (await chat.response()).events()
        assert [e for e in events if "error" in e] == [events[-1]] == [EVENT]
        response = await list_.response()
        assert response.events()[-2:] == [EVENT, EVENT], "each prompt says so"
        assert response.body.endswith(b"data: [DONE]\n\n")

    ask(call)


def test_a_reply_that_the_engine_cannot_hold_is_a_failure_of_generation() -> None:
    async def main() -> None:
        service = Service(Launch())
        tokens = service.limits.max_total_tokens + 1
        job = Job(ReplyPlan(1, 1, "length", [1]), tokens, 1, None)
        with pytest.raises(GenerationFailed, match="sequence 1: "):
            await Desk(service).whole([job])
        assert service.in_flight == 0
        service.close()

    clock.run_virtual(main())


def drained(call: Any) -> None:
    """Runs ``call`` with a server in memory, on the virtual clock."""

    async def main() -> None:
        service = Service(Launch(launcher=Launcher(warm_up=False, graceful_termination_timeout=5)))
        async with serving(service, address=None) as server:
            await call(server)

    clock.run_virtual(main())


def connect(server: Serving) -> RawConnection:
    connection = RawConnection()
    clock.connect_memory(connection, server.protocol())
    return connection


def test_draining_closes_idle_connections_at_once_and_busy_ones_after_their_response() -> None:
    """As hyper's graceful shutdown does: what is under way ends, what comes later is not read."""

    async def call(server: Serving) -> None:
        idle, busy = connect(server), connect(server)
        idle.transport.write(get_bytes("/health"))
        assert (await idle.response()).status == 200
        assert not idle.closed, "kept alive"
        busy.transport.write(request_bytes("/generate_stream", exact(40)))
        busy.transport.write(request_bytes("/generate", exact(1)))  # pipelined behind it
        await busy.until(lambda: b'"index":3,' in busy.data)
        drain = asyncio.ensure_future(server.drain())
        await asyncio.sleep(0.05)
        assert idle.closed
        assert not busy.closed
        assert not drain.done()
        await busy.until(lambda: busy.data.endswith(b"0\r\n\r\n"))
        await drain
        while not busy.closed:
            await asyncio.sleep(0.01)
        assert busy.data.count(b'"index":') == 40
        assert busy.data.count(b"HTTP/1.1 200") == 1, "the second request was never answered"

    drained(call)


def test_draining_waits_no_longer_than_the_timeout() -> None:
    async def call(server: Serving) -> None:
        busy = connect(server)
        busy.transport.write(request_bytes("/generate_stream", exact(60_000)))
        await busy.until(lambda: b'"index":1,' in busy.data)
        began_s = clock.now()
        await server.drain()
        assert clock.now() - began_s == pytest.approx(5, abs=0.1)

    drained(call)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_request_that_came_just_before_the_end_is_answered(path: str) -> None:
    """It has been read, but no handler has begun with it yet."""

    async def main() -> None:
        service = Service(Launch(launcher=Launcher(warm_up=False)))
        async with serving(service, address=None) as server:
            late = connect(server)
            await asyncio.sleep(0.1)
            late.transport.write(request_bytes(path, exact(5)))
            await asyncio.sleep(0)
            await server.drain()
        response = await late.response()
        assert response.status == 200
        assert b"shutting down" not in response.body

    clock.run_virtual(main())


def test_all_prompts_of_a_list_that_fail_are_counted() -> None:
    async def call(server: Served) -> None:
        connection = server.connect()
        body = {"prompt": ["a", "b", "c"], "max_tokens": 500, "ignore_eos": True}
        connection.transport.write(request_bytes("/v1/completions", body))
        while server.service.in_flight < 3:
            await asyncio.sleep(0.01)
        server.service.close()
        assert (await connection.response()).status == 424
        metrics = (await server.get("/metrics")).body.decode()
        assert 'tgi_request_failure{err="generation"} 3' in metrics

    ask(call)
