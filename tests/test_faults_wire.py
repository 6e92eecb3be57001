"""Faults on demand in bytes and instants: in memory and virtual time, then over TCP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from served import Served, ask, exact, request_bytes

from loadgen import clock
from loadgen.launch import Faults, Launch, Launcher
from loadgen.server.faults import Fault, fault_of
from loadgen.server.host import serving
from loadgen.server.service import Service

SEED = 7
AT_ONCE = Launcher(warm_up=False)


def first_with(faults: Faults, wanted: Callable[[Fault], bool], seed: int = 1) -> int:
    """The lowest number whose fault is as wanted."""
    return next(k for k in range(10_000) if (f := fault_of(faults, seed, k)) is not None and wanted(f))


def reads_of(faults: Faults, id: int, body: Any, path: str = "/generate_stream") -> list[tuple[float, bytes]]:
    """What one request with this id is sent, with instants from its own sending; it waits 300 s."""

    async def call(server: Served) -> list[tuple[float, bytes]]:
        connection = server.connect()
        connection.transport.write(request_bytes(path, body, x_request_id=str(id)))
        sent_s = clock.now()
        await asyncio.sleep(300)
        reads = [(t - sent_s, data) for t, data in connection.reads]
        assert server.service.in_flight == 0
        connection.transport.close()
        return reads

    found = ask(call, faults=faults)
    assert isinstance(found, list)
    return found


def joined(reads: list[tuple[float, bytes]]) -> bytes:
    return b"".join(data for _, data in reads)


def test_a_stall_holds_every_byte_from_its_token_on_and_loses_none() -> None:
    faults = Faults(stall_rate=1.0, stall_s=60.0)
    id = first_with(faults, lambda f: 2 < f.after_writes < 40)
    fault = fault_of(faults, 1, id)
    assert fault is not None
    clean, stalled = reads_of(Faults(), id, exact(50)), reads_of(faults, id, exact(50))
    assert joined(stalled) == joined(clean)
    # clean: the head, then one read a token. The stalled token's first bytes may still come.
    w = fault.after_writes
    assert [t for t, _ in stalled[:w]] == [t for t, _ in clean[:w]]
    strike_s, resume_s = clean[w][0], clean[w][0] + 60.0
    assert all(t <= strike_s or t >= resume_s for t, _ in stalled)
    assert stalled[-1][0] == pytest.approx(resume_s, abs=1e-9)


def test_a_stall_for_ever_is_silent_keep_alive_comments_included() -> None:
    faults = Faults(stall_rate=1.0)
    id = first_with(faults, lambda f: f.after_writes == 5)
    reads = reads_of(faults, id, exact(50))
    assert len(reads) in (5, 6) and reads[-1][0] < 1
    assert b":\n\n" not in joined(reads)
    early = first_with(faults, lambda f: f.after_writes == 0)
    assert reads_of(faults, early, exact(50)) == []


def test_a_truncated_reply_is_a_true_prefix() -> None:
    faults = Faults(truncate_rate=1.0)
    whole = joined(reads_of(Faults(), 0, exact(10), "/generate"))
    lengths = []
    for id in range(12):
        for path in ("/generate", "/generate_stream"):
            full, cut = (
                joined(reads_of(Faults(), id, exact(10), path)),
                joined(reads_of(faults, id, exact(10), path)),
            )
            assert full.startswith(cut) and len(cut) < len(full)
            lengths.append(len(cut))
    assert 0 in lengths and max(lengths) > len(whole) / 2


def test_garbled_bytes_are_few_in_place_and_never_valid_text() -> None:
    faults = Faults(garble_rate=1.0)
    for id in range(8):
        for path in ("/generate", "/generate_stream"):
            answers = (joined(reads_of(f, id, exact(10), path)) for f in (Faults(), faults))
            (head, _, full), (same, _, spoiled) = (answer.partition(b"\r\n\r\n") for answer in answers)
            dated = re.compile(rb"Date: [^\r]*")  # by the wall clock, which goes on between the two
            assert dated.sub(b"", head) == dated.sub(b"", same) and len(full) == len(spoiled)
            assert 1 <= sum(a != b for a, b in zip(full, spoiled, strict=True)) <= 8
            with pytest.raises(UnicodeDecodeError):
                spoiled.decode()


def test_a_424_stops_a_stream_after_the_drawn_part_of_its_tokens() -> None:
    faults = Faults(http_424_rate=1.0)
    late = first_with(faults, lambda f: f.after_writes > 0 and 0.4 < f.share < 0.6)
    early = first_with(faults, lambda f: f.after_writes == 0)
    for id, low, high in ((late, 40, 60), (early, 0, 0)):
        response = ask(
            lambda server, id=id: server.post("/generate_stream", exact(101), x_request_id=str(id)),
            faults=faults,
        )
        events = response.events()
        assert response.status == 200 and low <= len(events) - 1 <= high
        assert [e["index"] for e in events[:-1]] == list(range(1, len(events)))
        assert events[-1]["error_type"] == "generation"


def test_without_ids_requests_count_in_order_of_arrival() -> None:
    faults = Faults(http_429_rate=0.5)

    async def call(server: Served) -> list[int]:
        return [(await server.post("/generate", exact(1))).status for _ in range(40)]

    expected = [200 if fault_of(faults, 1, k) is None else 429 for k in range(40)]
    assert ask(call, faults=faults) == expected
    assert 10 < expected.count(429) < 30


def test_only_generation_meets_faults_and_only_with_the_key() -> None:
    key = {"authorization": "Bearer k"}

    async def call(server: Served) -> list[int]:
        pages = [(await server.get(path)).status for path in ("/health", "/info", "/metrics", "/v1/models")]
        tokens = await server.post("/tokenize", {"inputs": "Thank you!"}, **key)
        return [*pages, tokens.status, (await server.post("/generate", exact(1))).status]

    # Whatever meets a reset here is never answered.
    assert ask(call, faults=Faults(reset_rate=1.0), api_key="k") == [200, 200, 200, 200, 200, 401]
    reply = ask(lambda s: s.post("/generate", exact(1), **key), faults=Faults(http_500_rate=1.0), api_key="k")
    assert reply.status == 500


def test_a_connection_is_whole_again_after_its_fault() -> None:
    async def call(server: Served) -> bool:
        connection = server.connect()
        for k in range(1100):  # more than frames of a stack, should each fault leave something behind
            connection.transport.write(request_bytes("/generate", exact(1), x_request_id=str(k)))
            assert (await connection.response()).status == 200
        return connection.closed

    assert ask(call, faults=Faults(garble_rate=1.0)) is False


def test_a_body_without_framing_falls_silent_at_its_end_at_the_latest() -> None:
    """HTTP/1.0: only the closed connection says that the reply is over."""
    faults = Faults(stall_rate=1.0, stall_s=60.0)
    id = first_with(faults, lambda f: f.after_writes > 10)

    async def call(server: Served) -> list[tuple[bool, int]]:
        connection = server.connect()
        connection.transport.write(
            request_bytes("/generate_stream", exact(3), version="1.0", x_request_id=str(id))
        )
        seen = []
        for _ in range(2):
            await asyncio.sleep(50)
            seen.append((connection.closed, connection.data.count(b"data: ")))
        return seen

    assert ask(call, faults=faults) == [(False, 3), (True, 3)]


def test_a_spike_delays_a_request_and_nothing_else() -> None:
    clean = reads_of(Faults(), 0, exact(5))
    late = reads_of(Faults(spike_rate=1.0, spike_s=7.0), 0, exact(5))
    assert [data for _, data in late] == [data for _, data in clean]
    assert [t for t, _ in late] == pytest.approx([t + 7.0 for t, _ in clean], abs=1e-9)


# Over TCP, on the real clock


def over_tcp(call: Callable[[], Coroutine[Any, Any, None]], loop: str) -> None:
    factory: Any = asyncio.new_event_loop
    if loop == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(call())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_over_tcp_a_reset_is_a_reset_and_a_cut_is_not(loop: str) -> None:
    async def call() -> None:
        for kind in ("reset", "truncate"):
            faults = Faults(**{f"{kind}_rate": 1.0})  # type: ignore[arg-type]
            inside = first_with(faults, lambda f: f.after_writes == 3, SEED)
            before = first_with(faults, lambda f: f.after_writes == 0, SEED)
            service = Service(Launch(seed=SEED, faults=faults, launcher=AT_ONCE))
            async with serving(service, address=("127.0.0.1", 0)) as host:
                assert host.url is not None
                port = int(host.url.rpartition(":")[2])
                for id in (inside, before):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(request_bytes("/generate_stream", exact(20), x_request_id=str(id)))
                    got, failure = b"", None
                    try:
                        while data := await asyncio.wait_for(reader.read(65536), 5):
                            got += data
                    except ConnectionResetError as error:
                        failure = error
                    assert (failure is not None) == (kind == "reset")
                    assert got.count(b"data: ") in ((2, 3) if id == inside else (0,))
                    writer.close()
                await asyncio.sleep(0.02)
                assert service.in_flight == 0

    over_tcp(call, loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_over_tcp_a_slow_start_and_a_crash_close_the_port(loop: str) -> None:
    async def call() -> None:
        faults = Faults(slow_start_s=0.3, crash_after_requests=1)
        service = Service(Launch(seed=SEED, faults=faults, launcher=AT_ONCE))
        async with serving(service, address=("127.0.0.1", 0)) as host:
            assert host.url is not None
            port = int(host.url.rpartition(":")[2])
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.4)
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            first, first_writer = await asyncio.open_connection("127.0.0.1", port)
            first_writer.write(request_bytes("/generate_stream", exact(200)))
            assert (await asyncio.wait_for(first.readline(), 5)).startswith(b"HTTP/1.1 200")
            last, last_writer = await asyncio.open_connection("127.0.0.1", port)
            last_writer.write(request_bytes("/generate_stream", exact(20)))
            for reader in (idle, first, last):
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(reader.read(-1), 5)
            assert host.crashed.is_set()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(0.02)
            assert service.in_flight == 0
            for writer in (idle_writer, first_writer, last_writer):
                writer.close()

    over_tcp(call, loop)
