"""Faults on demand: which request gets which, and its doing.

Deterministic: the fault of a request is a function of the server's seed and the
request's number alone, its ``x-request-id`` if the client sent one, else its place in the
order of arrival. What a dialect says itself (429, 424, 500) is raised inside
`loadgen.server.desk`; the rest happens on the wire (`loadgen.server.faulty_transport`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from aiohttp import web

from loadgen.launch import Faults
from loadgen.server.faulty_transport import FaultyTransport, WireFault
from loadgen.server.routing import Handler
from loadgen.server.service import Sink

Kind = Literal["spike", "reset", "stall", "truncate", "garble", "http_429", "http_424", "http_500"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they share out the unit interval; each has its ``<kind>_rate``."""
BEFORE_FIRST_BYTE = 0.25
"""Share of resets, stalls and cuts before the first byte, and of 424s before the first token [assumed]."""
MEAN_WRITES = 16
"""Mean of the geometric law of the write, so mostly of the token, at which the others come [assumed]."""
_STREAM = 0x6661756C  # keeps these draws apart from other streams of the same seed
_BACKEND = "injected fault"

_current: ContextVar[Fault | None] = ContextVar("fault", default=None)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    ``after_writes``: writes to the connection that get through first, 0: not a
    byte does. ``share``: part of the next write, or of the reply's tokens, that
    still gets through, in [0, 1).
    """

    kind: Kind
    after_writes: int
    share: float


def fault_of(faults: Faults, seed: int, number: int) -> Fault | None:
    """The fault of request ``number`` (any integer), or None.

    One uniform draw picks the kind, kind k having the k-th interval of length
    ``<kind>_rate``, so that a kind's requests stay the same when the rates of
    those after it change; a second and a third say where it strikes.
    """
    key = np.random.SeedSequence([_STREAM, seed, number & 0xFFFFFFFFFFFFFFFF])
    which, where, share = np.random.default_rng(key).random(3).tolist()
    end = 0.0
    for kind in KINDS:
        end += getattr(faults, f"{kind}_rate")
        if which < end:
            return Fault(kind, _after_writes(where), share)
    return None


def _after_writes(uniform: float) -> int:
    """0 with probability BEFORE_FIRST_BYTE, else geometric from 1 (inverse of its distribution function)."""
    if uniform < BEFORE_FIRST_BYTE:
        return 0
    rest = (1.0 - uniform) / (1.0 - BEFORE_FIRST_BYTE)
    return 1 + int(math.log(rest) / math.log1p(-1.0 / MEAN_WRITES))


def strikes(faults: Faults) -> bool:
    """Whether any request can meet a fault."""
    return faults.crash_after_requests is not None or any(getattr(faults, f"{k}_rate") for k in KINDS)


def current(kind: Kind) -> bool:
    """Whether the request that is being handled is to meet ``kind``."""
    fault = _current.get()
    return fault is not None and fault.kind == kind


def failing(sink: Sink, tokens: int) -> Sink:
    """The sink of a reply of ``tokens`` tokens, which fails part way if its request is to meet a 424."""
    fault = _current.get()
    if fault is None or fault.kind != "http_424":
        return sink
    return _FailingSink(sink, int(fault.share * (tokens - 1)) if fault.after_writes else 0)


class _FailingSink:
    """Passes on ``after_tokens`` tokens, then a failure, then nothing."""

    __slots__ = ("_after_tokens", "_failed", "_sink")

    def __init__(self, sink: Sink, after_tokens: int) -> None:
        self._sink = sink
        self._after_tokens = after_tokens
        self._failed = False

    def token(self, index: int, finish_reason: str | None) -> None:
        if index <= self._after_tokens and finish_reason is None:
            self._sink.token(index, finish_reason)
        else:
            self.failed(_BACKEND)

    def failed(self, message: str) -> None:
        if not self._failed:
            self._failed = True
            self._sink.failed(message)


class Injector:
    """Lets the requests of one server meet their faults.

    ``crash`` ends the server, at the request after ``crash_after_requests``.
    """

    def __init__(self, faults: Faults, seed: int, crash: Callable[[], Awaitable[None]]) -> None:
        self._faults = faults
        self._seed = seed
        self._crash = crash
        self._requests = 0

    async def answer(
        self, request: web.Request, request_id: int | None, handler: Handler
    ) -> web.StreamResponse:
        """``handler``'s answer, or what the request's fault leaves of it."""
        faults = self._faults
        number = self._requests if request_id is None else request_id
        self._requests += 1
        if faults.crash_after_requests is not None and self._requests > faults.crash_after_requests:
            await self._crash()
            await asyncio.get_running_loop().create_future()  # until the lost connection cancels it
        fault = fault_of(faults, self._seed, number)
        if fault is None:
            return await handler(request)
        _current.set(fault)  # aiohttp handles each request in a context of its own
        if fault.kind == "spike":
            await asyncio.sleep(faults.spike_s)
        if fault.kind in get_args(WireFault):
            return await self._spoil(request, fault, handler)
        return await handler(request)

    async def _spoil(self, request: web.Request, fault: Fault, handler: Handler) -> web.StreamResponse:
        connection = request.protocol
        real = connection.transport
        if real is None:
            return await handler(request)
        assert fault.kind in ("reset", "stall", "truncate", "garble")
        faulty = FaultyTransport(
            real,
            fault.kind,
            after_writes=fault.after_writes,
            share=fault.share,
            stall_s=self._faults.stall_s,
        )
        connection.transport = faulty
        try:
            response = await handler(request)
            if not response.prepared:
                # aiohttp would write it after this block; head and body leave together.
                faulty.expect_one_write()
                with suppress(ConnectionError):  # the client has gone; aiohttp will see it too
                    await response.prepare(request)
                    await response.write_eof()
            faulty.end()
            await faulty.over
            return response
        finally:
            if connection.transport is faulty:
                connection.transport = real
