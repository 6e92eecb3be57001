"""The on-disk format of a run, both ways. Described key by key in docs/format.md.

``run.json`` is replaced atomically; the ``.jsonl`` files only grow, one object a
line, handed to the system per line, so a killed run is readable up to its last
line. Instants are written in seconds from the first measured due time. That zero
is known only after warm-up, so lines from before it wait in memory.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import orjson

from loadgen.errors import RunDirError
from loadgen.types import Arrival, BoardState, Plan, Reading, Record, ServerSample, Step

SCHEMA = 1
_INSTANT_DIGITS = 6  # microseconds: below any stamp's error, and half the bytes of a full float
_STEP_DIGITS = 9

T = TypeVar("T")


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def record_row(record: Record, zero_s: float) -> dict[str, Any]:
    """A record as its JSON object, instants shifted by ``zero_s`` (clock.now of the first due)."""

    def instant(t_s: float | None) -> float | None:
        return None if t_s is None else round(t_s - zero_s, _INSTANT_DIGITS)

    row = {name: getattr(record, name) for name in _RECORD_FIELDS}
    for name in ("demand_s", "due_s", "sent_s", "first_s", "done_s"):
        row[name] = instant(row[name])
    row["chunk_s"] = [round(t - zero_s, _INSTANT_DIGITS) for t in record.chunk_s]
    return row


def reading_row(reading: Reading, zero_s: float) -> dict[str, Any]:
    """A reading as its JSON object: only the quantity that was read is a key."""
    row: dict[str, Any] = {"t_s": round(reading.t_s - zero_s, _INSTANT_DIGITS), "domain": reading.domain}
    if reading.energy_j is not None:
        row["energy_j"] = reading.energy_j
    else:
        row["power_w"] = reading.power_w
    return row


def sample_row(sample: BoardState | ServerSample, zero_s: float) -> dict[str, Any]:
    """A board's state or the server's metrics as a JSON object; what was not told is no key."""
    row = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample)}
    row["t_s"] = round(sample.t_s - zero_s, _INSTANT_DIGITS)
    return {name: value for name, value in row.items() if value is not None}


def step_row(step: Step, zero_s: float) -> dict[str, Any]:
    """An engine step as its JSON object; energy and duration keep full precision."""
    return {
        "start_s": round(step.start_s - zero_s, _STEP_DIGITS),
        "duration_s": step.duration_s,
        "energy_j": step.energy_j,
        "sequences": step.sequences,
    }


def prompt_hash(body: Mapping[str, Any]) -> str | None:
    """64 bits of the prompt or messages, in hex: equal for equal texts, which a run does not keep."""
    text = body.get("prompt", body.get("messages"))
    return None if text is None else blake2b(orjson.dumps(text), digest_size=8).hexdigest()


def plan_row(arrival: Arrival, *, timed: bool = True) -> dict[str, Any]:
    """An arrival as its JSON object, without prompt text. Untimed rows (warm-up) have null instants."""
    request, body = arrival.request, arrival.request.body
    return {
        "id": request.id,
        "kind": request.kind,
        "phase": request.phase,
        "block": request.block,
        "demand_s": round(arrival.demand_s, _INSTANT_DIGITS) if timed else None,
        "due_s": round(arrival.due_s, _INSTANT_DIGITS) if timed else None,
        "prompt_tokens": body.get("prompt_tokens"),
        "max_new_tokens": body.get("max_new_tokens"),
        "output_tokens": body.get("output_tokens"),
        "source_id": body.get("source_id"),
        "prompt_hash": prompt_hash(body),
        "after": arrival.after,
        "session": arrival.session,
    }


_RECORD_FIELDS = tuple(f.name for f in dataclasses.fields(Record))


class _Lines(Generic[T]):
    """Appends one kind of row to one file; waits in memory until the zero is known."""

    def __init__(self, path: Path, row: Callable[[T, float], dict[str, Any]]) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._broken: str | None = None
        self._row = row
        self._waiting: list[T] = []
        self._zero_s: float | None = None
        self.count = 0

    def append(self, item: T) -> None:
        self.count += 1
        if self._zero_s is None:
            self._waiting.append(item)
        else:
            self._write(_json(self._row(item, self._zero_s)) + b"\n")

    def set_zero(self, zero_s: float) -> None:
        self._zero_s = zero_s
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._write(b"".join(_json(self._row(item, zero_s)) + b"\n" for item in waiting))

    def _write(self, lines: bytes) -> None:
        """All of it or an error; after an error nothing more, or a cut line would come to stand inside."""
        if self._broken is None:
            try:
                if self._file is None:
                    self._file = self._path.open("ab", buffering=0)
                if self._file.write(lines) == len(lines):
                    return
                self._broken = "only a part was taken (is the disk full?)"
            except OSError as exc:
                self._broken = str(exc.strerror or exc)
        raise RunDirError(f"cannot write {self._path}: {self._broken}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class RunWriter:
    """Writes one run directory. ``requests``, ``power``, ``boards``, ``metrics`` and ``server`` take
    ``append(item)`` with instants on ``clock.now()``; `set_zero` fixes what they count from. A file
    appears with its first line.

    Raises RunDirError when the directory cannot be made or a file not be written.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], scenario_text: str) -> None:
        try:
            path.mkdir(parents=True)
            (path / "scenario.yaml").write_text(scenario_text, encoding="utf-8")
        except OSError as exc:
            raise RunDirError(f"cannot make the run directory {path}: {exc.strerror or exc}") from exc
        self.path = path
        self.requests = _Lines(path / "requests.jsonl", record_row)
        self.power = _Lines(path / "power.jsonl", reading_row)
        self.boards: _Lines[BoardState] = _Lines(path / "boards.jsonl", sample_row)
        self.metrics: _Lines[ServerSample] = _Lines(path / "metrics.jsonl", sample_row)
        self.server = _Lines(path / "server.jsonl", step_row)
        self.manifest = {"schema": SCHEMA, "status": "running", **manifest}
        self.zero_s: float | None = None
        self.save()

    def write_plan(self, warmup: Plan, measured: Plan) -> None:
        """``plan.jsonl``: the warm-up requests (instants null: they run one after another), then the plan."""
        rows = [plan_row(a, timed=False) for a in warmup.arrivals]
        rows += [plan_row(a, timed=not measured.closed) for a in measured.arrivals]
        self._replace("plan.jsonl", b"".join(_json(row) + b"\n" for row in rows))

    def set_zero(self, zero_s: float) -> None:
        """Fixes the instant (clock.now) that every written time counts from."""
        self.zero_s = zero_s
        for lines in self._streams():
            lines.set_zero(zero_s)

    def save(self) -> None:
        """Replaces ``run.json`` atomically with the manifest as it stands."""
        self._replace("run.json", orjson.dumps(self.manifest, option=orjson.OPT_INDENT_2) + b"\n")

    def _replace(self, name: str, content: bytes) -> None:
        draft = self.path / f"{name}.tmp"
        try:
            draft.write_bytes(content)
            os.replace(draft, self.path / name)
        except OSError as exc:
            raise RunDirError(f"cannot write {self.path / name}: {exc.strerror or exc}") from exc

    def seal(self, status: str) -> None:
        """Closes the files and writes the final manifest, last of all."""
        for lines in self._streams():
            lines.close()
        self.manifest["status"] = status
        self.save()

    def _streams(self) -> Iterator[_Lines[Any]]:
        yield from (self.requests, self.power, self.boards, self.metrics, self.server)


def new_path(parent: Path, name: str, started_utc: str, scenario_hash: str) -> Path:
    """``parent/<utc>-<name>-<hash>``, with a counter if a run of the same second is there."""
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:100] or "run"  # a file name has 255 bytes
    stem = f"{started_utc}-{slug}-{scenario_hash[:8]}"
    path, k = parent / stem, 2
    while path.exists():
        path, k = parent / f"{stem}-{k}", k + 1
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """``run.json``. Raises RunDirError when it is not a run directory of a known schema."""
    try:
        manifest = orjson.loads((path / "run.json").read_bytes())
    except FileNotFoundError:
        seen = "got one without" if path.exists() else "there is no such directory"
        raise RunDirError(f"{path}: expected a run directory (one with a run.json), {seen}") from None
    except NotADirectoryError:
        raise RunDirError(f"{path}: expected a run directory, got a file") from None
    except (OSError, orjson.JSONDecodeError) as exc:
        raise RunDirError(f"{path / 'run.json'}: cannot be read: {exc}") from exc
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise RunDirError(f"{path / 'run.json'}: schema: expected {SCHEMA}, got {got!r}")
    return manifest


def _rows(path: Path, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """The objects of a .jsonl file; a cut-off last line is skipped, a bad one inside is an error."""
    if not path.exists():
        return
    try:
        file = path.open("rb")
    except OSError as exc:
        raise RunDirError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    with file as lines:
        for number, line in enumerate(lines, 1):
            try:
                item = read(orjson.loads(line))
            except orjson.JSONDecodeError as exc:
                if line.endswith(b"\n"):
                    raise RunDirError(f"{path}:{number}: expected a JSON object: {exc}") from exc
                return
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as exc:
                raise RunDirError(f"{path}:{number}: not an object of this file: {exc!r}") from exc
            yield item


def record_files(path: Path) -> list[Path]:
    """``requests.jsonl`` and its shards ``requests.K.jsonl`` by K, as far as they are there."""
    shards = [file for file in path.glob("requests.*.jsonl") if file.name.split(".")[1].isdecimal()]
    whole = path / "requests.jsonl"
    return [whole] * whole.exists() + sorted(shards, key=lambda file: int(file.name.split(".")[1]))


def read_records(path: Path) -> list[Record]:
    """All records of a run (every shard, every phase), in file order.

    Raises RunDirError for a damaged line other than a cut-off last one.
    """
    return [record for file in record_files(path) for record in _rows(file, _record)]


def _record(row: dict[str, Any]) -> Record:
    fields = {name: row[name] for name in _RECORD_FIELDS}
    fields["chunk_s"], fields["chunk_tokens"] = tuple(row["chunk_s"]), tuple(row["chunk_tokens"])
    return Record(**fields)


def read_readings(path: Path) -> list[Reading]:
    """All power and energy readings, in the order they were taken."""
    return list(each_reading(path))


def each_reading(path: Path) -> Iterator[Reading]:
    """The same one by one: a day of eight boards is 40 million."""
    return _rows(path / "power.jsonl", _reading)


def _reading(row: dict[str, Any]) -> Reading:
    return Reading(row["t_s"], row["domain"], row.get("power_w"), row.get("energy_j"))


def read_board_states(path: Path) -> list[BoardState]:
    """All states of the boards, in the order they were taken."""
    return list(_rows(path / "boards.jsonl", lambda row: BoardState(**_numbers(row))))


def read_server_samples(path: Path) -> list[ServerSample]:
    """All samples of the server's own metrics, in the order they were taken."""
    return list(_rows(path / "metrics.jsonl", lambda row: ServerSample(**_numbers(row))))


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The row, once everything in it but a domain is a number or, an instant apart, missing."""
    for name, value in row.items():
        missing = value is None and name != "t_s"
        if (
            name != "domain"
            and not missing
            and not (isinstance(value, int | float) and abs(value) < math.inf)
        ):
            raise ValueError(f"{name}: expected a number, got {value!r}")
    return row


def read_plan(path: Path) -> list[dict[str, Any]]:
    """The plan's rows (see `plan_row`), warm-up first."""
    return list(_rows(path / "plan.jsonl", lambda row: {**row}))


def read_steps(path: Path) -> Iterator[Step]:
    """The embedded engine's steps and idle stretches. For scoring only, never for analysis."""
    return _rows(path / "server.jsonl", _step)


def _step(row: dict[str, Any]) -> Step:
    sequences = tuple((int(s[0]), int(s[1]), int(s[2]), int(s[3])) for s in row["sequences"])
    return Step(row["start_s"], row["duration_s"], row["energy_j"], sequences)
