"""Clients that hang up, at every stage of a request, and what ``/metrics`` then says."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from served import RawConnection, Served, ask, exact, request_bytes

from loadgen import clock
from loadgen.launch import Launcher
from loadgen.server.desk import BODY_S

MESSAGES = [{"role": "user", "content": "Thank you!"}]
LONG = exact(500) | {"prompt": ["a", "b"], "messages": MESSAGES, "max_tokens": 500, "ignore_eos": True}
ROUTES = [
    ("/generate", {}, 1, 1),
    ("/generate_stream", {}, 1, 1),
    ("/v1/chat/completions", {}, 2, 1),
    ("/v1/chat/completions", {"stream": True}, 2, 1),
    ("/v1/completions", {}, 3, 2),
    ("/v1/completions", {"stream": True}, 3, 2),
    ("/vertex", {"instances": [LONG, LONG]}, 3, 2),
]
"""Path, what the body has besides, what ``tgi_request_count`` grows by, and the sequences."""


async def counted(server: Served) -> dict[str, float]:
    text = (await server.get("/metrics")).body.decode()
    found = re.findall(r"^(tgi_(?:request_(?:count|success|failure)|queue_size)\S*) (\S+)$", text, re.M)
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize(("path", "more", "count", "sequences"), ROUTES)
@pytest.mark.parametrize("stage", ["head", "body", "queued", "prefill", "decode"])
def test_hanging_up_frees_the_place_and_counts_what_was_begun(
    stage: str, path: str, more: dict[str, Any], count: int, sequences: int
) -> None:
    """Before the body is whole nothing has begun; after it each sequence is dropped, queued or not."""
    data = request_bytes(path, LONG | more)
    head, _, _ = data.partition(b"\r\n\r\n")

    async def call(server: Served) -> None:
        holder = server.connect()
        holder.transport.write(request_bytes("/generate_stream", exact(900)))
        await holder.until(lambda: b'"index":1,' in holder.data)
        if stage != "queued":
            holder.transport.close()
            await asyncio.sleep(1)
        before = await counted(server)
        connection = server.connect()
        connection.transport.write(
            {"head": head + b"\r\n\r\n", "body": data[: len(data) - 9]}.get(stage, data)
        )
        service = server.service
        while stage in ("queued", "prefill", "decode") and service.in_flight < sequences + (
            stage == "queued"
        ):
            await asyncio.sleep(0)
        if stage == "decode":
            await asyncio.sleep(0.1)
        assert service.queue_size == (sequences if stage == "queued" else service.queue_size)
        hung_up_s = clock.now()
        connection.transport.close()
        while service.in_flight > (stage == "queued"):
            await asyncio.sleep(0)
        assert clock.now() == hung_up_s
        await asyncio.sleep(0)
        after = await counted(server)
        grown = {k: v - before.get(k, 0) for k, v in after.items() if "request" in k and v != before.get(k)}
        if stage in ("head", "body"):
            assert grown == {}
        else:
            assert grown == {"tgi_request_count": count, 'tgi_request_failure{err="dropped"}': sequences}
        holder.transport.close()
        assert (await server.post("/generate", exact(1))).status == 200
        assert (await counted(server))["tgi_queue_size"] == 0

    ask(call, launcher=Launcher(prefill_chunking=False, max_batch_size=1 if stage == "queued" else None))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_prompt_that_had_ended_is_not_dropped(streaming: bool) -> None:
    """Of two prompts one stops at once; the client goes while the other is under way."""

    async def call(server: Served) -> None:
        connection = server.connect()
        # Requests are numbered in order here, so the first runs to find a letter only the first reply has.
        body = {"prompt": ["a", "b"], "max_tokens": 400, "stream": streaming, "stop": [" river"]}
        connection.transport.write(request_bytes("/v1/completions", body | {"ignore_eos": True}))
        while server.service.in_flight != 1:
            await asyncio.sleep(0.001)
        connection.transport.close()
        await asyncio.sleep(0.1)
        found = await counted(server)
        assert found['tgi_request_failure{err="dropped"}'] == 1
        assert found.get("tgi_request_success", 0) == streaming

    ask(call)


def test_a_request_s_time_begins_when_its_body_has_been_read() -> None:
    """As in TGI, whose handlers are called with the body: a slow upload is nobody's latency."""
    data = request_bytes("/generate", exact(1))

    async def call(server: Served) -> dict[str, str]:
        connection = server.connect()
        connection.transport.write(data[:-5])
        await asyncio.sleep(7)
        connection.transport.write(data[-5:])
        return (await connection.response()).headers

    headers = ask(call)
    assert float(headers["x-compute-time"]) < 1
    assert int(headers["x-validation-time"]) == 0


CHUNKED = (
    b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize("rest", [b"", b"zz\r\n{}\r\n"])
@pytest.mark.parametrize("path", [b"/generate", b"/generate_stream", b"/v1/completions"])
def test_a_body_that_never_becomes_whole_is_refused_in_the_end(path: bytes, rest: bytes) -> None:
    """A chunk size that is none, in a later read than the head, was never answered."""

    async def call(server: Served) -> None:
        connection: RawConnection = server.connect()
        connection.transport.write(CHUNKED % path + b"2\r\n{}\r\n")
        await asyncio.sleep(1)
        began_s = clock.now()
        if rest:
            connection.transport.write(rest)
        response = await connection.response()
        assert response.status == 408
        assert response.body == b"Failed to buffer the request body: incomplete after 60 s"
        assert clock.now() - began_s == pytest.approx(BODY_S - 1, abs=0.1)
        while not connection.closed:
            await asyncio.sleep(1)
        assert clock.now() - began_s < BODY_S + 15

    ask(call)


def test_a_slow_upload_in_many_reads_is_whole_in_time() -> None:
    data = request_bytes("/generate", exact(1))

    async def call(server: Served) -> int:
        connection = server.connect()
        for start in range(0, len(data), 5):
            connection.transport.write(data[start : start + 5])
            await asyncio.sleep(1)
        return (await connection.response()).status

    assert len(data) // 5 < BODY_S
    assert ask(call) == 200
