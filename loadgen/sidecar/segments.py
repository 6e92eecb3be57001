"""The files of a table: a header line, then records of fixed width, each with its check sum."""

from __future__ import annotations

import os
import re
import struct
import zlib
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson

from loadgen.errors import ConfigError

SCHEMA = 1
HEADER_BYTES = 1 << 16
_SEQ, _T_S, CHECK = struct.Struct("<Q"), struct.Struct("<d"), struct.Struct("<I")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Records = npt.NDArray[np.void]


def boot_id() -> str | None:
    """The kernel's name for this boot, None where it has none (not Linux): all boots are one then."""
    try:
        return BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def record_type(columns: int) -> np.dtype[np.void]:
    """A record: ``value[i]`` was taken at ``t_s + lag_s[i]``; ``check`` is the CRC-32 of what precedes it."""
    return np.dtype(
        [
            ("seq", "<u8"),
            ("t_s", "<f8"),
            ("value", "<f8", (columns,)),
            ("lag_s", "<f4", (columns,)),
            ("check", "<u4"),
        ]
    )


@dataclass(frozen=True, slots=True)
class Segment:
    """One file; what its header says never changes."""

    path: Path
    first_seq: int
    columns: tuple[str, ...]
    boot: str | None
    start: int
    record: np.dtype[np.void]

    @classmethod
    def of(cls, path: Path, first_seq: int) -> Self | None:
        """None for a file without a whole header, or one deleted meanwhile.

        Raises ConfigError for another version's file, which must be neither read nor mended.
        """
        try:
            with path.open("rb", buffering=0) as file:
                line, end, _ = os.pread(file.fileno(), HEADER_BYTES, 0).partition(b"\n")
            header = orjson.loads(line) if end else {}
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        if not isinstance(header, dict) or "schema" not in header:
            return None
        if header["schema"] != SCHEMA:
            raise ConfigError(
                f"{path}: schema {header['schema']!r}, this loadgen reads {SCHEMA}: take another directory"
            )
        columns = tuple(header["columns"])
        return cls(path, first_seq, columns, header["boot"], len(line) + 1, record_type(len(columns)))

    def offset(self, index: int) -> int:
        return self.start + index * self.record.itemsize

    def count(self, fd: int) -> int:
        """Rows up to the first that is not whole."""
        rows = max(0, (os.fstat(fd).st_size - self.start) // self.record.itemsize)
        if rows == 0 or self.records(fd, rows - 1, rows).size:
            return rows
        return bisect_left(range(rows), True, key=lambda i: self.records(fd, i, i + 1).size == 0)

    def records(self, fd: int, begin: int, end: int) -> Records:
        """The whole records of ``begin <= index < end``."""
        width = self.record.itemsize
        raw = memoryview(os.pread(fd, (end - begin) * width, self.offset(begin)))
        found = np.frombuffer(raw[: len(raw) // width * width], self.record)
        checks = found["check"].tolist()
        good = [
            zlib.crc32(raw[i * width : (i + 1) * width - CHECK.size]) == check
            for i, check in enumerate(checks)
        ]
        return found if all(good) else found[np.array(good, dtype=bool)]

    def query(
        self, fd: int, after: int | None, since_s: float | None, until_s: float | None, limit: int | None
    ) -> tuple[Records, bool]:
        """The rows of `TableReader.rows` that are here, and whether none can come in a later segment."""
        rows = self.count(fd)
        begin, end = 0, rows
        if after is not None and after >= self.first_seq:
            begin = bisect_right(range(rows), after, key=lambda i: self.seq(fd, i))
        if since_s is not None:
            begin = max(begin, bisect_left(range(rows), since_s, key=lambda i: self.t_s(fd, i)))
        if until_s is not None:
            end = bisect_right(range(rows), until_s, key=lambda i: self.t_s(fd, i))
        ended = end < rows
        if limit is not None:
            end = min(end, begin + limit)
        return self.records(fd, begin, max(begin, end)), ended

    def seq(self, fd: int, index: int) -> int:
        return int(_SEQ.unpack(os.pread(fd, _SEQ.size, self.offset(index)))[0])

    def t_s(self, fd: int, index: int) -> float:
        return float(_T_S.unpack(os.pread(fd, _T_S.size, self.offset(index) + _SEQ.size))[0])

    def edge(self, index: int) -> tuple[int, float] | None:
        """(seq, t_s) of the first (0) or last (-1) row; None when there is none."""
        try:
            with self.path.open("rb", buffering=0) as file:
                rows = self.count(fd := file.fileno())
                at = rows - 1 if index < 0 else 0
                return (self.seq(fd, at), self.t_s(fd, at)) if rows else None
        except FileNotFoundError:
            return None  # retention took it


def segment_files(folder: Path, name: str) -> list[tuple[int, Path]]:
    """(first seq, path) of the table's segments, oldest first."""
    shape = re.compile(re.escape(name) + r"\.(\d+)\.[0-9a-f]+\.table")
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((int(m[1]), folder / m[0]) for m in map(shape.fullmatch, names) if m)
