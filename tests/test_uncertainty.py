"""A run repeated over draws of the hardware's constants, and the envelope of its figures."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measures import fingerprint, killed, refused
from rich.console import Console
from waiting import until

from analysis import envelope
from loadgen import cli, rundir
from loadgen.errors import ConfigError, LoadgenError, RunDirError
from loadgen.experiment import Order
from loadgen.plan import build
from loadgen.scenario import Scenario
from loadgen.uncertainty import perturbed, refuse, repeat

JOULES = "energy_per_request_j"


def figures(value: float | None, *, valid: bool = True, why: str = "too late") -> dict[str, Any]:
    """A run all of whose figures are the same number."""
    values = {figure.name: value for figure in envelope.FIGURES}
    return {"valid": valid, "reasons": [] if valid else [why], "values": values}


def of(values: list[float | None], nominal: float = 4.0, planned: int | None = None) -> dict[str, Any]:
    draws = {k: figures(value) for k, value in enumerate(values)}
    return envelope.envelope(figures(nominal), draws, planned or len(values), 1)


def shown(found: dict[str, Any]) -> str:
    text = io.StringIO()
    envelope.render(found, Console(file=text, width=100))
    return text.getvalue()


def test_few_draws_give_their_range_and_how_much_it_holds() -> None:
    found = of([3.0, 8.0, 1.0, 5.0, 2.0, 7.0, 4.0, 6.0])
    row = found["figures"][JOULES]
    assert (row["low"], row["median"], row["high"], row["n"]) == (1.0, 4.5, 8.0, 8)
    assert found["kind"] == "min-max" and found["covers"] == pytest.approx(7 / 9)
    assert found["label"] == "simulated, uncertainty of the model's constants, 8 draws"


def test_many_draws_give_the_5_and_95_percent_order_statistics() -> None:
    # With 39 draws, 5 % is the 2nd and 95 % the 38th of them: k / (n + 1) = 2 / 40.
    values = [float(v) for v in np.random.default_rng(0).permutation(39) + 1]
    found = of(values)  # type: ignore[arg-type]
    row = found["figures"][JOULES]
    assert (row["low"], row["median"], row["high"]) == pytest.approx((2.0, 20.0, 38.0))
    assert found["kind"] == "5-95 %" and found["covers"] == pytest.approx(0.9)
    # At 19 both definitions meet: the least and the greatest.
    row = of([float(v) for v in range(19)])["figures"][JOULES]
    assert (row["low"], row["high"]) == pytest.approx((0.0, 18.0))


@pytest.mark.parametrize("n", [3, 8, 25])
def test_another_draw_falls_inside_as_often_as_is_said(n: int) -> None:
    rng, inside, covers = np.random.default_rng(n), 0, 0.0
    for _ in range(500):
        *values, another = rng.exponential(size=n + 1).tolist()
        found = of(values)
        row, covers = found["figures"][JOULES], found["covers"]
        inside += row["low"] <= another <= row["high"]
    # 4 standard errors of a share from 500 trials.
    assert inside / 500 == pytest.approx(covers, abs=4 * (covers * (1 - covers) / 500) ** 0.5)


def test_a_figure_that_some_draws_lack_is_ranged_over_the_others() -> None:
    found = of([3.0, None, 5.0])
    row = found["figures"][JOULES]
    assert (row["n"], row["low"], row["high"]) == (2, 3.0, 5.0) and "(2 draws)" in shown(found)
    row = of([None, None])["figures"][JOULES]
    assert (row["n"], row["low"], row["median"], row["high"]) == (0, None, None, None)
    with pytest.raises(ValueError, match="at least 2 draws, got 1"):
        of([1.0])


def test_invalid_and_missing_draws_are_counted_and_said() -> None:
    draws = {0: figures(3.0), 2: figures(9.0, valid=False), 5: figures(4.0)}
    found = envelope.envelope(figures(4.0), draws, 8, 1)
    assert (found["planned"], found["draws"], found["invalid"]) == (8, 3, 1)
    assert found["invalid_reasons"] == {"too late": 1}
    assert found["figures"][JOULES]["high"] == 9.0
    assert [(row["draw"], row["valid"]) for row in found["rows"]] == [(0, True), (2, False), (5, True)]
    text = shown(found)
    for words in ("interrupted: 3 of 8 draws", "1 of 3 draws are invalid", "1 x too late", "simulated"):
        assert words in text


def test_the_table_shows_both_ends_and_how_far_off_they_are() -> None:
    text = shown(of([3.0, 5.0], nominal=4.0))
    assert "4.00 J" in text and "[3.00, 5.00]" in text and "-25.0 % .. +25.0 %" in text


def test_the_file_reads_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert envelope.read(tmp_path) is None
    found = of([3.0, 5.0])
    envelope.write(tmp_path, found)
    assert envelope.read(tmp_path) == found and [p.name for p in tmp_path.iterdir()] == [envelope.FILE]
    for content in (b"{", b"[]", b'{"schema": 9}'):
        (tmp_path / envelope.FILE).write_bytes(content)
        with pytest.raises(RunDirError, match=r"uncertainty\.json"):
            envelope.read(tmp_path)
    with pytest.raises(RunDirError, match="cannot write"):
        envelope.write(tmp_path / "nowhere", found)


def scenario(**changes: Any) -> Scenario:
    load = {"pattern": "constant", "interval_s": 0.05, "requests": 50, "warmup_requests": 1}
    base = {"name": "t", "seed": 1, "load": load, "power": {"baseline_s": 1}}
    return Scenario.model_validate(base | changes)


@pytest.mark.parametrize(
    ("changes", "clock_name", "words"),
    [
        ({"server": {"url": "http://h:1"}}, None, "only the embedded server"),
        ({}, "real", "virtual time, and --clock is real"),
        ({"server": {"hardware": {"draw": 3}}}, None, "the scenario sets it to 3"),
    ],
)
def test_runs_without_draws_are_refused(changes: Any, clock_name: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        refuse(scenario(**changes), clock_name)
    refuse(scenario(), None)
    refuse(scenario(), "virtual")


def test_a_draw_changes_its_number_and_nothing_else() -> None:
    what = scenario()
    one, other = perturbed(what, 0), perturbed(what, 7)
    assert (one.server.hardware.draw, other.server.hardware.draw) == (0, 7)
    assert what.server.hardware.draw is None
    assert perturbed(one, 7) == other and one.load == what.load and one.seed == what.seed


def order(parent: Path) -> Order:
    what = scenario()
    return Order(what, "name: t\n", build(what), parent)


def _without_path(draws: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {k: {name: v for name, v in draw.items() if name != "path"} for k, draw in draws.items()}


def test_draws_share_the_plan_differ_in_hardware_and_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    what = order(tmp_path)
    alone = dict(repeat(what, 3, fingerprint, workers=1))
    assert sorted(alone) == [draw["draw"] for draw in alone.values()] == [0, 1, 2]
    assert alone[0]["plan"] == alone[1]["plan"] == alone[2]["plan"]
    assert alone[0]["done_s"] != alone[1]["done_s"] != alone[2]["done_s"]
    shared = dict(repeat(what, 3, fingerprint, workers=2))
    assert _without_path(shared) == _without_path(alone)
    # Neither the parent's directory nor the draws' own keep anything.
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(draw["path"]).exists() for draw in (*alone.values(), *shared.values()))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_draw_that_cannot_be_run_ends_the_others(tmp_path: Path, workers: int) -> None:
    with pytest.raises(LoadgenError, match="does not fit"):
        list(repeat(order(tmp_path), 4, refused, workers=workers))


def test_a_process_that_dies_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="4 of 4 draws have no result"):
        list(repeat(order(tmp_path), 4, killed, workers=2))


def loadgen(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as exc:  # argparse
        status = int(exc.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_run_prints_an_envelope_keeps_it_and_shows_it_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("run", "fixed_50ms", "--request-count", 50, "--uncertainty", 3, "--output-dir", tmp_path)
    status, out, err = loadgen(capsys, *words, "--quiet")
    assert status == 0 and err == ""
    path = Path(out.splitlines()[-1])
    assert list(tmp_path.iterdir()) == [path]
    table = out[out.index("min-max of 3 draws") :]
    assert "uncertainty of the model's constants, 3 draws" in table and "simulated" in table
    status, again, _ = loadgen(capsys, "summary", path)
    assert status == 0 and again.strip() == out.replace(str(path), "").strip()
    _, out, _ = loadgen(capsys, "summary", path, "--json")
    summary = json.loads(out)
    found = summary["uncertainty"]
    nominal = summary["energy"]["gpu"]["energy_per_request"]["value"]
    row = found["figures"][JOULES]
    assert row["nominal"] == pytest.approx(nominal) and row["low"] < row["high"]
    assert 0.5 * nominal < row["low"] and row["high"] < 2 * nominal
    assert [draw["draw"] for draw in found["rows"]] == [0, 1, 2]


def test_flags_that_make_no_sense_are_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ("run", "fixed_50ms", "--output-dir", tmp_path, "--uncertainty")
    for words, said in (
        ((*run, 1), "expected a whole number >= 2, got '1'"),
        ((*run, 8, "--clock", "real"), "--clock is real"),
        ((*run, 8, "--url", "http://127.0.0.1:9"), "only the embedded server"),
    ):
        status, out, err = loadgen(capsys, *words)
        assert status == 2 and out == "" and said in err, err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_run_and_the_draws_that_are_finished(tmp_path: Path) -> None:
    runs, scratch = tmp_path / "runs", tmp_path / "scratch"
    scratch.mkdir()
    words = ("run", "fixed_50ms", "--request-count", "50", "--uncertainty", "500", "--output-dir", str(runs))
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", *words, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,
    )
    # The sixth draw has a directory: at most one a process is under way, the others have ended.
    until(lambda: any(int(p.name) >= 6 + (os.cpu_count() or 1) for p in scratch.glob("loadgen-draws-*/*")))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    path = Path(out.splitlines()[-1])
    found = envelope.read(path)
    assert found is not None and found["planned"] == 500 and 2 <= found["draws"] < 500
    assert f"interrupted after {found['draws']} of 500 draws" in err
    assert rundir.read_manifest(path)["status"] == "complete"
    assert list(scratch.iterdir()) == [] and list(runs.iterdir()) == [path]
