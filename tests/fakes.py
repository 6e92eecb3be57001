"""Fakes that obey the contracts, for tests of the code around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

from loadgen import clock
from loadgen.errors import ExchangeError
from loadgen.types import Arrival, Overflow, Plan, Reply, Request, Tape


def request(id: int, **body: Any) -> Request:
    return Request(id, "text", {"prompt": "Thank you!", "max_new_tokens": 2, **body})


def plan(
    due_s: list[float], *, cap: int | None = None, overflow: Overflow = "queue", closed: bool = False
) -> Plan:
    arrivals = tuple(Arrival(t, t, request(k)) for k, t in enumerate(due_s))
    return Plan(arrivals, cap, overflow, 0, closed)


class ScriptedClient:
    """Replies after ``service_s`` with two one-token reads; ``faults[id]`` changes what happens.

    A fault is an HTTP status, "reset" (transport error half way), "hang", or "cut" (no finish event).
    """

    def __init__(
        self, service_s: float | Callable[[int], float] = 0.1, faults: dict[int, Any] | None = None
    ) -> None:
        self.service_s = service_s
        self.faults = faults or {}
        self.in_flight = self.most_in_flight = 0
        self.started: list[tuple[int, float]] = []
        self.disconnected: list[int] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def exchange(self, request: Request, tape: Tape) -> None:
        self.started.append((request.id, clock.now()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        service_s = self.service_s(request.id) if callable(self.service_s) else self.service_s
        fault = self.faults.get(request.id)
        try:
            await asyncio.sleep(service_s / 2)
            if fault == "hang":
                await asyncio.get_running_loop().create_future()
            tape.http_status = fault if isinstance(fault, int) else 200
            tape.mark(clock.now(), 1)
            tape.data = b"x"
            if fault == "reset":
                raise ExchangeError("connection reset by peer")
            await asyncio.sleep(service_s / 2)
            tape.mark(clock.now(), 2)
            tape.data = b"xy" if fault == "cut" else b"xyz"
            tape.complete = True
        except asyncio.CancelledError:
            self.disconnected.append(request.id)
            raise
        finally:
            self.in_flight -= 1

    def decode(self, tape: Tape) -> Reply:
        if tape.http_status == 429:
            return Reply("", (), (), None, None, None, None, {}, "HTTP 429: Model is overloaded", True)
        if tape.http_status != 200:
            return Reply("", (), (), None, None, None, None, {}, f"HTTP {tape.http_status}")
        whole = tape.data == b"xyz"
        tokens = tuple(1 for _ in tape.stamps)
        reads = tuple(range(len(tape.stamps)))
        error = None if whole else "the stream ended without a finish event"
        return Reply("ok", reads, tokens, 3, len(tokens), "chunks", "length" if whole else None, {}, error)
