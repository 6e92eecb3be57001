"""The states of the boards that a run reads itself, taken between two samples."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen import clock
from loadgen.types import BoardState, Domain, PowerSource, Reading

EVERY_S = 1.0


class WithStates:
    """``source``, with its boards' states about once a second, if it knows any.

    They are read in the same call, since a driver's library is for one thread at a time.
    """

    def __init__(self, source: PowerSource) -> None:
        self._source = source
        self._states: list[BoardState] = []
        self._next_s = float("-inf")
        self.blocking = bool(getattr(source, "blocking", False))

    def domains(self) -> Sequence[Domain]:
        return self._source.domains()

    def read(self) -> list[Reading]:
        """The source's readings; raises what it raises."""
        readings = self._source.read()
        if clock.now() >= self._next_s:
            self._next_s = clock.now() + EVERY_S
            self._states += getattr(self._source, "states", list)()
        return readings

    def states(self) -> list[BoardState]:
        """Those since the last call."""
        taken, self._states = self._states, []
        return taken

    def close(self) -> None:
        self._source.close()
