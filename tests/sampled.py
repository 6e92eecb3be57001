"""The sampler over a scripted source in virtual time, and what it left in its directory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.local import Opening
from loadgen.sidecar.events import read_events
from loadgen.sidecar.sampler import Sampler, SamplerConfig
from loadgen.sidecar.table import TableReader
from loadgen.types import BoardProcess, BoardState, Domain, Method, Reading

HZ = 20


class Scripted:
    """Counters of 100 W each; ``down(t_s, domain)`` says when one gives nothing. ``boards`` have states."""

    blocking = True  # as NVML's; here it is read inline all the same

    def __init__(
        self,
        names: Sequence[str],
        down: Callable[[float, str], bool] = lambda t_s, name: False,
        method: Method = "counter",
    ) -> None:
        self.names, self.down, self.method = names, down, method
        self.boards = tuple({"domain": name} for name in names if name.startswith("gpu"))
        self.warnings = ["power: gpu0: it fell off"]
        self.closed = False
        self.pids: Callable[[], list[int]] = list

    def domains(self) -> list[Domain]:
        return [Domain(name, self.method) for name in self.names]

    def read(self) -> list[Reading]:
        t_s = clock.now()
        there = [name for name in self.names if not self.down(t_s, name)]
        if not there:
            raise PowerError("nothing answers")
        return [Reading(t_s + 0.001 * i, name, energy_j=100.0 * t_s) for i, name in enumerate(there)]

    def states(self) -> list[BoardState]:
        return [BoardState(clock.now(), str(b["domain"]), 40.0, pstate=0) for b in self.boards]

    def processes(self) -> dict[str, list[BoardProcess] | None]:
        return {
            str(b["domain"]): [BoardProcess(pid, "python", 2**30) for pid in self.pids()] for b in self.boards
        }

    def close(self) -> None:
        self.closed = True


def run(folder: Path, parts: Mapping[str, Opening], seconds: float, begin_s: float = 0.0) -> Sampler:
    """Samples for so long in virtual time, which begins at ``begin_s``."""
    made: list[Sampler] = []

    async def main() -> None:
        await asyncio.sleep(begin_s)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        made.append(Sampler(SamplerConfig(str(folder), interval_s=1 / HZ), parts))
        await made[0].run(stop)

    clock.run_virtual(main())
    return made[0]


def series(folder: Path, domain: str) -> list[tuple[float, float | None]]:
    """(instant it was taken, value) in every row; None where it is missing."""
    reader = TableReader(folder, "power")
    i = reader.columns.index(domain)
    return [(row.t_s + row.lag_s[i], row.values[i]) for row in reader.rows(limit=100_000)]


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if not kinds or event["kind"] in kinds]


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sampler.json").read_text())
    return found
