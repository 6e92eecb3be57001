"""An append-only table of numbers: one process writes it, any number read it while it grows.

A table is a series of segment files ``NAME.<first seq>.<token>.table``, each a header
line of JSON and then records of fixed width (`loadgen.sidecar.segments`), so that a row is found
by bisection and a slow reader costs the writer nothing. NaN is a missing value.
Every record ends with the CRC-32 of the rest: a record cut by a kill, a full disk or a
power cut (which may leave zeros) is never taken for a row. Times are ``clock.now()``,
that is the host's monotonic clock, which starts anew with each boot; a segment's
header says in which boot it was written, and times are looked up in one boot only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time as wall_s
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson

from loadgen.errors import ConfigError
from loadgen.sidecar.segments import CHECK, HEADER_BYTES, SCHEMA, Records, Segment, boot_id, segment_files
from loadgen.types import Floats

__all__ = ["Arrays", "Row", "TableReader", "TableWriter", "boot_id"]

SEGMENT_ROWS = 72_000
"""An hour at 20 Hz: what retention deletes at once."""
HOLD_ROWS = 12_000
"""Ten minutes at 20 Hz: what is kept in memory while the disk takes nothing."""
_BATCH_ROWS = 1000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: ``values[i]``, None when missing, was taken at ``t_s + lag_s[i]``; clock.now() of its host."""

    seq: int
    t_s: float
    values: tuple[float | None, ...]
    lag_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Arrays:
    """Rows in bulk: ``seq``, ``t_s`` of shape (rows,); ``value``, ``lag_s`` (rows, columns). NaN: missing."""

    columns: tuple[str, ...]
    seq: npt.NDArray[np.uint64]
    t_s: Floats
    value: Floats
    lag_s: Floats


class TableWriter:
    """The one writer of a table. Make it with `open`.

    ``lost_rows``: rows that fell out of memory while the disk took nothing; their
    seq numbers are missing from the table. ``broken``: why the disk takes nothing
    now, else None. Rows wait in memory then, at most ``hold_rows``, and are written
    in order when it takes them again. Rows that still wait when the process is killed
    are lost; nobody has seen their seq numbers, which are given again.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        columns: Sequence[str],
        lock: int,
        *,
        keep_s: float | None,
        segment_rows: int,
        hold_rows: int,
        session: str | None,
    ) -> None:
        self.columns = tuple(columns)
        self.last_seq = 0
        self.lost_rows = 0
        self.broken: str | None = None
        self._folder, self._name, self._lock = folder, name, lock
        self._keep_s, self._segment_rows, self._session = keep_s, segment_rows, session
        self._hold_rows = hold_rows
        self._index = {column: i for i, column in enumerate(self.columns)}
        self._body = struct.Struct(f"<Qd{len(columns)}d{len(columns)}f")
        self._width = self._body.size + CHECK.size
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._fd: int | None = None
        self._offset = 0
        self._room = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        name: str,
        columns: Sequence[str],
        *,
        keep_s: float | None = None,
        segment_rows: int = SEGMENT_ROWS,
        hold_rows: int = HOLD_ROWS,
        session: str | None = None,
    ) -> Self:
        """Continues the table of this name, or begins it: the next row gets the seq after the last whole one.

        ``keep_s``: segments whose rows are all older are deleted when a new one
        begins (rows of earlier boots by the file's wall time). Raises ConfigError
        when another process writes the table, or the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            raise ConfigError(f"cannot write the table {folder / name}: {exc.strerror or exc}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            raise ConfigError(
                f"{folder}: another process writes the table {name}: stop it, or choose another directory"
            ) from exc
        table = cls(
            folder,
            name,
            columns,
            lock,
            keep_s=keep_s,
            segment_rows=segment_rows,
            hold_rows=hold_rows,
            session=session,
        )
        try:
            table.last_seq = _mend(folder, name)
            table._begin(table.last_seq + 1)
        except OSError as exc:
            if exc.errno not in _NO_SPACE:
                table.close()
                raise ConfigError(f"cannot write the table {folder / name}: {exc.strerror or exc}") from exc
            table.broken = exc.strerror or str(exc)
        return table

    def append(self, t_s: float, values: Mapping[str, tuple[float, float]]) -> int:
        """Writes one row, handed to the system before this returns, and gives its seq.

        ``values``: ``{column: (instant, value)}``; absent columns are missing. ``t_s``
        must not be before the last row's. A full disk raises nothing: see ``broken``.
        Raises KeyError for an unknown column.
        """
        cells, lags = [float("nan")] * len(self.columns), [0.0] * len(self.columns)
        for column, (taken_s, value) in values.items():
            i = self._index[column]
            cells[i], lags[i] = value, taken_s - t_s
        self.last_seq += 1
        body = self._body.pack(self.last_seq, t_s, *cells, *lags)
        self._waiting.append((self.last_seq, body + CHECK.pack(zlib.crc32(body))))
        self._flush(t_s)
        while len(self._waiting) > self._hold_rows:
            self._waiting.popleft()
            self.lost_rows += 1
        return self.last_seq

    def close(self) -> None:
        """Tries once more to write what waits (the rest is lost, and counted) and frees the table."""
        if self._waiting:
            self._flush(None)
        self.lost_rows += len(self._waiting)
        self._waiting.clear()
        if self._fd is not None:
            os.close(self._fd)
        if self._lock >= 0:
            os.close(self._lock)
        self._fd, self._lock = None, -1

    def _flush(self, now_s: float | None) -> None:
        """Writes what waits, as far as the disk takes it; after a failure one row is tried first."""
        try:
            while self._waiting:
                if self._fd is None or not self._room or os.fstat(self._fd).st_nlink == 0:  # deleted
                    self._begin(self._waiting[0][0])
                    self._forget(now_s)
                assert self._fd is not None
                rows = 1 if self.broken else min(len(self._waiting), self._room, _BATCH_ROWS)
                block = b"".join(self._waiting[i][1] for i in range(rows))
                # At its own offset: a row cut by a full disk is written over when there is space.
                whole = os.pwrite(self._fd, block, self._offset) // self._width
                for _ in range(whole):
                    self._waiting.popleft()
                self._offset += whole * self._width
                self._room -= whole
                if whole < rows:
                    self.broken = os.strerror(errno.ENOSPC)
                    return
                self.broken = None
        except OSError as exc:
            self.broken = exc.strerror or str(exc)

    def _begin(self, first_seq: int) -> None:
        """Opens the next segment; its name is new each time, so readers may keep what its header says."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        header = orjson.dumps(
            {
                "schema": SCHEMA,
                "table": self._name,
                "columns": self.columns,
                "boot": boot_id(),
                "session": self._session,
                "first_seq": first_seq,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        if len(header) > HEADER_BYTES:
            raise ConfigError(f"table {self._name}: {len(self.columns)} columns are too many for its header")
        path = self._folder / f"{self._name}.{first_seq:012d}.{secrets.token_hex(4)}.table"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            if os.pwrite(fd, header, 0) != len(header):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self._fd, self._offset, self._room = fd, len(header), self._segment_rows

    def _forget(self, now_s: float | None) -> None:
        """Deletes segments that are older than ``keep_s``, oldest first, never the newest."""
        if self._keep_s is None or now_s is None:
            return
        boot = boot_id()
        for first_seq, path in segment_files(self._folder, self._name)[:-1]:
            segment = Segment.of(path, first_seq)
            last = segment.edge(-1) if segment is not None else None
            if segment is not None and last is not None and segment.boot == boot:
                age_s = now_s - last[1]
            else:
                age_s = wall_s() - path.stat().st_mtime
            if age_s <= self._keep_s:
                return
            path.unlink()


def _mend(folder: Path, name: str) -> int:
    """Cuts what is not whole off the end of the table and returns the last seq, 0 without rows."""
    for first_seq, path in reversed(segment_files(folder, name)):
        segment = Segment.of(path, first_seq)
        if segment is not None:
            with path.open("r+b", buffering=0) as file:
                fd = file.fileno()
                if rows := segment.count(fd):
                    if os.fstat(fd).st_size != segment.offset(rows):
                        os.ftruncate(fd, segment.offset(rows))
                    return segment.seq(fd, rows - 1)
        path.unlink()
    return 0


class TableReader:
    """Reads a table that another process may be writing; a table that is not there yet is empty.

    Each call sees the table as it then is; nothing is kept between calls but the
    headers of the present segments. Times are those of ``boot``: rows of other
    boots are found by seq only.
    """

    def __init__(self, folder: Path, name: str, boot: str | None = None) -> None:
        self._folder, self._name = folder, name
        self._boot = boot_id() if boot is None else boot
        self._known: dict[Path, Segment] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of a row's values: those of every kept segment, in the order of their coming."""
        return _union(self._segments())

    @property
    def first_seq(self) -> int | None:
        """Seq of the oldest row kept; None without rows."""
        edges = (segment.edge(0) for segment in self._segments())
        return next((edge[0] for edge in edges if edge is not None), None)

    @property
    def last_seq(self) -> int | None:
        """Seq of the newest row; None without rows."""
        edges = (segment.edge(-1) for segment in reversed(self._segments()))
        return next((edge[0] for edge in edges if edge is not None), None)

    def last(self) -> Row | None:
        """The newest row, also of an earlier boot; None without rows."""
        seq = self.last_seq
        rows = self.rows(after=seq - 1, limit=1) if seq is not None else []
        return rows[0] if rows else None

    def rows(
        self,
        after: int | None = None,
        since_s: float | None = None,
        until_s: float | None = None,
        limit: int = 1000,
    ) -> list[Row]:
        """The first ``limit`` rows with seq > ``after`` and ``since_s <= t_s <= until_s``, by seq.

        ``values`` are in the order of ``columns``.
        """
        found = self.arrays(after, since_s, until_s, limit)
        missing = np.isnan(found.value)
        cells = found.value.astype(object)
        cells[missing] = None
        return [
            Row(seq, t_s, tuple(values), tuple(lags))
            for seq, t_s, values, lags in zip(
                found.seq.tolist(), found.t_s.tolist(), cells.tolist(), found.lag_s.tolist(), strict=True
            )
        ]

    def arrays(
        self,
        after: int | None = None,
        since_s: float | None = None,
        until_s: float | None = None,
        limit: int | None = None,
    ) -> Arrays:
        """As `rows`, in bulk; without ``limit`` all of them."""
        segments = self._segments()
        columns = _union(segments)
        blocks = list(self._blocks(segments, after, since_s, until_s, limit))
        seq = np.concatenate([np.empty(0, np.uint64), *(block["seq"] for _, block in blocks)])
        t_s = np.concatenate([np.empty(0), *(block["t_s"] for _, block in blocks)])
        value = np.full((len(seq), len(columns)), np.nan)
        lag_s = np.zeros_like(value)
        at = 0
        for segment, block in blocks:
            places = [columns.index(column) for column in segment.columns]
            value[at : at + len(block), places] = block["value"]
            lag_s[at : at + len(block), places] = block["lag_s"]
            at += len(block)
        return Arrays(columns, seq, t_s, value, lag_s)

    def _blocks(
        self,
        segments: Sequence[Segment],
        after: int | None,
        since_s: float | None,
        until_s: float | None,
        limit: int | None,
    ) -> Iterator[tuple[Segment, Records]]:
        if since_s is not None or until_s is not None:
            segments = [segment for segment in segments if segment.boot == self._boot]
        begin = 0
        if since_s is not None:
            begin = bisect_left(segments, since_s, key=_first_t_s) - 1
        if after is not None:
            begin = max(begin, bisect_right(segments, after + 1, key=lambda s: s.first_seq) - 1)
        for segment in segments[max(0, begin) :]:
            try:
                file = segment.path.open("rb", buffering=0)
            except FileNotFoundError:
                continue  # retention took it
            with file:
                fd = file.fileno()
                block, ended = segment.query(fd, after, since_s, until_s, limit)
            if block.size:
                yield segment, block
            if limit is not None:
                limit -= len(block)
            if ended or limit == 0:
                return

    def _segments(self) -> list[Segment]:
        """The present segments with a header, oldest first."""
        known: dict[Path, Segment] = {}
        for first_seq, path in segment_files(self._folder, self._name):
            segment = self._known.get(path) or Segment.of(path, first_seq)
            if segment is not None:
                known[path] = segment
        self._known = known
        return list(known.values())


def _first_t_s(segment: Segment) -> float:
    first = segment.edge(0)
    return float("inf") if first is None else first[1]


def _union(segments: Sequence[Segment]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for segment in segments for column in segment.columns))
