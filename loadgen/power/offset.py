"""How far a remote clock is ahead of ours, and how sure that is. Pure arithmetic.

A clock that was asked at ``sent_s`` and whose answer was here at ``back_s`` (ours)
said ``remote_s`` some time between the two, whatever the delays each way. So the
offset, remote minus ours, lies in ``[remote_s - back_s, remote_s - sent_s]``: its
middle is the estimate, half its width the bound (F. Cristian, "Probabilistic clock
synchronization", Distributed Computing 3, 1989). The fastest of several round
trips has the narrowest bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEP_S = 1e-3
"""An exchange this far off the line says that the remote clock did not run evenly."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to the remote clock; ``sent_s`` and ``back_s`` on ours, ``remote_s`` on its own."""

    sent_s: float
    remote_s: float
    back_s: float

    @property
    def at_s(self) -> float:
        """The middle of the round trip, on our clock."""
        return (self.sent_s + self.back_s) / 2

    @property
    def offset_s(self) -> float:
        """Remote minus ours, within ``bound_s`` of the truth."""
        return self.remote_s - self.at_s

    @property
    def bound_s(self) -> float:
        """Half the round trip."""
        return (self.back_s - self.sent_s) / 2


@dataclass(frozen=True, slots=True)
class Offset:
    """Remote minus ours at ``at_s`` (our clock): within ``bound_s`` of ``offset_s``."""

    at_s: float
    offset_s: float
    bound_s: float
    round_trips: int


def fastest(exchanges: Sequence[Exchange]) -> Offset:
    """The offset by the fastest round trip. Raises ValueError when there is none.

    Round trips that contradict it (the clock was moved meanwhile) widen the bound
    until it holds for them too.
    """
    best = min(exchanges, key=lambda e: e.bound_s)
    bound_s = best.bound_s
    for exchange in exchanges:
        if _miss_s(exchange, best.offset_s) > bound_s:
            bound_s = abs(exchange.offset_s - best.offset_s) + exchange.bound_s
    return Offset(best.at_s, best.offset_s, bound_s, len(exchanges))


@dataclass(frozen=True, slots=True)
class Line:
    """The offset between the ends of a run: linear, since crystals differ by a nearly constant rate.

    Where that holds, ``bound_s``, the greater of the ends' own, holds at every
    instant between them: the error of an interpolation is a mean of the ends' errors.
    """

    start: Offset
    end: Offset

    @property
    def drift(self) -> float:
        """Seconds that the remote clock gains per second of ours."""
        span_s = self.end.at_s - self.start.at_s
        return (self.end.offset_s - self.start.offset_s) / span_s if span_s > 0 else 0.0

    @property
    def bound_s(self) -> float:
        return max(self.start.bound_s, self.end.bound_s)

    def offset_s(self, at_s: float) -> float:
        """The offset at an instant of our clock."""
        return self.start.offset_s + self.drift * (at_s - self.start.at_s)

    def checked(self, exchanges: Iterable[Exchange]) -> tuple[float, float]:
        """(bound, step) in seconds, with the exchanges of the run held against the line.

        One whose interval the line misses by more than ``bound_s`` proves that the
        clock did not run evenly: the bound then grows until it holds at that instant
        too, and ``step`` is the greatest such miss, else 0. A merely slow exchange
        contradicts nothing.
        """
        bound_s, step_s = self.bound_s, 0.0
        for exchange in exchanges:
            line_s = self.offset_s(exchange.at_s)
            miss_s = _miss_s(exchange, line_s)
            if miss_s > self.bound_s:
                bound_s = max(bound_s, abs(exchange.offset_s - line_s) + exchange.bound_s)
                step_s = max(step_s, miss_s)
        return bound_s, step_s


def _miss_s(exchange: Exchange, offset_s: float) -> float:
    """How far ``offset_s`` lies outside what the exchange allows; 0 inside."""
    return max(0.0, abs(exchange.offset_s - offset_s) - exchange.bound_s)
