"""Several power sources read as one: boards, packages and estimates of the same host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loadgen.errors import PowerError
from loadgen.types import BoardProcess, BoardState, Domain, PowerSource, Reading


class CombinedSource:
    """The domains of all ``sources``, in their order, which it owns from now on.

    ``boards`` and ``warnings`` are theirs, joined; ``blocking`` when one of them
    is. Raises PowerError without a source and for a domain that two of them have.
    """

    def __init__(self, sources: Sequence[PowerSource]) -> None:
        if not sources:
            raise PowerError("no power source to read")
        self._sources = tuple(sources)
        self._domains = tuple(domain for source in sources for domain in source.domains())
        twice = [name for name, count in Counter(d.name for d in self._domains).items() if count > 1]
        if twice:
            raise PowerError(f"two power sources have the domain {twice[0]}: it would be counted twice")
        self._faults: list[str] = []
        self._failed = [0] * len(sources)
        self._reads = 0
        self.blocking = any(bool(getattr(source, "blocking", False)) for source in sources)
        self.boards: tuple[dict[str, object], ...] = tuple(
            row for source in sources for row in getattr(source, "boards", ())
        )

    @property
    def warnings(self) -> list[str]:
        """Every source's own, then which source failed, why, and how often."""
        found = [line for source in self._sources for line in getattr(source, "warnings", ())]
        missed = [
            f"power: {', '.join(d.name for d in source.domains())}: {failed} of {self._reads} reads failed"
            for source, failed in zip(self._sources, self._failed, strict=True)
            if failed
        ]
        return [*found, *self._faults, *missed]

    def domains(self) -> Sequence[Domain]:
        """What is read, source by source."""
        return self._domains

    def read(self) -> list[Reading]:
        """The readings of every source that answered.

        One that raises is left out of this read: its domains have a gap here and
        ``warnings`` says so; the next read asks it again. Raises PowerError when
        every source did.
        """
        readings: list[Reading] = []
        self._reads += 1
        reasons: list[str] = []
        for index, source in enumerate(self._sources):
            try:
                readings += source.read()
            except (PowerError, OSError) as exc:
                reasons.append(str(exc))
                self._failed[index] += 1
                if (warning := f"power: {exc}") not in self._faults:
                    self._faults.append(warning)
        if len(reasons) == len(self._sources):
            raise PowerError("; ".join(reasons))
        return readings

    def states(self) -> list[BoardState]:
        """The boards' states, of the sources that know any."""
        return [state for source in self._sources for state in getattr(source, "states", list)()]

    def processes(self) -> dict[str, list[BoardProcess] | None]:
        """The compute processes on each board, None where not told, of the sources that know any."""
        return {
            board: found
            for source in self._sources
            for board, found in getattr(source, "processes", dict)().items()
        }

    def close(self) -> None:
        """Closes every source, also when one of them fails to; safe to call twice if theirs is.

        Raises the first failure after the last source was closed.
        """
        first: PowerError | OSError | None = None
        for source in self._sources:
            try:
                source.close()
            except (PowerError, OSError) as exc:
                first = first or exc
        if first is not None:
            raise first
