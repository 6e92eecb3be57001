"""A sweep's directory: sweep.json (what it is), sweep.yaml, rows.jsonl (a row a line), table.csv.

A row is in the file as soon as its point is done, so a killed sweep loses the points under way and no
other. A cut-off last line is dropped when the sweep goes on.
"""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson

import loadgen
from loadgen import provenance
from loadgen.errors import ConfigError, RunDirError
from loadgen.rundir import new_path
from loadgen.sweep.figures import FIGURES
from loadgen.sweep.point import Row
from loadgen.sweep.sweep_file import Sweep

SCHEMA = 1
MANIFEST, ROWS, TABLE = "sweep.json", "rows.jsonl", "table.csv"


class Store:
    """One sweep's directory, open for rows. Raises RunDirError when it cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """rows.jsonl, for `append`; refused while another sweep writes to it."""
        file = self.path / ROWS
        try:
            rows = file.open("ab", buffering=0)
        except OSError as exc:
            raise RunDirError(f"cannot write {file}: {exc.strerror or exc}") from exc
        with rows:
            try:
                fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunDirError(f"{self.path}: another sweep is writing to it") from None
            _drop_cut_line(file)
            yield rows

    def rows(self) -> list[Row]:
        """Every point that is done, by its number; a cut-off last line is none."""
        found: dict[int, Row] = {}
        file = self.path / ROWS
        for number, line in enumerate(file.read_bytes().splitlines(True) if file.exists() else (), 1):
            try:
                row = orjson.loads(line)
                found[int(row["point"])] = row
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as exc:
                if line.endswith(b"\n"):
                    raise RunDirError(f"{file}:{number}: expected a row of a sweep: {exc}") from exc
        return [found[number] for number in sorted(found)]

    def status(self, status: str) -> None:
        """``running``, ``interrupted`` or ``complete``, in sweep.json, which is replaced at once."""
        self.manifest["status"] = status
        file, draft = self.path / MANIFEST, self.path / f"{MANIFEST}.tmp"
        try:
            draft.write_bytes(orjson.dumps(self.manifest, option=orjson.OPT_INDENT_2) + b"\n")
            os.replace(draft, file)
        except OSError as exc:
            raise RunDirError(f"cannot write {file}: {exc.strerror or exc}") from exc

    def write_table(self, rows: Sequence[Row]) -> None:
        """table.csv: a line a point; its axes, why it was refused, its figures. Empty: there is none."""
        axes = list(rows[0]["axes"]) if rows else []
        names = [name for name in FIGURES if any(name in row["figures"] for row in rows)]
        path = self.path / TABLE
        try:
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(["point", *axes, "refused", *names])
                for row in rows:
                    told = [row["figures"].get(name) for name in names]
                    table.writerow([row["point"], *row["axes"].values(), row["refused"], *told])
        except OSError as exc:
            raise RunDirError(f"cannot write {path}: {exc.strerror or exc}") from exc


def append(rows: BinaryIO, row: Row) -> None:
    """Adds one row, all of it or an error."""
    line = orjson.dumps(row, option=orjson.OPT_NON_STR_KEYS) + b"\n"
    try:
        if rows.write(line) != len(line):
            raise RunDirError("cannot write rows.jsonl: only a part was taken (is the disk full?)")
    except OSError as exc:
        raise RunDirError(f"cannot write rows.jsonl: {exc.strerror or exc}") from exc


def create(parent: Path, sweep: Sweep, overrides: Sequence[str], *, http: bool) -> Store:
    """A new directory ``parent/<utc>-<name>-<hash>`` for the sweep."""
    path = new_path(parent, sweep.sheet.name, datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), sweep.digest)
    manifest = {
        "schema": SCHEMA,
        "status": "running",
        "name": sweep.sheet.name,
        "file": str(sweep.path.resolve()),
        "set": list(overrides),
        "http": http,
        "hash": sweep.digest,
        "points": len(sweep.points),
        "axes": list(sweep.axes),
        "draws": sweep.sheet.draws,
        "label": "simulated",
        "loadgen": loadgen.__version__,
        "git": provenance.git(),
        "packages": provenance.packages(),
        "host": provenance.host(),
    }
    try:
        path.mkdir(parents=True)
        (path / "sweep.yaml").write_text(sweep.text, encoding="utf-8")
        (path / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as exc:
        raise RunDirError(f"cannot make the sweep directory {path}: {exc.strerror or exc}") from exc
    return Store(path)


def unfinished(parent: Path, sweep: Sweep) -> Store | None:
    """The latest directory of the same points under ``parent`` that is not complete, if there is one."""
    for path in sorted(parent.glob(f"*-{sweep.digest[:8]}*"), reverse=True):
        try:
            store = Store(path)
        except RunDirError:
            continue
        if store.manifest["hash"] == sweep.digest and store.manifest["status"] != "complete":
            return store
    return None


def resumed(path: Path, sweep: Sweep) -> Store:
    """The directory at ``path``, which must hold this sweep's points. Raises ConfigError otherwise."""
    store = Store(path)
    if store.manifest["hash"] != sweep.digest:
        raise ConfigError(
            f"--resume {path}: expected the sweep {str(store.manifest['hash'])[:8]} that it holds, got "
            f"{sweep.digest[:8]} from {sweep.path}: points, draws or a flag have changed; "
            "without --resume it begins anew"
        )
    return store


def read_manifest(path: Path) -> dict[str, Any]:
    """``sweep.json``. Raises RunDirError when it is no sweep's directory of a known schema."""
    try:
        manifest = orjson.loads((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirError(f"{path}: expected a sweep's directory (one with a {MANIFEST})") from None
    except (OSError, orjson.JSONDecodeError) as exc:
        raise RunDirError(f"{path / MANIFEST}: cannot be read: {exc}") from exc
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise RunDirError(f"{path / MANIFEST}: schema: expected {SCHEMA}, got {got!r}")
    return manifest


def _drop_cut_line(file: Path) -> None:
    held = file.read_bytes()
    whole = held.rfind(b"\n") + 1
    if whole < len(held):
        os.truncate(file, whole)
