"""The summary dict, its rendering, ``--fail-if``, and loading from files, killed runs included."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from made_runs import constant, failed, lattice, record, run_of
from rich.console import Console

from analysis import fail_if
from analysis.run import Run, load_run
from analysis.show import render
from analysis.summary import summarize
from analysis.words import number, quantity
from loadgen.errors import ConfigError, RunDirError
from loadgen.rundir import reading_row, record_row


def _mixed() -> Run:
    """600 s at 300 W: 1,000 attempts, 900 successes of 11 tokens each."""
    rows = [failed(i, 0.6 * i) if i % 10 == 9 else record(i, 0.6 * i) for i in range(1000)]
    return run_of(rows, constant(300.0, 600.0), end_s=600.0)


def test_each_denominator_is_its_own_and_failures_enter_no_success_figure() -> None:
    got = summarize(_mixed())
    gpu = got["energy"]["gpu"]
    assert gpu["total_j"]["value"] == pytest.approx(180_000.0)
    assert gpu["energy_per_attempt"]["value"] == pytest.approx(180.0)
    assert gpu["energy_per_request"]["value"] == pytest.approx(200.0)
    assert gpu["energy_per_request_wh"]["value"] == pytest.approx(200.0 / 3600)
    assert gpu["energy_per_output_token"]["value"] == pytest.approx(180_000 / 9900)
    assert gpu["output_tokens_per_joule"]["value"] == pytest.approx(9900 / 180_000)
    assert got["energy"]["denominators"] == {"attempt": 1000, "request": 900, "output_token": 9900}
    assert "successful requests" in gpu["energy_per_request"]["method"]
    assert got["requests"]["success_ratio"]["value"] == pytest.approx(0.9)
    assert got["requests"]["errors"] == {"HTTP 500": 100}
    assert got["latency"]["e2e_s"]["n"] == 900
    assert got["latency"]["e2e_s"]["p99"]["value"] == pytest.approx(0.2)


def test_rates_follow_littles_law_and_intervals_hold_their_values() -> None:
    got = summarize(_mixed())
    assert got["rate"]["offered_rps"]["value"] == pytest.approx(1 / 0.6)
    assert got["rate"]["achieved_rps"]["value"] == pytest.approx(900 / 600)
    assert got["rate"]["in_flight_mean"]["value"] == pytest.approx((900 * 0.2 + 100 * 1.0) / 600)
    for name in ("energy_per_attempt", "energy_per_request", "mean_power_w"):
        estimate = got["energy"]["gpu"][name]
        assert estimate["low"] - 1e-6 <= estimate["value"] <= estimate["high"] + 1e-6
        assert "joint time blocks" in estimate["method"]


def test_summary_is_json_and_repeats_bit_for_bit() -> None:
    assert orjson.dumps(summarize(_mixed())) == orjson.dumps(summarize(_mixed()))


@pytest.mark.parametrize(
    "run",
    [
        run_of([]),
        run_of([failed(i, 0.1 * i) for i in range(50)], constant(300.0, 6.0)),
        run_of([failed(i, 0.1 * i, "dropped", sent_s=None, done_s=None) for i in range(5)]),
        run_of([record(0, 0.0, output_tokens=None, prompt_tokens=None, chunk_s=(), chunk_tokens=())]),
        run_of(lattice(40, 0.0), closed_loop=True),
    ],
    ids=["nothing", "all failed", "all dropped", "no counts", "burst"],
)
def test_degenerate_runs_give_nulls_and_text_never_an_exception(run: Run) -> None:
    summary = summarize(run)
    orjson.dumps(summary)
    for width in (40, 80, 120):
        render(summary, Console(width=width, file=io.StringIO()))


def test_zero_successes_have_no_energy_per_success_but_one_per_attempt() -> None:
    got = summarize(run_of([failed(i, 0.1 * i) for i in range(50)], constant(300.0, 6.0)))
    gpu = got["energy"]["gpu"]
    assert gpu["energy_per_request"]["value"] is None
    assert "denominator is 0" in gpu["energy_per_request"]["method"]
    assert gpu["energy_per_attempt"]["value"] == pytest.approx(300 * got["window_s"] / 50)
    assert gpu["output_tokens_per_joule"]["value"] is None
    assert not got["valid"]


def test_unavailable_energy_says_why() -> None:
    energy = summarize(run_of(lattice(20, 0.5)))["energy"]
    assert (energy["label"], energy["reason"]) == ("unavailable", "no power source on this machine")
    assert energy["gpu"]["total_j"]["value"] is None


def test_goodput_counts_only_what_met_every_limit() -> None:
    rows = [record(i, 0.6 * i) if i % 4 else record(i, 0.6 * i, first_s=0.6 * i + 0.15) for i in range(400)]
    rows[1] = failed(1, 0.6)
    got = summarize(run_of(rows, slo={"ttft_s": 0.12, "tpot_s": None, "e2e_s": 1.0}))["goodput"]
    assert got["slo"] == {"ttft_s": 0.12, "e2e_s": 1.0}
    assert got["ratio"]["value"] == pytest.approx(299 / 400)


def _shown(run: Run, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    render(summarize(run), console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_rendering_fits_names_its_labels_and_ends_with_the_verdict(width: int) -> None:
    text = _shown(_mixed(), width)
    lines = text.rstrip().splitlines()
    assert max(len(line) for line in lines) <= width
    assert "measured" in text
    assert "per success" in text
    assert "200 J" in text
    assert "55.6 mWh" in text
    assert "only 90 % of the requests succeeded" in " ".join(text.split())
    assert lines[-1].strip() == "valid"
    bad = _shown(run_of(lattice(9, 0.5), counts={"planned": 10, "warmup": 0}), width)
    assert "INVALID" in bad
    assert "1 missing" in bad.rstrip().splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "said"),
    [("embedded", "m bfloat16 on h100-sxm, embedded"), ("vllm", "m, declared bfloat16 on h100-sxm, vllm")],
)
def test_what_the_scenario_says_of_a_real_server_is_called_declared(kind: str, said: str) -> None:
    summary = summarize(_mixed())
    summary["server"] = {"kind": kind, "model": "m", "gpu": "h100-sxm", "dtype": "bfloat16"}
    console = Console(width=120, record=True, file=io.StringIO())
    render(summary, console)
    assert said in console.export_text()


def test_the_header_says_how_many_boards_and_whose_interface() -> None:
    run = run_of([record(0, 0.0)], constant(300.0, 10.0), end_s=10.0)
    server = {"kind": "embedded", "model": "m", "gpu": "g", "dtype": "d", "shards": 4, "dialect": "vllm"}
    console = Console(width=120, file=io.StringIO())
    render(summarize(run) | {"server": server}, console)
    assert "m d on 4 x g, embedded vllm server" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.008461, "Wh", "8.46 mWh"),
        (306_000.0, "J", "306 kJ"),
        (0.9999, "J", "1.00 J"),
        (999.9, "W", "1.00 kW"),
        (0.0, "J", "0 J"),
        (120.0, "s", "120 s"),
        (None, "J", "-"),
        (1.784, "/J", "1.78 /J"),
    ],
)
def test_quantities_for_people(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_numbers_keep_three_figures() -> None:
    assert [number(v) for v in (9.999, 12345.0, 0.01234, 100.0)] == ["10.0", "12,300", "0.0123", "100"]


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("p99_e2e>0.5", False),
        ("p99_e2e>0.19", True),
        ("p99_e2e_ms > 190", True),
        ("mean_e2e>=2", False),
        ("success_ratio<0.99", True),
        ("error_ratio>0.2", False),
        ("energy_per_request_wh>0.01", True),
        ("energy_per_attempt_j<=180.001", True),
        ("missing!=0", False),
        ("max_lateness>0.001", False),
        ("achieved_rps<1", False),
        ("invalid", False),
        ("cpu_energy_per_request_j>1", True),  # not read: a gate must not open
        ("goodput_ratio<0.9", True),
    ],
)
def test_conditions(text: str, fails: bool) -> None:
    reason = fail_if.met(fail_if.parse(text), summarize(_mixed()))
    assert (reason is not None) is fails, reason


def test_a_missing_value_fails_with_its_reason() -> None:
    summary = summarize(run_of([failed(0, 0.0)]))
    assert "no values" in str(fail_if.met(fail_if.parse("p99_ttft>0.5"), summary))
    assert "no power source" in str(fail_if.met(fail_if.parse("energy_per_request_j>1"), summary))
    assert "no slo" in str(fail_if.met(fail_if.parse("goodput_ratio<1"), summary))
    virtual = summarize(run_of(lattice(3, 1.0), clock="virtual"))
    assert "n/a (virtual)" in str(fail_if.met(fail_if.parse("p99_lateness>1"), virtual))
    assert "no request succeeded" in str(fail_if.met(fail_if.parse("invalid"), summary))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p99_tfft>0.5", "did you mean 'p99_ttft'?"),
        ("p99_ttft", "expected NAME OP NUMBER"),
        ("p99_ttft>fast", "expected a finite number, got 'fast'"),
        ("p99_ttft>nan", "expected a finite number"),
        ("invalid>0", "takes no operator"),
        ("__import__('os').system('true')", "expected NAME OP NUMBER"),
        ("", "expected NAME OP NUMBER"),
    ],
)
def test_bad_conditions_are_one_line_errors(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fail_if.parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_documented_name_parses_and_leads_somewhere() -> None:
    summary = summarize(_mixed())
    for name in fail_if.NAMES:
        condition = fail_if.parse(name if name == "invalid" else f"{name}>-1e300")
        reason = fail_if.met(condition, summary)
        assert "the summary has no" not in str(reason), name


def _write(path: Path, run: Run, *, records: Any, readings: Any) -> None:
    path.mkdir()
    (path / "run.json").write_bytes(orjson.dumps(dict(run.manifest)))
    (path / "requests.jsonl").write_bytes(b"".join(orjson.dumps(record_row(r, 0.0)) + b"\n" for r in records))
    (path / "power.jsonl").write_bytes(b"".join(orjson.dumps(reading_row(r, 0.0)) + b"\n" for r in readings))


def test_a_run_read_from_files_gives_the_summary_of_the_run_in_memory(tmp_path: Path) -> None:
    records, readings = lattice(100, 0.5), constant(300.0, 50.0)
    run = run_of(records, readings)
    _write(tmp_path / "r", run, records=records, readings=readings)
    loaded = summarize(load_run(tmp_path / "r"))
    expected = summarize(run)
    assert loaded["energy"]["gpu"]["total_j"]["value"] == pytest.approx(
        expected["energy"]["gpu"]["total_j"]["value"], rel=1e-5
    )
    assert loaded["requests"] == expected["requests"]


def test_a_killed_run_is_summarised_to_its_last_line_and_counts_what_is_missing(tmp_path: Path) -> None:
    records, readings = lattice(100, 0.5), constant(300.0, 50.0)
    manifest = {"status": "running", "window": None, "counts": {"planned": 100, "warmup": 0}}
    run = run_of(records, readings, **manifest)
    _write(tmp_path / "r", run, records=records[:60], readings=readings)
    with (tmp_path / "r" / "requests.jsonl").open("ab") as file:
        file.write(b'{"id": 60, "phase": "mea')
    loaded = load_run(tmp_path / "r")
    assert (loaded.planned, len(loaded.requests), loaded.missing, loaded.complete) == (100, 60, 40, False)
    assert loaded.end_s == pytest.approx(59 * 0.5 + 0.2)
    got = summarize(loaded)
    assert any("40 missing" in reason for reason in got["reasons"])
    assert any("incomplete" in reason for reason in got["reasons"])
    assert got["energy"]["gpu"]["mean_power_w"]["value"] == pytest.approx(300.0, rel=1e-3)


def test_warmups_are_kept_apart(tmp_path: Path) -> None:
    warm = record(-1, -3.0, phase="warmup")
    run = run_of([warm, *lattice(5, 0.5)], counts={"planned": 5, "warmup": 1})
    assert (len(run.warmups), len(run.requests), run.missing) == (1, 5, 0)


def test_not_a_run_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="expected a run directory"):
        load_run(tmp_path)


def test_json_keys_are_those_the_module_documents() -> None:
    import analysis.summary as module

    documented = module.__doc__ or ""
    got = json.loads(orjson.dumps(summarize(_mixed())))
    for key in got:
        assert f"``{key}``" in documented, key
    for key in [*got["energy"], *got["energy"]["gpu"], *got["latency"], *got["requests"], *got["rate"]]:
        if key in ("ok", "error", "timeout", "rejected", "cancelled", "dropped") or key.endswith("_wh"):
            continue
        assert f"``{key}``" in documented, key
