"""Readers of the sidecar that stay: live streams, and slow ones who must not cost it memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_tables import Sidecar, over, written

from loadgen import clock
from loadgen.sidecar import live, routes


async def until(true: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.005)


async def events(answer: aiohttp.ClientResponse, count: int) -> list[tuple[int, Mapping[str, Any]]]:
    """The next events of a stream as (id, data)."""
    found: list[tuple[int, Mapping[str, Any]]] = []
    async with asyncio.timeout(5):
        seq = 0
        async for line in answer.content:
            if line.startswith(b"id: "):
                seq = int(line[4:])
            if line.startswith(b"data: "):
                found.append((seq, json.loads(line[6:])))
            if len(found) == count:
                return found
    raise AssertionError(f"the stream ended after {len(found)} events")


def test_live_follows_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_S", 0.005)
    written(tmp_path, 205)

    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.get(f"{sidecar.url}/v1/live/power?after=0") as answer:
            assert answer.content_type == "text/event-stream"
            found = await events(answer, 205)  # more than two steps
            assert [seq for seq, _ in found] == [data["seq"] for _, data in found] == list(range(1, 206))
            assert found[3][1]["values"] == {"gpu0": 300.0, "gpu1": None}
            assert found[4][1]["lag_s"] == {"gpu0": 0.0, "gpu1": pytest.approx(0.001, abs=1e-8)}
            written(tmp_path, 2)
            assert [seq for seq, _ in await events(answer, 2)] == [206, 207]
        headers = {"Last-Event-ID": "203"}  # counts more than where the address began
        async with sidecar.session.get(f"{sidecar.url}/v1/live/power?after=0", headers=headers) as answer:
            assert [seq for seq, _ in await events(answer, 4)] == [204, 205, 206, 207]
        async with sidecar.session.get(f"{sidecar.url}/v1/live/power") as answer:
            await answer.content.readuntil(b"\n\n")
            written(tmp_path, 1)
            assert [seq for seq, _ in await events(answer, 1)] == [208]  # only what comes

    over(tmp_path, call)


def test_a_silent_stream_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_S", 0.005)
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.02)

    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.get(f"{sidecar.url}/v1/live/state") as answer:
            assert await answer.content.readuntil(b"\n\n") == b"retry: 1000\n\n"
            for _ in range(2):
                assert (await answer.content.readuntil(b"\n\n")).startswith(b":")

    over(tmp_path, call)


def test_live_readers_are_counted_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST_READERS", 2)
    monkeypatch.setattr(live, "POLL_S", 0.005)

    async def readers(sidecar: Sidecar) -> float:
        page = (await sidecar.get("/metrics"))[1]
        return next(
            family.samples[0].value
            for family in text_string_to_metric_families(page)
            if family.name == "loadgen_sidecar_live_readers"
        )

    async def call(sidecar: Sidecar) -> None:
        async with (
            sidecar.session.get(f"{sidecar.url}/v1/live/power") as first,
            sidecar.session.get(f"{sidecar.url}/v1/live/power") as second,
        ):
            assert first.status == second.status == 200 and await readers(sidecar) == 2
            status, said = await sidecar.get("/v1/live/power")
            assert status == 503 and "2 live readers already" in said["error"]
        async with asyncio.timeout(5):
            while await readers(sidecar):
                await asyncio.sleep(0.01)
        async with sidecar.session.get(f"{sidecar.url}/v1/live/power") as third:
            assert third.status == 200

    over(tmp_path, call)


def test_a_reader_that_stops_reading_costs_a_buffer_and_then_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 12_000, columns=24)  # some 5 MB of events
    monkeypatch.setattr(live, "STALL_S", 1.0)

    async def call(sidecar: Sidecar) -> None:
        host, port = sidecar.runner.addresses[0][:2]
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect((host, port))
            stuck.sendall(b"GET /v1/live/power?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # Its rows stop moving: the kernel's buffers are full, and at most one step waits here.
            await until(lambda: sidecar.buffered() > 0)
            await asyncio.sleep(0.3)
            step = 2 * len(orjson.dumps({f"gpu{k}": 1_200_000.0 for k in range(24)})) + 100
            assert 0 < sidecar.buffered() <= live.BUFFER_BYTES + 100 * step + 4096
            before_s = clock.now()
            status, said = await sidecar.get("/v1/samples/power?limit=10")  # others do not notice
            assert status == 200 and len(said["rows"]) == 10 and clock.now() - before_s < 0.5
            await until(lambda: sidecar.buffered() == 0)

            async def left() -> bool:
                return "loadgen_sidecar_live_readers 0.0" in (await sidecar.get("/metrics"))[1]

            async with asyncio.timeout(5):
                while not await left():
                    await asyncio.sleep(0.02)

    over(tmp_path, call)


def test_a_client_that_does_not_take_its_samples_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 10_000, columns=24)
    monkeypatch.setattr(routes, "ANSWER_S", 0.5)
    monkeypatch.setattr(routes, "MOST_ANSWERS", 1)

    async def call(sidecar: Sidecar) -> None:
        host, port = sidecar.runner.addresses[0][:2]
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect((host, port))
            stuck.sendall(b"GET /v1/samples/power?limit=10000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: sidecar.buffered() > 0)
            status, said = await sidecar.get("/v1/samples/power?limit=1")
            assert status == 503 and "under way already" in said["error"]
            await until(lambda: sidecar.buffered() == 0)
            assert (await sidecar.get("/v1/samples/power?limit=1"))[0] == 200

    over(tmp_path, call)


def test_streams_end_with_the_sidecar(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.get(f"{sidecar.url}/v1/live/power") as answer:
            await answer.content.readuntil(b"\n\n")
            closing = asyncio.create_task(sidecar.runner.cleanup())
            async with asyncio.timeout(5):
                assert await answer.content.read() == b""  # whole, not cut
            await closing

    over(tmp_path, call)
