"""The pacer: never early, on any loop, virtual time included."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from types import SimpleNamespace

import pytest
import uvloop

from loadgen import clock
from loadgen.pacer import Pacer


async def walk(due_s: list[float]) -> list[float]:
    woke = []
    with Pacer() as pacer:
        for due in due_s:
            await pacer.sleep_until(due)
            woke.append(clock.now())
    return woke


def test_virtual_time_is_exact():
    due = [0.0, 0.0015, 0.0015, 2.0, 1e6]
    assert clock.run_virtual(walk(due)) == due


def test_a_past_deadline_lets_others_run():
    async def main():
        turns = []
        task = asyncio.ensure_future(asyncio.sleep(0, turns.append(1)))
        with Pacer() as pacer:
            await pacer.sleep_until(-1.0)
        await task
        return turns

    assert clock.run_virtual(main()) == [1]


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_real_loops_never_wake_early(loop_factory):
    async def main():
        start = clock.now()
        due = [start + k * 0.0007 for k in range(30)]
        return list(zip(due, await walk(due), strict=True))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert all(woke >= due for due, woke in runner.run(main()))


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_cancelling_leaves_the_pacer_usable(loop_factory):
    async def main():
        with Pacer() as pacer:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await pacer.sleep_until(clock.now() + 60)
            due = clock.now() + 0.002
            await pacer.sleep_until(due)
            return clock.now() - due

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")
@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_linux_waits_by_the_kernel_timer_and_gives_the_descriptor_back(loop_factory):
    async def main():
        before = len(os.listdir("/proc/self/fd"))
        with Pacer() as pacer:
            assert pacer.by_kernel_timer
            await pacer.sleep_until(clock.now() + 0.001)
        assert not pacer.by_kernel_timer
        return len(os.listdir("/proc/self/fd")) - before

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == 0


@pytest.mark.parametrize("libc", [object(), SimpleNamespace(timerfd_create=lambda clock_id, flags: -1)])
def test_without_a_kernel_timer_the_loops_own_is_used_and_is_never_early(monkeypatch, libc):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)

    async def main():
        with Pacer() as pacer:
            assert not pacer.by_kernel_timer
            due = clock.now() + 0.003
            await pacer.sleep_until(due)
            return clock.now() - due

    with asyncio.Runner() as runner:
        assert runner.run(main()) >= 0
