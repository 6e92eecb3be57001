from __future__ import annotations

import asyncio
import time

import pytest

from loadgen import clock


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data[::-1])


class Sink(asyncio.Protocol):
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.pauses = 0

    def data_received(self, data: bytes) -> None:
        self.got.append(data)

    def pause_writing(self) -> None:
        self.pauses += 1

    def resume_writing(self) -> None:
        self.pauses -= 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_an_hour_passes_in_no_time_and_lands_on_the_exact_instant() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        for due in (0.05, 0.1 + 0.2, 3600.123456789):
            loop.call_at(due, lambda: seen.append(clock.now()))
        await asyncio.sleep(4000)
        assert clock.now() == loop.time() == 4000
        return seen

    began = time.monotonic()
    assert clock.run_virtual(main()) == [0.05, 0.1 + 0.2, 3600.123456789]
    assert time.monotonic() - began < 60
    assert not clock.is_virtual()


def test_timers_fire_in_order_of_time_the_same_way_every_time() -> None:
    async def main() -> list[int]:
        loop, seen = asyncio.get_running_loop(), list[int]()
        for k, due in enumerate((2.0, 1.0, 1.0, 0.5)):
            loop.call_at(due, seen.append, k)
        await asyncio.sleep(3)
        return seen

    first = clock.run_virtual(main())
    assert first[0] == 3 and first[-1] == 0
    assert all(clock.run_virtual(main()) == first for _ in range(5))


def test_a_deadlock_is_an_error_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="no timer will bring"):
        clock.run_virtual(main())
    assert not clock.is_virtual()


def test_what_would_run_in_a_thread_runs_at_once() -> None:
    """No timer brings a thread's result, and its real time would be a race."""

    async def main() -> tuple[float, int]:
        assert await asyncio.to_thread(sum, (1, 2)) == 3
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)
        found = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        return clock.now(), len(found)

    at_s, found = clock.run_virtual(main())
    assert at_s == 0.0 and found


def test_real_time_outside_the_virtual_loop() -> None:
    before = time.monotonic()
    assert before <= clock.now() <= time.monotonic()


def test_memory_pipe_carries_bytes_in_order_at_the_same_instant() -> None:
    async def main() -> None:
        sink = Sink()
        near, far = clock.connect_memory(sink, Echo())
        at = clock.now()
        near.write(b"abc")
        near.writelines([b"d", b"e"])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sink.got == [b"cba", b"ed"] and clock.now() == at
        far.write(b"bye")
        far.close()
        assert await sink.lost is None
        assert sink.got[-1] == b"bye" and near.is_closing()
        near.write(b"into the void")

    clock.run_virtual(main())


def test_memory_pipe_pushes_back_when_the_reader_pauses() -> None:
    async def main() -> None:
        reader, writer = Sink(), Sink()
        near, far = clock.connect_memory(reader, writer)
        near.pause_reading()
        for _ in range(3):
            far.write(b"x" * 50_000)
        await asyncio.sleep(0.1)
        assert reader.got == [] and writer.pauses == 1
        near.resume_reading()
        await asyncio.sleep(0.1)
        assert sum(map(len, reader.got)) == 150_000 and writer.pauses == 0

    clock.run_virtual(main())
