"""The data directory: what the sampler has written, who may write, and what is read of it.

One sidecar at a time owns a directory (a lock that its sampler process inherits, so that
a sampler which outlives its service is waited for). Its id is made once and stays.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from loadgen import clock
from loadgen.errors import ConfigError
from loadgen.sidecar.table import TableReader

TABLES = ("power", "state", "metrics")
SAMPLER, ID, LOCK = "sampler.json", "id", "sidecar.lock"
_OUTLIVES_S, _POLL_S = 2.0, 0.05
"""How long a sampler may take to see that its service has died."""


class DataDirectory:
    """Reads a data directory; ``id`` is its own, ``tables`` those a sidecar can have."""

    def __init__(self, folder: Path) -> None:
        """Makes the directory if need be. Raises ConfigError when it cannot be used."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.id = _id(folder / ID)
        except OSError as exc:
            raise ConfigError(f"--data-dir {folder}: {exc.strerror or exc}") from exc
        self.tables = {name: TableReader(folder, name) for name in TABLES}

    @contextmanager
    def owned(self) -> Iterator[int]:
        """Keeps other sidecars off the directory; gives the descriptor that a child inherits.

        Raises ConfigError when another one has it, or it cannot be written.
        """
        try:
            lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            raise ConfigError(f"--data-dir {self.folder}: {exc.strerror}") from exc
        try:
            end_s = clock.now() + _OUTLIVES_S
            while not _taken(lock):
                if clock.now() > end_s:
                    raise ConfigError(
                        f"--data-dir {self.folder}: another sidecar uses it: stop that one, or give another"
                    )
                time.sleep(_POLL_S)
            yield lock
        finally:
            os.close(lock)

    def sampler(self) -> Mapping[str, Any]:
        """What the sampler says of itself; empty before its first start."""
        try:
            said = orjson.loads((self.folder / SAMPLER).read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return said if isinstance(said, dict) else {}


def _id(path: Path) -> str:
    if not path.exists() or not path.stat().st_size:  # empty: a power cut
        draft = path.with_name(f"{ID}.{os.getpid()}")
        draft.write_text(f"{uuid.uuid4()}\n")
        draft.replace(path)
    return path.read_text().strip()


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
