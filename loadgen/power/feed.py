"""A sidecar's readings on their way into a run, none lost, none twice.

A `Feed` fetches its sidecar's tables once a second by sequence number, so a broken
link is resumed where it broke: the sidecar keeps its samples in files. With each
poll goes one question for the time there. What did not arrive in the end is
counted, not guessed.

Rows are put on the run's clock by the offset found at the start, a constant, so that
what is written is what was read; `analysis.run` applies the drift known at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.offset import STEP_S, Exchange, Line, Offset, fastest
from loadgen.power.remote import PAGE_ROWS, Info, Row, Sidecar
from loadgen.power.serving import Serving, seen, serving
from loadgen.types import BoardState, Reading, ServerSample

ROUND_TRIPS, BURST_S = 50, 5.0
POLL_S, LOOK_EVERY = 1.0, 10
LAST_SCRAPE_S = 1.0
"""For a sample of the server after the last reply: a sidecar takes one every 0.5 s by default."""
HOLE = 3
"""So many ticks in a row without a sample are samples missing; fewer, ticks that the sampler skipped."""
_BACK_S = 1.0  # a rebooted host's clock begins at 0
_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.25, 5.0
_SLICE = 64  # values written between two turns of the loop, about 5 us each
_WHOLE = ("pstate", "event_reasons", "ecc_errors")
_BOARD_FIELDS = {f.name for f in fields(BoardState)} - {"t_s", "domain"}
_SERVER_FIELDS = {f.name for f in fields(ServerSample)} - {"t_s"}


@dataclass(frozen=True, slots=True)
class Sink:
    """Where what was fetched goes, on the run's clock (``clock.now()``)."""

    reading: Callable[[Reading], None]
    board: Callable[[BoardState], None]
    server: Callable[[ServerSample], None]


@dataclass(slots=True)
class _Tally:
    """How complete the rows of the power table are. Instants are the sidecar's.

    The sampler's ticks lie on a grid. A late tick leaves more than an interval before
    its row and less after it, so ticks are counted from where the grid began, not from row
    to row. It begins anew behind a hole: a sampler that was started again has its own.
    """

    begin_s: float = math.inf
    first_seq: int | None = None
    last_seq: int | None = None
    last_s: float | None = None
    received: int = 0
    missing: int = 0
    _skipped: int = 0
    _grid_s: float = 0.0
    _tick: int = 0
    _interval_s: float = 0.0

    @property
    def skipped(self) -> int:
        """Single ticks that the sampler left out; a first row that was late leaves one too few."""
        return max(0, self._skipped)

    def take(self, row: Row, interval_s: float) -> None:
        """Counts a row, and what lies between it and the last one."""
        lost = 0 if self.last_seq is None else row.seq - self.last_seq - 1
        if self.last_s is None:
            self._grid_s, self._tick = (row.t_s, -1) if row.t_s <= self.begin_s else (self.begin_s, 0)
        elif interval_s != self._interval_s:
            self._grid_s, self._tick = self.last_s, 0
        self._interval_s = interval_s
        tick = round((row.t_s - self._grid_s) / interval_s)
        unmade = tick - self._tick - 1 - lost
        self.received += 1
        self.missing += lost
        if unmade >= HOLE:
            self.missing += unmade
            self._grid_s, self._tick = row.t_s, 0
        else:
            self._skipped += unmade
            self._tick = tick
        self.first_seq = row.seq if self.first_seq is None else self.first_seq
        self.last_seq, self.last_s = row.seq, row.t_s

    def end(self, until_s: float, interval_s: float) -> None:
        """Counts what should have come until ``until_s`` and did not."""
        last_s = self.begin_s if self.last_s is None else self.last_s
        if last_s < math.inf:
            self.missing += max(0, math.floor((until_s - last_s) / interval_s))


class Feed:
    """One sidecar's part in a run. Made by `loadgen.power.sidecars`.

    ``prefix`` stands before its domains' names, ``port`` is the server's on its
    host, if it is known to be there.
    """

    def __init__(
        self, sidecar: Sidecar, name: str, info: Info, start: Offset, port: int | None, first: Serving
    ) -> None:
        self.sidecar, self.name, self.info, self._port = sidecar, name, info, port
        self.prefix = f"{name}/" if name else ""
        self.said_by = f"sidecar {name or sidecar.shown}"
        self.domains = tuple(replace(d, name=self.prefix + d.name) for d in info.domains)
        self.boards = tuple({**row, "domain": f"{self.prefix}{row.get('domain')}"} for row in info.boards)
        self.scrapes = info.scrapes
        self.warnings: list[str] = []
        self._warn(info)
        self._cumulative = {d.name: d.method not in ("instant", "average") for d in info.domains}
        self._start = start
        self._end: Offset | None = None
        self._exchanges: list[Exchange] = []
        self._after = {table: info.last_seq.get(table, 0) for table in ("power", "state", "metrics")}
        # From the newest of the server's samples on: it was taken before the run's first request.
        self._after["metrics"] = max(0, self._after["metrics"] - 1)
        self._since_s: float | None = None
        self._scraped_s = -math.inf  # when the newest of the server's samples was taken, on its clock
        self._tally = _Tally()
        self._interval_s = info.interval_s
        self._first = first
        self._last: Serving | None = None
        self._others = {(p["board"], p["pid"]): p for p in first.others}
        self._polls = self._failures = self._reconnects = 0
        self._lost: str | None = None
        self._changed: list[str] = []

    async def follow(self, sink: Sink, stop: asyncio.Event) -> None:
        """Fetches every `POLL_S` until ``stop`` is set; a link that breaks is tried again, ever slower."""
        self._tally.begin_s = clock.now() + self._start.offset_s
        while not stop.is_set():
            delay_s = await self._attempt(sink)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await stop.wait()

    async def finish(self, sink: Sink, until_s: float, limit_s: float) -> None:
        """Fetches until a row read after ``until_s`` is here, then asks for time and processes again.

        Tries for ``limit_s`` at most; what has not come by then is counted as missing.
        """
        offsets_s = [self._start.offset_s, *(e.offset_s + e.bound_s for e in self._exchanges[-1:])]
        until_s += max(offsets_s) + self._start.bound_s
        # A row is written when its sources have been read: the first after that may have been begun before.
        enough_s = until_s + self._interval_s
        try:
            async with asyncio.timeout(limit_s):
                while self._tally.last_s is None or self._tally.last_s <= enough_s:
                    delay_s = await self._attempt(sink)
                    await asyncio.sleep(delay_s if self._failures else max(self._interval_s, 0.05))
                if self.scrapes and self._scraped_s <= until_s:  # its counters are compared if one is there
                    await asyncio.sleep(LAST_SCRAPE_S)
                    await self._attempt(sink)
                self._end = await burst(self.sidecar)
                await self._look()
                self._last = await serving(self.sidecar, self.info, self._port)
        except TimeoutError:
            self._lost = self._lost or f"{self.said_by}: no sample from the run's end came in {limit_s:g} s"
        except PowerError as exc:
            self._lost = str(exc)
        self._tally.end(until_s, self._interval_s)

    async def _attempt(self, sink: Sink) -> float:
        """One poll, well or badly; how many seconds to wait for the next."""
        try:
            if self._failures or self._polls % LOOK_EVERY == LOOK_EVERY - 1:
                await self._look()
            self._polls += 1
            await self._poll(sink)
        except PowerError as exc:
            self._lost = str(exc)
            self._failures += 1
            return float(min(_LONGEST_BACK_OFF_S, _BACK_OFF_S * 2 ** min(self._failures - 1, 10)))
        if self._failures:
            self._reconnects += 1
        self._failures, self._lost = 0, None
        return POLL_S

    async def _look(self) -> None:
        """Asks who it is by now, and whether others compute on its boards."""
        info = await self.sidecar.info()
        if info.id != self.info.id:
            self.warnings.append(
                f"{self.said_by}: another data directory since the link broke "
                f"({info.id}, was {self.info.id}): samples of between may be in the former one only"
            )
            self._after = dict.fromkeys(self._after, 0)
            self._since_s, self._tally.last_seq = self._tally.last_s, None
        self._warn(info)
        self._changed += [line for line in self._changes(info) if line not in self._changed]
        self.info, self._interval_s = info, info.interval_s
        now = await serving(self.sidecar, info, self._port)
        self._others |= {(p["board"], p["pid"]): p for p in now.others}

    def _warn(self, info: Info) -> None:
        """Keeps what the sidecar warns of, also of what befell it during the run."""
        said = (f"{self.said_by}: {line.removeprefix('power: ')}" for line in info.warnings)
        self.warnings += [line for line in said if line not in self.warnings]

    def _changes(self, info: Info) -> Iterator[str]:
        """What has another meaning by now than at the start, under the same name."""
        uuids = {f"{self.prefix}{row.get('domain')}": row.get("uuid") for row in info.boards}
        for row in self.boards:
            name, before = row["domain"], row.get("uuid")
            if before is not None and uuids.get(name) not in (None, before):
                yield f"{name} is board {uuids[name]} by now, was {before}"
        methods = {self.prefix + d.name: d.method for d in info.domains}
        for domain in self.domains:
            if methods.get(domain.name, domain.method) != domain.method:
                yield f"{domain.name} is now {methods[domain.name]}, was {domain.method}"

    async def _poll(self, sink: Sink) -> None:
        self._exchanges.append(await self.sidecar.exchange())
        for table in ("power", "state", *(("metrics",) if self.scrapes else ())):
            more = True
            while more:
                rows = await self.sidecar.rows(
                    table, after=self._after[table], since_s=self._since_s, limit=PAGE_ROWS
                )
                await self._write(table, rows, sink)
                more = len(rows) == PAGE_ROWS
        self._since_s = None

    async def _write(self, table: str, rows: Sequence[Row], sink: Sink) -> None:
        """Hands rows on in slices: a backlog must not make requests late."""
        written = 0
        for row in rows:
            if table == "power":
                self._power(row, sink)
            elif table == "state":
                self._state(row, sink)
            else:
                self._metrics(row, sink)
            self._after[table] = row.seq
            written += len(row.columns)
            if written >= _SLICE:
                written = 0
                await asyncio.sleep(0)

    def _power(self, row: Row, sink: Sink) -> None:
        if self._tally.last_s is not None and row.t_s < self._tally.last_s - _BACK_S:
            line = (
                f"{self.said_by}: its clock went back (was the host restarted?); readings since are left out"
            )
            if line not in self.warnings:
                self.warnings.append(line)
            self._tally.missing += 1
            return
        self._tally.take(row, self._interval_s)
        for column, t_s, value in row.taken():
            if column in self._cumulative:
                name, t_s = self.prefix + column, t_s - self._start.offset_s
                kind = "energy_j" if self._cumulative[column] else "power_w"
                sink.reading(Reading(t_s, name, **{kind: value}))

    def _state(self, row: Row, sink: Sink) -> None:
        boards: dict[str, dict[str, Any]] = {}
        for column, t_s, value in row.taken():
            board, _, name = column.rpartition(".")
            if name in _BOARD_FIELDS:
                told = boards.setdefault(board, {"t_s": t_s - self._start.offset_s})
                told[name] = int(value) if name in _WHOLE else value
        for board, told in boards.items():
            sink.board(BoardState(domain=self.prefix + board, **told))

    def _metrics(self, row: Row, sink: Sink) -> None:
        told = {column: value for column, _, value in row.taken() if column in _SERVER_FIELDS}
        self._scraped_s = row.t_s
        sink.server(ServerSample(t_s=row.t_s - self._start.offset_s, **told))

    def closing_words(self) -> list[str]:
        """What to know about the clock and the link, once the run is over."""
        lines = []
        if self._end is not None:
            _, step_s = Line(self._start, self._end).checked(self._exchanges)
            if step_s > STEP_S:
                lines.append(
                    f"{self.said_by}: its clock was {1e3 * step_s:.3g} ms off a steady drift in mid-run "
                    "(moved or slewed): the bound of the offset was widened"
                )
        if self._reconnects:
            lines.append(f"{self.said_by}: the link broke and was resumed {self._reconnects} times")
        return lines

    def manifest(self, zero_s: float) -> dict[str, Any]:
        """The sidecar's row in run.json; ``zero_s`` is the clock.now() that instants count from."""
        line = None if self._end is None else Line(self._start, self._end)
        tally = self._tally
        return {
            "name": self.name or None,
            "url": self.sidecar.shown,
            "id": self.info.id,
            "interval_s": self._interval_s,
            "domains": [d.name for d in self.domains],
            "metrics": self.scrapes,
            "clock": {
                "start": _at_run_time(self._start, zero_s),
                "end": None if self._end is None else _at_run_time(self._end, zero_s),
                "drift_ppm": None if line is None else 1e6 * line.drift,
                "bound_s": None if line is None else line.checked(self._exchanges)[0],
            },
            "samples": {
                "received": tally.received,
                "expected": tally.received + tally.missing + tally.skipped,
                "missing": tally.missing,
                "first_seq": tally.first_seq,
                "last_seq": tally.last_seq,
            },
            "reconnects": self._reconnects,
            "overhead": dict(self.info.overhead),
            "server": seen(self._first, self._last, self._others.values(), self.prefix),
            "changed": self._changed,
            "reason": self._lost,
        }


def _at_run_time(offset: Offset, zero_s: float) -> dict[str, Any]:
    return asdict(replace(offset, at_s=offset.at_s - zero_s))


async def burst(sidecar: Sidecar) -> Offset:
    """The clock offset by the fastest of `ROUND_TRIPS` exchanges, or of as many as fit in `BURST_S`."""
    exchanges: list[Exchange] = []
    end_s = clock.now() + BURST_S
    while len(exchanges) < ROUND_TRIPS and (clock.now() < end_s or len(exchanges) < 2):
        exchanges.append(await sidecar.exchange())
    return fastest(exchanges)
