from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from made_runs import COUNTER, INSTANT, constant, failed, lattice, record, run_of

from analysis import columns
from analysis.run import PlanRows, build_run, load_run
from analysis.summary import summarize
from loadgen import rundir
from loadgen.errors import RunDirError
from loadgen.rundir import reading_row, record_row
from loadgen.types import Reading, Record

MANIFEST: dict[str, Any] = {
    "schema": 1,
    "status": "complete",
    "name": "made",
    "power": {"interval_s": 0.1, "domains": [asdict(COUNTER), asdict(INSTANT)]},
}


def write(path: Path, **files: list[Any]) -> Path:
    """A run directory whose files hold these objects, or these bytes, one a line."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_bytes(orjson.dumps(MANIFEST))
    for name, rows in files.items():
        lines = [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]
        (path / f"{name.replace('_', '.')}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def rows(records: list[Record]) -> list[dict[str, Any]]:
    return [record_row(r, 0.0) for r in records]


def assert_same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b)
    for name in a:
        assert [type(v) for v in a[name]] == [type(v) for v in b[name]], name


@pytest.mark.parametrize("batch_bytes", [1, 1000, 10_000_000])
def test_columns_are_what_the_readers_of_rows_give(
    mixed_run: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BATCH_BYTES", batch_bytes)
    read = load_run(mixed_run)
    built = build_run(
        mixed_run,
        rundir.read_manifest(mixed_run),
        rundir.read_records(mixed_run),
        rundir.each_reading(mixed_run),
        rundir.read_plan(mixed_run),
    )
    assert len(read.requests) == 300 and len(read.warmups) == 3
    assert_same(read.requests, built.requests)
    assert_same(read.warmups, built.warmups)
    assert list(read.plan) == rundir.read_plan(mixed_run) == list(built.plan)
    assert set(read.series) == set(built.series) >= {"gpu0", "gpu0.instant"}
    for name, series in read.series.items():
        assert np.array_equal(series.t_s, built.series[name].t_s) and len(series.t_s) > 100
        assert np.array_equal(series.value, built.series[name].value)
        assert series.cumulative == built.series[name].cumulative
    # The rows themselves, not only another path through the same code.
    first = rundir.read_records(mixed_run)[5]
    got = read.requests[read.requests["id"] == first.id].iloc[0]
    for name, value in asdict(first).items():
        assert got[name] == value or (value is None and (got[name] is None or np.isnan(got[name]))), name


def test_plan_rows_are_a_sequence(mixed_run: Path) -> None:
    plan, expected = load_run(mixed_run).plan, rundir.read_plan(mixed_run)
    assert isinstance(plan, PlanRows) and len(plan) == len(expected)
    assert plan[0] == expected[0] and plan[-1] == expected[-1] and list(plan[2:5]) == expected[2:5]
    assert isinstance(plan[3]["prompt_tokens"], int) and plan[0]["due_s"] is None
    with pytest.raises(IndexError):
        plan[len(expected)]


def test_shards_are_read_together_in_order_of_their_number(tmp_path: Path) -> None:
    records = rows(lattice(12, 0.5))
    path = write(tmp_path / "r", requests_0=records[:4], requests_2=records[4:8], requests_10=records[8:])
    (path / "requests-old.jsonl").write_bytes(b"not of this run")
    (path / "requests.old.jsonl").write_bytes(b"nor this")
    assert load_run(path).requests["id"].tolist() == list(range(12))
    assert [r.id for r in rundir.read_records(path)] == list(range(12))


def test_a_run_whose_requests_were_sharded_is_the_same_run(mixed_run: Path, tmp_path: Path) -> None:
    path = shutil.copytree(mixed_run, tmp_path / "r")
    lines = (path / "requests.jsonl").read_bytes().splitlines(keepends=True)
    for k in range(3):
        (path / f"requests.{k}.jsonl").write_bytes(b"".join(lines[k::3]))
    (path / "requests.jsonl").unlink()
    whole, sharded = (load_run(p).requests.sort_values("id", ignore_index=True) for p in (mixed_run, path))
    assert_same(whole, sharded)


def test_each_file_may_end_in_a_cut_off_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r",
        requests=rows(lattice(3, 0.5)),
        requests_1=rows([record(3, 1.5)]),
        power=[reading_row(r, 0.0) for r in constant(300.0, 2.0)],
        plan=[{"id": i, "phase": "measure", "due_s": 0.5 * i} for i in range(4)],
    )
    whole = load_run(path)
    for file in path.glob("*.jsonl"):
        with file.open("ab") as end:
            end.write(b'{"id": 4, "t_s": 1.0, "phase": "mea')
    cut = load_run(path)
    assert_same(cut.requests, whole.requests)
    assert (len(cut.requests), len(cut.plan)) == (4, 4)
    assert len(cut.series["gpu0"].t_s) == len(whole.series["gpu0"].t_s) > 10


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "r", requests=rows(lattice(3, 0.5)))
    file = path / "requests.jsonl"
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert len(load_run(path).requests) == 3


def test_only_a_manifest_is_a_run_without_anything(tmp_path: Path) -> None:
    run = load_run(write(tmp_path / "r"))
    assert (len(run.requests), len(run.warmups), len(run.plan), run.end_s) == (0, 0, 0, None)
    assert list(run.series) == ["gpu0", "gpu0.instant"] and len(run.due_s) == 0
    assert summarize(run)["requests"]["records"] == 0


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in rows([record(1, 0.5)])[0].items() if name != key}


def _with(**changes: Any) -> dict[str, Any]:
    return {**rows([record(1, 0.5)])[0], **changes}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{broken", "expected a JSON object: "),
        (b"", "expected a JSON object: "),
        (b"[1]", "expected a JSON object, got list"),
        (b"5", "expected a JSON object, got int"),
        (b'{"id":1},{"id":2}', "expected a JSON object: "),
        (_without("sent_s"), "expected the key 'sent_s'"),
        (_with(status="splendid"), "status: expected one of ok, error, .*, got 'splendid'"),
        (_with(done_s="late"), "done_s: expected a number or null"),
        (_with(id=None), "id: expected a whole number"),
        (_with(worker=0.5), "worker: expected a whole number"),
        (_with(error=7), "error: expected text or null, got 7"),
        (_with(chunk_s=[0.6]), "chunk_s and chunk_tokens: expected lists of equal length"),
        (_with(chunk_tokens=None), "chunk_tokens: expected a list of numbers"),
        (_with(chunk_s=[None], chunk_tokens=[1]), "chunk_s: expected a list of numbers"),
        (_with(server_times=None), "server_times: expected an object"),
        (_with(prompt_tokens=1e308), "prompt_tokens: expected a number of at most 1e.15"),
        (_with(output_tokens=-5), "output_tokens: expected a count, 0 or more"),
        (_with(done_s=0.55), "done_s: expected no sooner than first_s"),
        (_with(first_s=0.4), "first_s: expected no sooner than sent_s"),
        (_with(first_s=None, done_s=-1.0), "done_s: expected no sooner than sent_s"),
        (_with(chunk_s=[1e300], chunk_tokens=[1]), "chunk_s: expected a list of numbers"),
    ],
)
def test_a_damaged_record_is_one_sentence_with_its_place(tmp_path: Path, bad: Any, why: str) -> None:
    path = write(tmp_path / "r", requests=[*rows(lattice(5, 0.5)), bad, *rows(lattice(5, 0.5))])
    with pytest.raises(RunDirError, match=rf"requests\.jsonl:6: {why}") as refusal:
        load_run(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("file", "bad", "why"),
    [
        ("power", {"t_s": 1.0, "domain": "gpu0"}, "expected power_w or energy_j"),
        ("power", {"t_s": 1.0, "domain": "gpu0", "power_w": 1.0, "energy_j": 1.0}, "not both"),
        ("power", {"t_s": None, "domain": "gpu0", "power_w": 1.0}, "t_s: expected a number"),
        ("power", {"domain": "gpu0", "power_w": 1.0}, "expected the key 't_s'"),
        ("power", {"t_s": 1.0, "domain": [], "power_w": 1.0}, "domain: expected text"),
        ("plan", {"phase": "measure"}, "expected the key 'id'"),
        ("plan", {"id": 0, "due_s": [0.0]}, "due_s: expected a number or null"),
        ("boards", {"t_s": 1.0, "domain": "gpu0", "colour": "green"}, "colour"),
        ("metrics", {"running": 1.0}, "t_s"),
        ("metrics", {"t_s": 1.0, "output_tokens": [1.0]}, r"output_tokens: expected a number, got \[1.0\]"),
        ("metrics", {"t_s": None}, "t_s: expected a number, got None"),
        ("boards", {"t_s": 1.0, "domain": "gpu0", "sm_clock_mhz": "fast"}, "sm_clock_mhz: expected a number"),
        ("power", {"t_s": 1.0, "domain": "gpu0", "power_w": -1e308}, "power_w: expected a number of at most"),
        ("plan", {"id": 0, "prompt_tokens": -1}, "prompt_tokens: expected a count"),
    ],
)
def test_damage_in_the_other_files_is_told_likewise(tmp_path: Path, file: str, bad: Any, why: str) -> None:
    path = write(tmp_path / "r", requests=rows(lattice(5, 0.5)), **{file: [bad]})
    with pytest.raises(RunDirError, match=rf"{file}\.jsonl:1: .*{why}"):
        load_run(path)


@pytest.mark.parametrize("file", ["requests", "power", "plan", "boards", "metrics"])
def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path, file: str) -> None:
    path = write(tmp_path / "r")
    (path / f"{file}.jsonl").mkdir()
    with pytest.raises(RunDirError, match=rf"{file}\.jsonl: cannot be read: Is a directory"):
        load_run(path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schema": 2}, "schema: expected 1, got 2"),
        (
            {"power": {"domains": [{"method": "counter"}]}},
            r"power\.domains\[0\]\.name: expected text, got",
        ),
        ({"power": {"domains": [{"name": -1e308}]}}, r"power\.domains\[0\]\.name: expected text, got -1e"),
        ({"power": {"domains": [None]}}, r"power\.domains\[0\]: expected an object, got None"),
        (
            {"power": {"interval_s": -0.1}},
            r"power\.interval_s: expected a number between 0 and 1e.15, got",
        ),
        ({"sidecars": [{"name": None}]}, r"sidecars\[0\]\.url: expected text, got none"),
        ({"sidecars": {}}, "sidecars: expected a list, got {}"),
        ({"metrics": -1}, "metrics: expected an object, got -1"),
        ({"warnings": -1e308}, "warnings: expected a list"),
        ({"window": {"end_s": 1e300}}, r"window\.end_s: expected a number of at most 1e.15, got 1e.300"),
        ({"seed": "one"}, "seed: expected a whole number, 0 or more, got 'one'"),
        ({"gpus": [{"uuid": []}]}, r"gpus\[0\]\.uuid: expected text, got \[\]"),
        ({"scenario": {"load": {"stages": 3}}}, r"scenario\.load\.stages: expected a list, got 3"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, changes: Any, why: str) -> None:
    path = write(tmp_path / "r", requests=rows(lattice(2, 0.5)))
    (path / "run.json").write_bytes(orjson.dumps({**MANIFEST, **changes}))
    with pytest.raises(RunDirError, match=rf"run\.json: {why}"):
        load_run(path)


@pytest.mark.parametrize("key", ["power", "sidecars", "metrics", "gpus", "scenario", "window", "server"])
def test_a_section_may_be_null_or_missing(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "r", requests=rows(lattice(2, 0.5)))
    for manifest in ({**MANIFEST, key: None}, {k: v for k, v in MANIFEST.items() if k != key}):
        (path / "run.json").write_bytes(orjson.dumps(manifest))
        assert summarize(load_run(path))["requests"]["ok"] == 2


def test_a_cause_that_nobody_wrote_down_is_not_called_nan() -> None:
    """Found: pandas made the missing text a float, and 'nan' a cause of failure."""
    run = run_of([record(0, 0.0), failed(1, 0.5, "dropped", error=None, sent_s=None, done_s=None)])
    assert run.requests["error"].tolist() == [None, None]
    assert summarize(run)["requests"]["errors"] == {"dropped": 1}


def test_readings_of_an_undeclared_domain_are_left_out_and_the_rest_is_put_in_order() -> None:
    readings = [
        Reading(2.0, "gpu0", energy_j=5.0),
        Reading(1.0, "gpu0", energy_j=4.0),
        Reading(1.5, "x", 3.0),
    ]
    run = run_of([record(0, 0.0)], readings)
    assert set(run.series) == {"gpu0", "gpu0.instant"}
    assert run.series["gpu0"].t_s.tolist() == [1.0, 2.0] and run.series["gpu0"].value.tolist() == [4.0, 5.0]
    assert run.series["gpu0"].cumulative and not len(run.series["gpu0.instant"].t_s)
