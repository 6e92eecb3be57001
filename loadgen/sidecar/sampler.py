"""The sampler: a process that reads a host's power sources and writes what they say into tables.

    python -m loadgen.sidecar.sampler '{"data_dir": "sidecar", "interval_s": 0.05}'

It shares nothing with the service that starts it but the files of the data
directory: tables ``power`` and ``state``, ``events.jsonl``, ``sampler.json``. It ends
with a last sample on SIGTERM, SIGINT, or when its standard input ends, which
is how it learns that the service has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import signal
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from loadgen import clock
from loadgen.errors import ConfigError, LoadgenError
from loadgen.power.host import RamVersion
from loadgen.power.local import Last, Opening, openings
from loadgen.power.rapl import POWERCAP
from loadgen.power.sampler import Sampled, sample
from loadgen.sidecar.events import EventLog
from loadgen.sidecar.overhead import Overhead
from loadgen.sidecar.sources import HostSource
from loadgen.sidecar.table import TableReader, TableWriter
from loadgen.types import BoardState, Reading

STATUS = "sampler.json"
CHORES_S, PROCESSES_S, OVERHEAD_S = 1.0, 5.0, 10.0
OVERHEAD_EVENT_S = 600.0
"""sampler.json always has the newest figures; the events keep their course."""
STATE_FIELDS = tuple(f.name for f in dataclasses.fields(BoardState) if f.name not in ("t_s", "domain"))
SEGMENT_S, HOLD_S = 3600.0, 600.0
"""What retention deletes at once, and how long a full disk is waited for with all rows in memory."""
_MOST_HELD = 60_000  # 20 MB for 8 boards
_RESUME_ROWS = 1000
"""How far back the last value of a counter is looked for: 50 s at 20 Hz."""


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """What a sampler is asked for. ``gpus``: UUIDs or indices, None for all; rows are kept for ``keep_s``."""

    data_dir: str
    interval_s: float = 0.05
    gpus: Sequence[str | int] | None = None
    cpu_tdp_w: float | None = None
    ram_version: RamVersion = 3
    keep_s: float | None = None
    powercap: str = str(POWERCAP)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """From its JSON object. Raises ConfigError."""
        try:
            tree = orjson.loads(text)
            config = cls(**tree)
        except (orjson.JSONDecodeError, TypeError) as exc:
            names = ", ".join(f.name for f in dataclasses.fields(cls))
            raise ConfigError(f"sampler: expected a JSON object of {names}: {exc}") from exc
        if not 0.001 <= config.interval_s <= 3600:
            raise ConfigError(f"sampler: interval_s: expected 0.001 to 3600, got {config.interval_s}")
        return config


def command(config: SamplerConfig) -> list[str]:
    """The command line of a sampler process, which lives until its standard input ends or it gets SIGTERM."""
    return [sys.executable, "-m", "loadgen.sidecar.sampler", orjson.dumps(asdict(config)).decode()]


class Sampler:
    """One session of sampling ``parts`` into ``config.data_dir``. Make it, then `run` it once."""

    def __init__(self, config: SamplerConfig, parts: Mapping[str, Opening]) -> None:
        self.done = Sampled()
        self.folder = Path(config.data_dir)
        self._config, self._session = config, uuid.uuid4().hex
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"cannot make {self.folder}: {exc.strerror or exc}") from exc
        self._log = EventLog(self.folder)
        self._before = _previous(self.folder / STATUS)
        self._source = HostSource(parts, last_energies(self.folder, self._before), self._log.add)
        self._tables: dict[str, TableWriter] = {}
        self._full: dict[str, str] = {}
        self._processes: dict[str, list[dict[str, Any]] | None] = {}
        self._status: dict[str, Any] = {}
        self._started_s = clock.now()
        self._overhead = Overhead()
        self._report = self._overhead.report(self.done)

    async def run(self, stop: asyncio.Event) -> Sampled:
        """Samples until ``stop`` is set, then once more. Raises ConfigError when the tables are another's."""
        config, source = self._config, self._source
        await source.mend()
        try:
            self._fit_tables()
            names = [domain.name for domain in source.domains()]
            self._log.add(
                "start",
                f"sampling {', '.join(names) or 'nothing'} every {config.interval_s:g} s",
                session=self._session,
                pid=os.getpid(),
                domains=names,
            )
            for part, reason in source.reasons.items():
                if reason is not None:
                    self._log.add("unavailable", f"{part} is not read: {reason}", part=part)
            before, now = _uuids(self._before.get("boards", ())), _uuids(source.boards)
            if moved := [board for board in now if before.get(board, now[board]) != now[board]]:
                text = f"{', '.join(moved)} is another board than before the start: its series has a break"
                self._log.add("boards_changed", text, domains=moved)
            self._look_at_processes()
            self._tell_status()
            chores = asyncio.create_task(self._chores())
            chores.add_done_callback(lambda _: stop.set())  # a sampler without them is broken
            try:
                await sample(source, config.interval_s, self._write, stop, self.done)
            finally:
                chores.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await chores
            self._tell_overhead()
            self._tell_status()
            self._watch_disk()
            self._log.add("stop", f"stopped after {self.done.reads} samples", session=self._session)
        finally:
            source.close()
            for name, table in self._tables.items():
                table.close()
                if table.lost_rows:
                    _say(f"{self.folder}: {table.lost_rows} rows of table {name} are lost: {table.broken}")
        return self.done

    def _write(self, readings: Sequence[Reading]) -> None:
        values = {reading.domain: (reading.t_s, _value(reading)) for reading in readings}
        table = self._tables["power"]
        if not values.keys() <= set(table.columns):
            self._fit_tables()
            table = self._tables["power"]
        # The tick's own instant: the sensors' stamps, which may be older, are in the values' lags.
        table.append(clock.now(), values)

    async def _chores(self) -> None:
        """What is slower than a tick: every second, half an interval after one so as to hinder none."""
        start_s = clock.now() + self._config.interval_s / 2
        turn = 0
        while True:
            turn = max(turn + 1, int((clock.now() - start_s) / CHORES_S) + 1)
            await asyncio.sleep(start_s + turn * CHORES_S - clock.now())
            await self._source.mend()
            self._fit_tables()
            self._write_states()
            if turn % int(PROCESSES_S / CHORES_S) == 0:
                self._look_at_processes()
            if turn == 1 or turn % int(OVERHEAD_S / CHORES_S) == 0:
                self._report = self._overhead.report(self.done)
            if turn % int(OVERHEAD_EVENT_S / CHORES_S) == 0:
                self._tell_overhead()
            self._watch_disk()
            self._log.flush()
            self._tell_status()

    def _fit_tables(self) -> None:
        """Begins the tables, and begins them anew when something can be read that had no column."""
        boards = [str(row["domain"]) for row in self._source.boards]
        wanted = {
            "power": tuple(domain.name for domain in self._source.domains()),
            "state": tuple(f"{board}.{name}" for board in boards for name in STATE_FIELDS),
        }
        for name, columns in wanted.items():
            table = self._tables.get(name)
            if table is not None and set(columns) <= set(table.columns):
                continue
            if name == "state" and not columns:
                continue
            if table is not None:
                table.close()
            interval_s, keep_s = self._config.interval_s if name == "power" else CHORES_S, self._config.keep_s
            self._tables[name] = TableWriter.open(
                self.folder,
                name,
                columns,
                keep_s=keep_s,
                segment_rows=math.ceil(min(SEGMENT_S, (keep_s or math.inf) / 8) / interval_s),
                hold_rows=min(_MOST_HELD, math.ceil(HOLD_S / interval_s)),
                session=self._session,
            )

    def _write_states(self) -> None:
        states = self._source.states()
        if not states or "state" not in self._tables:
            return
        table = self._tables["state"]
        values = {
            f"{state.domain}.{name}": (state.t_s, float(value))
            for state in states
            for name in STATE_FIELDS
            if (value := getattr(state, name)) is not None
        }
        table.append(
            clock.now(), {column: cell for column, cell in values.items() if column in table.columns}
        )

    def _look_at_processes(self) -> None:
        found = self._source.processes()
        if found != self._processes:
            self._processes = found
            count = sum(len(processes or ()) for processes in found.values())
            self._log.add("processes", f"{count} compute processes on the boards", boards=found)

    def _tell_overhead(self) -> None:
        self._report = report = self._overhead.report(self.done)
        used = report["cpu_s_per_hour"]
        cost = "too early to tell" if used is None else f"{used:.3g} CPU-s per hour"
        self._log.add("overhead", cost, **report)

    def _watch_disk(self) -> None:
        """Tells once that a table cannot be written, and once that it can again; aloud, too, since then the
        events cannot be written either."""
        for name, table in self._tables.items():
            if table.broken is not None and name not in self._full:
                self._full[name] = table.broken
                text = f"table {name}: {table.broken}; rows wait in memory"
                _say(f"{self.folder}: {text}")
                self._log.add("disk_full", text, table=name)
            elif table.broken is None and self._full.pop(name, None) is not None:
                self._log.add(
                    "disk_recovered",
                    f"table {name} is written again, {table.lost_rows} rows are lost",
                    table=name,
                    lost_rows=table.lost_rows,
                )

    def _tell_status(self) -> None:
        """Replaces ``sampler.json`` when it changed; a full disk leaves the old one until the next second."""
        source = self._source
        status = {
            "session": self._session,
            "pid": os.getpid(),
            "started_s": self._started_s,
            "interval_s": self._config.interval_s,
            "domains": [asdict(domain) for domain in source.domains()],
            "boards": source.boards,
            "reasons": source.reasons,
            "warnings": source.warnings,
            "processes": self._processes,
            "overhead": self._report,
        }
        if status == self._status:
            return
        draft = self.folder / f"{STATUS}.tmp"
        try:
            draft.write_bytes(orjson.dumps(status, option=orjson.OPT_INDENT_2))
            os.replace(draft, self.folder / STATUS)
        except OSError:
            return  # the events say that the disk is full
        self._status = status


def last_energies(folder: Path, before: Mapping[str, Any]) -> dict[str, Last]:
    """Each column's newest number, in this boot and the last `_RESUME_ROWS` rows of ``power``.

    ``before``: what sampler.json said then; it knows by what method each was read.
    """
    table = TableReader(folder, "power")
    last = table.last_seq
    if last is None:
        return {}
    methods = {domain["name"]: domain["method"] for domain in before.get("domains", ())}
    found = table.arrays(after=last - _RESUME_ROWS, since_s=float("-inf"))
    seen: dict[str, Last] = {}
    for i, column in enumerate(found.columns):
        there = np.flatnonzero(~np.isnan(found.value[:, i]))
        if len(there):
            row = there[-1]
            taken_s = float(found.t_s[row] + found.lag_s[row, i])
            seen[column] = Last(taken_s, float(found.value[row, i]), methods.get(column))
    return seen


def _previous(path: Path) -> dict[str, Any]:
    """What the last sampler here said of itself; empty when there was none."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _uuids(boards: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {str(row["domain"]): str(row["uuid"]) for row in boards if row.get("uuid")}


def _value(reading: Reading) -> float:
    value = reading.power_w if reading.energy_j is None else reading.energy_j
    assert value is not None  # one of the two, says Reading
    return value


async def _until_told(config: SamplerConfig) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def watch_life_line() -> None:
        # A thread, since a loop cannot watch a file; os.read, since a thread that holds
        # sys.stdin's lock at the interpreter's end aborts it.
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:
            return  # the loop has ended already

    threading.Thread(target=watch_life_line, daemon=True).start()
    parts = openings(config.gpus, config.cpu_tdp_w, config.ram_version, Path(config.powercap))
    await Sampler(config, parts).run(stop)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 when told to end, 2 for what it was asked for."""
    try:
        config = SamplerConfig.parse(arguments[0] if arguments else _first_line())
        # asyncio's own loop: at 20 Hz on two busy cores it woke 0.94 ms late (p50; p99 10.6 ms) for
        # 31 CPU-s an hour, uvloop 0.43 ms (9.7 ms) for 33. Neither matters to a stamped sample.
        asyncio.run(_until_told(config))
    except LoadgenError as exc:
        _say(str(exc))
        return 2
    return 0


def _say(text: str) -> None:
    print(f"loadgen sidecar: sampler: {text}", file=sys.stderr, flush=True)


def _first_line() -> bytes:
    """Of standard input, byte by byte: what follows is the life line's."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
