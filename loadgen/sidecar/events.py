"""What happened beside the samples: ``events.jsonl``, one object a line, ``seq`` counting up from 1.

Several processes may add (the sampler, and the service that watches it): a lock
keeps numbers and lines whole. At `LARGEST_BYTES` the file becomes
``events.1.jsonl``, in place of the one before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from loadgen import clock

LARGEST_BYTES = 4 << 20
_HOLD = 1000
_TAIL_BYTES = 1 << 20


class EventLog:
    """Adds events. While the disk takes none the last 1000 wait in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_HOLD)

    def add(self, kind: str, text: str, **more: Any) -> None:
        """One event now (``t_s`` on ``clock.now()``, and ``utc``): its kind, a line to read, and ``more``."""
        utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._waiting.append({"t_s": clock.now(), "utc": utc, "kind": kind, "text": text, **more})
        self.flush()

    def flush(self) -> None:
        """Writes what waits, if the disk takes it."""
        if not self._waiting:
            return
        with contextlib.suppress(OSError), _locked(self._folder):
            self._write()

    def _write(self) -> None:
        path, older = _paths(self._folder)
        with path.open("a+b", buffering=0) as file:
            if not _ends_a_line(file):
                file.write(b"\n")  # what a kill or a full disk cut short is a line of its own
            if file.seek(0, os.SEEK_END) > LARGEST_BYTES:
                os.replace(path, older)
                return self._write()
            seq = _last_seq(file) or _last_seq_of(older)
            while self._waiting:
                line = orjson.dumps({"seq": seq + 1, **self._waiting[0]}, option=orjson.OPT_APPEND_NEWLINE)
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                seq += 1
                self._waiting.popleft()
        return None


def read_events(folder: Path, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """The first ``limit`` events with seq > ``after``; reads at most twice `LARGEST_BYTES`."""
    found: list[dict[str, Any]] = []
    for path in reversed(_paths(folder)):
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            continue
        for event in filter(None, map(_parsed, lines)):
            # The file may have been renamed between the two: no event twice.
            if event["seq"] > (found[-1]["seq"] if found else after):
                found.append(event)
    return found[:limit]


def _paths(folder: Path) -> tuple[Path, Path]:
    return folder / "events.jsonl", folder / "events.1.jsonl"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder / "events.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for a line that was cut."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and "seq" in event else None


def _ends_a_line(file: Any) -> bool:
    size = file.seek(0, os.SEEK_END)
    return size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"


def _last_seq(file: Any) -> int:
    """0 when no whole event is in the file's end."""
    size = file.seek(0, os.SEEK_END)
    lines = os.pread(file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).splitlines(keepends=True)
    return next((int(event["seq"]) for line in reversed(lines) if (event := _parsed(line))), 0)


def _last_seq_of(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return _last_seq(file)
    except FileNotFoundError:
        return 0
