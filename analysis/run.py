"""A run directory as tables: records, readings, plan. Works for a killed run too, and says so.

What sidecars read stands in the files on the run's clock as of the start of the run;
here the drift that their clocks had by its end is taken out (`run_time_s`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pandas as pd

from analysis import columns
from analysis.columns import Columns, Readings
from analysis.manifest import check
from loadgen import rundir
from loadgen.errors import RunDirError
from loadgen.types import BoardState, Domain, Floats, Reading, Record, ServerSample

_COLUMNS = (
    *("id", "phase", "block", *columns.RECORD_NUMBERS, *columns.RECORD_LISTS, "server_times"),
    *("tokens_from", "finish_reason", "status", "error", "worker"),
)
_BATCH = 10_000

Sampled = TypeVar("Sampled", BoardState, ServerSample)


@dataclass(frozen=True, slots=True)
class Series:
    """The readings of one domain, in time order.

    ``t_s``: instants (n,), run time. ``value``: (n,), cumulative joules when
    ``cumulative``, else watts. ``combs``: what `analysis.energy` found out about a counter's
    publications, so as to seek them once.
    """

    domain: Domain
    t_s: Floats
    value: Floats
    cumulative: bool
    combs: dict[int, tuple[float, float] | None] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )


class PlanRows(Sequence[Mapping[str, Any]]):
    """The rows of ``plan.jsonl``, kept as a table: ``frame``, a missing number NaN."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame)

    @overload
    def __getitem__(self, place: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, place: slice) -> PlanRows: ...

    def __getitem__(self, place: int | slice) -> Mapping[str, Any] | PlanRows:
        if isinstance(place, slice):
            return PlanRows(self.frame.iloc[place])
        return next(iter(PlanRows(self.frame.iloc[[place]])))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for begin in range(0, len(self.frame), _BATCH):
            part = self.frame.iloc[begin : begin + _BATCH]
            values = [_plain(part[name]) for name in part]
            names = list(map(str, part))
            yield from (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))


def _plain(column: pd.Series[Any]) -> list[Any]:
    """A column's values as JSON has them."""
    if column.dtype != np.float64:
        return list(column.tolist())
    kind = int if str(column.name).endswith("_tokens") else float
    return [None if np.isnan(value) else kind(value) for value in column.tolist()]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything known about one run.

    ``requests`` and ``warmups``: one row per record (measured and warm-up
    phase), columns as the fields of `Record`, a missing number is NaN, a missing text None, instants
    in seconds from the first measured due time. ``boards`` and ``metrics``: one row
    per `BoardState` and `ServerSample`, likewise. ``plan``: rows of
    ``plan.jsonl``. ``planned``: measured requests planned; ``missing``: those
    without a record. ``complete``: the run ended by itself and sealed its files.
    ``end_s``: end of the window, which starts at 0; None when nothing was done.
    """

    path: Path
    manifest: Mapping[str, Any]
    requests: pd.DataFrame
    warmups: pd.DataFrame
    series: Mapping[str, Series]
    plan: Sequence[Mapping[str, Any]]
    planned: int
    missing: int
    complete: bool
    end_s: float | None
    boards: pd.DataFrame
    metrics: pd.DataFrame
    _kept: dict[str, pd.DataFrame] = field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.path.name)

    @property
    def virtual(self) -> bool:
        return self.manifest.get("clock") == "virtual"

    @property
    def closed_loop(self) -> bool:
        return bool(self.manifest.get("closed_loop"))

    @property
    def ok(self) -> pd.DataFrame:
        """The successful requests, the only ones in any success figure; not to be written to."""
        if "ok" not in self._kept:
            self._kept["ok"] = self.requests[self.requests["status"] == "ok"]
        return self._kept["ok"]

    @property
    def due_s(self) -> Floats:
        """Planned due times of the measured requests, (n,); empty where there is no timetable."""
        rows = self.timetable
        due_s: Floats = rows.loc[rows["phase"] != "warmup", "due_s"].to_numpy(dtype=np.float64)
        known: Floats = due_s[~np.isnan(due_s)]
        return known

    @property
    def arrivals_s(self) -> Floats:
        """`due_s`, or where there is no timetable, the due times of the records, (n,)."""
        due_s = self.due_s
        return due_s if len(due_s) else self.requests["due_s"].dropna().to_numpy(dtype=np.float64)

    @property
    def timetable(self) -> pd.DataFrame:
        """The plan as a table, a row a planned request, warm-ups too; a missing number is NaN."""
        return _plan_rows(self.plan).frame

    @property
    def power(self) -> Mapping[str, Any]:
        """The manifest's ``power`` section; empty when there is none."""
        return self.manifest.get("power") or {}

    @property
    def period_s(self) -> float | None:
        """The sampling period of power, or None when nothing was sampled."""
        interval_s = self.power.get("interval_s")
        return float(interval_s) if interval_s else None


def load_run(path: Path | str) -> Run:
    """Reads a run directory. Raises RunDirError when it is none or is damaged."""
    path = Path(path)
    manifest = rundir.read_manifest(path)
    check(manifest, path / "run.json")
    return _run(
        path,
        manifest,
        columns.read_requests(path),
        columns.each_readings(path),
        PlanRows(_table(columns.read_plan(path))),
        rundir.read_board_states(path),
        rundir.read_server_samples(path),
    )


def build_run(
    path: Path,
    manifest: Mapping[str, Any],
    records: Sequence[Record],
    readings: Iterable[Reading],
    plan: Sequence[Mapping[str, Any]] = (),
    states: Sequence[BoardState] = (),
    samples: Sequence[ServerSample] = (),
) -> Run:
    """A run from its parts; every part but the manifest may be empty or cut short."""
    names = [f.name for f in fields(Record)]
    rows = [{name: getattr(record, name) for name in names} for record in records]
    made = columns.request_columns(rows, {})
    return _run(path, manifest, made, _batched(readings), _plan_rows(plan), states, samples)


def _run(
    path: Path,
    manifest: Mapping[str, Any],
    records: Columns,
    readings: Iterable[Readings],
    plan: PlanRows,
    states: Sequence[BoardState],
    samples: Sequence[ServerSample],
) -> Run:
    warm = records["phase"] == "warmup"
    requests, warmups = (_table({name: records[name][rows] for name in _COLUMNS}) for rows in (~warm, warm))
    counted = (manifest.get("counts") or {}).get("planned")
    in_plan = int(np.count_nonzero(plan.frame["phase"] != "warmup"))
    planned = int(counted) if counted is not None else (in_plan or len(requests))
    try:
        domains, clock_of, scraper = _declared(manifest)
    except (LookupError, TypeError, AttributeError) as exc:
        where = path / "run.json"
        raise RunDirError(f"{where}: power.domains or sidecars: not as format 1 has them: {exc!r}") from exc
    return Run(
        path=path,
        manifest=manifest,
        requests=requests,
        warmups=warmups,
        series=_series(domains, readings, clock_of),
        plan=plan,
        planned=planned,
        missing=planned - requests["id"].nunique(),
        complete=manifest.get("status") == "complete",
        end_s=_end_s(manifest, requests),
        boards=_samples(BoardState, [_on_time(s, clock_of.get(s.domain)) for s in states]),
        metrics=_samples(ServerSample, [_on_time(s, scraper) for s in samples]),
    )


def _declared(
    manifest: Mapping[str, Any],
) -> tuple[list[Domain], dict[str, Mapping[str, Any]], Mapping[str, Any] | None]:
    """What was read; the clock of each domain and board that a sidecar read; that of the metrics."""
    known = [f.name for f in fields(Domain)]
    rows = (manifest.get("power") or {}).get("domains") or ()
    domains = [Domain(**{key: row[key] for key in known if key in row}) for row in rows]
    sidecars = manifest.get("sidecars") or ()
    clock_of = {name: row["clock"] for row in sidecars for d in row["domains"] for name in (d, _board(d))}
    return domains, clock_of, next((row["clock"] for row in sidecars if row["metrics"]), None)


def _plan_rows(plan: Sequence[Mapping[str, Any]]) -> PlanRows:
    return plan if isinstance(plan, PlanRows) else PlanRows(_table(columns.plan_columns(plan)))


def _batched(readings: Iterable[Reading]) -> Iterator[Readings]:
    names, left = [f.name for f in fields(Reading)], iter(readings)
    while rows := [{name: getattr(r, name) for name in names} for r in islice(left, _BATCH)]:
        yield columns.reading_columns(rows)


def _table(of: Columns) -> pd.DataFrame:
    """Without copying, and without pandas' own idea of text: what is missing stays None."""
    kept = {name: pd.Series(c, dtype=c.dtype, copy=False) for name, c in of.items()}
    return pd.DataFrame(kept, copy=False)


def _board(domain: str) -> str:
    """``node1/gpu0`` of ``node1/gpu0.instant``; a host's name may have dots."""
    host, slash, name = domain.rpartition("/")
    return host + slash + name.partition(".")[0]


def run_time_s(t_s: Floats, clock: Mapping[str, Any] | None) -> Floats:
    """Instants of a sidecar's files, (n,), on the run's clock. ``clock``: its row's in the manifest.

    The files hold ``u = t + o(t) - o(a)``: t the run's time, o the offset, a the
    instant of the start's offset. With ``o(t) = o(a) + d (t - a)`` between the two
    ends, ``t = u - d (u - a) / (1 + d)``. A clock whose end is not known, as of a
    killed run, or one of this host (None) is taken as it is.
    """
    drift_ppm = None if clock is None else clock["drift_ppm"]
    if clock is None or drift_ppm is None:
        return t_s
    drift = 1e-6 * float(drift_ppm)
    corrected: Floats = t_s - drift * (t_s - clock["start"]["at_s"]) / (1.0 + drift)
    return corrected


def _on_time(sample: Sampled, clock: Mapping[str, Any] | None) -> Sampled:
    return sample if clock is None else replace(sample, t_s=float(run_time_s(np.array(sample.t_s), clock)))


def _samples(kind: type[Any], rows: Sequence[Any]) -> pd.DataFrame:
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(kind)}
    return pd.DataFrame(
        {
            name: pd.Series(column, dtype=object if name == "domain" else np.float64)
            for name, column in columns.items()
        }
    )


def _end_s(manifest: Mapping[str, Any], requests: pd.DataFrame) -> float | None:
    sealed = (manifest.get("window") or {}).get("end_s")
    if sealed is not None:
        return float(sealed)
    last_s = requests["done_s"].max()
    return None if pd.isna(last_s) else float(last_s)


def _series(
    domains: Sequence[Domain], readings: Iterable[Readings], clock_of: Mapping[str, Mapping[str, Any]]
) -> dict[str, Series]:
    # An undeclared domain has no method, hence no label, and is left out.
    code_of = {domain.name: code for code, domain in enumerate(domains)}
    taken: list[dict[bool, list[tuple[Floats, Floats]]]] = [{True: [], False: []} for _ in domains]
    for batch in readings:
        codes = np.fromiter((code_of.get(name, -1) for name in batch.domain), np.int64, len(batch.domain))
        for code, parts in enumerate(taken):
            for cumulative, kept in parts.items():
                rows = (codes == code) & (batch.joules == cumulative)
                if rows.any():
                    kept.append((batch.t_s[rows], batch.value[rows]))
    found = {}
    for domain, parts in zip(domains, taken, strict=True):
        cumulative = bool(parts[True])
        kept = parts[cumulative] or [(np.empty(0), np.empty(0))]
        t_s, value = (np.concatenate(column) for column in zip(*kept, strict=True))
        t_s = run_time_s(t_s, clock_of.get(domain.name))
        order = np.argsort(t_s, kind="stable")
        found[domain.name] = Series(domain, t_s[order], value[order], cumulative)
    return found
