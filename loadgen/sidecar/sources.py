"""A host's power sources as one that outlives their failures: each part is opened again when it has died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.local import Last, Opening, Resume
from loadgen.types import BoardState, Domain, PowerSource, Reading

LOST_READS = 3
"""So many reads in a row without a domain are told; one alone may be a hiccup."""
REOPEN_READS = 20
"""So many, and its part is opened again: a second at 20 Hz."""
RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
"""How soon a part is opened again, and how rarely at last; doubling between."""


class Tell(Protocol):
    """Takes an event, as `loadgen.sidecar.events.EventLog.add`."""

    def __call__(self, kind: str, text: str, **more: Any) -> None: ...


@dataclass(slots=True)
class _Part:
    """``seen``: last (instant, joules) of each counter, as read here; ``missing``: reads in a row without
    a domain."""

    name: str
    opening: Opening
    resume: Resume
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    source: PowerSource | None = None
    reason: str | None = None
    domains: dict[str, Domain] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    retry_s: float = float("-inf")
    wait_s: float = RETRY_S

    def dead(self) -> bool:
        """Whether only opening it again can help: a source that can `reopen` sees to it by itself."""
        if self.source is None:
            return True
        longest = max(self.missing.values(), default=0)
        return longest >= REOPEN_READS and not hasattr(self.source, "reopen")


class HostSource:
    """The parts of a host (``gpu``, ``cpu``, ``ram``), read together and inline, in a process of its own.

    Domains only become more: those of a part that failed keep their names and have
    gaps. ``reasons``: by part, why it is not read now. ``resume``: what counters
    last showed in this boot, before this process.
    """

    blocking = False

    def __init__(self, parts: Mapping[str, Opening], resume: Resume, tell: Tell) -> None:
        self._parts = [_Part(name, opening, resume) for name, opening in parts.items()]
        self._tell = tell

    @property
    def reasons(self) -> dict[str, str | None]:
        return {part.name: part.reason for part in self._parts}

    @property
    def boards(self) -> list[dict[str, object]]:
        """Rows of the boards, as in run.json."""
        return [row for part in self._parts for row in getattr(part.source, "boards", ())]

    @property
    def warnings(self) -> list[str]:
        return [line for part in self._parts for line in getattr(part.source, "warnings", ())]

    def domains(self) -> Sequence[Domain]:
        """Every domain that was ever read, part by part."""
        return [domain for part in self._parts for domain in part.domains.values()]

    def read(self) -> list[Reading]:
        """The readings of all parts that answer. Raises PowerError when none does.

        A domain that is missing for `LOST_READS` reads is told once (``lost``), and
        once when it is back (``recovered``).
        """
        readings = [reading for part in self._parts for reading in self._read(part)]
        if not readings:
            raise PowerError("; ".join(part.reason or f"{part.name}: no reading" for part in self._parts))
        return readings

    def _read(self, part: _Part) -> list[Reading]:
        if part.source is None:
            return []
        try:
            readings = part.source.read()
            part.reason = None
        except (PowerError, OSError) as exc:
            readings, part.reason = [], str(exc)
        there = set()
        for reading in readings:
            there.add(reading.domain)
            if reading.energy_j is not None:
                part.seen[reading.domain] = (reading.t_s, reading.energy_j)
        lost, back = [], []
        for name, count in part.missing.items():
            if name in there:
                part.missing[name] = 0
                if count >= LOST_READS:
                    back.append(name)
            else:
                part.missing[name] = count + 1
                if count + 1 == LOST_READS:
                    lost.append(name)
        if lost:
            self._tell("lost", f"no reading of {', '.join(lost)}: {_why(part, lost[0])}", domains=lost)
        if back:
            self._tell("recovered", f"{', '.join(back)} can be read again", domains=back)
        return readings

    async def mend(self) -> None:
        """Opens what is not open, or has been silent for `REOPEN_READS` reads, with doubling pauses.

        Also the first opening. Drivers may take a second for it: it happens in a
        thread, while the other parts are read.
        """
        for part in self._parts:
            now_s = clock.now()
            if not part.dead():
                part.wait_s = RETRY_S
            elif now_s >= part.retry_s:
                part.retry_s, part.wait_s = now_s + part.wait_s, min(2 * part.wait_s, LONGEST_RETRY_S)
                await self._open(part)

    async def _open(self, part: _Part) -> None:
        here = {name: Last(*seen, part.domains[name].method) for name, seen in part.seen.items()}
        known = {**part.resume, **here}
        try:
            source = await asyncio.to_thread(part.opening, known)
        except (PowerError, OSError) as exc:
            if part.source is None:
                part.reason = str(exc)
            return
        found = {domain.name: domain for domain in source.domains()}
        other = [n for n, d in found.items() if n in part.domains and part.domains[n].method != d.method]
        if other:
            # An estimate must not go on under the name of a counter.
            source.close()
            part.reason = f"{part.name}: {other[0]} could now be read only as {found[other[0]].method}"
            return
        elsewhere = {name for one in self._parts if one is not part for name in one.domains}
        if twice := sorted(elsewhere & found.keys()):
            # A Jetson's or Apple chip's own counter and an estimate would share one column.
            source.close()
            part.reason = f"{part.name}: {twice[0]} is read with another part already"
            return
        again, part.source, part.reason = part.source, source, None
        if again is not None:
            again.close()
            self._tell("reopened", f"{part.name}: opened again", domains=list(found))
        part.domains |= found
        part.missing = dict.fromkeys(part.domains, 0) | part.missing

    def states(self) -> list[BoardState]:
        """What the boards' clocks and limits are now, of the parts that know any."""
        return [state for part in self._parts for state in _ask(part, "states", list)]

    def processes(self) -> dict[str, list[dict[str, Any]] | None]:
        """By board its compute processes (pid, name, memory_bytes); None where it is not known."""
        return {
            board: None if found is None else [asdict(process) for process in found]
            for part in self._parts
            for board, found in _ask(part, "processes", dict).items()
        }

    def close(self) -> None:
        """Closes every part; one that fails to has been lost anyway."""
        for part in self._parts:
            try:
                if part.source is not None:
                    part.source.close()
            except (PowerError, OSError) as exc:
                part.reason = str(exc)
            part.source = None


def _ask(part: _Part, question: str, nothing: Callable[[], Any]) -> Any:
    """The source's answer, ``nothing()`` when it has none or fails now: samples matter more."""
    try:
        return getattr(part.source, question, nothing)()
    except (PowerError, OSError):
        return nothing()


def _why(part: _Part, domain: str) -> str:
    """The source's own words about a domain or its board, newest first."""
    said = [str(line) for line in getattr(part.source, "warnings", ())]
    about = (f"power: {domain}:", f"power: {domain.partition('.')[0]}:")
    text = next((line for line in reversed(said) if line.startswith(about)), None)
    return part.reason or (text.removeprefix("power: ") if text else "it gives no reason")
