"""The files of a run as columns of numbers, without an object per line: a million requests are ordinary.

Lines are decoded a batch at a time. When a batch cannot be, its lines are looked at one by
one, so that the message names the line. What the keys mean: docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from loadgen.errors import RunDirError
from loadgen.rundir import record_files
from loadgen.types import STATUSES, Floats

Ints = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Columns = dict[str, npt.NDArray[Any]]
Row = Mapping[str, Any]

MOST = 1e15
"""No instant, count, power or energy of a run is larger, and a double still tells its tenths."""
BATCH_BYTES = 200_000
"""So that what a batch decodes to stays in the cache: with 4 MB it takes 1.5 to 2 times as long."""
RECORD_INTEGERS = ("id", "block", "worker")
RECORD_INSTANTS = ("demand_s", "due_s", "sent_s", "first_s", "done_s")
RECORD_NUMBERS = (*RECORD_INSTANTS, "prompt_tokens", "output_tokens", "http_status")
RECORD_WORDS = ("phase", "tokens_from", "finish_reason", "status", "error")
RECORD_LISTS = ("chunk_s", "chunk_tokens")
PLAN_NUMBERS = ("demand_s", "due_s", "prompt_tokens", "max_new_tokens", "output_tokens")
PLAN_OBJECTS = ("kind", "phase", "source_id", "prompt_hash", "after", "session")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Readings:
    """Of a batch, (n,) each: ``t_s``, the ``domain``, the ``value`` and whether it is ``joules``."""

    t_s: Floats
    domain: Sequence[str]
    value: Floats
    joules: npt.NDArray[np.bool_]


def read_requests(path: Path) -> Columns:
    """Every record of a run (all shards and phases, in file order), by column, (n,) each.

    Integers are int64, other numbers float64 with NaN for what is missing, the rest
    objects: str or None, tuples, dicts. Raises RunDirError for a damaged line other than
    a cut-off last one.
    """
    seen: dict[str, str] = {}
    batches = [
        batch for file in record_files(path) for batch in _batches(file, lambda r: request_columns(r, seen))
    ]
    return _joined(batches or [request_columns([], seen)])


def read_plan(path: Path) -> Columns:
    """The rows of ``plan.jsonl``, likewise."""
    return _joined(list(_batches(path / "plan.jsonl", plan_columns)) or [plan_columns([])])


def each_readings(path: Path) -> Iterator[Readings]:
    """The readings of ``power.jsonl``, batch by batch in the order they were taken."""
    return _batches(path / "power.jsonl", reading_columns)


def plan_columns(rows: Sequence[Row]) -> Columns:
    """Columns of plan rows; a key that a row lacks is missing there."""
    found: Columns = {"id": _integers("id", [row["id"] for row in rows])}
    found["block"] = _integers("block", [row.get("block", 0) for row in rows])
    found |= {name: _numbers(name, _optional(rows, name)) for name in PLAN_NUMBERS}
    return found | {name: _objects(_optional(rows, name)) for name in PLAN_OBJECTS}


def request_columns(rows: Sequence[Row], seen: dict[str, str]) -> Columns:
    """Columns of records' rows; ``seen``: texts met so far, to share.

    Raises KeyError, TypeError or ValueError for what is no row of this file.
    """
    found: Columns = {name: _integers(name, [row[name] for row in rows]) for name in RECORD_INTEGERS}
    found |= {name: _numbers(name, [row[name] for row in rows]) for name in RECORD_NUMBERS}
    # A million times the same few words: one object each.
    words = {name: [_word(row[name], name, seen) for row in rows] for name in RECORD_WORDS}
    for status in set(words["status"]):
        if status not in STATUSES:
            raise ValueError(f"status: expected one of {', '.join(STATUSES)}, got {status!r}")
    ok = np.array([status == "ok" for status in words["status"]], dtype=bool)
    for earlier, later in (("sent_s", "first_s"), ("first_s", "done_s"), ("sent_s", "done_s")):
        if np.any(ok & (found[earlier] > found[later])):
            raise ValueError(f"{later}: expected no sooner than {earlier} of a success")
    lists = {name: _lists(name, [row[name] for row in rows]) for name in RECORD_LISTS}
    if any(len(a) != len(b) for a, b in zip(*lists.values(), strict=True)):
        raise ValueError("chunk_s and chunk_tokens: expected lists of equal length")
    found |= {name: _objects(values) for name, values in (words | lists).items()}
    times = [row["server_times"] for row in rows]
    if not all(isinstance(said, Mapping) for said in times):
        raise ValueError("server_times: expected an object")
    found["server_times"] = _objects(times)
    return found


def reading_columns(rows: Sequence[Row]) -> Readings:
    """Columns of readings' rows, likewise."""
    t_s = _numbers("t_s", [row["t_s"] for row in rows])
    energy_j, power_w = (_numbers(name, _optional(rows, name)) for name in ("energy_j", "power_w"))
    joules = ~np.isnan(energy_j)
    if np.any(joules == ~np.isnan(power_w)):
        raise ValueError("expected power_w or energy_j, not both")
    if np.isnan(t_s).any():
        raise ValueError("t_s: expected a number")
    domains = [row["domain"] for row in rows]
    if not all(isinstance(domain, str) for domain in domains):
        raise ValueError("domain: expected text")
    return Readings(t_s, domains, np.where(joules, energy_j, power_w), joules)


def _optional(rows: Sequence[Row], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _word(value: Any, name: str, seen: dict[str, str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text or null, got {value!r}")
    return seen.setdefault(value, value)


def _numbers(name: str, values: Sequence[Any]) -> Floats:
    """(n,); NaN for None. Raises ValueError for what is neither, beyond `MOST` or a count below 0."""
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    if found.ndim != 1:
        raise ValueError(f"{name}: expected a number or null")
    if np.any(np.abs(found) > MOST):
        raise ValueError(f"{name}: expected a number of at most {MOST:g}")
    if name.endswith("_tokens") and np.any(found < 0):
        raise ValueError(f"{name}: expected a count, 0 or more")
    return found


def _integers(name: str, values: Sequence[Any]) -> Ints:
    found = _numbers(name, values)
    if np.any(found != np.floor(found)):  # NaN is not equal to itself
        raise ValueError(f"{name}: expected a whole number")
    return found.astype(np.int64)


def _lists(name: str, values: Sequence[Any]) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    try:
        found = [tuple(value) for value in values]
        flat = np.fromiter(chain.from_iterable(found), dtype=np.float64)
        missing = not np.all(np.abs(flat) <= MOST)  # NaN is not either
    except (TypeError, ValueError):
        missing = True
    if missing:
        raise ValueError(f"{name}: expected a list of numbers")
    return found


def _objects(values: Sequence[Any]) -> Objects:
    """(n,); sequences of equal length do not become a matrix."""
    return np.fromiter(values, dtype=object, count=len(values))


def _joined(batches: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _batches(file: Path, read: Callable[[Sequence[Row]], T]) -> Iterator[T]:
    """``read`` of the objects of a .jsonl file, a batch at a time; a cut-off last line is skipped."""
    if not file.exists():
        return
    number = 1
    try:
        with file.open("rb") as lines:
            while batch := lines.readlines(BATCH_BYTES):
                begins, number = number, number + len(batch)
                if not batch[-1].endswith(b"\n") and _cut_off(batch[-1]):
                    batch.pop()
                if batch:
                    yield _read(file, begins, batch, read)
    except OSError as exc:
        raise RunDirError(f"{file}: cannot be read: {exc.strerror or exc}") from exc


def _cut_off(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return True
    return False


def _read(file: Path, begins: int, lines: Sequence[bytes], read: Callable[[Sequence[Row]], T]) -> T:
    try:
        rows = orjson.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines):
            return read(rows)
        why: Exception = ValueError("expected one JSON object a line")
    except (LookupError, TypeError, ValueError, AttributeError) as exc:  # JSONDecodeError is a ValueError
        why = exc
    for number, line in enumerate(lines, begins):
        _check(file, number, line, read)
    raise RunDirError(f"{file}: {why}") from why


def _check(file: Path, number: int, line: bytes, read: Callable[[Sequence[Row]], Any]) -> None:
    """Raises RunDirError when this line cannot be read."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise RunDirError(f"{file}:{number}: expected a JSON object: {exc}") from exc
    if not isinstance(row, dict):
        raise RunDirError(f"{file}:{number}: expected a JSON object, got {type(row).__name__}")
    try:
        read([row])
    except KeyError as exc:
        raise RunDirError(f"{file}:{number}: expected the key {exc}") from exc
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise RunDirError(f"{file}:{number}: {exc}") from exc
