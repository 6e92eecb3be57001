"""The sidecar's HTTP interface over tables made by hand, spoken to over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from loadgen import clock
from loadgen.sidecar import live, routes
from loadgen.sidecar.directory import DataDirectory
from loadgen.sidecar.events import EventLog
from loadgen.sidecar.routes import Routes
from loadgen.sidecar.table import TableWriter, boot_id

INTERVALS = {"power": 0.05, "state": 1.0, "metrics": 0.5}


@dataclass
class Sampling:
    """A sampler that is as it is told."""

    interval_s: float = 0.05
    started_s: float = field(default_factory=lambda: clock.now() - 60)
    restarts: int = 0
    trouble: str | None = None
    pid: int | None = None


@dataclass
class Sidecar:
    """What a test holds: a client, the address, the server's end."""

    session: aiohttp.ClientSession
    url: str
    runner: web.AppRunner
    sampling: Sampling

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers=headers) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(body) if is_json else body.decode()

    def buffered(self) -> int:
        """Bytes that wait in this process for all clients together."""
        assert self.runner.server is not None
        transports = [connection.transport for connection in self.runner.server.connections]
        return sum(t.get_write_buffer_size() for t in transports if t is not None)


def over(
    folder: Path,
    call: Callable[[Sidecar], Awaitable[None]],
    *,
    token: str | None = None,
    sampling: Sampling | None = None,
    pid: int | None = None,
) -> None:
    """Runs ``call`` against a sidecar over ``folder``."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[Sidecar]:
        told = sampling or Sampling()
        app = Routes(DataDirectory(folder), told, intervals_s=INTERVALS, pid=pid).app(token)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as session:
            yield Sidecar(session, f"http://{host}:{port}", runner, told)
        await runner.cleanup()

    async def main() -> None:
        async with serving() as sidecar:
            await call(sidecar)

    asyncio.run(main())


def written(
    folder: Path, rows: int, *, columns: int = 2, end_s: float | None = None, session: str = "s"
) -> float:
    """A table power of so many rows, 50 ms apart, the last at ``end_s`` (now), and its first instant.

    Column k of row i is ``100 i + k``, taken k ms after the row's instant; the last
    column is missing in every third row.
    """
    names = [f"gpu{k}" for k in range(columns)]
    start_s = (clock.now() if end_s is None else end_s) - 0.05 * (rows - 1)
    table = TableWriter.open(folder, "power", names, session=session)
    for i in range(rows):
        t_s = start_s + 0.05 * i
        known = names if i % 3 else names[:-1]
        table.append(t_s, {n: (t_s + 0.001 * k, 100.0 * i + k) for k, n in enumerate(known)})
    table.close()
    return start_s


def told(folder: Path, **said: Any) -> None:
    (folder / "sampler.json").write_bytes(orjson.dumps(said))


async def until(true: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.005)


def test_samples_are_what_was_written(tmp_path: Path) -> None:
    start_s = written(tmp_path, 7)

    async def call(sidecar: Sidecar) -> None:
        status, said = await sidecar.get("/v1/samples/power")
        assert status == 200
        assert (said["table"], said["first_seq"], said["last_seq"]) == ("power", 1, 7)
        assert said["columns"] == ["gpu0", "gpu1"]
        for i, (seq, t_s, values, lags) in enumerate(said["rows"]):
            assert seq == i + 1 and t_s == pytest.approx(start_s + 0.05 * i, abs=1e-9)
            assert values == [100.0 * i, 100.0 * i + 1 if i % 3 else None]
            assert lags[0] == 0.0 and (values[1] is None or lags[1] == pytest.approx(0.001, abs=1e-7))
        assert len(said["rows"]) == 7
        for query, seqs in {
            "after=5": [6, 7],
            "after=7": [],
            "limit=2": [1, 2],
            "after=2&limit=2": [3, 4],
            f"since={start_s + 0.12!r}": [4, 5, 6, 7],
            f"until={start_s + 0.12!r}": [1, 2, 3],
            f"since={start_s + 0.06!r}&until={start_s + 0.16!r}": [3, 4],
        }.items():
            _, part = await sidecar.get(f"/v1/samples/power?{query}")
            assert [row[0] for row in part["rows"]] == seqs, query
        assert (await sidecar.get("/v1/samples/metrics"))[1]["rows"] == []

    over(tmp_path, call)


def test_pages_joined_are_the_whole(tmp_path: Path) -> None:
    written(tmp_path, 250, columns=3)

    async def call(sidecar: Sidecar) -> None:
        _, whole = await sidecar.get("/v1/samples/power?limit=10000")
        joined: list[Any] = []
        while True:
            after = joined[-1][0] if joined else 0
            _, page = await sidecar.get(f"/v1/samples/power?limit=101&after={after}")
            if not page["rows"]:
                break
            joined += page["rows"]
        assert joined == whole["rows"] and [row[0] for row in joined] == list(range(1, 251))

    over(tmp_path, call)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/samples/power?limit=0", 400, "limit: expected a whole number from 1 to 10000, got '0'"),
        ("/v1/samples/power?limit=10001", 400, "got '10001'"),
        ("/v1/samples/power?limit=1.5", 400, "got '1.5'"),
        ("/v1/samples/power?after=-1", 400, "after: expected a whole number"),
        ("/v1/samples/power?after=" + "9" * 5000, 400, "after: expected a whole number"),
        ("/v1/samples/power?since=now", 400, "since: expected seconds on the sidecar's clock"),
        ("/v1/samples/power?until=nan", 400, "until: expected seconds"),
        ("/v1/samples/power?form=1", 400, "unknown parameter 'form': expected one of after, since"),
        ("/v1/samples/power?limit=1&limit=2", 400, "limit: expected once"),
        ("/v1/samples/pwer", 404, "no table 'pwer': expected one of power, state, metrics"),
        ("/v1/samples/..%2fid", 404, "no table"),
        ("/v1/live/pwer", 404, "no table"),
        ("/v1/live/power?after=x", 400, "after: expected"),
        ("/v1/events?after=x", 400, "after: expected"),
        ("/v1/server", 400, "expected port=P"),
        ("/v1/server?port=0", 400, "port: expected a whole number from 1 to 65535"),
        ("/v1/info?x=1", 400, "unknown parameter 'x': expected none"),
        ("/v2/info", 404, "nothing is at '/v2/info'"),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, path: str, status: int, said: str) -> None:
    async def call(sidecar: Sidecar) -> None:
        answered, body = await sidecar.get(path)
        assert answered == status and list(body) == ["error"] and said in body["error"]
        assert len(body["error"]) < 300

    over(tmp_path, call)


def test_only_get(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.post(sidecar.url + "/v1/clock", data=b"x") as answer:
            assert answer.status == 405 and answer.headers["Allow"] == "GET,HEAD"
            assert "error" in await answer.json()

    over(tmp_path, call)


def test_a_token_is_asked_for_everywhere_but_health_and_the_page(tmp_path: Path) -> None:
    written(tmp_path, 3)
    paths = (
        "/v1/clock",
        "/v1/info",
        "/v1/samples/power",
        "/v1/live/power",
        "/v1/events",
        "/metrics",
        "/v1/no",
    )

    async def call(sidecar: Sidecar) -> None:
        for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"},
                      {"Authorization": "s3cret"}, {"Authorization": "Bearer sécret"}):  # fmt: skip
            for path in paths:
                status, said = await sidecar.get(path, **wrong)
                assert status == 401 and "Authorization: Bearer TOKEN" in said["error"]
        for right in ("Bearer s3cret", "bearer s3cret"):
            assert (await sidecar.get("/v1/clock", Authorization=right))[0] == 200
        assert (await sidecar.get("/health"))[0] == 200
        status, page = await sidecar.get("/")
        assert status == 200 and "s3cret" not in page
        # With a token the sidecar may have any name.
        assert (await sidecar.get("/health", Host="gpu-host:9400"))[0] == 200

    over(tmp_path, call, token="s3cret")


def test_without_a_token_another_name_for_this_host_is_refused(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        for host in ("evil.example", "evil.example:9400", "192.0.2.7:9400", "127.0.0.1.evil.example"):
            status, said = await sidecar.get("/v1/clock", Host=host)
            assert status == 400 and "Host header" in said["error"]
        for host in ("localhost", "localhost:9400", "[::1]:9400", "[::1]", "127.0.0.1"):
            assert (await sidecar.get("/v1/clock", Host=host))[0] == 200

    over(tmp_path, call)


def test_the_clock_is_within_its_exchange(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        widths = []
        for _ in range(30):
            before_s = clock.now()
            _, said = await sidecar.get("/v1/clock")
            after_s = clock.now()
            assert before_s <= said["t_s"] <= after_s and said["boot_id"] == boot_id()
            widths.append(after_s - before_s)
        assert min(widths) < 0.01  # or no bound of 10 ms could hold

    over(tmp_path, call)


def test_health(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        status, said = await sidecar.get("/health")
        assert (status, said["status"], said["age_s"]) == (503, "starting", None)
        written(tmp_path, 3, end_s=clock.now() - 100)  # of an earlier start
        assert (await sidecar.get("/health"))[1]["status"] == "starting"
        written(tmp_path, 3, end_s=clock.now() - 3)
        sidecar.sampling.trouble = "the sampler was killed"
        status, said = await sidecar.get("/health")
        assert (status, said["status"]) == (503, "stale") and said["age_s"] == pytest.approx(3, abs=0.5)
        assert "expected at most 1 s: the sampler was killed" in said["reason"]
        written(tmp_path, 3)
        status, said = await sidecar.get("/health")
        assert (status, said["status"]) == (200, "ok") and 0 <= said["age_s"] < 1

    over(tmp_path, call)


def test_info(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        _, said = await sidecar.get("/v1/info")
        assert (
            said["schema"] == 1 and said["domains"] == [] and said["session"] is None and said["pids"] is None
        )
        first = said["id"]
        written(tmp_path, 5)
        domains = [{"name": "gpu0", "method": "counter", "averaging_s": None, "note": "", "update_s": 0.1}]
        told(tmp_path, session="abc", domains=domains, reasons={"gpu": None}, warnings=["w"], pid=1)
        sidecar.sampling.trouble = "the sampler was killed"
        _, said = await sidecar.get("/v1/info")
        assert said["id"] == first and said["session"] == "abc" and said["domains"] == domains
        assert said["warnings"] == ["w", "the sampler was killed"] and said["interval_s"] == 0.05
        assert said["tables"]["power"] == {
            "columns": ["gpu0", "gpu1"],
            "first_seq": 1,
            "last_seq": 5,
            "interval_s": 0.05,
        }
        assert said["host"]["cpus"] >= 1
        (tmp_path / "sampler.json").write_text("{")  # never so, since it is replaced; still no reason to fail
        assert (await sidecar.get("/v1/info"))[0] == 200

    over(tmp_path, call)


def test_events_page_by_number(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for i in range(10):
        log.add("kind", f"event {i}")

    async def call(sidecar: Sidecar) -> None:
        _, said = await sidecar.get("/v1/events")
        assert [event["text"] for event in said["events"]] == [f"event {i}" for i in range(10)]
        _, said = await sidecar.get("/v1/events?after=7&limit=2")
        assert [event["seq"] for event in said["events"]] == [8, 9]

    over(tmp_path, call)


def test_metrics_are_absent_when_old_or_missing(tmp_path: Path) -> None:
    domains = [{"name": name, "method": "counter", "note": ""} for name in ("gpu0", "gpu1")]
    told(tmp_path, domains=domains, boards=[{"domain": "gpu0", "uuid": "U"}], overhead={}, reasons={})

    def energies(page: str) -> dict[str, float]:
        return {
            sample.labels["index"]: sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "loadgen_gpu_energy_joules_total"
        }

    async def call(sidecar: Sidecar) -> None:
        assert energies((await sidecar.get("/metrics"))[1]) == {}
        written(tmp_path, 2, end_s=clock.now() - 10)
        assert energies((await sidecar.get("/metrics"))[1]) == {}
        written(tmp_path, 2)
        assert energies((await sidecar.get("/metrics"))[1]) == {"0": 100.0, "1": 101.0}
        written(tmp_path, 1)  # in whose only row gpu1 is missing
        assert energies((await sidecar.get("/metrics"))[1]) == {"0": 0.0}

    over(tmp_path, call)


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


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    async def call(sidecar: Sidecar) -> None:
        async with sidecar.session.get(sidecar.url + "/") as answer:
            page = await answer.text()
            assert (
                answer.content_type == "text/html"
                and "default-src 'none'" in answer.headers["Content-Security-Policy"]
            )
        assert "v1/live/power" in page and "src=" not in page and "href=" not in page
        assert page.replace("http://www.w3.org/2000/svg", "").count("http") == 0
        assert len(page.splitlines()) < 110

    over(tmp_path, call)
