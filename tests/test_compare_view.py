"""`loadgen compare`: its flags, its tables at 80 and 120 columns, its JSON, its figure, its exit status."""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import arrivals, queue
from made_figures import all_text
from rich.console import Console

from analysis.compare import CompareError, Comparison, compare
from analysis.compare.table import render
from analysis.compare.view import as_object, report
from analysis.figures import forest
from analysis.figures.files import write_forest
from analysis.run import Run
from loadgen.errors import ConfigError, RunDirError
from loadgen.types import Estimate
from loadgen.verbs.compare import add_verb

N = 240
PROMPTS = np.random.default_rng(1).integers(200, 1800, N).tolist()


def made(name: str, **options: Any) -> Run:
    return queue(arrivals(N, 4.0, None), PROMPTS, name=name, **options)


def printed(found: Comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_verb(parser.add_subparsers(), argparse.RawDescriptionHelpFormatter, lambda args: 0)
    return parser.parse_args(["compare", *words])


@pytest.fixture(scope="module")
def found() -> Comparison:
    hostile = {"kind": "tgi", "url": "http://gpu", "model": "[red]x[/red]\x1b[31m\n<script>", "gpu": None}
    return compare([made("a"), made("b", service_s=0.08, server=hostile)])


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_the_verdict_comes_first(found: Comparison, width: int) -> None:
    text = printed(found, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("valid  every run")
    assert "GPU energy, measured" in text and "latency, measured" in text
    energy = next(line for line in lines if line.startswith("GPU energy per success"))
    assert re.search(r"55\.\d J +49\.\d J .*0\.8\d+ \[0\.8\d+, 0\.8\d+\].*\*$", energy.rstrip())
    assert ("p (Holm)" in text) is (width == 120) and ("B - A" in text) is (width == 120)
    assert "load  equal" in text


def test_a_name_cannot_steer_the_terminal() -> None:
    text = printed(compare([made("a\x1b[2J\x07"), made("b\u202e")]), 80)
    assert not any(c in text for c in "\x1b\x07\u202e")


def test_names_of_a_server_are_text_and_nothing_else(found: Comparison) -> None:
    text = printed(found, 120)
    assert "[red]x[/red]" in text and "<script>" in text
    assert "\x1b" not in text and "not said" in text


def test_an_invalid_run_stands_first_and_is_marked_in_its_column() -> None:
    text = printed(compare([made("a"), made("b", status="interrupted")]), 80)
    assert text.startswith("INVALID  b: incomplete")
    assert "B invalid" in text and "b, INVALID, 240 of 240 requests succeeded" in text


def test_the_object_is_json_and_its_estimates_read_back(found: Comparison) -> None:
    told = json.loads(json.dumps(as_object(found), allow_nan=False))
    assert (told["valid"], told["tolerance"]) == (True, 0.05)
    assert [side["name"] for side in told["sides"]] == ["a", "b"]
    energy = told["headlines"][0]
    assert (energy["name"], energy["unit"], energy["label"]) == ("energy_per_request_j", "J", "measured")
    values = [Estimate(**value) for value in energy["values"]]
    difference = Estimate(**energy["against"][0]["difference"])
    assert difference.value == pytest.approx((values[1].value or 0.0) - (values[0].value or 0.0))
    assert energy["against"][0]["told"] and energy["against"][0]["p_adjusted"] <= told["level"]
    assert told["against"][0]["load"]["verdict"] == "equal"
    assert told["against"][0]["systematic"]["relative"] > 0
    assert {row["section"] for row in told["differences"]} == {"server"}


def test_three_sides_are_each_set_against_the_first() -> None:
    three = compare([made("a"), made("b", service_s=0.08), made("c", service_s=0.05)])
    text = printed(three, 80)
    assert "B against A" in text and "C against A" in text
    told = as_object(three)["headlines"][0]["against"]
    assert [one["side"] for one in told] == ["b", "c"]
    assert told[1]["ratio"]["value"] < told[0]["ratio"]["value"] < 1


def test_flags_are_read_and_mistakes_named(capsys: pytest.CaptureFixture[str]) -> None:
    args = parsed(
        "--group", "a=runs/1,runs/2", "--group", "b=runs/3", "--tolerance", "0.1", "--figure", "f.SVG"
    )
    assert args.groups == [("a", (Path("runs/1"), Path("runs/2"))), ("b", (Path("runs/3"),))]
    assert (args.tolerance, args.figure, args.metric) == (0.1, Path("f.SVG"), None)
    assert parsed("x", "y", "--json").runs == [Path("x"), Path("y")]
    for words, expected in (
        (("--group", "a"), "NAME=RUN,RUN"),
        (("--group", "a=x,,y"), "NAME=RUN,RUN"),
        (("--tolerance", "5"), "between 0 and 1"),
        (("--tolerance", "nan"), "between 0 and 1"),
        (("--figure", "f.gif"), ".svg, .png, .pdf"),
    ):
        with pytest.raises(SystemExit) as stopped:
            parsed(*words)
        assert stopped.value.code == 2 and expected in capsys.readouterr().err


def test_directories_are_read_grouped_and_refused(
    fixed_run: Path, poisson_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [("fixed", [fixed_run, fixed_run]), ("poisson", [poisson_run, poisson_run])]
    assert report([], groups, tolerance=0.05, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [len(side["runs"]) for side in told["sides"]] == [2, 2]
    assert len(told["notes"]) == 2 and "given 2 times" in told["notes"][0]
    assert report([fixed_run, poisson_run], tolerance=0.05, as_json=False)
    assert "B against A" in capsys.readouterr().out
    with pytest.raises(RunDirError, match="expected a run directory"):
        report([fixed_run, tmp_path], tolerance=0.05, as_json=False)
    with pytest.raises(CompareError, match="each name once"):
        report([], [("a", [fixed_run]), ("a", [poisson_run])], tolerance=0.05, as_json=False)


def test_the_figure_is_drawn_or_the_reason_given(found: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_forest(found, "energy_per_request_j", tmp_path / "f.svg")
    assert "<svg" in (tmp_path / "f.svg").read_text()
    with pytest.raises(ConfigError, match="--metric: expected one of energy_per_request_j, "):
        write_forest(found, "energy", tmp_path / "f.svg")
    with pytest.raises(ConfigError, match="cannot write"):
        write_forest(found, "energy_per_request_j", tmp_path / "no" / "f.svg")


def test_the_figure_counts_both_sides_where_nothing_is_paired() -> None:
    """Found: 10,000 requests against 226 were headed ``n = 226 each``."""
    few = queue(arrivals(60, 4.0, None), PROMPTS[::4], name="few")
    drawn = forest(compare([made("a"), few]))
    assert drawn is not None and "n = 60 to 240" in all_text(drawn)
