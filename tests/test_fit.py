"""Fits: constants that made data hold, intervals, refusals in words, models on disk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from made_runs import COUNTER, failed, lattice, record, run_of

from analysis.fit import FitError, fit, read_model, write_model
from analysis.fit.build import fit_form
from analysis.fit.estimate import solve, tangled, tellable
from analysis.fit.forms import FORMS
from analysis.fit.sample import in_flight
from analysis.run import Run
from loadgen.types import Reading, Record
from loadgen.verbs import fit as fit_verb

# The study's constants (arXiv 2601.22362): s, s/token; Wh as J.
PREFILL = {"alpha": 3.18e-4, "beta": 1.17e-8, "gamma": 1.68e-2}
DECODE = {"eta": 2.61e-2, "theta": 3.31e-7, "phi": 5.86e-8, "rho": 1.3e-3}
PREFILL_J = {"A": 6.05e-5 * 3600, "B": 5.00e-3 * 3600}
DECODE_J = {"C": 2.13e-3 * 3600, "D": 2.87e-7 * 3600, "E": 0.8}
IDLE_W, GAP_S = 110.0, 0.07


def prefill_s(s: Any) -> Any:
    return PREFILL["alpha"] * s + PREFILL["beta"] * s**2 + PREFILL["gamma"]


def decode_s(s: Any, n: Any) -> Any:
    return DECODE["eta"] * n + DECODE["theta"] * s * n + DECODE["phi"] * n**2 + DECODE["rho"]


def lengths(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(300, 2400, count), rng.integers(10, 120, count)


def alone(s: np.ndarray, g: np.ndarray, *, noise: float = 0.0, seed: int = 2, **manifest: Any) -> Run:
    """One request after another by the study's laws; every time is off by ``noise``, relative."""
    rng = np.random.default_rng(seed)
    records: list[Record] = []
    knots_s, knots_w = [-2.0], []
    t = 0.0
    for i, (prompt, reply) in enumerate(zip(s.tolist(), g.tolist(), strict=True)):
        n = reply - 1
        first = prefill_s(prompt) * (1.0 + noise * rng.standard_normal())
        rest = (decode_s(prompt, n) if n else 0.0) * (1.0 + noise * rng.standard_normal())
        ends = (t + first, t + first + rest)
        records.append(
            record(
                i,
                t,
                first_s=ends[0],
                done_s=ends[1],
                chunk_s=(),
                chunk_tokens=(),
                prompt_tokens=prompt,
                output_tokens=reply,
            )
        )
        joules = (
            PREFILL_J["A"] * prompt + PREFILL_J["B"],
            DECODE_J["C"] * n + DECODE_J["D"] * prompt * n + DECODE_J["E"],
        )
        knots_s += [t, *ends]
        knots_w += [IDLE_W, joules[0] / first, joules[1] / rest if n else 0.0]
        t = ends[1] + GAP_S
    knots_s.append(t + 2.0)
    knots_w.append(IDLE_W)
    summed_j = np.concatenate([[0.0], np.cumsum(np.diff(knots_s) * knots_w)])
    at_s = np.arange(-2.0, t + 2.0, 0.02)
    readings = [
        Reading(float(a), "gpu0", energy_j=float(j))
        for a, j in zip(at_s, np.interp(at_s, knots_s, summed_j), strict=True)
    ]
    power = {"interval_s": 0.02, "baseline_s": 2.0, "domains": [asdict(COUNTER)], "reason": None}
    return run_of(records, readings, **{"power": power, "closed_loop": True, **manifest})


@pytest.fixture(scope="module")
def studied() -> Run:
    return alone(*lengths(120))


# Known constants


def test_the_studys_laws_are_found_again(studied: Run) -> None:
    model = fit([studied])
    assert (model.load, model.alone, model.requests) == ("one at a time", 120, 120)
    for name, law in (("t_prefill", PREFILL), ("t_decode", DECODE)):
        found = model[name]
        assert {t.name: t.value for t in found.terms} == pytest.approx(law, rel=1e-6)
        assert found.r2 == pytest.approx(1.0) and found.range["s"].least >= 300


def test_joules_of_both_phases_are_told_apart_without_knowing_model_or_board(studied: Run) -> None:
    model = fit([studied])
    assert any("constants from" in note and "slices of 0.5 s" in note for note in model["E_decode"].notes)
    for name, law in (("E_prefill", PREFILL_J), ("E_decode", DECODE_J)):
        for term in model[name].terms:
            assert term.value is not None and term.low is not None and term.high is not None
            assert term.value == pytest.approx(law[term.name], rel=1e-3)
    s, g = lengths(40, seed=9)
    true = PREFILL_J["A"] * s + PREFILL_J["B"] + DECODE_J["C"] * (g - 1) + DECODE_J["D"] * s * (g - 1)
    assert model.energy_j(s, g) == pytest.approx(true + DECODE_J["E"], rel=2e-3)
    powers = {name: model[name]["P"].value for name in ("P_prefill", "P_decode")}
    ok = lengths(120)
    assert powers["P_prefill"] == pytest.approx(
        np.sum(PREFILL_J["A"] * ok[0] + PREFILL_J["B"]) / np.sum(prefill_s(ok[0])), rel=2e-3
    )


def test_decode_steps_are_the_reply_tokens_less_one() -> None:
    # The study's constant is -2.04 eta since its replies were counted two too long.
    s, g = lengths(60)
    true = fit([alone(s, g)])["t_decode"]["rho"].value
    records = list(alone(s, g).requests.itertuples())
    assert true == pytest.approx(DECODE["rho"], abs=1e-6)
    assert fit([alone(s, g)])["t_decode"].range["n"].greatest == max(r.output_tokens for r in records) - 1


def test_the_in_process_protocol_takes_prefill_from_its_own_requests() -> None:
    records, t = [], 0.0
    for i in range(80):
        prompt, reply = 200 + 20 * (i // 2), 20 + (i // 2) * 7 % 60
        only = i % 2 == 0
        lasting = prefill_s(prompt) + (0.0 if only else decode_s(prompt, reply - 1))
        records.append(
            record(i, t, phase="prefill" if only else "full", block=i // 2, first_s=None, done_s=t + lasting,
                   chunk_s=(), chunk_tokens=(), prompt_tokens=prompt, output_tokens=1 if only else reply)
        )  # fmt: skip
        t += lasting + 0.05
    model = fit([run_of(records, closed_loop=True)])
    assert {t.name: t.value for t in model["t_prefill"].terms} == pytest.approx(PREFILL, rel=1e-6)
    assert {t.name: t.value for t in model["t_decode"].terms} == pytest.approx(DECODE, rel=1e-5)
    assert model["t_decode"].n == 40


# Intervals


def noisy(kind: str, rng: np.random.Generator, s: np.ndarray, n: np.ndarray) -> np.ndarray:
    true = decode_s(s, n)
    if kind == "grows":
        return np.asarray(true * (1.0 + 0.05 * rng.standard_normal(len(s))))
    drift = np.zeros(len(s))
    for k in range(1, len(s)):
        drift[k] = 0.9 * drift[k - 1] + 0.02 * rng.standard_normal()
    return np.asarray(true + drift)


@pytest.mark.parametrize("kind", ["grows", "drifts"])
def test_intervals_hold_the_constants(kind: str) -> None:
    rng, held, runs = np.random.default_rng(4), np.zeros(4), 150
    for _ in range(runs):
        s, n = rng.integers(100, 3000, 300).astype(float), rng.integers(5, 300, 300).astype(float)
        series = np.zeros(300, dtype=np.int64)
        found = fit_form(FORMS["t_decode"], {"s": s, "n": n}, noisy(kind, rng, s, n), series, beside={})
        held += [t.low <= DECODE[t.name] <= t.high for t in found.terms]  # type: ignore[operator]
    # Three standard errors of a share of 0.95 in 150; 15 correlation times of a drift tell less.
    assert np.all(held / runs >= (0.90 if kind == "grows" else 0.87)), held / runs
    assert held.mean() / runs <= 0.99


def test_a_drift_makes_blocks_of_neighbours_and_blocks_stay_within_a_run() -> None:
    rng = np.random.default_rng(3)
    s, n = rng.integers(100, 3000, 400).astype(float), rng.integers(5, 300, 400).astype(float)
    x = np.stack([n, np.ones(400)], axis=1)
    series = np.repeat([0, 1], 200)
    assert solve(x, noisy("grows", rng, s, n), (0, 1), series).block == 1
    drifting = solve(x, noisy("drifts", rng, s, n), (0, 1), series)
    assert drifting.block > 5 and drifting.freedom <= 400 // drifting.block


def test_a_prediction_tells_where_one_more_observation_will_be() -> None:
    rng = np.random.default_rng(6)
    s, n = rng.integers(100, 3000, 400).astype(float), rng.integers(5, 300, 400).astype(float)
    seen, zero = noisy("grows", rng, s, n), np.zeros(300, dtype=np.int64)
    found = fit_form(FORMS["t_decode"], {"s": s[:300], "n": n[:300]}, seen[:300], zero, beside={})
    held = 0
    for k in range(300, 400):
        told = found.predict(s=s[k], n=n[k])
        assert told.low is not None and told.high is not None
        held += told.low <= seen[k] <= told.high
    assert 88 <= held <= 100
    assert found.outside(s=1000, n=100) == ()
    assert found.predict(s=9000, n=100).outside == (
        f"t_decode: s = 9000 is outside the fit ({s[:300].min():g} to {s[:300].max():g})",
    )


# What the data do not tell


def test_one_prompt_length_refuses_the_slopes_in_words() -> None:
    _, g = lengths(60)
    model = fit([alone(np.full(60, 512), g)])
    alpha, beta, gamma = model["t_prefill"].terms
    assert alpha.value is None and beta.value is None
    assert gamma.value == pytest.approx(prefill_s(512))
    assert alpha.reason == "cannot be told from gamma: prompt tokens are 512 throughout; counted as 0"
    assert model["t_decode"]["theta"].value is None and model["t_decode"]["phi"].value is not None


def test_two_prompt_lengths_refuse_the_square_only() -> None:
    _, g = lengths(60)
    found = fit([alone(np.where(np.arange(60) % 2, 400, 900), g)])["t_prefill"]
    assert [t.name for t in found.terms if t.value is None] == ["beta"]
    assert found.at(s=np.array([400.0, 900.0])) == pytest.approx(prefill_s(np.array([400, 900])))


def test_one_reply_length_keeps_the_time_of_a_token() -> None:
    s, _ = lengths(60)
    found = fit([alone(s, np.full(60, 40))])["t_decode"]
    assert found["eta"].value is not None and found["rho"].value is None and found["phi"].value is None
    assert "decode steps are 39 throughout" in str(found["rho"].reason)


def test_terms_that_hardly_differ_are_named() -> None:
    rng = np.random.default_rng(5)
    _, g = lengths(200)
    found = fit([alone(rng.integers(1150, 1250, 200), g, noise=0.02)])["t_decode"]
    assert found.condition > 30
    assert any("eta and theta can hardly be told apart" in note for note in found.notes)
    assert any("not told from 0" in note and "theta" in note for note in found.notes)


def test_a_weak_direction_names_the_columns_in_it() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 500))
    x = np.stack([a, b, a + 1e-2 * rng.standard_normal(500)], axis=1)
    assert tangled(x / np.linalg.norm(x, axis=0), np.arange(3)) == ((0, 2),)
    x[:, 2] = a + 1e-5 * rng.standard_normal(500)
    assert tellable(x, (1, 2, 0)).tolist() == [False, True, True]


def test_a_term_that_one_request_alone_tells_has_no_interval() -> None:
    s = np.full(60, 512)
    s[17] = 2000
    found = fit([alone(s, lengths(60)[1])])["t_prefill"]
    assert found["alpha"].value is not None and found["alpha"].low is None
    assert any("no intervals" in note for note in found.notes)
    assert found.predict(s=512).low is None


# Loads


def test_requests_in_flight_are_counted_over_each_stay() -> None:
    rng = np.random.default_rng(8)
    begin, length = np.sort(rng.uniform(0, 20, 50)), rng.uniform(0.1, 4, 50)
    records = [
        record(i, float(b), done_s=float(b + d)) for i, (b, d) in enumerate(zip(begin, length, strict=True))
    ]
    grid = np.linspace(0, 30, 60_001)
    there = (grid[:, None] >= begin) & (grid[:, None] < begin + length)
    found = in_flight(run_of(records))
    for i in range(50):
        assert found[i] == pytest.approx(there.sum(axis=1)[there[:, i]].mean(), abs=0.02)


def test_a_batched_run_is_marked_and_has_no_power_of_a_request() -> None:
    model = fit([run_of(lattice(60, 0.05))])
    assert (model.load, model.alone) == ("batched", 0)
    assert "describe this load, not the model" in model.notes[0]
    assert "no power" in model.refused["P_decode"]


def test_the_few_that_were_not_alone_are_left_out() -> None:
    run = alone(*lengths(40))
    late = [record(i, 1000.0 + 0.01 * i) for i in range(40, 50)]
    records = [Record(**row) for row in run.requests.replace({np.nan: None}).to_dict("records")]
    found = fit([run_of([*records, *late])])
    assert found["t_decode"].n == 40 and any("10 of 50 were left out" in note for note in found.notes)


# Several runs


def test_runs_are_fitted_together(studied: Run) -> None:
    s, g = lengths(120)
    halves = [alone(s[:60], g[:60]), alone(s[60:], g[60:])]
    together = fit(halves)
    assert together["t_decode"].n == 120 and len(together.runs) == 2
    assert together["t_decode"]["eta"].value == pytest.approx(DECODE["eta"], rel=1e-6)


def test_runs_of_other_servers_are_refused_by_what_differs() -> None:
    s, g = lengths(20)
    told: dict[str, Any] = {"kind": "tgi", "model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
    other = {**told, "gpu": "l40s", "dtype": "int8"}
    with pytest.raises(FitError, match=r"differ in gpu h100-sxm and l40s and dtype bfloat16 and int8"):
        fit([alone(s, g, server=told), alone(s, g, server=other)])
    with pytest.raises(FitError, match="at least one run"):
        fit([])


# Degenerate runs


def cases() -> Sequence[tuple[str, list[Record], str]]:
    bare = {"first_s": None, "chunk_s": (), "chunk_tokens": ()}
    return (
        ("all failed", [failed(i, 2.0 * i) for i in range(5)], "no request succeeded"),
        ("nothing", [], "no request succeeded"),
        ("not streamed", lattice(5, 2.0, **bare), "not streamed"),
        ("no counts", lattice(5, 2.0, output_tokens=None), "without token counts"),
        ("chunks", lattice(5, 2.0, chunk_tokens=(3,) * 11), "several tokens"),
    )


@pytest.mark.parametrize(("name", "records", "said"), cases(), ids=[c[0] for c in cases()])
def test_nothing_to_fit_is_said_in_words(name: str, records: list[Record], said: str) -> None:
    with pytest.raises(FitError, match=said):
        fit([run_of(records)])


def test_without_power_times_are_fitted_and_joules_are_refused() -> None:
    model = fit([run_of(lattice(30, 2.0))])
    assert model["t_prefill"]["gamma"].value == pytest.approx(0.1)
    assert "no power source" in model.refused["E_decode"]
    assert model.label is None and model.weights is None
    with pytest.raises(FitError, match="no power source"):
        model.energy_j(np.array([1.0]), np.array([2.0]))
    assert model.request(100, 20).energy_j is None


def test_one_request_is_too_few() -> None:
    model = fit([run_of(lattice(1, 1.0))])
    assert model.fitted == ()
    assert model.refused["t_prefill"] == "1 of 1 values are known, at least 20 are needed"


def test_replies_of_one_token_have_no_decode() -> None:
    model = fit([alone(lengths(30)[0], np.ones(30, dtype=int))])
    assert "t_decode" in model.refused and model["t_prefill"].n == 30


# Models on disk


def test_a_model_is_read_back_as_it_was(studied: Run, tmp_path: Path) -> None:
    model = fit([studied])
    write_model(model, tmp_path / "model.json")
    found = read_model(tmp_path / "model.json")
    assert found.as_object() == model.as_object()
    assert found.request(1200, 52) == model.request(1200, 52)
    assert found.weights == model.weights
    with pytest.raises(FitError, match="cannot be written"):
        write_model(model, tmp_path / "none" / "model.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "no JSON"),
        ("[1]", "expected a model.json"),
        ('{"kind": "other"}', "expected a model.json"),
        ('{"kind": "loadgen-fit", "schema": 2}', "expected schema 1, got 2"),
        ('{"kind": "loadgen-fit", "schema": 1}', "damaged: KeyError"),
    ],
)
def test_what_is_no_model_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(FitError, match=said):
        read_model(tmp_path / "model.json")


def test_the_object_has_no_numbers_that_json_lacks(studied: Run) -> None:
    s = np.full(60, 512)
    s[17] = 2000
    for run in (studied, alone(s, lengths(60)[1])):
        made = fit([run]).as_object()
        assert orjson.loads(orjson.dumps(made)) == made
        edges = [row["range"]["s"] for row in made["fitted"] if row["name"] == "t_prefill"]
        assert all(a <= b for row in edges for a, b in pairwise(row.values()))


def test_the_verb_takes_runs_a_file_and_a_figure() -> None:
    parser = argparse.ArgumentParser()
    fit_verb.add_verb(parser.add_subparsers(), argparse.HelpFormatter, lambda args: 0)
    args = parser.parse_args(["fit", "a", "b", "-o", "model.json", "--json", "--figure", "r.svg"])
    assert (args.runs, args.output, args.json) == ([Path("a"), Path("b")], Path("model.json"), True)
    assert args.figure == Path("r.svg") and args.go(args) == 0
