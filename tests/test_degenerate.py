"""Runs that have little to say: a clear sentence each, never a traceback or a figure that is no number."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from made_runs import COUNTER, constant, failed, lattice, power, record, run_of
from rich.console import Console

from analysis.compare import compare
from analysis.fit import FitError, fit
from analysis.lint import judge
from analysis.run import Run
from analysis.study import Options, Study, as_object, study
from analysis.study.analyze import analyze
from analysis.study.scale import Service
from analysis.study.view import render
from loadgen.arrivals import describe
from loadgen.errors import ConfigError, RunDirError
from loadgen.types import Domain, Reading

H100 = {"kind": "tgi", "url": None, "model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
CLOCK = {"start": {"at_s": -2.0, "offset_s": 5.0, "bound_s": 0.03, "round_trips": 50}}
SIDECAR = {
    "name": None,
    "url": "http://gpu-host:9400",
    "id": "one",
    "interval_s": 0.1,
    "domains": ["gpu0", "gpu0.instant"],
    "metrics": False,
    "clock": CLOCK | {"end": CLOCK["start"] | {"at_s": 12.0}, "drift_ppm": 0.0, "bound_s": 0.03},
    "samples": {"received": 141, "expected": 141, "missing": 0, "first_seq": 1, "last_seq": 141},
    "reconnects": 0,
    "overhead": {},
    "server": {"start": {"pids": [7], "boards": ["gpu0"], "reason": None}, "end": None, "others": []},
    "changed": [],
    "reason": None,
}
UNSTAMPED: dict[str, Any] = {"first_s": None, "chunk_s": (), "chunk_tokens": ()}
UNCOUNTED: dict[str, Any] = {"prompt_tokens": None, "output_tokens": None, "tokens_from": None}


def loaded(watts: float = 300.0, end_s: float = 10.0) -> list[Reading]:
    """100 W at rest, more while requests come."""
    busy = watts - 100.0
    return power(
        lambda t: 100.0 + busy * ((t >= 0) & (t < end_s)),
        lambda t: 100.0 * t + busy * np.clip(t, 0.0, end_s),
        end_s,
    )


def with_a_gap() -> list[Reading]:
    return [r for r in loaded() if not 3.0 < r.t_s < 6.0]


def backwards() -> list[Reading]:
    found = loaded()
    return [replace(r, energy_j=r.energy_j - 500.0) if r.energy_j and r.t_s > 5 else r for r in found]


def slow() -> tuple[list[Reading], Domain]:
    readings = [r for r in loaded() if r.domain == "gpu0"]
    held = {k: readings[k - k % 40].energy_j for k in range(len(readings))}
    return [replace(r, energy_j=held[k]) for k, r in enumerate(readings)], replace(COUNTER, update_s=4.0)


def bare(run: Run) -> Run:
    """A manifest of an older or foreign writer: nothing but what a reader cannot do without."""
    kept = {"schema": 1, "status": "complete", "power": run.manifest["power"]}
    return replace(run, manifest=kept)


def made(**kinds: Callable[[], tuple[Run, str]]) -> list[Any]:
    return [pytest.param(make, id=name) for name, make in kinds.items()]


def some(records: Any = None, readings: Any = None, **manifest: Any) -> Run:
    records = lattice(20, 0.5) if records is None else records
    readings = loaded() if readings is None else readings
    return run_of(records, readings, **({"end_s": 10.0, "server": H100} | manifest))


def refused(n: int) -> list[Any]:
    return [
        failed(k, 0.5 * k, status="dropped", sent_s=None, done_s=None, error="queue full") for k in range(n)
    ]


# What each makes, and words of the sentence that a reader gets.
CASES = made(
    no_request_at_all=lambda: (run_of([], loaded(), end_s=None), "nothing was done"),
    two_records_of_one_id=lambda: (
        some([*lattice(19, 0.5), record(7, 9.5)]),
        "1 records have the id of another",
    ),
    no_request_but_a_window=lambda: (some([]), "no request succeeded"),
    no_success=lambda: (some([failed(k, 0.5 * k) for k in range(20)]), "no request succeeded"),
    all_rejected_at_once=lambda: (
        some([failed(k, 0.5 * k, "rejected", done_s=0.5 * k) for k in range(20)]),
        "no request succeeded",
    ),
    none_was_ever_sent=lambda: (some(refused(20)), "no request succeeded"),
    one_request=lambda: (some([record(0, 0.0)], loaded(end_s=0.2), end_s=0.2), "1 request is too few"),
    one_long_request=lambda: (
        some([record(0, 0.0, done_s=10.0)]),
        "no steady window|all requests were due at one instant",
    ),
    two_requests_at_one_instant=lambda: (some([record(0, 0.0), record(1, 0.0)]), "at one instant"),
    no_power=lambda: (some(readings=[]), "no power source on this machine"),
    one_reading=lambda: (some(readings=loaded()[:1]), "1 readings"),
    a_gap_in_power=lambda: (some(readings=with_a_gap()), "3 s without a reading"),
    readings_end_early=lambda: (some(readings=[r for r in loaded() if r.t_s < 6]), "readings cover"),
    a_counter_that_ran_backwards=lambda: (some(readings=backwards()), "ran backwards"),
    a_counter_that_stands_still=lambda: (some(readings=constant(0.0, 10.0)), "never advanced|outside|below"),
    a_sensor_slower_than_the_run=lambda: (
        some(readings=slow()[0], domains=(slow()[1],)),
        "cannot tell the energy",
    ),
    a_clock_not_known=lambda: (some(sidecars=[SIDECAR]), "30 ms"),
    a_clock_never_compared=lambda: (
        some(sidecars=[SIDECAR | {"clock": CLOCK | {"end": None, "drift_ppm": None, "bound_s": None}}]),
        "not asked at the end",
    ),
    no_baseline=lambda: (some(readings=[r for r in loaded() if 0 <= r.t_s <= 10]), "from physics"),
    no_baseline_and_no_board=lambda: (
        some(readings=[r for r in loaded() if 0 <= r.t_s <= 10], server={"kind": "tgi", "model": None}),
        "idle power of the gpu unknown",
    ),
    no_model=lambda: (some(server={"kind": "tgi"}), "neither the model nor the board"),
    no_stamps=lambda: (some(lattice(20, 0.5, **UNSTAMPED)), "total"),
    no_token_counts=lambda: (some(lattice(20, 0.5, **UNCOUNTED)), "total"),
    neither=lambda: (some(lattice(20, 0.5, **UNSTAMPED, **UNCOUNTED)), "total"),
    empty_sections=lambda: (
        some(server=None, window=None, counts=None, warnings=None, scenario=None, gpus=None),
        "unknown server",
    ),
    bare_manifest=lambda: (bare(some()), "unknown server"),
    killed=lambda: (some(status="running", window=None, counts={"planned": 40, "warmup": 0}), "missing"),
    mig=lambda: (some(gpus=[{"domain": "gpu0", "uuid": "GPU-1", "mig": True}]), "partitioned"),
    a_neighbour=lambda: (
        some(
            sidecars=[
                SIDECAR
                | {"server": SIDECAR["server"] | {"others": [{"board": "gpu0", "pid": 9, "name": "train"}]}}
            ]
        ),
        "shared with train",
    ),
)
OPTIONS = (
    Options("work", "steady", slice_s=2.0, service=Service(1e6, pue=1.2, grid="FR", price_per_kwh=0.2)),
    Options("regression", slice_s=0.5),
)


def shown(found: Study, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def finite(value: Any, path: str = "") -> None:
    """Fails at the first number of an object that is none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            finite(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            finite(inner, f"{path}[{k}]")
    elif isinstance(value, float):
        assert math.isfinite(value), path
    else:
        assert value is None or isinstance(value, str | int | bool), f"{path}: {type(value)}"


def unknown_has_a_reason(plain: Any) -> None:
    told = plain["attribution"]
    assert (told["spent"] is None) == (told["reason"] is not None)
    for part in plain["parts"].values():
        for key in ("energy_j", "power_w", "per_success_j"):
            assert part[key]["value"] is not None or part[key]["method"].startswith("unavailable: ")
    assert plain["windows"]["rows"] or plain["windows"]["reason"]
    assert plain["little"] is None or plain["little"]["ratio"] is not None or plain["little"]["reason"]


@pytest.mark.parametrize("make", CASES)
def test_a_poor_run_gets_a_sentence_and_no_figure_that_is_none(make: Callable[[], tuple[Run, str]]) -> None:
    run, words = make()
    said = ""
    for options in OPTIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = study(run, options)
            plain = as_object(found)
            text = " ".join(shown(found).split())
        finite(plain)
        unknown_has_a_reason(plain)
        orjson.dumps(plain)
        assert not re.search(r"\b(nan|None|inf)\b", text, re.IGNORECASE), text
        said += text
    assert any(word in said for word in words.split("|")), said


@pytest.mark.parametrize("method", ["mean", "marginal", "tokens", "time"])
def test_a_method_that_needs_a_success_says_so(method: Any) -> None:
    found = study(some([failed(k, 0.45 * k) for k in range(20)]), Options(method))
    text = shown(found)
    assert found.attribution_reason is None or "nothing succeeded in this window" in text
    assert method == "time" or found.spent is None
    finite(as_object(found))


def test_a_headline_of_no_success_does_not_exist() -> None:
    found = study(some([failed(k, 0.45 * k) for k in range(20)]))
    row = found.parts["gpu"]
    assert row.energy_j.value == pytest.approx(3000.0, rel=0.01)
    assert row.per_success_j.value is None and row.failed == 20
    assert found.spent is not None and found.spent.unseen == 20
    assert found.spent.unattributed_j == pytest.approx(row.energy_j.value, rel=1e-9)
    assert not found.summary["valid"]


def test_failed_requests_are_counted_also_where_no_token_came() -> None:
    """Found: of 74 refused requests the table said ``0 requests``."""
    text = " ".join(shown(study(some([*lattice(20, 0.5), failed(20, 5.0)]))).split())
    assert "1 request, 0 with tokens" in text


def test_an_embodied_share_of_nothing_is_refused_by_what_is_missing() -> None:
    """Found: ``--embodied-share 2`` without a mass was taken and left out in silence."""
    for given in ({"embodied_share": 0.5}, {"embodied_hours_per_day": 12.0}):
        with pytest.raises(ConfigError, match="missing: kg, years, source"):
            Service(1e6, **given)
    with pytest.raises(ConfigError, match="missing: years, source"):
        Service(1e6, embodied_kg=1500.0)


def test_repeated_ids_are_compared_and_fitted_without_a_traceback() -> None:
    """Found: rows were looked up by an id that two records had."""
    good, odd = some(), some([*lattice(19, 0.5), record(7, 9.5)], name="odd")
    assert compare([good, odd]).headlines and not compare([odd, good]).valid
    assert "have the id of another" in str(fit([odd]).notes)
    with pytest.raises(FitError, match=r"fit: made: no request .* no request succeeded"):
        fit([some([failed(0, 0.0)])])


def test_a_stamp_of_another_clock_leaves_nothing_to_hold_a_warm_up_against() -> None:
    """Found: a division by the 0 requests in flight after the load."""
    run = some([*lattice(60, 0.3), record(60, 3000.0)], end_s=3000.2)
    rule = next(r for r in judge(run, {}).rules if r.id == "warm-up")
    assert rule.verdict == "not judged" and "in flight is 0 after the first" in rule.sentence


def test_an_arrival_years_later_is_described_without_a_bin_for_each_second() -> None:
    """Found: dispersion asked for petabytes."""
    shape = describe(np.append(np.arange(100.0), 1e15))
    assert shape.count == 101 and shape.dispersion == pytest.approx(1.0, abs=1e-9)


def test_one_request_has_no_interval_and_says_why() -> None:
    found = study(some([record(0, 0.0, done_s=10.0)]))
    mean = found.per_success["total_j"]["mean"]
    assert mean.value is not None and mean.low is None and mean.n == 1
    assert "request" in mean.method


def test_an_unknown_schema_and_a_missing_run_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"nowhere"):
        analyze(tmp_path / "nowhere", Options())
    (tmp_path / "run.json").write_text('{"schema": 99, "status": "complete"}')
    with pytest.raises(RunDirError, match="schema") as caught:
        analyze(tmp_path, Options())
    assert "\n" not in str(caught.value)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirError):
        analyze(tmp_path, Options())
