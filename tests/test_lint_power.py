"""The rules for power from sidecars: each fires where it must and is silent where it must."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import COUNTER, INSTANT, constant, lattice, run_of

from analysis import energy, lint
from analysis.lint import Verdict
from analysis.run import build_run
from analysis.summary import summarize
from loadgen.types import BoardState, Reading, ServerSample

ROW: dict[str, Any] = {
    "name": None,
    "url": "http://gpu-host:9400",
    "id": "a",
    "interval_s": 0.05,
    "domains": ["gpu0", "gpu0.instant"],
    "metrics": True,
    "clock": {
        "start": {"at_s": -3.0, "offset_s": 1.0, "bound_s": 1e-4, "round_trips": 50},
        "end": {"at_s": 103.0, "offset_s": 1.0, "bound_s": 1e-4, "round_trips": 50},
        "drift_ppm": 0.0,
        "bound_s": 1e-4,
    },
    "samples": {"received": 2100, "expected": 2100, "missing": 0, "first_seq": 1, "last_seq": 2100},
    "reconnects": 0,
    "overhead": {},
    "server": {
        "start": {"pids": [7], "boards": ["gpu0"], "reason": None},
        "end": {"pids": [7], "boards": ["gpu0"], "reason": None},
        "others": [],
    },
    "changed": [],
    "reason": None,
}
BOARD = {"domain": "gpu0", "name": "some board", "power_limit_w": 700.0, "mig": False}


def changed(**paths: Any) -> dict[str, Any]:
    """`ROW` with values at dotted places."""
    row = copy.deepcopy(ROW)
    for dotted, value in paths.items():
        node = row
        *way, last = dotted.split("__")
        for key in way:
            node = node[key]
        node[last] = value
    return row


def judged(*rows: dict[str, Any], gpus: tuple[dict[str, Any], ...] = (BOARD,)) -> Verdict:
    run = run_of(lattice(200, 0.5), constant(300.0, 100.0), sidecars=list(rows), gpus=list(gpus))
    return lint.judge(run, energy.measure(run, np.array([0.0, run.end_s])))


def test_a_run_beside_a_sound_sidecar_is_valid_without_a_word() -> None:
    assert (judged(ROW).reasons, judged(ROW).warnings) == ((), ())


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ({"clock__bound_s": 10.1e-3}, "its clock is known within 10.1 ms only, expected 10 ms"),
        (
            {"clock__bound_s": None, "reason": "nothing answers"},
            "not asked at the end.*: nothing answers",
        ),
        (
            {"clock__bound_s": 12e-3, "clock__end__bound_s": 12e-3},
            "known within 12 ms only.*: send the load from nearer",
        ),
        (
            {"clock__bound_s": 12e-3},
            "known within 12 ms only.*: it was set or slewed in mid-run, or the link",
        ),
        ({"changed": ["gpu0 is board GPU-b by now, was GPU-a"]}, "gpu-host:9400: gpu0 is board GPU-b by now"),
        ({"samples__missing": 12}, r"12 of 2100 power samples are missing \(one every 0.05 s\)"),
        ({"server__start__boards": []}, r"\(7\) were on no measured board at the run's start"),
        ({"server__end__boards": []}, r"\(7\) were on no measured board at the run's end"),
        (
            {"server__others": [{"board": "gpu0", "pid": 9, "name": "train.py"}]},
            r"gpu0 was shared: train.py \(9\) computed there too",
        ),
    ],
)
def test_each_fault_makes_the_run_invalid_and_says_which(paths: dict[str, Any], reason: str) -> None:
    verdict = judged(changed(**paths))
    assert len(verdict.reasons) == 1
    assert re.search(reason, verdict.reasons[0]), verdict.reasons


def test_a_sidecar_that_went_away_is_named_and_explained_once() -> None:
    gone = "sidecar http://gpu-host:9400: nothing answers: connection refused"
    clock, samples = judged(
        changed(clock__bound_s=None, clock__end=None, samples__missing=12, reason=gone)
    ).reasons
    assert clock.endswith("so its drift is not known: nothing answers: connection refused")
    assert samples.endswith("12 of 2100 power samples are missing (one every 0.05 s)")
    (alone,) = judged(changed(samples__missing=12, reason=gone)).reasons
    assert alone.endswith("(one every 0.05 s): nothing answers: connection refused")


def test_a_bound_of_exactly_10_ms_is_good_enough() -> None:
    assert judged(changed(clock__bound_s=10e-3)).valid


def test_a_partitioned_board_is_nobodys_own() -> None:
    verdict = judged(ROW, gpus=({**BOARD, "mig": True},))
    assert "partitioned (MIG)" in verdict.reasons[0]


@pytest.mark.parametrize("when", ["start", "end"])
def test_where_the_server_runs_may_be_unknown_and_is_then_said(when: str) -> None:
    look = {"pids": None, "boards": None, "reason": "nobody listens on port 8080 there"}
    verdict = judged(changed(**{f"server__{when}": look}))
    assert verdict.valid and len(verdict.warnings) == 1
    assert f"at the {when}: nobody listens on port 8080 there" in verdict.warnings[0]


def test_a_sidecar_that_did_not_say_at_the_end_where_the_server_was_is_told() -> None:
    verdict = judged(changed(server__end=None, reason="no answer in 5 s"))
    assert verdict.valid and "was not asked at the end whether" in verdict.warnings[0]


def test_boards_that_the_run_read_itself_are_judged_by_the_same_rules() -> None:
    def here(boards: list[str] | None, *others: dict[str, Any], reason: str | None = None) -> Verdict:
        look = {"pids": [7], "boards": boards, "reason": reason}
        power = {
            "interval_s": 0.1,
            "domains": [vars_of(COUNTER), vars_of(INSTANT)],
            "server": {"start": look, "end": look, "others": list(others)},
        }
        run = run_of(lattice(200, 0.5), constant(300.0, 100.0), power=power, gpus=[BOARD])
        return lint.judge(run, energy.measure(run, np.array([0.0, run.end_s])))

    assert (here(["gpu0"]).reasons, here(["gpu0"]).warnings) == ((), ())
    nowhere = here([])
    assert (
        len(nowhere.reasons) == 1 and "on no measured board at the run's start and end" in nowhere.reasons[0]
    )
    assert "gpu0 was shared: a (9)" in here(["gpu0"], {"board": "gpu0", "pid": 9, "name": "a"}).reasons[0]
    unknown = here(None, reason="nobody listens")
    assert unknown.valid and "this machine: not known whether" in unknown.warnings[0]


def test_a_part_that_one_of_the_hosts_does_not_read_has_no_total_but_the_reason() -> None:
    """It was summed over the others, with a warning."""
    package = {"name": "node1/cpu0.package", "method": "counter"}
    power = {
        "interval_s": 0.1,
        "domains": [vars_of(COUNTER), vars_of(INSTANT), package],
        "reasons": {"gpu": None, "cpu": "node0: no RAPL", "ram": None},
    }
    readings = [
        *constant(300.0, 100.0),
        *(Reading(float(t), package["name"], energy_j=t) for t in range(120)),
    ]
    run = run_of(lattice(200, 0.5), readings, power=power, sidecars=[ROW])
    parts = energy.measure(run, np.array([0.0, run.end_s]))
    assert parts["gpu"].total_j is not None
    assert parts["cpu"].total_j is None and parts["cpu"].reason == "node0: no RAPL"
    assert summarize(run)["energy"]["cpu"]["reason"] == "node0: no RAPL"


def test_ticks_that_the_sampler_skipped_are_a_warning_from_one_percent() -> None:
    assert judged(changed(samples__received=2080)).warnings == ()
    verdict = judged(changed(samples__received=2000))
    assert verdict.valid and "skipped 100 of 2100 ticks of 0.05 s" in verdict.warnings[0]


def test_an_idle_board_of_the_allocation_is_counted_and_said() -> None:
    verdict = judged(ROW, gpus=(BOARD, {**BOARD, "domain": "gpu1"}))
    assert verdict.valid and any(w.startswith("gpu1: measured and counted") for w in verdict.warnings)


def test_one_of_several_hosts_that_holds_the_server_is_enough() -> None:
    holds = changed(name="node0", server__start__boards=["node0/gpu0"], server__end__boards=["node0/gpu0"])
    unasked = {"pids": None, "boards": None, "reason": "another host"}
    other = changed(name="node1", server__start=unasked, server__end=unasked)
    gpus = ({**BOARD, "domain": "node0/gpu0"}, {**BOARD, "domain": "node1/gpu0"})
    verdict = judged(holds, other, gpus=gpus)
    assert verdict.valid and verdict.warnings == tuple(w for w in verdict.warnings if "node1/gpu0:" in w)
    nowhere = changed(name="node0", server__start__boards=[], server__end__boards=[])
    undecided = judged(nowhere, other, gpus=gpus)
    assert undecided.valid and any("sidecar node1: not known" in w for w in undecided.warnings)


def test_drift_is_taken_out_of_readings_board_states_and_metrics_of_that_sidecar_only() -> None:
    row = changed(clock__drift_ppm=1e4)  # a second in 100: no clock drifts so, but it shows
    manifest = {
        "sidecars": [row],
        "power": {"domains": [vars_of(COUNTER), vars_of(INSTANT), {"name": "ram", "method": "estimated"}]},
    }
    at_s = 97.0  # 100 s after the start's offset
    written_s = at_s + 1.0
    run = build_run(
        Path("r"),
        manifest,
        [],
        [
            *(Reading(t, "gpu0", energy_j=1.0) for t in (-3.0, written_s)),
            *(Reading(t, "ram", energy_j=1.0) for t in (-3.0, written_s)),
        ],
        (),
        [BoardState(written_s, "gpu0", temperature_c=40.0)],
        [ServerSample(written_s, running=3.0)],
    )
    assert run.series["gpu0"].t_s == pytest.approx([-3.0, at_s])
    assert run.series["ram"].t_s == pytest.approx([-3.0, written_s])
    (state,) = run.boards.to_dict("records")
    assert state["t_s"] == pytest.approx(at_s) and state["temperature_c"] == 40.0
    assert np.isnan(state["pstate"]) and state["domain"] == "gpu0"
    (sample,) = run.metrics.to_dict("records")
    assert sample["t_s"] == pytest.approx(at_s) and sample["running"] == 3.0 and np.isnan(sample["waiting"])


def vars_of(domain: Any) -> dict[str, Any]:
    return {name: getattr(domain, name) for name in domain.__slots__}
