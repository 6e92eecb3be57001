"""A run's verdict as a whole: every rule has its word, it prints for people and machines, good runs pass."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_runs import constant, failed, lattice, record, run_of
from rich.console import Console
from test_lint_rules import H100, verdict

import analysis
from analysis.lint import CATALOGUE
from analysis.lint.view import as_object, render, report_run, sentence, verdict_of
from analysis.run import Run, build_run
from loadgen.errors import RunDirError
from loadgen.types import BoardState, Reading

EMPTY: list[Run] = [
    run_of([]),
    run_of([failed(0, 0.0)]),
    run_of([record(0, 0.0)]),
    run_of([failed(k, 0.1 * k) for k in range(60)], constant(100.0, 7.0), server=H100),
    run_of(
        [record(0, 0.0, sent_s=None, done_s=None, status="cancelled", first_s=None)], status="interrupted"
    ),
    run_of(lattice(60, 0.1), constant(0.0, 7.0), server=H100),
    run_of(lattice(60, 0.1), [Reading(1.0, "gpu0", energy_j=1.0)], server={}),
    build_run(run_of([]).path, {"schema": 1}, [], ()),
]


@pytest.mark.parametrize("run", [*EMPTY, run_of(lattice(200, 0.5), constant(300.0, 100.0), server=H100)])
def test_every_rule_has_a_word_on_every_run_and_no_figure_is_not_a_number(run: Run) -> None:
    rules = verdict(run).rules
    ids = [check.id for check in CATALOGUE]
    assert list(dict.fromkeys(rule.id for rule in rules)) == ids
    assert len(set(ids)) == len(ids)
    for rule in rules:
        assert rule.sentence and rule.reference and rule.title
        assert all(value is None or np.isfinite(value) for value in (rule.figure, rule.bound))
        assert "nan" not in rule.sentence.split()


def test_reasons_and_warnings_are_the_sentences_of_the_rules_that_trip() -> None:
    rows = [failed(k, float(k)) if k < 10 else record(k, float(k)) for k in range(100)]
    found = verdict(run_of(rows, status="running", warnings=["odd", "odd"]))
    assert found.reasons == tuple(r.sentence for r in found.rules if r.verdict == "invalid")
    assert found.warnings[0] == "odd" and len(found.warnings) == len(set(found.warnings))
    assert not found.valid


def test_states_of_the_boards_are_judged_where_they_were_read() -> None:
    calm = BoardState(0.0, "gpu0", 60.0, 1980.0, 2619.0, 700.0, 0, 0, 0)
    whole = run_of(lattice(100, 1.0), constant(300.0, 100.0))
    ids = ("clocks-lowered", "clock-spread", "temperature-drift", "memory-errors")

    def words(*states: BoardState) -> list[str]:
        run = build_run(whole.path, whole.manifest, [], (), states=states)
        return [rule.verdict for rule in verdict(run).rules if rule.id in ids]

    assert words() == ["not judged"] * 4
    assert words(*(replace(calm, t_s=float(t)) for t in range(100))) == ["holds"] * 4
    mute = BoardState(0.0, "gpu0")
    assert words(*(replace(mute, t_s=float(t)) for t in range(100))) == ["not judged"] * 4
    hot = [replace(calm, t_s=float(t), temperature_c=60.0 + 0.3 * t, ecc_errors=t // 60) for t in range(100)]
    assert words(*hot) == ["holds", "holds", "warning", "warning"]


# --- printed ---


def printed(run: Run, width: int = 80) -> str:
    out = io.StringIO()
    render(run, verdict_of(run), Console(file=out, width=width))
    return out.getvalue()


def test_what_is_wrong_stands_first_with_figure_bound_and_reference() -> None:
    rows = [failed(k, 0.5 * k) if k < 20 else record(k, 0.5 * k) for k in range(200)]
    text = printed(run_of(rows, constant(60.0, 100.0), server=H100, end_s=100.0))
    lines = text.splitlines()
    assert lines[0].startswith("invalid: 3 rules broken, ")
    assert max(map(len, lines)) <= 80
    flowing = " ".join(text.split())
    places = [
        flowing.index(words) for words in ("invalid bare-idle-floor", "warning failures-in", "holds figure")
    ]
    assert places == sorted(places)
    assert "invalid bare-idle-floor 60 W, bound 68.2 W" in flowing.replace("60.0 W", "60 W")
    assert "(docs/lint.md, Is a published number possible?; arXiv 2605.23918)" in flowing
    assert "clocks-lowered, clock-spread, temperature-drift, memory-errors: the boards' states" in flowing


def test_one_line_says_how_many_rules_said_what() -> None:
    run = run_of(lattice(200, 0.5), constant(300.0, 100.0), server=H100)
    found = verdict_of(run)
    counts = {word: len(found.with_word(word)) for word in ("holds", "warning", "not judged")}  # type: ignore[arg-type]
    assert sentence(found) == (f"valid: {counts['holds']} hold, 0 warn, {counts['not judged']} not judged")


def test_json_has_every_rule_with_its_figures_and_no_nan() -> None:
    run = run_of(lattice(200, 0.5), constant(60.0, 100.0), server=H100)
    again = json.loads(json.dumps(as_object(run, verdict_of(run)), allow_nan=False))
    assert again["valid"] is False and again["reasons"]
    assert sum(again["counts"].values()) == len(again["rules"])
    rules = {rule["id"]: rule for rule in again["rules"]}
    assert set(rules) == {check.id for check in CATALOGUE}
    loaded = rules["loaded-idle-floor"]
    assert (loaded["verdict"], loaded["unit"]) == ("invalid", "W")
    assert (loaded["figure"], loaded["bound"]) == (pytest.approx(60.0), pytest.approx(0.95 * 97.8))


# --- runs of the embedded server ---


def test_good_runs_of_the_embedded_server_raise_no_alarm(poisson_run: Path, mixed_run: Path) -> None:
    for path in (poisson_run, mixed_run):
        found = verdict_of(analysis.load(path))
        assert (found.reasons, found.warnings) == ((), ())
        assert len(found.with_word("holds")) > len(found.with_word("not judged"))


def test_a_part_time_sensor_in_step_with_a_constant_spacing_is_seen_beside_a_counter(fixed_run: Path) -> None:
    """Its simulated H100 looks for 25 of every 100 ms at requests 500 ms apart; its counter sees them all."""
    run = analysis.load(fixed_run)
    found = verdict_of(run)
    (rule,) = found.with_word("warning")
    assert rule.id == "counter-against-integral"
    inside = (run.series["gpu0.instant"].t_s >= 0) & (run.series["gpu0.instant"].t_s <= run.end_s)
    seen_w = float(run.series["gpu0.instant"].value[inside].mean())
    (drawn_w,) = (r.figure for r in found.rules if r.id == "own-idle")
    assert drawn_w is not None
    assert rule.figure == pytest.approx(seen_w / drawn_w - 1, abs=0.01)


def test_report_says_whether_a_run_passes_and_strict_counts_warnings(
    poisson_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_run(poisson_run, as_json=False, strict=True)
    assert capsys.readouterr().out.startswith("valid: ")
    odd = tmp_path / "odd"
    shutil.copytree(poisson_run, odd)
    manifest = json.loads((odd / "run.json").read_text())
    (odd / "run.json").write_text(json.dumps(manifest | {"warnings": ["<script>odd</script> [red]x[/red]"]}))
    assert report_run(odd, as_json=False, strict=False)
    assert "<script>odd</script> [red]x[/red]" in capsys.readouterr().out
    assert not report_run(odd, as_json=True, strict=True)
    assert json.loads(capsys.readouterr().out)["counts"]["warning"] == 1
    (odd / "run.json").write_text(json.dumps(manifest | {"status": "running"}))
    assert not report_run(odd, as_json=False, strict=False)


def test_what_is_no_run_cannot_be_read(fixed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="expected a run directory, got a file"):
        report_run(fixed_run / "run.json", as_json=False, strict=False)
    with pytest.raises(RunDirError):
        report_run(tmp_path / "nowhere", as_json=False, strict=False)
    unknown = tmp_path / "unknown"
    shutil.copytree(fixed_run, unknown)
    manifest = json.loads((unknown / "run.json").read_text())
    (unknown / "run.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(RunDirError, match="99"):
        report_run(unknown, as_json=False, strict=False)


def test_numbers_that_are_not_finite_are_no_figures() -> None:
    rule = CATALOGUE[0].warns("odd", float("nan"), float("inf"))
    assert (rule.figure, rule.bound, rule.verdict) == (None, None, "warning")
