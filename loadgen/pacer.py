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
from collections.abc import Callable
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


class Alarm:
    """Calls back at one instant of `clock.now()`, or as soon after it as the loop is free; never before.

    On Linux in real time it is a timerfd on the running loop (any loop with
    ``add_reader``: asyncio's selector loop, uvloop). Elsewhere, and under the
    virtual loop, where timers are exact, it is the loop's own timer.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback: Callable[[], None] | None = None
        self._due_s = 0.0
        self._handle: asyncio.Handle | None = None
        self._fd = -1
        self._spec = _Itimerspec()
        self._settime: ctypes._NamedFuncPointer | None = None
        self._virtual = clock.is_virtual()
        if self._virtual or sys.platform != "linux":
            return
        libc = ctypes.CDLL(None, use_errno=True)
        # Missing from old libcs; os.timerfd_create exists from Python 3.13 on only.
        create = getattr(libc, "timerfd_create", None)
        fd = create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC) if create is not None else -1
        if fd >= 0:  # -1 too when the process is out of descriptors
            self._fd = fd
            self._settime = libc.timerfd_settime
            self._loop.add_reader(fd, self._fired)

    @property
    def by_kernel_timer(self) -> bool:
        """Whether it rings by the kernel's timer rather than the loop's."""
        return self._fd >= 0

    def set(self, due_s: float, callback: Callable[[], None]) -> None:
        """Rings at ``due_s``; an earlier setting is forgotten."""
        self.cancel()
        self._due_s, self._callback = due_s, callback
        self._wait()

    def cancel(self) -> None:
        """Does not ring."""
        self._callback = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        """Does not ring any more, and gives the descriptor back. Again: nothing."""
        self.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _wait(self) -> None:
        if self._virtual:  # where time stands still while anything is ready: no spinning there
            self._handle = self._loop.call_at(self._due_s, self._ring)
            return
        left_s = self._due_s - clock.now()
        if left_s <= _NEAR_S:
            self._handle = self._loop.call_soon(self._ring)
        elif not self._arm():
            self._handle = self._loop.call_later(left_s, self._ring)

    def _arm(self) -> bool:
        if self._settime is None or self._fd < 0:
            return False
        value = self._spec.it_value
        whole_s = int(self._due_s)
        value.tv_sec = whole_s
        value.tv_nsec = int((self._due_s - whole_s) * 1e9) + 1
        return bool(self._settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) == 0)

    def _fired(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            self._ring()

    def _ring(self) -> None:
        self._handle = None
        if self._callback is None:
            return
        if clock.now() < self._due_s:  # a loop's timer may ring early, and an old setting's always
            self._wait()
            return
        callback, self._callback = self._callback, None
        callback()


class Pacer:
    """Sleeps until instants of `clock.now()`, for one task at a time, by an `Alarm`. A context manager."""

    _alarm: Alarm

    def __enter__(self) -> Self:
        self._alarm = Alarm()
        return self

    def __exit__(self, *exc: object) -> None:
        self._alarm.close()

    @property
    def by_kernel_timer(self) -> bool:
        """Whether waits end by the kernel's timer rather than the loop's."""
        return self._alarm.by_kernel_timer

    async def sleep_until(self, due_s: float) -> None:
        """Returns at ``due_s`` (clock.now) or as soon after it as the loop is free; never before.

        A deadline that has passed gives other tasks one turn.
        """
        if due_s <= clock.now():
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        self._alarm.set(due_s, woken.set)
        try:
            await woken.wait()
        finally:
            self._alarm.cancel()
