"""A study: parts that add up to what was read, windows, uncertainty apart, flags, files."""

from __future__ import annotations

import argparse
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from made_runs import COUNTER, INSTANT, constant, failed, lattice, power, record, run_of
from rich.console import Console

from analysis.attribution import METHODS
from analysis.energy import blocks_of, measure_window, systematics
from analysis.energy.meter import Meter, meters
from analysis.fit import fit, write_model
from analysis.run import Run, load_run
from analysis.study import Options, Study, as_object, study, write
from analysis.study import findings as study_module
from analysis.study.analyze import analyze, options_of
from analysis.study.scale import Service
from analysis.study.view import render
from loadgen.errors import ConfigError, LoadgenError
from loadgen.types import Domain, Reading
from loadgen.verbs import analyze as analyze_verb

H100 = {"kind": "tgi", "url": None, "model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}


@pytest.fixture(scope="module")
def mixed(mixed_run: Path) -> Study:
    """300 requests of mixed lengths on the embedded server, in slices, at a service's size."""
    service = Service(2e6, pue=1.3, price_per_kwh=0.25, grid="FR")
    return study(load_run(mixed_run), Options(slice_s=20.0, service=service))


def steps(*watts: float, each_s: float = 10.0, baseline_s: float = 4.0) -> list[Reading]:
    """A board at ``watts`` for ``each_s`` one after another, 100 W before and after."""
    edges_s = each_s * np.arange(len(watts) + 1)
    levels = np.array([100.0, *watts, 100.0])

    def joules(t: np.ndarray) -> np.ndarray:
        inside = [np.clip(t - a, 0.0, each_s) * (w - 100.0) for a, w in zip(edges_s, watts, strict=False)]
        return np.asarray(100.0 * t + np.sum(inside, axis=0))

    return power(
        lambda t: levels[np.searchsorted(edges_s, t, side="right")],
        joules,
        float(edges_s[-1]),
        baseline_s=baseline_s,
    )


def shown(found: Study, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


# Where it went


@pytest.mark.parametrize("method", METHODS)
def test_every_part_of_the_window_adds_up_to_what_was_read(mixed: Study, method: Any) -> None:
    found = study(mixed.run, Options(method, "10:60"))
    parts = found.spent
    assert parts is not None and found.attributed is not None
    whole = parts.succeeded_j + parts.failed_j + parts.warmup_j + parts.unattributed_j
    assert whole == pytest.approx(parts.energy_j, rel=1e-9)
    assert found.parts["gpu"].energy_j.value == pytest.approx(parts.energy_j, rel=1e-9)
    if parts.idle_j is not None and parts.prefill_j is not None and parts.decode_j is not None:
        assert parts.idle_j + parts.prefill_j + parts.decode_j == pytest.approx(parts.succeeded_j, rel=1e-9)
    shares_j = found.attributed.requests["total_j"].sum()
    assert shares_j + parts.unattributed_j == pytest.approx(parts.energy_j, rel=1e-9)


def test_the_whole_run_agrees_with_its_summary(mixed: Study) -> None:
    gpu, row = mixed.summary["energy"]["gpu"], mixed.parts["gpu"]
    assert row.energy_j.value == pytest.approx(gpu["total_j"]["value"], rel=1e-9)
    for end in ("value", "low", "high"):
        said = gpu["energy_per_request"][end]
        assert getattr(row.per_success_j, end) == pytest.approx(said, rel=1e-9)
    assert row.bound_j == pytest.approx(gpu["bound_j"], rel=1e-9)
    assert (row.due, row.sent, row.succeeded, row.failed) == (300, 300, 300, 0)
    assert {r.sentence for r in mixed.rules if r.verdict == "invalid"} == set(mixed.summary["reasons"])


def test_statistics_are_over_each_success_wherever_its_energy_fell(mixed: Study) -> None:
    parts, total = mixed.spent, mixed.per_success["total_j"]
    assert parts is not None and mixed.whole is not None and total["mean"].value is not None
    assert total["mean"].value * 300 == pytest.approx(parts.succeeded_j, rel=1e-9)
    values = mixed.whole.requests.loc[mixed.whole.requests.index >= 0, "total_j"]
    assert total["max"].value == pytest.approx(values.max())
    assert total["p95"].value == pytest.approx(np.quantile(values, 0.95))
    phases = sum(mixed.per_success[key]["mean"].value or 0.0 for key in ("idle_j", "prefill_j", "decode_j"))
    assert phases == pytest.approx(total["mean"].value)
    part = study(mixed.run, Options(window="20:40"))
    assert part.whole is not None and part.attributed is not None
    due_s = mixed.run.requests.set_index("id")["due_s"]
    chosen = part.whole.requests.loc[due_s.index[(due_s >= 20) & (due_s <= 40)], "total_j"]
    assert float(part.attributed.requests["total_j"].sum()) != pytest.approx(chosen.sum(), rel=1e-3)
    inside = part.per_success["total_j"]
    assert inside["mean"].value == pytest.approx(chosen.mean()) and inside["mean"].n == len(chosen)


def test_failures_and_warmups_are_apart_and_hosts_are_shared_by_time() -> None:
    records = [
        *lattice(10, 1.0),
        record(10, 10.0, status="timeout", error="timeout"),
        record(-1, -1.5, phase="warmup"),
        failed(11, 11.0),
    ]
    host = [Reading(float(t), "cpu0.package", energy_j=60.0 * float(t + 2)) for t in np.arange(-2, 15, 0.1)]
    domains = (COUNTER, INSTANT, Domain("cpu0.package", "counter"))
    run = run_of(records, [*constant(300.0, 12.0), *host], domains=domains, end_s=12.0, server=H100)
    found = study(run, Options("time", "0:12"))
    parts = found.spent
    assert parts is not None
    assert (parts.succeeded, parts.failed, parts.warmups, parts.unseen) == (10, 1, 0, 1)
    assert parts.failed_j == pytest.approx(parts.succeeded_j / 10, rel=1e-3)
    cpu = found.hosts["cpu"]
    assert not isinstance(cpu, str)
    # 0.2 s of 60 W each; nobody is told what the one without a token took.
    assert cpu.requests["total_j"].to_numpy() == pytest.approx(np.full(11, 12.0), rel=1e-3)
    assert cpu.energy_j == pytest.approx(720.0) and isinstance(found.hosts["ram"], str)


def test_boards_of_two_sidecars_are_one_energy_by_their_full_names() -> None:
    def named(host: str, watts: float) -> list[Reading]:
        return [replace(r, domain=f"{host}/{r.domain}") for r in constant(watts, 20.0)]

    domains = tuple(
        replace(d, name=f"{host}/{d.name}") for host in ("a", "node.b") for d in (COUNTER, INSTANT)
    )
    boards = [{"domain": f"{host}/gpu0", "uuid": f"GPU-{host}", "name": "x"} for host in ("a", "node.b")]
    readings = [*named("a", 200.0), *named("node.b", 300.0)]
    run = run_of(lattice(40, 0.5), readings, domains=domains, end_s=20.0, server=H100, gpus=boards)
    found = study(run)
    assert found.spent is not None and found.spent.energy_j == pytest.approx(500.0 * 20, rel=1e-6)
    assert not isinstance(found.systematic, str)
    names = [c.name for c in found.systematic.components]
    assert names[:2] == ["gain of GPU-a", "gain of GPU-node.b"]


# Windows


def test_slices_begin_with_the_first_arrival_and_lose_nothing(mixed: Study) -> None:
    rows = mixed.windows
    assert rows[0].span.start_s == 0.0 and rows[-1].span.name == "drain"
    assert [row.span.start_s for row in rows[1:]] == [row.span.end_s for row in rows[:-1]]
    assert sum(row.due for row in rows) == sum(row.sent for row in rows) == 300
    assert sum(row.succeeded for row in rows) == 300 and rows[-1].due == 0
    total_j = sum(row.energy_j.value or 0.0 for row in rows)
    assert total_j == pytest.approx(mixed.parts["gpu"].energy_j.value, rel=1e-9)
    held_s = sum(row.in_flight * (row.span.end_s - row.span.start_s) for row in rows)
    requests = mixed.run.requests
    assert held_s == pytest.approx((requests["done_s"] - requests["sent_s"]).sum(), rel=1e-7)


def test_stages_are_the_scenarios_and_the_drain_is_apart() -> None:
    stages = [{"rate_rps": r, "duration_s": 10.0} for r in (0.0, 1.0, 4.0)]
    records = [*lattice(10, 1.0), *(record(10 + k, 10.0 + 0.25 * k) for k in range(40))]
    load = {"pattern": "steps", "stages": stages}
    run = run_of(records, steps(200.0, 600.0, 150.0), end_s=20.5, server=H100, scenario={"load": load})
    rows = study(run).windows
    # The stage without requests was over when the first fell due.
    assert [(r.span.name, r.span.start_s, r.span.end_s) for r in rows] == [
        ("2: 1/s", 0.0, 10.0),
        ("3: 4/s", 10.0, 20.0),
        ("drain", 20.0, 20.5),
    ]
    assert [r.due for r in rows] == [10, 40, 0]
    assert rows[0].energy_j.value == pytest.approx(2000.0, rel=0.01)
    assert rows[1].energy_j.value == pytest.approx(6000.0, rel=0.01)
    assert rows[1].per_success_j.value == pytest.approx(6000.0 / 40, rel=0.03)


def test_a_steady_window_is_found_and_a_growing_load_has_none(mixed: Study) -> None:
    found = study(mixed.run, Options(window="steady"))
    assert found.window is not None and found.steady.end_s is not None
    assert found.window.end_s == pytest.approx(mixed.run.requests["due_s"].max(), abs=1e-6)
    at_s = np.cumsum(np.linspace(1.0, 0.02, 400))
    growing = [record(k, float(t)) for k, t in enumerate(at_s)]
    run = run_of(growing, constant(300.0, 250.0), end_s=float(at_s[-1]) + 1, server=H100)
    answer = study(run, Options(window="steady"))
    assert answer.steady.start_s is None and answer.window is not None
    assert "not stationary" in answer.window.sentence and "the whole run" in answer.window.sentence
    assert (answer.window.start_s, answer.window.end_s) == (0.0, run.end_s)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": "sometimes"}, "expected whole, steady or START:END"),
        ({"window": "5"}, "expected whole, steady or START:END"),
        ({"window": "30:10"}, "expected START < END within the run"),
        ({"window": "0:1e6"}, "expected START < END within the run, 0 to"),
        ({"slice_s": 0.0}, "a length in seconds above 0"),
        ({"slice_s": 1e-3}, "expected at most 500"),
        ({"weights": Path("nowhere.json")}, "nowhere.json"),
    ],
)
def test_what_cannot_be_asked_is_a_mistake_with_its_remedy(mixed: Study, options: Any, words: str) -> None:
    with pytest.raises(LoadgenError, match=re.escape(words)):
        study(mixed.run, Options(**options))


def test_weights_of_a_fit_are_taken_and_those_of_another_board_are_told(mixed: Study, tmp_path: Path) -> None:
    model, file = fit([mixed.run]), tmp_path / "model.json"
    write_model(model, file)
    found = study(mixed.run, Options(weights=file))
    assert found.attribution is not None and found.attribution.weights is not None
    assert found.attribution.weights.source.startswith("fitted to") and not found.notes
    ours, theirs = (one.per_success["total_j"]["mean"].value for one in (mixed, found))
    assert theirs == pytest.approx(ours, rel=0.01)
    write_model(replace(model, subject={**model.subject, "gpu": "a100-sxm"}), file)
    assert study(mixed.run, Options(weights=file)).notes == (
        "the weights were fitted on gpu a100-sxm, here h100-sxm",
    )
    assert "takes no weights" in study(mixed.run, Options("time", weights=file)).notes[0]
    write_model(replace(model, weights=None), file)
    with pytest.raises(ConfigError, match="it has no weights"):
        study(mixed.run, Options(weights=file))


# Uncertainty that more requests do not average out


def gpu_meter(run: Run) -> Meter:
    return meters(run, measure_window(run, blocks_of(run)))["gpu"]


def systematic_of(run: Run, start_s: float, end_s: float) -> dict[str, float]:
    found = systematics.of_window(run, gpu_meter(run), start_s, end_s)
    assert not isinstance(found, str)
    return {part.name: part.half_width for part in found.components}


def test_gain_clock_and_edges_are_told_apart() -> None:
    clock = {"start": {"at_s": -4.0, "bound_s": 0.004}, "end": {"at_s": 34.0}, "drift_ppm": 0.0}
    sidecar: dict[str, Any] = {"name": None, "url": "http://h", "domains": ["gpu0", "gpu0.instant"]}
    sidecar |= {"metrics": False, "clock": clock | {"bound_s": 0.004}}
    gpus = [{"domain": "gpu0", "uuid": "GPU-7"}]
    options: dict[str, Any] = {"end_s": 30.0, "server": H100, "gpus": gpus, "sidecars": [sidecar]}
    run = run_of(lattice(60, 0.5), steps(200.0, 600.0, 150.0), **options)
    found = systematic_of(run, 5.0, 15.0)
    assert found["gain of GPU-7"] == pytest.approx(0.05 * (5 * 200 + 5 * 600), rel=1e-3)
    # Both edges move alike: 200 W at one, 600 W at the other.
    assert found["clock"] == pytest.approx(0.004 * 400.0, rel=0.01)
    # A counter read every 0.1 s, stamps good to 5 ms, 0.1 s between two values that it shows.
    assert 0.0 < found["window edges"] < (200 + 600) * (0.1 + 0.1 + 0.01)
    assert systematic_of(run, 2.0, 8.0)["clock"] == pytest.approx(0.0, abs=1e-6)
    unknown = sidecar | {"clock": clock | {"end": None, "drift_ppm": None, "bound_s": None}}
    blind = systematics.of_window(
        run_of(lattice(60, 0.5), steps(200.0, 600.0, 150.0), **(options | {"sidecars": [unknown]})),
        gpu_meter(run),
        5.0,
        15.0,
    )
    assert not isinstance(blind, str) and "clock" in blind.missing


def test_a_simulated_board_has_no_gain_but_constants(mixed: Study) -> None:
    assert not isinstance(mixed.systematic, str)
    assert "clock" in {c.name for c in mixed.systematic.components}
    assert not [c for c in mixed.systematic.components if c.name.startswith("gain")]
    assert "simulated board's constants" in mixed.systematic.describe()


# At the size of a service


def test_a_service_is_the_energy_of_a_success_times_what_was_given(mixed: Study) -> None:
    assert mixed.macro is not None
    by_name = {f.name: f for f in mixed.macro.footprints}
    per_j = {part: row.per_success_j.value or 0.0 for part, row in mixed.parts.items()}
    gpu = by_name["gpu"]
    assert gpu.label == "simulated" and by_name["cpu"].label == "estimated"
    day_kwh = per_j["gpu"] / 3.6e6 * 2e6 * 1.3
    assert gpu.energy_kwh_per_day.value == pytest.approx(day_kwh)
    assert gpu.cost_per_year.value == pytest.approx(day_kwh * 0.25 * 365)
    assert gpu.co2e_kg_per_day.value == pytest.approx(day_kwh * 0.05604)
    assert by_name["total"].label == "simulated + estimated"
    assert by_name["total"].energy_kwh_per_day.value == pytest.approx(sum(per_j.values()) / 3.6e6 * 2.6e6)
    request, token = mixed.macro.statements
    tokens = mixed.run.ok["output_tokens"].mean()
    assert request.operational_g.value == pytest.approx((token.operational_g.value or 0.0) * tokens)
    assert request.score_g.value is None and "embodied" in request.score_g.method


# The verb


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    analyze_verb.add_verb(verbs, argparse.RawDescriptionHelpFormatter, lambda args: 0)
    return parser.parse_args(["analyze", *words])


def test_the_flags_of_analyze_are_the_options_of_a_study() -> None:
    args = parsed("R", "--attribution", "linear", "--window", "5:9", "--slice", "3", "--weights", "m.json")
    assert options_of(args, None) == Options("linear", "5:9", 3.0, Path("m.json"))
    assert options_of(parsed("R"), None) == Options()
    assert analyze_verb.METHODS == METHODS
    with pytest.raises(SystemExit):
        parsed("R", "--attribution", "magic")


def test_analyze_writes_findings_prints_them_and_judges(mixed: Study, capsys: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for file in mixed.run.path.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    assert analyze(folder, Options(), as_json=True)
    told = orjson.loads(capsys.readouterr().out)
    written = orjson.loads((folder / "report" / "findings.json").read_bytes())
    assert told == written and written["schema"] == 1
    assert [file.name for file in (folder / "report").iterdir()] == ["findings.json"]
    tables = tmp_path / "tables"
    assert analyze(folder, Options("mean"), directory=tables, formats=["csv"])
    joules = pd.read_csv(tables / "requests.csv").set_index("id")["total_j"]
    assert joules[joules.index >= 0].to_numpy() == pytest.approx(np.full(300, joules[0]))
    assert "energy, simulated" in capsys.readouterr().out
    assert orjson.loads((folder / "report" / "findings.json").read_bytes())["options"]["method"] == "mean"


def test_weights_that_tell_less_than_the_mean_power_are_doubted(mixed: Study, monkeypatch: Any) -> None:
    """Found: R2 -1.99 of a server that the weights do not describe was printed without a word."""
    made = mixed.attribution
    assert made is not None and made.fit is not None
    assert "doubt each request's share" not in " ".join(" ".join(shown(mixed, 80)).split())
    monkeypatch.setattr(made, "fit", replace(made.fit, r2=-1.99))
    assert "doubt each request's share" in " ".join(" ".join(shown(mixed, 80)).split())


@pytest.mark.parametrize("method", ["mean", "marginal"])
def test_a_figure_that_is_one_for_all_has_no_interval_of_zero_width(mixed: Study, method: Any) -> None:
    """Found: n equal values gave [150, 150] J, as if nothing were uncertain."""
    mean = study(mixed.run, Options(method)).per_success["total_j"]["mean"]
    assert mean.value is not None and (mean.low, mean.high, mean.n) == (None, None, 300)
    assert mean.method == f"no interval: {method} gives every success the same"


def test_every_key_of_the_findings_is_documented(mixed: Study) -> None:
    told = study_module.__doc__ or ""
    plain = as_object(mixed)
    for section in ("options", "attribution", "window", "steady", "systematic"):
        assert all(f"``{key}``" in told for key in plain[section]), section
    assert all(f"``{key}``" in told for key in plain)
    assert all(f"``{key}``" in told for key in plain["windows"]["rows"][0])


def test_findings_that_cannot_be_written_are_one_line(mixed: Study, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file in the way")
    with pytest.raises(LoadgenError, match="cannot be written") as caught:
        write(replace(mixed, run=replace(mixed.run, path=tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_directory_that_cannot_be_written_to_is_analysed_all_the_same(
    mixed: Study, tmp_path: Path, capsys: Any
) -> None:
    for file in mixed.run.path.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "report").write_text("a file in the way")
    assert analyze(tmp_path, Options("mean"))
    told = capsys.readouterr()
    assert "findings were not kept" in told.err and told.out.rstrip().endswith("valid")


@pytest.mark.parametrize("width", [80, 140])
def test_the_page_for_people_fits_and_adds_up(mixed: Study, width: int) -> None:
    lines = shown(mixed, width)
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for word in ("idle", "prefill", "decode", "unattributed", "drain", "Little", "systematic", "kWh a day"):
        assert word in text
    shares = [float(m[1]) for m in re.finditer(r"^\S.*J\s+(\d+\.\d)\s", text, re.MULTILINE)]
    assert shares[-1] == 100.0 and sum(shares[:-1]) == pytest.approx(100.0, abs=0.3)
    assert lines[-1].startswith("valid")
