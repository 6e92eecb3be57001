"""Attribution: laws that hold for every method, known constants, the oracle, refusals."""

from __future__ import annotations

import ast
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_runs import COUNTER, constant, failed, lattice, record, run_of
from simulated_runs import DENSITIES, DEPLOYMENT, SERVER, busy, l1, simulated, total_j, true_costs

from analysis import energy
from analysis.attribution import METHODS, WHOLE, Attribution, AttributionError
from analysis.attribution.activity import activity
from analysis.attribution.weights import TERMS, weights_of
from analysis.run import Run, build_run
from loadgen.types import Domain, Reading, Record

# Laws


@pytest.mark.parametrize("method", METHODS)
def test_shares_and_the_rest_are_the_energy_that_was_read(method: Any) -> None:
    run, _ = busy()
    found = Attribution(run, method).window()
    measured = energy.measure(run, np.array([0.0, run.end_s]))["gpu"].total_j
    assert found.energy_j == pytest.approx(measured, rel=1e-9)
    assert total_j(found) == pytest.approx(found.energy_j, rel=1e-12)
    assert found.requests["total_j"].min() >= 0.0 and found.unattributed_j >= 0.0
    if method not in WHOLE:
        assert sum(found.phases_j.values()) == pytest.approx(found.requests["total_j"].sum(), rel=1e-12)
        assert found.requests[["idle_j", "prefill_j", "decode_j"]].to_numpy().min() >= 0.0


@pytest.mark.parametrize("method", DENSITIES)
def test_windows_add_up_request_by_request_wherever_they_are_cut(method: Any) -> None:
    run, _ = busy()
    made = Attribution(run, method)
    rng = np.random.default_rng(1)
    cuts = [0.0, *np.sort(rng.uniform(0.0, run.end_s, 9)), run.end_s]
    parts = made.windows(cuts)
    whole = made.window()
    summed = pd.concat([p.requests[["total_j", "prefill_j"]] for p in parts]).groupby(level=0).sum()
    expected = whole.requests[["total_j", "prefill_j"]].sort_index()
    assert summed.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-9, abs=1e-9)
    assert sum(p.unattributed_j for p in parts) == pytest.approx(whole.unattributed_j, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("method", ["work", "linear", "time"])
def test_boards_add_up(method: Any) -> None:
    run, _ = busy()
    series = run.series["gpu0"]
    half = replace(series, domain=replace(series.domain, name="gpu1"), value=0.5 * series.value)
    options: dict[str, Any] = {"calibrated": False, "weights": weights_of(run, 100.0)}
    one, other, both = (
        Attribution(replace(run, series=s), method, **options).window().requests["total_j"]
        for s in ({"gpu0": series}, {"gpu1": half}, {"gpu0": series, "gpu1": half})
    )
    assert both.to_numpy() == pytest.approx((one + other).to_numpy(), rel=1e-9)


@pytest.mark.parametrize("method", DENSITIES)
def test_a_request_that_did_nothing_in_a_window_gets_nothing(method: Any) -> None:
    run, _ = busy()
    found = Attribution(run, method).window(0.0, 6.0).requests
    late = run.requests.loc[run.requests["sent_s"] > 6.0, "id"]
    early = run.requests.loc[run.requests["done_s"] < 6.0, "id"]
    assert not set(found.index) & set(late)
    assert set(early) <= set(found.index)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_records_does_not_matter(method: Any) -> None:
    run, _ = busy()
    mixed = replace(run, requests=run.requests.sample(frac=1.0, random_state=3))
    one, other = (Attribution(r, method).window().requests["total_j"].sort_index() for r in (run, mixed))
    assert other.to_numpy() == pytest.approx(one.to_numpy(), rel=1e-9)


@pytest.mark.parametrize("method", DENSITIES)
def test_when_nothing_ran_everything_is_unattributed(method: Any) -> None:
    refused = [failed(k, float(k), status="rejected") for k in range(20)]
    run = run_of(refused, constant(120.0, 30.0), end_s=30.0, server=SERVER)
    found = Attribution(run, method).window()
    assert len(found.requests) == 0
    assert found.unattributed_j == pytest.approx(3600.0, rel=1e-6)


def test_twins_pay_the_same_and_a_longer_reply_pays_more() -> None:
    run, _ = simulated(np.array([0.0, 0.0, 0.0]), np.array([500, 500, 500]), np.array([40, 40, 120]))
    found = Attribution(run).window().requests["total_j"]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[2] > 1.5 * found[0]


def test_failed_requests_pay_their_share_apart_and_unseen_ones_are_counted() -> None:
    run, _ = busy()
    requests = run.requests.copy()
    requests.loc[10, "status"] = "timeout"
    whole = Attribution(run).window()
    found = Attribution(replace(run, requests=requests)).window()
    assert found.failed_j == pytest.approx(whole.requests.loc[10, "total_j"], rel=1e-9)
    assert whole.failed_j == 0.0 and whole.unseen == 0
    for column in ("chunk_s", "chunk_tokens"):
        requests.at[10, column] = ()
    requests.loc[10, ["first_s", "prompt_tokens", "output_tokens"]] = np.nan
    blind = Attribution(replace(run, requests=requests)).window()
    assert blind.unseen == 1 and 10 not in blind.requests.index


def test_mean_and_marginal_are_the_formulas() -> None:
    run = run_of(lattice(10, 1.0), constant(118.0, 20.0), end_s=20.0)
    mean = Attribution(run, "mean").window()
    assert mean.requests["total_j"].to_numpy() == pytest.approx(np.full(10, 236.0))
    marginal = Attribution(run, "marginal").window()
    assert marginal.unattributed_j == pytest.approx(118.0 * 20, rel=1e-6)
    assert marginal.requests["total_j"].sum() == pytest.approx(0.0, abs=1e-3)


# Against the oracle


def test_the_default_is_within_its_targets_also_with_weights_20_percent_off() -> None:
    run, steps = busy()
    true = true_costs(run, steps)
    tokens = l1(Attribution(run, "tokens").window(), true)
    weights = weights_of(run, DEPLOYMENT.gpu.context_idle_w)
    assert weights is not None
    rng = np.random.default_rng(0)
    for factors in [np.ones((2, len(TERMS))), *(1 + 0.2 * rng.choice([-1, 1], (4, 2, len(TERMS))))]:
        found = Attribution(run, weights=weights.perturbed(*factors)).window()
        assert l1(found, true) < min(0.05, tokens / 4)
        ratio = (found.requests["total_j"] / true["total_j"]).to_numpy()
        assert np.percentile(np.abs(ratio - 1), 95) < 0.12
        parts = ["idle_j", "prefill_j", "decode_j"]
        off = (found.requests[parts] - true[parts]).abs().to_numpy().sum()
        assert off / true["total_j"].sum() < 0.06
    assert l1(Attribution(run, "linear").window(), true) > 2 * l1(Attribution(run).window(), true)


def test_without_stamps_the_default_still_comes_near() -> None:
    run, steps = busy()
    requests = run.requests.copy()
    for column in ("chunk_s", "chunk_tokens"):
        requests[column] = [() for _ in range(len(requests))]
    true = true_costs(run, steps)
    made = Attribution(replace(run, requests=requests))
    assert made.fit is None
    linear = Attribution(replace(run, requests=requests), "linear").window()
    assert l1(made.window(), true) < min(0.06, l1(linear, true))


def test_the_run_corrects_weights_that_are_off() -> None:
    run, _ = busy()
    weights = weights_of(run, DEPLOYMENT.gpu.context_idle_w)
    assert weights is not None
    dear = weights.perturbed(np.full(len(TERMS), 1.2), np.full(len(TERMS), 1.2))
    made = Attribution(run, weights=dear)
    assert made.fit is not None and made.fit.r2 > 0.98
    seconds = dict(zip(TERMS, made.weights.time_s.array / weights.time_s.array, strict=True))
    assert seconds["step"] == pytest.approx(1.0, abs=0.03)
    assert seconds["prompt"] == pytest.approx(1.0, abs=0.03)


def test_regression_recovers_the_constants_that_the_energy_was_made_of() -> None:
    """Power of 100 W at rest; 20 mJ a prompt token, 50 mJ a token decoded, 0.3 J a step."""
    rng = np.random.default_rng(8)
    records: list[Record] = []
    for k in range(60):
        n, gap_s, sent_s = int(rng.integers(5, 120)), 0.02 * rng.uniform(0.5, 2.0), 4.0 * k
        chunks = tuple((sent_s + 0.2 + gap_s * np.arange(n)).tolist())
        changes: dict[str, Any] = {"first_s": chunks[0], "done_s": chunks[-1], "chunk_s": chunks}
        changes |= {"chunk_tokens": (1,) * n, "output_tokens": n}
        records.append(record(k, sent_s, prompt_tokens=int(rng.integers(50, 3000)), **changes))
    did = activity(run_of(records))
    joules = did.per_step(0.02 * did.prefill_tokens + 0.05 * did.decode_tokens) + 0.3
    t_s = np.arange(-2.0, 246.0, 0.05)
    done = np.clip((t_s[:, None] - did.start_s) / did.duration_s, 0.0, 1.0)
    counter = 100.0 * (t_s + 2.0) + done @ joules
    readings = [Reading(float(t), "gpu0", energy_j=float(e)) for t, e in zip(t_s, counter, strict=True)]
    run = run_of(records, readings, domains=(COUNTER,), end_s=242.0)
    fit = Attribution(run, "regression").fit
    assert fit is not None
    value = dict(zip(fit.names, fit.value, strict=True))
    assert value["prefill_token"] == pytest.approx(0.02, rel=0.02)
    # One row a step: only the sum of the two can be told.
    assert value["decode_token"] + value["step"] == pytest.approx(0.35, rel=0.03)
    assert fit.condition > 10


# What cannot be done, and what may be seen


def test_refusals_say_why() -> None:
    run, _ = busy()
    cases: list[tuple[Run, dict[str, Any], str]] = [
        (run, {"method": "magic"}, "expected one of work, linear"),
        (run_of(lattice(3, 1.0), constant(100.0, 5.0), end_s=5.0), {}, "neither the model nor the board"),
        (run_of(lattice(3, 1.0)), {}, "no power source on this machine"),
        (run_of([]), {}, "nothing was done"),
    ]
    for broken, options, words in cases:
        with pytest.raises(AttributionError, match=words):
            Attribution(broken, **options)
    made = Attribution(run, "time")
    with pytest.raises(AttributionError, match="within the readings"):
        made.window(0.0, 1e4)
    with pytest.raises(AttributionError, match="nothing succeeded"):
        Attribution(run, "mean").window(-1.5, -1.0)


def test_without_a_baseline_the_board_of_the_manifest_gives_the_idle_power() -> None:
    run, _ = busy()
    series = run.series["gpu0"]
    kept = (series.t_s >= -0.05) & (series.t_s <= run.end_s + 0.05)
    bare = {"gpu0": replace(series, t_s=series.t_s[kept], value=series.value[kept])}
    made = Attribution(replace(run, series=bare))
    assert made.idle_from == "physics" and made.idle_w == pytest.approx([DEPLOYMENT.gpu.context_idle_w])
    a, b = made.window().requests["total_j"], Attribution(run).window().requests["total_j"]
    assert float((a - b).abs().sum()) < 0.01 * float(b.sum())


def test_the_host_is_shared_by_time() -> None:
    domain = Domain("cpu0.package", "counter")
    t_s = np.arange(-2.0, 12.0, 0.1)
    readings = [Reading(float(t), "cpu0.package", energy_j=50.0 * float(t + 2)) for t in t_s]
    run = run_of(lattice(10, 1.0), readings, domains=(domain,), end_s=10.0)
    made = Attribution(run, "work", part="cpu")
    assert made.method == "time"
    found = made.window()
    # Each keeps the host busy for the 0.2 s from its sending to its last token.
    assert found.requests["total_j"].to_numpy() == pytest.approx(np.full(10, 10.0), rel=1e-3)
    assert total_j(found) == pytest.approx(500.0, rel=1e-6)


def test_a_killed_run_without_manifest_figures_is_attributed_all_the_same() -> None:
    run, _ = busy()
    cut = build_run(
        run.path,
        {**run.manifest, "status": "running", "window": None, "counts": None},
        [_record(row) for _, row in run.requests.head(60).iterrows()],
        [Reading(float(t), "gpu0", energy_j=float(e)) for t, e in zip(*_series(run), strict=True)],
    )
    found = Attribution(cut).window()
    assert found.end_s == pytest.approx(run.requests.head(60)["done_s"].max())
    assert total_j(found) == pytest.approx(found.energy_j, rel=1e-12)


def _record(row: pd.Series) -> Record:
    names = asdict(record(0, 0.0))
    return Record(**{name: row[name] for name in names})


def _series(run: Run) -> tuple[np.ndarray, np.ndarray]:
    return run.series["gpu0"].t_s, run.series["gpu0"].value


def test_no_module_that_attributes_sees_what_only_the_embedded_server_knows() -> None:
    root = Path(__file__).resolve().parent.parent / "analysis" / "attribution"
    for name in ("activity", "chunks", "weights", "slices", "calibration", "shares"):
        tree = ast.parse((root / f"{name}.py").read_text(encoding="utf-8"))
        words = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        words |= {
            a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names
        }
        modules = {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {"read_steps", "Step", "truth"} & words
        assert not {"analysis.attribution.shapley", "loadgen.rundir"} & modules
