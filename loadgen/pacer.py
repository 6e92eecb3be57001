"""Waking up on time: an absolute kernel timer, finer than an event loop's own.

uvloop's timers are whole milliseconds and asyncio's selector rounds its wait up to
the next one, so a sleeping pacer wakes 0.1-1 ms late for reasons of its own. A Linux
timerfd armed with the absolute deadline makes the loop's poll return at the instant.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from typing import Self

from loadgen import clock

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
# Arming, polling and reading the timer cost 10 us; a deadline nearer than that is now.
_NEAR_S = 20e-6


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class Pacer:
    """Sleeps until instants of `clock.now()`, for one task at a time. A context manager.

    On Linux in real time it uses a timerfd on the running loop (any loop with
    ``add_reader``: asyncio's selector loop, uvloop). Elsewhere, and under the virtual
    loop, where timers are exact, it is ``asyncio.sleep``.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._spec = _Itimerspec()
        self._settime: ctypes._NamedFuncPointer | None = None

    def __enter__(self) -> Self:
        if clock.is_virtual() or sys.platform != "linux":
            return self
        libc = ctypes.CDLL(None, use_errno=True)
        # Missing from old libcs; os.timerfd_create exists from Python 3.13 on only.
        create = getattr(libc, "timerfd_create", None)
        fd = create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC) if create is not None else -1
        if fd >= 0:  # -1 too when the process is out of descriptors
            self._fd = fd
            self._settime = libc.timerfd_settime
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(fd, self._fired)
        return self

    @property
    def by_kernel_timer(self) -> bool:
        """Whether waits end by the kernel's timer rather than the loop's."""
        return self._loop is not None

    def __exit__(self, *exc: object) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def sleep_until(self, due_s: float) -> None:
        """Returns at ``due_s`` (clock.now) or as soon after it as the loop is free; never before.

        A deadline that has passed gives other tasks one turn.
        """
        left_s = due_s - clock.now()
        if left_s <= 0:
            await asyncio.sleep(0)
            return
        if self._loop is None or self._settime is None:  # among them the virtual loop, where time
            # stands still as long as anything is ready: spinning there would never end
            await _sleep_until(due_s)
            return
        if left_s <= _NEAR_S:
            while clock.now() < due_s:
                await asyncio.sleep(0)
            return
        value = self._spec.it_value
        whole_s = int(due_s)
        value.tv_sec = whole_s
        value.tv_nsec = int((due_s - whole_s) * 1e9) + 1
        if self._settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) != 0:
            await _sleep_until(due_s)
            return
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _fired(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


async def _sleep_until(due_s: float) -> None:
    """By the loop's timers, which may ring a little early."""
    while (left_s := due_s - clock.now()) > 0:
        await asyncio.sleep(left_s)
