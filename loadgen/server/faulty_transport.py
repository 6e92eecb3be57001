"""A connection that spoils one response: resets it, cuts it, garbles it or falls silent.

Put in front of the real transport while that response is written, so a server
without faults pays nothing for them. The fault strikes in a given write, or in
the last one of a shorter response: no response gets away.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Any, Literal

WireFault = Literal["reset", "stall", "truncate", "garble"]

_LAST_CHUNK = b"0\r\n\r\n"
_NO_LINGER = struct.pack("ii", 1, 0)
_GARBLED_BYTES, _GARBLED_APART_BYTES = 8, 4
"""Bytes to spoil and their distance [assumed]: neighbours stay whole, so the result is no UTF-8."""

Bytes = bytes | bytearray | memoryview


class FaultyTransport(asyncio.Transport):
    """``real``, on which ``kind`` strikes in write number ``after_writes`` (0: before the first byte).

    Within that write it strikes after ``share`` of its bytes, in [0, 1). A stall
    holds everything back for ``stall_s`` seconds, None for ever. ``over`` resolves
    when the connection is gone or works again.
    """

    def __init__(
        self,
        real: asyncio.Transport,
        kind: WireFault,
        *,
        after_writes: int,
        share: float,
        stall_s: float | None = None,
    ) -> None:
        super().__init__()
        self._real = real
        self._kind = kind
        self._after_writes = after_writes
        self._share = share
        self._stall_s = stall_s
        self._writes = 0
        self._armed = True
        self._gone = False
        self._held: list[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._one_write = False
        self.over: asyncio.Future[None] = self._loop.create_future()

    def expect_one_write(self) -> None:
        """Says that the whole response comes in the next write."""
        self._one_write = True

    def end(self) -> None:
        """Says that the response has been written: what has not struck yet strikes now."""
        if self._armed:
            self._strike(b"")

    def write(self, data: Bytes) -> None:
        if self._gone:
            return
        data = bytes(data)
        if self._held is not None:
            self._held.append(data)
            return
        first, last = self._writes == 0, self._one_write or data == _LAST_CHUNK
        last = last or (not first and data.endswith(b"\r\n" + _LAST_CHUNK))
        due = self._writes >= self._after_writes
        self._writes += 1
        if not self._armed or not (due or last):
            self._real.write(data)
        elif self._kind == "garble" and not last and b"{" not in data:
            self._real.write(data)  # a head or a comment: the next write will do
        else:
            self._strike(data)

    def _strike(self, data: bytes) -> None:
        self._armed = False
        cut = int(self._share * len(data)) if self._after_writes else 0
        if self._kind == "garble":
            self._real.write(garbled(data, self._share))
        elif cut:
            self._real.write(data[:cut])
        if self._kind == "stall":
            self._held = [data[cut:]]
            if self._stall_s is not None:
                self._timer = self._loop.call_later(self._stall_s, self._resume)
            return
        if self._kind == "truncate":
            self._gone = True
            self._real.close()
        elif self._kind == "reset":
            self._gone = True
            # Not at once: a loop may send what was written only at the end of its turn.
            self._loop.call_soon(reset, self._real)
        self.over.set_result(None)

    def _resume(self) -> None:
        held, self._held, self._timer = self._held, None, None
        if held and not self._real.is_closing():
            self._real.write(b"".join(held))
        if not self.over.done():
            self.over.set_result(None)

    def writelines(self, list_of_data: Iterable[Bytes]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self._give_up()
        self._real.close()

    def abort(self) -> None:
        self._give_up()
        self._real.abort()

    def _give_up(self) -> None:
        self._gone = True
        self._held = None
        if self._timer is not None:
            self._timer.cancel()

    def is_closing(self) -> bool:
        return self._gone or self._real.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._real.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._real.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._real.set_protocol(protocol)

    def is_reading(self) -> bool:
        return self._real.is_reading()

    def pause_reading(self) -> None:
        self._real.pause_reading()

    def resume_reading(self) -> None:
        self._real.resume_reading()

    def can_write_eof(self) -> bool:
        return self._real.can_write_eof()

    def write_eof(self) -> None:
        self._real.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._real.get_write_buffer_size()


def garbled(data: bytes, share: float) -> bytes:
    """``data`` with some bytes' high bit flipped, inside its JSON where it has any.

    They start after ``share`` of the JSON and go on at its start when they reach
    its end. Head, chunk sizes and event prefixes stay whole, so that the damage
    reaches the decoder of the content.
    """
    start, stop = data.find(b"{") + 1, data.rfind(b"}")
    if start == 0 or stop <= start:
        start, stop = (data.find(b"\r\n\r\n") + 4 if data.startswith(b"HTTP/") else 0), len(data)
    spoiled = bytearray(data)
    size = stop - start
    if size:
        at = int(share * size)
        for k in {(at + _GARBLED_APART_BYTES * i) % size for i in range(_GARBLED_BYTES)}:
            spoiled[start + k] ^= 0x80
    return bytes(spoiled)


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection by a reset: what is unsent is lost, and the peer's next read fails."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        # Without lingering, closing sends RST instead of FIN (socket(7)).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
