"""A run as tables with units in the column names, in memory and as CSV or Parquet files.

What a table holds is in `tables`. Instants are in run time. Counts that may be missing are nullable integers,
words that repeat are categories. ``attrs`` of each table say of which run it is, whether that is
``complete``, and the ``units`` of its columns; Parquet files keep them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from analysis.attribution import Attributed
from analysis.energy.parts import label_of
from analysis.latency import per_request
from analysis.run import Run
from loadgen import rundir
from loadgen.errors import ConfigError, LoadgenError
from loadgen.types import STATUSES, Floats, Phase

FORMATS = ("csv", "parquet")
COSTS = ("idle_j", "prefill_j", "decode_j", "total_j")
_COUNTS = ("prompt_tokens", "output_tokens", "http_status")
_UNITS = {
    "_s": "s",
    "_j": "J",
    "_w": "W",
    "_c": "degree Celsius",
    "_mhz": "MHz",
    "_tokens": "tokens",
}
_OTHER_UNITS = {"chunks": "reads", "tokens": "tokens", "running": "requests", "waiting": "requests"}
_STATE_COUNTS = ("pstate", "event_reasons", "ecc_errors")
_SERVER_COUNTS = ("prompt_tokens", "output_tokens", "cached_tokens", "preemptions")


def tables(run: Run, attributed: Attributed | None = None) -> dict[str, pd.DataFrame]:
    """The run's tables; those of files that it does not have are left out.

    - ``run``: one row: what it was, whether it is ``complete``, and how many records are ``missing``
    - ``requests``: a row a record, warm-ups first. ``chunks`` counts its reads with tokens. Latencies are
      those of successes (`analysis.latency`), and missing for the rest; ``lateness_s`` of all that were sent
      on a timetable. With ``attributed`` also the joules of each request in its window
    - ``chunks``: a row a read that brought tokens: ``at_s``, and how many ``tokens``
    - ``power``: a row a reading, ``power_w`` or cumulative ``energy_j``, with the label of its method
    - ``boards``, ``metrics``: states of the boards; the server's own metrics
    - ``plan``: a row a planned request, and whether it is ``recorded``
    - ``steps``: of the embedded engine, from ``server.jsonl``; for scoring only

    Raises RunDirError when ``server.jsonl`` is damaged.
    """
    made = {
        "run": _run(run),
        "requests": _requests(run, attributed),
        "chunks": _chunks(run),
        "power": _power(run),
        "boards": _typed(run.boards, _STATE_COUNTS),
        "metrics": _typed(run.metrics, _SERVER_COUNTS),
        "plan": _plan(run),
        "steps": _steps(run),
    }
    found = {name: table for name, table in made.items() if len(table) or name in ("run", "requests")}
    for table in found.values():
        table.attrs.update(_about(run, table))
    if attributed is not None:
        found["requests"].attrs["energy"] = {
            "method": attributed.method,
            "label": attributed.label,
            "start_s": float(attributed.start_s),
            "end_s": float(attributed.end_s),
            "unattributed_j": float(attributed.unattributed_j),
        }
    return found


def export(
    run: Run,
    directory: Path | str,
    formats: Sequence[str] = FORMATS,
    attributed: Attributed | None = None,
) -> list[Path]:
    """Writes ``directory/TABLE.FORMAT`` of every table; the files written.

    Raises ConfigError for a format that is none, LoadgenError when Parquet lacks its library or
    a file cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        got = ", ".join(unknown) or "none"
        raise ConfigError(f"export: expected formats out of {', '.join(FORMATS)}, got {got}")
    if "parquet" in formats:
        _need_pyarrow()
    directory, written = Path(directory), []
    found = tables(run, attributed)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in found.items():
            for form in dict.fromkeys(formats):
                file = directory / f"{name}.{form}"
                if form == "csv":
                    table.to_csv(file, index=False)
                else:
                    table.to_parquet(file, engine="pyarrow", index=False)
                written.append(file)
    except OSError as exc:
        raise LoadgenError(f"export: cannot write to {directory}: {exc.strerror or exc}") from exc
    return written


def unit_of(column: str) -> str | None:
    """The unit of a column by its name; None for what has none."""
    by_suffix = (unit for suffix, unit in _UNITS.items() if column.endswith(suffix))
    return _OTHER_UNITS.get(column) or next(by_suffix, None)


def _need_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise LoadgenError("Parquet needs pyarrow: pip install 'loadgen[report]', or export csv only")


def _about(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    return {
        "run": run.name,
        "status": str(run.manifest.get("status")),
        "complete": run.complete,
        "missing": run.missing,
        "clock_zero": "the first measured due time",
        "units": {name: unit for name in map(str, table) if (unit := unit_of(name)) is not None},
    }


def _run(run: Run) -> pd.DataFrame:
    server: Mapping[str, Any] = run.manifest.get("server") or {}
    row = {
        "name": run.name,
        "status": str(run.manifest.get("status")),
        "complete": run.complete,
        "planned": run.planned,
        "records": len(run.requests),
        "missing": run.missing,
        "warmups": len(run.warmups),
        "start_s": 0.0,
        "end_s": np.nan if run.end_s is None else run.end_s,
        "clock": str(run.manifest.get("clock")),
        "closed_loop": run.closed_loop,
        "power_reason": run.power.get("reason"),
        **{f"server_{key}": server.get(key) for key in ("kind", "model", "gpu", "dtype")},
    }
    texts = [name for name, value in row.items() if value is None or isinstance(value, str)]
    return pd.DataFrame([row]).astype(dict.fromkeys(texts, "string"))


def _requests(run: Run, attributed: Attributed | None) -> pd.DataFrame:
    records = _all(run)
    ok = (records["status"] == "ok").to_numpy(dtype=bool)
    latencies = {f"{name}_s": np.where(ok, found, np.nan) for name, found in per_request(records).items()}
    timed = (records["phase"] != "warmup").to_numpy(dtype=bool) & (not run.closed_loop)
    late_s = records["sent_s"].to_numpy(dtype=np.float64) - records["due_s"].to_numpy(dtype=np.float64)
    table = pd.DataFrame(
        {
            **{name: records[name] for name in ("id", "block", "worker")},
            "phase": pd.Categorical(records["phase"], categories=get_args(Phase)),
            "status": pd.Categorical(records["status"], categories=STATUSES),
            **{name: records[name] for name in ("demand_s", "due_s", "sent_s", "first_s", "done_s")},
            "chunks": np.fromiter(map(len, records["chunk_s"]), np.int64, len(records)),
            **{name: _whole(records[name]) for name in _COUNTS},
            **{name: _words(records[name]) for name in ("tokens_from", "finish_reason")},
            "error": records["error"].astype("string"),
            **_server_times(records),
            **latencies,
            "lateness_s": np.where(timed, late_s, np.nan),
        }
    )
    if attributed is None:
        return table
    spent = attributed.requests.loc[~attributed.requests.index.duplicated(), list(COSTS)]
    joined = spent.reindex(table["id"].to_numpy())
    return table.assign(**{name: joined[name].to_numpy(dtype=np.float64) for name in COSTS})


def _all(run: Run) -> pd.DataFrame:
    """Warm-ups and measured requests; an empty one of them would change the other's types."""
    kept = [frame for frame in (run.warmups, run.requests) if len(frame)] or [run.requests]
    return pd.concat(kept, ignore_index=True)


def _server_times(records: pd.DataFrame) -> dict[str, Floats]:
    """What the server said it took, a column a time, NaN where it did not."""
    said = records["server_times"].tolist()
    names = sorted({str(name) for times in said for name in times})
    return {f"server_{name}": np.array([t.get(name) for t in said], dtype=np.float64) for name in names}


def _chunks(run: Run) -> pd.DataFrame:
    records = _all(run)
    sizes = np.fromiter(map(len, records["chunk_s"]), np.int64, len(records))
    begins = np.cumsum(sizes) - sizes
    return pd.DataFrame(
        {
            "id": np.repeat(records["id"].to_numpy(dtype=np.int64), sizes),
            "chunk": np.arange(int(sizes.sum())) - np.repeat(begins, sizes),
            "at_s": np.fromiter(chain.from_iterable(records["chunk_s"]), np.float64),
            "tokens": np.fromiter(chain.from_iterable(records["chunk_tokens"]), np.int64),
        }
    )


def _power(run: Run) -> pd.DataFrame:
    parts = []
    for name, series in run.series.items():
        missing = np.full(len(series.t_s), np.nan)
        power_w, energy_j = (missing, series.value) if series.cumulative else (series.value, missing)
        labels = {"domain": name, "method": series.domain.method, "label": label_of(series.domain.method)}
        part = pd.DataFrame({"t_s": series.t_s, "power_w": power_w, "energy_j": energy_j})
        parts.append(part.assign(**labels))
    if not any(map(len, parts)):
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True).sort_values("t_s", kind="stable", ignore_index=True)
    words = ("domain", "method", "label")
    found = found.astype(dict.fromkeys(words, "category"))
    return found[[*words, "t_s", "power_w", "energy_j"]]


def _typed(frame: pd.DataFrame, counts: Sequence[str]) -> pd.DataFrame:
    """The same with its counts as nullable integers."""
    found = frame.assign(**{name: _whole(frame[name]) for name in counts})
    return found.astype({"domain": "category"}) if "domain" in found else found


def _plan(run: Run) -> pd.DataFrame:
    rows = run.timetable
    if not len(rows):
        return pd.DataFrame()
    after = [(None, None) if pair is None else pair for pair in rows["after"]]
    counts = [name for name in map(str, rows) if name.endswith("_tokens")]
    recorded = np.isin(rows["id"], _all(run)["id"])
    return rows.drop(columns=["after"]).assign(
        **{name: _whole(rows[name]) for name in counts},
        **{name: _words(rows[name]) for name in ("kind", "phase")},
        **{name: rows[name].astype("string") for name in ("source_id", "prompt_hash", "session")},
        after_id=_whole(pd.Series([before for before, _ in after], dtype=np.float64)),
        after_think_s=np.array([think_s for _, think_s in after], dtype=np.float64),
        recorded=recorded,
    )


def _steps(run: Run) -> pd.DataFrame:
    rows = [
        (
            step.start_s,
            step.duration_s,
            step.energy_j,
            len(step.sequences),
            sum(row[1] for row in step.sequences),
            sum(row[2] for row in step.sequences),
            sum(row[3] for row in step.sequences),
        )
        for step in rundir.read_steps(run.path)
    ]
    names = ["start_s", "duration_s", "energy_j", "sequences"]
    return pd.DataFrame(rows, columns=[*names, "prefill_tokens", "decode_tokens", "context_tokens"])


def _words(values: pd.Series[Any]) -> pd.Categorical:
    return pd.Categorical(values, categories=sorted(map(str, values.dropna().unique())))


def _whole(values: pd.Series[Any]) -> pd.Series[Any]:
    """Counts as nullable integers; as they are where one is no whole number."""
    known = values.dropna()
    return values.astype("Int64") if bool((known == np.floor(known)).all()) else values
