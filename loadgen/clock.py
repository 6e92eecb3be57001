"""One clock for real and for virtual time, and the loop behind the virtual one.

``now()`` is ``time.monotonic()`` unless a virtual-time loop is running, where it
is that loop's time. Code that waits uses ``asyncio.sleep`` or ``loop.call_at``
and never learns which it was.

The virtual loop jumps to the next timer whenever nothing is ready, so 500 s of
traffic take the seconds of CPU that its work needs, and two runs of the same
program see the same instants. Peers inside it are joined by `connect_memory`:
bytes travel by ``call_soon``, in order, at once. Socket pairs would do as well,
but each costs two file descriptors and a system call per read, and their
readiness order belongs to the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import selectors
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_HIGH_WATER_BYTES = 64 * 1024

_active: VirtualLoop | None = None


def now() -> float:
    """Seconds on the clock of the run: monotonic, or the virtual loop's time."""
    return time.monotonic() if _active is None else _active.virtual_s


def is_virtual() -> bool:
    """Whether a virtual-time loop is running."""
    return _active is not None


async def wait(event: asyncio.Event, most_s: float) -> None:
    """Until ``event`` is set, at most ``most_s``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, most_s)):
            await event.wait()


class _JumpingSelector(selectors.DefaultSelector):
    """Polls without waiting; where a loop would wait, it moves the clock instead."""

    advance: Callable[[float | None], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time. Starts at 0 s."""

    def __init__(self) -> None:
        self.virtual_s = 0.0
        selector = _JumpingSelector()
        selector.advance = self._advance
        super().__init__(selector)

    def time(self) -> float:
        return self.virtual_s

    def _advance(self, timeout_s: float | None) -> None:
        if timeout_s is None:
            raise RuntimeError("virtual time: every task waits for something that no timer will bring")
        # Jumping to the timer's own instant keeps `now() >= due` exact; adding the
        # timeout would land an ulp before it.
        timers = self._scheduled  # type: ignore[attr-defined]
        self.virtual_s = max(self.virtual_s, timers[0].when()) if timers else self.virtual_s + timeout_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Calls ``func`` here and now, as a name's look-up too: no timer would bring a thread's result."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as exc:
            done.set_exception(exc)
        return done

    def run_forever(self) -> None:
        global _active  # noqa: PLW0603 - the one switch that now() reads
        if _active is not None:
            raise RuntimeError("virtual time: another virtual loop is already running")
        _active = self
        try:
            super().run_forever()
        finally:
            _active = None


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end in virtual time. Raises RuntimeError on a deadlock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def fast_loop() -> asyncio.AbstractEventLoop:
    """The loop of runs in real time: uvloop where it is installed, else asyncio's own.

    uvloop costs about a third of asyncio's CPU per streamed token
    (docs/results.md); its timers are whole milliseconds, which the pacer mends.
    """
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _MemoryTransport(asyncio.Transport):
    """One end of an in-process byte pipe with the contract of a TCP transport."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, name: str) -> None:
        super().__init__({"peername": (name, 0), "sockname": (name, 0)})
        self._loop = loop
        self._protocol = protocol
        self._peer: _MemoryTransport
        self._closing = False
        self._lost = False
        self._read_paused = False
        self._held: deque[Callable[[], None]] = deque()
        self._held_bytes = 0
        self._write_paused = False

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not (self._read_paused or self._closing)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closing:
            self._loop.call_soon(self._peer._receive, bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._closing:
            self._loop.call_soon(self._peer._receive_eof)

    def get_write_buffer_size(self) -> int:
        return self._peer._held_bytes

    def pause_reading(self) -> None:
        self._read_paused = True

    def resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self._loop.call_soon(self._flush_held)

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        """Closes; the peer loses the connection to a reset, as on a TCP connection with unread data."""
        self._end(ConnectionResetError(errno.ECONNRESET, "reset by peer"))

    def _end(self, told: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._peer._receive_close, told)
            self._loop.call_soon(self._lose, None)

    def _receive(self, data: bytes) -> None:
        if self._closing:
            return
        if self._read_paused or self._held:
            self._held.append(lambda: self._protocol.data_received(data))
            self._held_bytes += len(data)
            if self._held_bytes > _HIGH_WATER_BYTES and not self._peer._write_paused:
                self._peer._write_paused = True
                self._peer._protocol.pause_writing()
        else:
            self._protocol.data_received(data)

    def _receive_eof(self) -> None:
        if self._read_paused or self._held:
            self._held.append(self._end_of_input)
        else:
            self._end_of_input()

    def _end_of_input(self) -> None:
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def _receive_close(self, told: Exception | None) -> None:
        self._closing = True
        self._lose(told)

    def _flush_held(self) -> None:
        while self._held and not self._read_paused and not self._closing:
            self._held.popleft()()
        if not self._held:
            self._held_bytes = 0
            if self._peer._write_paused:
                self._peer._write_paused = False
                self._peer._protocol.resume_writing()

    def _lose(self, exc: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._held.clear()
            self._protocol.connection_lost(exc)


def connect_memory(
    client: asyncio.Protocol, server: asyncio.Protocol
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """Joins two protocols by an in-process duplex pipe on the running loop.

    Both have had ``connection_made`` called on return, the server's first.
    Returns ``(client_transport, server_transport)``.
    """
    loop = asyncio.get_running_loop()
    near = _MemoryTransport(loop, client, "memory-client")
    far = _MemoryTransport(loop, server, "memory-server")
    near._peer, far._peer = far, near
    server.connection_made(far)
    client.connection_made(near)
    return near, far
