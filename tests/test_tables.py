from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import constant, failed, lattice, record, run_of

from analysis.attribution import Attributed, Attribution
from analysis.latency import lateness_s, samples
from analysis.run import Run, build_run, load_run
from analysis.tables import COSTS, export, tables, unit_of
from loadgen import rundir
from loadgen.errors import ConfigError, LoadgenError
from loadgen.types import BoardState, ServerSample


@pytest.fixture(scope="module")
def run(mixed_run: Path) -> Run:
    return load_run(mixed_run)


@pytest.fixture(scope="module")
def attributed(run: Run) -> Attributed:
    return Attribution(run).window()


@pytest.fixture(scope="module")
def made(run: Run, attributed: Attributed) -> dict[str, pd.DataFrame]:
    return tables(run, attributed)


def varied() -> Run:
    """Two warm-ups, successes, failures of every kind, a late one; boards, metrics and a plan."""
    records = [
        record(-2, -2.0, phase="warmup"),
        record(-1, -1.0, phase="warmup"),
        *lattice(4, 0.5, server_times={"queue_s": 0.01}),
        record(4, 2.0, sent_s=2.25),
        failed(5, 2.5, error='HTTP 500: "a, b"\nand a line'),
        failed(6, 3.0, "timeout", http_status=None, error=None),
        failed(7, 3.5, "dropped", sent_s=None, done_s=None, http_status=None),
        record(8, 4.0, output_tokens=None, tokens_from=None),
    ]
    like = run_of(records)
    plan = [{"id": i, "phase": "measure", "kind": "text", "due_s": 0.5 * i} for i in range(12)]
    plan[3] |= {"prompt_tokens": 7, "after": [2, 0.5], "session": "s", "source_id": "row-1"}
    manifest = {**like.manifest, "status": "running", "counts": {"planned": 12}}
    states = [BoardState(0.1, "gpu0", temperature_c=50.5, pstate=0), BoardState(1.1, "gpu0", ecc_errors=3)]
    server = [ServerSample(0.2, running=1.5, prompt_tokens=10.0), ServerSample(1.2, prompt_tokens=30.0)]
    return build_run(like.path, manifest, records, [], plan, states, server)


def test_requests_are_typed_and_carry_the_latencies_of_the_module_that_defines_them(
    run: Run, made: dict[str, pd.DataFrame]
) -> None:
    requests = made["requests"]
    assert requests["id"].tolist() == [*run.warmups["id"], *run.requests["id"]]
    for name in ("prompt_tokens", "output_tokens", "http_status"):
        assert requests[name].dtype == "Int64" and requests[name].sum() > 0
    assert all(requests[name].dtype == "category" for name in ("status", "phase", "tokens_from"))
    measured = requests[requests["phase"] == "measure"]
    for metric, sample in samples(run).items():
        if metric != "itl":
            got = measured[f"{metric}_s"].dropna().to_numpy()
            assert np.array_equal(got, sample.value_s) and len(got) > 250
    assert np.array_equal(measured["lateness_s"].dropna(), lateness_s(run))
    assert (measured["ttft_s"] == (measured["first_s"] - measured["sent_s"]).round(9)).all()


def test_the_shares_of_energy_are_joined_by_request(
    made: dict[str, pd.DataFrame], attributed: Attributed
) -> None:
    requests = made["requests"].set_index("id")
    told = attributed.requests
    assert len(told) > 290
    for name in COSTS:
        assert requests.loc[told.index, name].to_numpy() == pytest.approx(told[name].to_numpy())
        assert requests[name].drop(told.index).isna().all()
    about = made["requests"].attrs["energy"]
    assert requests["total_j"].sum() + about["unattributed_j"] == pytest.approx(attributed.energy_j)
    assert (about["method"], about["label"]) == ("work", "simulated")
    assert "total_j" not in tables(run_of(lattice(3, 0.5)))["requests"]


def test_chunks_power_plan_and_steps_hold_every_line_of_their_files(
    run: Run, made: dict[str, pd.DataFrame]
) -> None:
    chunks, power, plan, steps = (made[name] for name in ("chunks", "power", "plan", "steps"))
    assert chunks["tokens"].dtype == np.int64
    for i in (-2, 0, 150):
        (its,) = [r for r in rundir.read_records(run.path) if r.id == i]
        rows = chunks[chunks["id"] == i]
        assert tuple(rows["at_s"]) == its.chunk_s and tuple(rows["tokens"]) == its.chunk_tokens
        assert rows["chunk"].tolist() == list(range(len(rows)))
    readings = rundir.read_readings(run.path)
    assert len(power) == len(readings) and power["t_s"].is_monotonic_increasing
    assert power["energy_j"].notna().sum() == sum(r.energy_j is not None for r in readings)
    assert (power["energy_j"].isna() != power["power_w"].isna()).all()
    assert set(power.loc[power["domain"] == "gpu0", "label"]) == {"simulated"}
    assert len(plan) == 303 and plan["recorded"].all() and plan["max_new_tokens"].dtype == "Int64"
    engine = list(rundir.read_steps(run.path))
    assert len(steps) == len(engine) and steps["energy_j"].sum() == pytest.approx(
        run.manifest["engine"]["energy_j"], rel=1e-6
    )
    assert steps["decode_tokens"].sum() == sum(row[2] for step in engine for row in step.sequences)


def test_failures_have_no_latency_and_missing_counts_are_no_floats() -> None:
    found = tables(varied())
    requests = found["requests"].set_index("id")
    assert requests["status"].tolist()[-4:] == ["error", "timeout", "dropped", "ok"]
    assert requests.loc[5:7, ["ttft_s", "e2e_s", "tpot_s"]].isna().all(axis=None)
    assert requests.loc[5:7, "output_tokens"].isna().all() and requests["output_tokens"].dtype == "Int64"
    assert pd.isna(requests.loc[8, "tpot_s"]) and requests.loc[8, "e2e_s"] == pytest.approx(0.2)
    assert requests.loc[4, "lateness_s"] == pytest.approx(0.25) and requests.loc[5, "lateness_s"] == 0.0
    assert pd.isna(requests.loc[7, "lateness_s"]) and requests.loc[[-2, -1], "lateness_s"].isna().all()
    assert requests["server_queue_s"].notna().sum() == 4
    assert requests["chunks"].tolist() == [11] * 7 + [0, 0, 0, 11]
    assert pd.isna(requests.loc[6, "error"]) and requests.loc[6, "status"] == "timeout"
    boards, metrics, plan = found["boards"], found["metrics"], found["plan"].set_index("id")
    assert boards["pstate"].tolist() == [0, pd.NA] and boards["temperature_c"][0] == 50.5
    assert metrics["prompt_tokens"].dtype == "Int64" and metrics["running"][0] == 1.5
    assert plan["recorded"].tolist() == [True] * 9 + [False] * 3
    assert (plan.loc[3, "after_id"], plan.loc[3, "after_think_s"]) == (2, 0.5)
    assert "power" not in found and "steps" not in found


def test_an_incomplete_run_is_marked_in_every_table() -> None:
    found = tables(varied())
    row = found["run"].iloc[0]
    assert (row["status"], row["complete"], row["planned"], row["records"], row["missing"]) == (
        "running",
        False,
        12,
        9,
        3,
    )
    for table in found.values():
        assert (table.attrs["complete"], table.attrs["missing"]) == (False, 3)


def test_closed_loops_have_no_lateness_and_a_run_without_records_has_empty_tables() -> None:
    closed = tables(run_of(lattice(3, 0.5), closed_loop=True))
    assert closed["requests"]["lateness_s"].isna().all()
    empty = tables(run_of([]))
    assert set(empty) == {"run", "requests"} and not len(empty["requests"])
    assert pd.isna(empty["run"].loc[0, "end_s"])


@pytest.mark.parametrize("which", ["mixed", "varied", "empty", "constant"])
def test_files_hold_what_the_tables_hold(
    which: str, run: Run, attributed: Attributed, tmp_path: Path
) -> None:
    runs = {
        "mixed": run,
        "varied": varied(),
        "empty": run_of([]),
        "constant": run_of(lattice(9, 0.5), constant(300.0, 5.0)),
    }
    shares = attributed if which == "mixed" else None
    found = tables(runs[which], shares)
    written = export(runs[which], tmp_path / "out", attributed=shares)
    assert [file.name for file in written] == [
        f"{name}.{form}" for name in found for form in ("csv", "parquet")
    ]
    for name, table in found.items():
        read = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        typed = len(table) > 0  # an empty column forgets its categories
        pd.testing.assert_frame_equal(read, table, check_dtype=typed, check_categorical=typed)
        assert read.attrs == table.attrs
        assert read.attrs["units"] == {c: unit_of(c) for c in table if unit_of(c)}
        text = tmp_path / "out" / f"{name}.csv"
        back = pd.read_csv(text, dtype=table.dtypes.to_dict())
        pd.testing.assert_frame_equal(back, table, check_categorical=False, rtol=1e-12, atol=0)


def test_every_quantity_has_its_unit(made: dict[str, pd.DataFrame]) -> None:
    for table in made.values():
        for name, kind in table.dtypes.items():
            assert kind != np.float64 or unit_of(str(name)) is not None, name
    assert (unit_of("ttft_s"), unit_of("energy_j"), unit_of("prompt_tokens")) == ("s", "J", "tokens")
    assert (unit_of("temperature_c"), unit_of("sm_clock_mhz"), unit_of("status")) == (
        "degree Celsius",
        "MHz",
        None,
    )


def test_without_pyarrow_parquet_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LoadgenError, match=r"pip install 'loadgen\[report\]'"):
        export(run_of(lattice(3, 0.5)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (first, *_) = export(run_of(lattice(3, 0.5)), tmp_path / "out", ["csv"])
    assert first.read_text().startswith("name,status,complete")


@pytest.mark.parametrize("formats", [["xlsx"], ["csv", "json"], []])
def test_another_format_is_refused(formats: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export: expected formats out of csv, parquet, got"):
        export(run_of(lattice(3, 0.5)), tmp_path, formats)


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadgenError, match="cannot write to"):
        export(run_of(lattice(3, 0.5)), tmp_path / "file", ["csv"])
