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

import numpy as np

from loadgen.types import Floats

STEP_S = 1e-3
"""An exchange this far off the line says that the remote clock did not run evenly."""
SLEW = 500e-6
"""How far the rate between two clocks is taken to depart from its mean over the run, seconds per second:
the most by which adjtime(3) and the kernel's NTP discipline (MAXFREQ in linux/timex.h) slew one."""


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
        if abs(exchange.offset_s - best.offset_s) - exchange.bound_s > best.bound_s:
            bound_s = max(bound_s, abs(exchange.offset_s - best.offset_s) + exchange.bound_s)
    return Offset(best.at_s, best.offset_s, bound_s, len(exchanges))


@dataclass(frozen=True, slots=True)
class Line:
    """The offset between the ends of a run, as a straight line: crystals differ by a nearly constant rate."""

    start: Offset
    end: Offset

    @property
    def drift(self) -> float:
        """Seconds that the remote clock gains per second of ours."""
        span_s = self.end.at_s - self.start.at_s
        return (self.end.offset_s - self.start.offset_s) / span_s if span_s > 0 else 0.0

    def offset_s(self, at_s: float) -> float:
        """The offset at an instant of our clock."""
        return self.start.offset_s + self.drift * (at_s - self.start.at_s)

    def checked(self, exchanges: Iterable[Exchange]) -> tuple[float, float]:
        """(bound, step) in seconds, by the ends and the exchanges of the run between them.

        ``bound``: how far the line is from the truth at most, at any instant between the
        ends, and never less than at these. Each exchange says where the truth is at its
        instant; from there it may leave the line by `SLEW` at most, so a slow exchange
        beside fast ones blurs nothing, and a stretch without any widens the bound. Where
        no such truth fits all of them the clock was set: the bound is then what holds at
        every exchange and up to the next one. ``step``: how far off the line the
        exchanges prove it, 0 if that is no more than the ends' bounds allow the line itself.
        """
        points: list[Offset | Exchange] = [self.start, self.end, *exchanges]
        points.sort(key=lambda point: point.at_s)
        at_s = np.array([point.at_s for point in points])
        off_s = np.array([point.offset_s - self.offset_s(point.at_s) for point in points])
        rate = SLEW + abs(self.drift)  # it was asked anywhere in the round trip, while the offset changes
        half_s = (1 + rate) * np.array([point.bound_s for point in points])
        above_s, below_s = _reach(at_s, half_s + off_s), _reach(at_s, half_s - off_s)
        ends_s = max(self.start.bound_s, self.end.bound_s)
        step_s = -float(min(above_s.min(), below_s.min()))
        if np.any(above_s + below_s < 0):
            leaves_s = rate * float(np.max(np.diff(at_s)))
            above_s = below_s = np.full(len(at_s), float(np.max(np.abs(off_s) + half_s)) + leaves_s)
        # Between two instants the reaches of both meet at their mean and half of what the gap allows.
        widest_s = [
            float(np.max((reach_s[:-1] + reach_s[1:] + SLEW * np.diff(at_s)) / 2))
            for reach_s in (above_s, below_s)
        ]
        return max(ends_s, *widest_s), step_s if step_s > ends_s else 0.0


def _reach(at_s: Floats, limit_s: Floats) -> Floats:
    """The tightest limits, (n,), that ``limit_s`` at ``at_s`` sets for what changes by `SLEW` at most."""
    before_s = np.minimum.accumulate(limit_s - SLEW * at_s) + SLEW * at_s
    after_s = np.minimum.accumulate((limit_s + SLEW * at_s)[::-1])[::-1] - SLEW * at_s
    reach_s: Floats = np.minimum(before_s, after_s)
    return reach_s
