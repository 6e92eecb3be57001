"""Fits to runs of the embedded server: its own laws come out, and its tariff divides another run's energy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import embedded_runs
import numpy as np
import pytest
from rich.console import Console

from analysis.attribution import Attribution
from analysis.attribution.shapley import truth
from analysis.figures.files import write_residuals
from analysis.fit import Model, file, fit, view
from analysis.run import Run, load_run
from loadgen.errors import ConfigError
from loadgen.launch import Launch
from loadgen.rundir import read_steps
from loadgen.server.deployment import Deployment

DEPLOYMENT = Deployment(Launch(model="llama-3.1-8b", gpu="h100-sxm", dtype="bfloat16"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """160 requests, one at a time, prompts of 32 to 4,000 tokens, replies of 4 to 300."""
    folder = tmp_path_factory.mktemp("alone")
    rng, n = np.random.default_rng(1), 160
    prompts = np.exp(rng.uniform(np.log(32), np.log(4000), n)).astype(int)
    replies = rng.integers(4, 300, n)
    rows = [
        f"2026-01-01 00:00:{i % 60:02d}.000000,{p},{g}"
        for i, (p, g) in enumerate(zip(prompts.tolist(), replies.tolist(), strict=True))
    ]
    (folder / "lengths.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    path = embedded_runs.run(
        {
            "name": "alone",
            "seed": 1,
            "server": {**embedded_runs.SERVER, "launcher": {"prefix_caching": False}},
            "load": {"pattern": "closed_loop", "requests": n, "max_in_flight": 1, "warmup_requests": 2},
            "prompts": {"source": "trace", "path": "lengths.csv"},
            "power": embedded_runs.POWER,
        },
        folder,
    )
    return load_run(path)


@pytest.fixture(scope="module")
def many(mixed_run: Path) -> Model:
    """Of requests that came four a second."""
    return fit([load_run(mixed_run)])


@pytest.fixture(scope="module")
def model(alone: Run) -> Model:
    return fit([alone])


def prefill_cost(s: int) -> tuple[float, float]:
    """Seconds and joules of one prompt, by the engine's own step."""
    step = DEPLOYMENT.step_model.step(
        prefill_tokens=s, prefill_pairs=s * (s + 1) // 2, prefill_span_tokens=s, emitting_rows=1
    )
    return step.duration_s, step.duration_s * step.power_w


def decode_cost(s: int, n: int) -> tuple[float, float]:
    """Seconds and joules of n decode steps after a prompt of s tokens, step by step."""
    steps = [
        DEPLOYMENT.step_model.step(decode_rows=1, decode_context_tokens=s + k, emitting_rows=1)
        for k in range(n)
    ]
    return sum(x.duration_s for x in steps), sum(x.duration_s * x.power_w for x in steps)


LENGTHS = [(s, g) for s in (60, 150, 400, 900, 1500, 2400, 3500) for g in (10, 60, 150, 280)]


def test_decode_coefficients_are_the_engines_line(model: Model) -> None:
    line = DEPLOYMENT.step_model.decode_line(1)
    assert model.load == "one at a time" and model.label == "simulated" and line is not None
    # n steps with s, s + 1, ... cached: n base + slope (n s + n (n - 1) / 2).
    law = {"eta": line.base_s - line.slope_s / 2, "theta": line.slope_s, "phi": line.slope_s / 2, "rho": 0.0}
    for term in model["t_decode"].terms:
        # Stamps on disk are whole microseconds.
        assert term.value == pytest.approx(law[term.name], rel=1e-3, abs=1e-6)
    step = model["decode_step"]
    assert step["a"].value == pytest.approx(line.base_s, rel=1e-4)
    assert step["c"].value == pytest.approx(line.slope_s, rel=1e-3)
    assert step["b"].value is None and "rows are 1 throughout" in str(step["b"].reason)


def test_lengths_that_were_not_run_are_predicted_within_the_interval(model: Model) -> None:
    held = 0
    for s, g in LENGTHS:
        told = model.request(s, g)
        assert told.outside == ()
        assert told.prefill_s is not None and told.prefill_s.low is not None
        assert told.prefill_s.high is not None
        held += told.prefill_s.low <= prefill_cost(s)[0] <= told.prefill_s.high
        assert told.decode_s is not None
        assert told.decode_s.value == pytest.approx(decode_cost(s, g - 1)[0], rel=1e-4)
    assert held >= 0.9 * len(LENGTHS)


def test_constants_of_energy_are_the_engines_by_the_slices_alone(model: Model, alone: Run) -> None:
    s, n = alone.ok["prompt_tokens"].to_numpy(), alone.ok["output_tokens"].to_numpy() - 1.0
    prefill_j = [prefill_cost(int(a))[1] for a in s]
    decode_j = [decode_cost(int(a), int(b))[1] for a, b in zip(s, n, strict=True)]
    one = np.ones(len(s))
    for name, columns, joules in (
        ("E_prefill", (s, one), prefill_j),
        ("E_decode", (n, s * n, one), decode_j),
    ):
        law = np.linalg.lstsq(np.stack(columns, axis=1), np.array(joules), rcond=None)[0]
        for term, true in zip(model[name].terms, law, strict=True):
            assert term.low is not None and term.high is not None
            assert term.low <= true <= term.high


def test_energies_of_lengths_that_were_not_run_are_the_engines(model: Model) -> None:
    true = np.array([prefill_cost(s)[1] + decode_cost(s, g - 1)[1] for s, g in LENGTHS])
    lengths = np.array(LENGTHS, dtype=np.float64)
    found = model.energy_j(lengths[:, 0], lengths[:, 1])
    off = np.abs(found / true - 1.0)
    assert np.median(off) < 0.01 and off.max() < 0.06
    assert found.sum() == pytest.approx(true.sum(), rel=0.005)


def test_power_is_joules_over_seconds_not_a_ratio_of_slopes(model: Model, alone: Run) -> None:
    ok = alone.ok
    done = [
        (prefill_cost(int(s)), decode_cost(int(s), int(g) - 1))
        for s, g in zip(ok["prompt_tokens"], ok["output_tokens"], strict=True)
    ]
    for k, name in enumerate(("P_prefill", "P_decode")):
        seconds, joules = (sum(row[k][j] for row in done) for j in (0, 1))
        term = model[name]["P"]
        assert term.low is not None and term.high is not None
        assert term.low <= joules / seconds <= term.high
        assert term.high - term.low < 0.06 * joules / seconds


def test_the_tariff_of_seconds_has_the_engines_constants(model: Model, many: Model) -> None:
    line = DEPLOYMENT.step_model.decode_line(1)
    assert line is not None and model.weights is not None
    assert many.load == "batched" and many.weights is not None
    for found in (model, many):
        assert found["step_time"]["context"].value == pytest.approx(line.slope_s, rel=2e-3)
    eight = DEPLOYMENT.step_model.decode_line(8)
    assert eight is not None
    row_s = (eight.base_s - line.base_s) / 7
    assert many["decode_step"]["b"].value == pytest.approx(row_s, rel=0.02)
    assert many["step_time"]["token"].value == pytest.approx(row_s, rel=0.02)


def test_fitted_weights_divide_another_runs_energy(model: Model, mixed_run: Path) -> None:
    run = load_run(mixed_run)
    assert run.end_s is not None
    true = truth(
        read_steps(run.path), DEPLOYMENT.step_model, DEPLOYMENT.gpu.context_idle_w, 0.0, run.end_s, orders=2
    )["total_j"]
    # A board nobody knows: without the fit there would be no weights.
    nameless = replace(run, manifest={**run.manifest, "server": {**run.manifest["server"], "model": None}})
    shares = {}
    for name, made in (
        ("fitted", Attribution(nameless, weights=model.weights, calibrated=False)),
        ("tokens", Attribution(nameless, "tokens")),
    ):
        found = made.window().requests["total_j"].reindex(true.index).fillna(0.0)
        shares[name] = float((found - true).abs().sum() / true.sum())
    assert shares["fitted"] < 0.05 < shares["tokens"]


def test_an_unknown_board_is_fitted_from_its_run_alone(alone: Run, model: Model) -> None:
    nameless = replace(
        alone, manifest={**alone.manifest, "server": {**alone.manifest["server"], "model": None}}
    )
    nobody = fit([nameless])
    assert nobody.weights is not None and nobody.subject["model"] is None
    energies = nobody["step_energy"]
    assert any("from these runs alone" in note for note in energies.notes)
    assert [t.name for t in energies.terms if t.value is None]
    assert Attribution(nameless, weights=nobody.weights, calibrated=False).window().energy_j > 0
    # The constants of requests that were alone rest on no prior.
    assert nobody["E_decode"]["C"] == model["E_decode"]["C"]


def test_the_view_says_what_was_fitted_and_what_was_not(model: Model, many: Model) -> None:
    console = Console(record=True, width=200)
    view.render(model, console)
    said = console.export_text()
    for words in (
        "llama-3.1-8b",
        "one at a time",
        "t = eta n + theta s n",
        "Wh/token",
        "condition",
        "weights",
    ):
        assert words in said
    view.render(many, console)
    said = console.export_text()
    assert "batched" in said and "P_decode  not fitted" in said


def test_a_report_writes_the_model_and_a_figure_a_fit(
    many: Model,
    mixed_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    few = replace(many, fitted=many.fitted[:2])
    monkeypatch.setattr(view, "fit", lambda runs: few)
    view.report([mixed_run], output=tmp_path / "m.json", as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "m.json").read_text())
    drawn = write_residuals(few, tmp_path / "residuals.svg")
    assert {path.name for path in drawn} == {"residuals-t_prefill.svg", "residuals-t_decode.svg"}
    assert set(tmp_path.glob("*.svg")) == set(drawn)
    with pytest.raises(ConfigError, match="nothing to draw"):
        write_residuals(replace(many, fitted=()), tmp_path / "none.svg")


def test_every_key_of_the_file_is_documented(model: Model) -> None:
    made = model.as_object()
    (row, *_) = made["fitted"]
    for key in (*made, *made["subject"], *made["weights"], *row, *row["terms"][0], *row["residuals"]):
        assert f"``{key}``" in str(file.__doc__), key
