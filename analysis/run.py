"""A run directory as tables: records, readings, plan. Works for a killed run too, and says so.

What sidecars read stands in the files on the run's clock as of the start of the run;
here the drift that their clocks had by its end is taken out (`run_time_s`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from loadgen import rundir
from loadgen.types import BoardState, Domain, Floats, Reading, Record, ServerSample

_INSTANTS = ("demand_s", "due_s", "sent_s", "first_s", "done_s")
_NUMBERS = (*_INSTANTS, "prompt_tokens", "output_tokens", "http_status")
_OBJECTS = ("chunk_s", "chunk_tokens", "server_times", "tokens_from", "finish_reason", "status", "error")
_COLUMNS = ("id", "phase", "block", *_NUMBERS, *_OBJECTS, "worker")

Sampled = TypeVar("Sampled", BoardState, ServerSample)


@dataclass(frozen=True, slots=True)
class Series:
    """The readings of one domain, in time order.

    ``t_s``: instants (n,), run time. ``value``: (n,), cumulative joules when
    ``cumulative``, else watts.
    """

    domain: Domain
    t_s: Floats
    value: Floats
    cumulative: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Everything known about one run.

    ``requests`` and ``warmups``: one row per record (measured and warm-up
    phase), columns as the fields of `Record`, a missing number is NaN, instants
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
        """The successful requests, the only ones in any success figure."""
        return self.requests[self.requests["status"] == "ok"]

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
    return build_run(
        path,
        rundir.read_manifest(path),
        rundir.read_records(path),
        rundir.each_reading(path),
        rundir.read_plan(path),
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
    requests = _frame([r for r in records if r.phase != "warmup"])
    warmups = _frame([r for r in records if r.phase == "warmup"])
    counted = (manifest.get("counts") or {}).get("planned")
    in_plan = sum(row.get("phase") != "warmup" for row in plan)
    planned = int(counted) if counted is not None else (in_plan or len(requests))
    sidecars = manifest.get("sidecars") or ()
    clock_of = {name: row["clock"] for row in sidecars for d in row["domains"] for name in (d, _board(d))}
    scraper = next((row["clock"] for row in sidecars if row["metrics"]), None)
    return Run(
        path=path,
        manifest=manifest,
        requests=requests,
        warmups=warmups,
        series=_series(manifest, readings, clock_of),
        plan=plan,
        planned=planned,
        missing=planned - requests["id"].nunique(),
        complete=manifest.get("status") == "complete",
        end_s=_end_s(manifest, requests),
        boards=_samples(BoardState, [_on_time(s, clock_of.get(s.domain)) for s in states]),
        metrics=_samples(ServerSample, [_on_time(s, scraper) for s in samples]),
    )


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


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    names = [f.name for f in fields(Record)]
    columns: dict[str, Any] = {name: [getattr(r, name) for r in records] for name in names}
    for name in _NUMBERS:
        columns[name] = np.array([np.nan if v is None else v for v in columns[name]], dtype=np.float64)
    for name in _OBJECTS:
        column = np.empty(len(records), dtype=object)
        for i, value in enumerate(columns[name]):  # one by one: equal-length tuples would become a matrix
            column[i] = value
        columns[name] = column
    return pd.DataFrame({name: columns[name] for name in _COLUMNS})


def _end_s(manifest: Mapping[str, Any], requests: pd.DataFrame) -> float | None:
    sealed = (manifest.get("window") or {}).get("end_s")
    if sealed is not None:
        return float(sealed)
    last_s = requests["done_s"].max()
    return None if pd.isna(last_s) else float(last_s)


def _series(
    manifest: Mapping[str, Any], readings: Iterable[Reading], clock_of: Mapping[str, Mapping[str, Any]]
) -> dict[str, Series]:
    known = [f.name for f in fields(Domain)]
    declared = (manifest.get("power") or {}).get("domains") or ()
    domains = [Domain(**{key: row[key] for key in known if key in row}) for row in declared]
    # By domain, and whether cumulative: instants and values. Numbers only, for runs of a day.
    taken = {d.name: {kind: (array("d"), array("d")) for kind in (True, False)} for d in domains}
    for reading in readings:
        shown = reading.power_w if reading.energy_j is None else reading.energy_j
        if reading.domain in taken and shown is not None:  # an undeclared one has no method, hence no label
            instants, values = taken[reading.domain][reading.energy_j is not None]
            instants.append(reading.t_s)
            values.append(shown)
    found = {}
    for domain in domains:
        kinds = taken[domain.name]
        cumulative = len(kinds[True][0]) > 0
        t_s, value = (np.array(column, dtype=np.float64) for column in kinds[cumulative])
        t_s = run_time_s(t_s, clock_of.get(domain.name))
        order = np.argsort(t_s, kind="stable")
        found[domain.name] = Series(domain, t_s[order], value[order], cumulative)
    return found
