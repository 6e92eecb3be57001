"""Sweeps run: equal gaps, common random numbers, workers, the whole path, and going on after a kill."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.sweeps import of_run
from loadgen import cli
from loadgen.errors import ConfigError, RunDirError
from loadgen.sweep import session
from loadgen.sweep.point import jobs_of, planned_of, row_of, scaled
from loadgen.sweep.session import Order, run
from loadgen.sweep.sweep_file import read_sweep

TEXT = """
name: tiny
scenario:
  load: {pattern: constant, interval_s: 1, requests: 60, warmup_requests: 1}
  prompts: {source: fixed, prompt_tokens: 300, output_tokens: 20}
  power: {baseline_s: 1}
  slo: {ttft_s: 0.05}
axes:
  - grid:
      load:
        fixed: {pattern: constant, interval_s: 1}
        poisson: {pattern: poisson, rate_rps: 3}
      mean_gap_s: [0.05, 0.4]
      seed: [1, 2]
draws: 30
compare: {axis: load, reference: fixed}
"""
HEAD = TEXT[: TEXT.index("axes:")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def order(file: Path, tmp_path: Path) -> Order:
    return Order(str(file), parent=tmp_path / "out", workers=1, quiet=True)


def lines(path: Path) -> list[str]:
    return (path / "rows.jsonl").read_text().splitlines()


def test_every_point_has_exactly_the_mean_gap_and_a_seed_its_own_shape(file: Path) -> None:
    shapes: dict[tuple[Any, Any], list[Any]] = {}
    for point in read_sweep(file).points:
        jobs = jobs_of(point)
        gaps_s = np.diff(jobs.demand_s)
        assert gaps_s.mean() == pytest.approx(point.mean_gap_s, rel=1e-12) and jobs.demand_s[0] == 0
        shapes.setdefault((point.levels["load"], point.levels["seed"]), []).append(gaps_s / gaps_s.mean())
    for fast, slow in shapes.values():
        np.testing.assert_allclose(fast, slow, rtol=1e-9)
    assert not np.allclose(shapes["poisson", 1][0], shapes["poisson", 2][0])
    np.testing.assert_allclose(shapes["fixed", 1][0], 1.0)


def test_arrivals_without_gaps_have_no_mean_to_be_given() -> None:
    with pytest.raises(ConfigError, match="expected arrivals with gaps"):
        scaled(np.zeros(3), 1.0)
    assert scaled(np.array([2.0, 5.0]), None).tolist() == [2.0, 5.0]
    assert scaled(np.array([2.0, 5.0, 6.0]), 1.0).tolist() == [0.0, 1.5, 2.0]


def test_a_gate_shapes_the_scaled_demand_and_hold_is_in_the_latency_from_demand(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(
        HEAD + "set: {load.shaping: {policy: gate, interval_s: 3}}\n"
        "axes: [{grid: {mean_gap_s: [0.5], seed: [1]}}]\n"
    )
    (point,) = read_sweep(path).points
    jobs = jobs_of(point)
    assert np.all(np.isclose(jobs.due_s % 3, 0) | np.isclose(jobs.due_s % 3, 3))
    assert planned_of(point).measured.arrivals[5].due_s == jobs.due_s[5]
    figures = row_of(point, draws=0)["figures"]
    # Demand at 0, 0.5, ... 2.5: holds of 0, 2.5, 2, 1.5, 1, 0.5, in tens.
    assert figures["hold_mean_s"] == pytest.approx(7.5 / 6)
    assert figures["e2e_from_demand_mean_s"] == pytest.approx(figures["e2e_mean_s"] + 7.5 / 6)
    assert figures["realised_gap_s"] == pytest.approx(0.5)


def test_prompts_are_the_same_at_every_point_of_a_seed(tmp_path: Path) -> None:
    path = tmp_path / "lengths.yaml"
    path.write_text(
        "name: n\nscenario: {load: {pattern: poisson, rate_rps: 2, requests: 30}}\n"
        "axes: [{grid: {load.requests: [30, 12], server.gpu: [h100-sxm, l40s], seed: [1, 2]}}]\n"
    )
    lengths: dict[Any, list[Any]] = {}
    for point in read_sweep(path).points:
        held = jobs_of(point).lengths
        lengths.setdefault(point.levels["seed"], []).append((held.prompt_tokens, held.reply_tokens))
    for prompts, replies in lengths[1]:
        n = len(prompts)
        assert prompts.tolist() == lengths[1][0][0].tolist()[:n]
        assert replies.tolist() == lengths[1][0][1].tolist()[:n]
    assert lengths[1][0][0].tolist() != lengths[2][0][0].tolist()


def test_the_envelope_is_of_the_draws_and_holds_the_nominal_value(order: Order) -> None:
    for row in run(order, of_run).rows:
        figures, draws_j = row["figures"], sorted(row["draws_j"])
        assert len(draws_j) == 30 and draws_j[0] != draws_j[-1]
        assert draws_j[0] <= figures["energy_low_j"] < figures["energy_per_success_j"]
        assert figures["energy_per_success_j"] < figures["energy_high_j"] <= draws_j[-1]
        assert figures["energy_j"] == pytest.approx(60 * figures["energy_per_success_j"])
        assert figures["mean_power_w"] * figures["duration_s"] == pytest.approx(figures["energy_j"])


def test_one_and_two_workers_give_the_same_rows(order: Order, tmp_path: Path) -> None:
    alone = run(order, of_run)
    shared = run(replace(order, workers=2, parent=tmp_path / "other"), of_run)
    assert alone.rows == shared.rows and alone.whole and shared.whole
    assert sorted(lines(alone.path)) == sorted(lines(shared.path))
    assert (alone.path / "table.csv").read_text() == (shared.path / "table.csv").read_text()


SAMPLED = ("energy_per_success_j", "energy_per_token_j", "mean_power_w")
TIMES = ("duration_s", "ttft_p99_s", "tpot_mean_s", "e2e_p50_s", "e2e_from_demand_p95_s", "gap_cv")
COUNTS = ("ok", "rejected", "dropped", "goodput_share", "prompt_tokens", "output_tokens")
SPACED = "uniform: {pattern: uniform, low_s: 0, high_s: 1}"


def test_the_whole_path_agrees_with_the_engine_driven_directly(
    file: Path, order: Order, tmp_path: Path
) -> None:
    text = TEXT.replace("fixed: {pattern: constant, interval_s: 1}", SPACED).replace("[1, 2]", "[1]")
    file.write_text(text.replace("reference: fixed", "reference: uniform"))
    # With a prefix cache the whole path's prompts share their first word; the direct path's share nothing.
    small = replace(order, overrides=("load.requests=40", "server.launcher.prefix_caching=false"))
    direct = run(small, of_run)
    whole = run(replace(small, http=True, parent=tmp_path / "http"), of_run)
    assert whole.manifest["http"] and direct.manifest["hash"] != whole.manifest["hash"]
    for one, other in zip(direct.rows, whole.rows, strict=True):
        assert one["axes"] == other["axes"] and other["draws_j"] is None
        for names, within in ((SAMPLED, 5e-3), (TIMES, 1e-4), (COUNTS, 0)):
            for name in names:
                assert other["figures"][name] == pytest.approx(one["figures"][name], rel=within), name


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Ctrl-C at the fourth point; the list takes the numbers of the points that were run."""
    ran: list[int] = []

    def row(point: Any, **how: Any) -> Any:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(point.number)
        return row_of(point, **how)

    monkeypatch.setattr(session, "row_of", row)
    yield ran
    monkeypatch.setattr(session, "row_of", row_of)


def test_ctrl_c_keeps_the_rows_and_says_how_to_go_on(
    file: Path, tmp_path: Path, interrupted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(file), "--output-dir", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    assert cli.main(words) == 130
    out, err = capsys.readouterr()
    path = Path(out.splitlines()[-1])
    assert f"3 of 8 points are kept; go on with: loadgen sweep --resume {path}" in err
    assert json.loads((path / "sweep.json").read_text())["status"] == "interrupted"
    assert len(lines(path)) == 3 and "5 points have no row yet" in out
    interrupted.clear()
    assert cli.main(words) == 130 and len(lines(path)) == 6  # the same directory, further on
    interrupted.clear()
    assert cli.main(["sweep", "--resume", str(path), "--workers", "1", "--quiet"]) == 0
    assert interrupted == [6, 7]
    assert json.loads((path / "sweep.json").read_text())["status"] == "complete"
    assert [json.loads(line)["point"] for line in lines(path)] == list(range(8))
    assert list((tmp_path / "out").iterdir()) == [path]


def test_a_killed_sweep_goes_on_from_a_cut_off_line(order: Order) -> None:
    first = run(order, of_run)
    whole = (first.path / "rows.jsonl").read_bytes()
    manifest = json.loads((first.path / "sweep.json").read_text()) | {"status": "running"}
    (first.path / "sweep.json").write_text(json.dumps(manifest))
    for kept in (0, 17, whole.index(b"\n"), len(whole) // 2, len(whole) - 1):
        (first.path / "rows.jsonl").write_bytes(whole[:kept])
        (first.path / "sweep.json").write_text(json.dumps(manifest))
        again = run(order, of_run)
        assert again.path == first.path and again.rows == first.rows
        assert (first.path / "rows.jsonl").read_bytes() == whole
    # A complete one is left as it is: the next run is a new one.
    assert run(order, of_run).path != first.path


def test_a_changed_file_and_a_damaged_directory_are_refused(order: Order, file: Path, tmp_path: Path) -> None:
    done = run(order, of_run)
    file.write_text(TEXT.replace("draws: 30", "draws: 31"))
    with pytest.raises(ConfigError, match=r"--resume .*: expected the sweep \w{8} that it holds, got \w{8}"):
        run(replace(order, resume=done.path), of_run)
    file.write_text(TEXT)
    with pytest.raises(RunDirError, match="expected a sweep's directory"):
        run(replace(order, resume=tmp_path), of_run)
    rows = lines(done.path)
    (done.path / "rows.jsonl").write_text("\n".join([rows[0], "{", *rows[2:]]) + "\n")
    with pytest.raises(RunDirError, match=r"rows\.jsonl:2: expected a row of a sweep"):
        run(replace(order, resume=done.path), of_run)


def test_two_sweeps_do_not_write_into_one_directory(order: Order) -> None:
    done = run(order, of_run)
    with done.store.writing(), pytest.raises(RunDirError, match="another sweep is writing to it"):
        run(replace(order, resume=done.path), of_run)


def test_a_model_that_does_not_fit_is_a_row_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text(HEAD + "axes: [{grid: {server.model: [llama-3.1-8b, llama-3.1-70b]}}]\n")
    done = run(Order(str(path), parent=tmp_path / "out", workers=1, quiet=True), of_run)
    fits, not_so = done.rows
    assert done.whole and fits["refused"] is None and fits["figures"]["ok"] == 60
    assert not_so["figures"] == {} and "llama-3.1-70b" in not_so["refused"]
    table = list(csv.DictReader((done.path / "table.csv").read_text().splitlines()))
    assert [row["server.model"] for row in table] == ["llama-3.1-8b", "llama-3.1-70b"]
    assert float(table[0]["energy_per_success_j"]) > 0 and table[1]["energy_per_success_j"] == ""


def test_dry_run_lists_the_points_and_makes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", str(file), "--dry-run", "--output-dir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 8 and out[-1] == '7  load="poisson"  mean_gap_s=0.4  seed=2'
    assert not (tmp_path / "out").exists()


def test_json_is_one_object_of_findings(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(file), "--json", "--output-dir", str(tmp_path / "out"), "--workers", "1", "--quiet"]
    assert cli.main([*words, "--set", "load.requests=30"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((Path(found["directory"]) / "findings.json").read_text())
    assert kept == {key: value for key, value in found.items() if key != "directory"}
    assert len(found["cells"]) == 4 and found["label"].startswith("simulated")
    assert {one["level"] for one in found["against"]} == {"poisson"}
    assert all(cell["figures"]["ok"]["value"] == 30 for cell in found["cells"])
