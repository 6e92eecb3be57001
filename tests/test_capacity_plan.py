"""Plans from files and flags, their mistakes, and the demand and lengths they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capacity_plans import plan

from analysis.capacity.plan_file import PRICE, read_plan
from analysis.capacity.workload import day_rates, lognormal_tokens, workload_of
from loadgen.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
GOOD = """\
model: llama-3.1-8b
traffic:
  rate_rps: 13
lengths:
  prompt_tokens: 1300
  output_tokens: 250
slo:
  ttft_s: 0.5
"""


def said(text: str, tmp_path: Path, given: Any = ()) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_plan(path, given)
    return str(raised.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rate_rps: 13", "rate_rps: -1", "plan.yaml:3 traffic.rate_rps: expected > 0, got -1"),
        (
            "rate_rps: 13",
            "rate: 13",
            "plan.yaml:3 traffic.rate: unknown key, got 13; expected one of rate_rps",
        ),
        (
            "rate_rps: 13",
            "rate_rps: 13\n  mean_rps: 2",
            "plan.yaml:2 traffic: expected exactly one of rate_rps",
        ),
        (
            "prompt_tokens: 1300",
            f"prompt_tokens: {10**12}",
            "lengths.prompt_tokens: expected <= 1000000000, got 1000000000000",
        ),
        ("rate_rps: 13", "day: [1, 2]", "plan.yaml:3 traffic.day: expected at least 24 entries, got [1, 2]"),
        (
            "rate_rps: 13",
            f"day: {[0] * 24}",
            "plan.yaml:3 traffic.day: expected some hour with a rate above 0",
        ),
        (
            "rate_rps: 13",
            "rate_rps: 13\n  peak_to_mean: 2",
            "plan.yaml:4 traffic.peak_to_mean: expected mean_rps",
        ),
        (
            "rate_rps: 13",
            "trace: none.csv",
            "plan.yaml:3 traffic.trace: expected an existing file, got none.csv",
        ),
        ("ttft_s: 0.5", "percentile: 95", "plan.yaml:7 slo: expected at least one of ttft_s, tpot_s, e2e_s"),
        (
            "ttft_s: 0.5",
            "ttft_s: 0.5\n  percentile: 100",
            "plan.yaml:9 slo.percentile: expected < 100, got 100",
        ),
        (
            "  output_tokens: 250\n",
            "",
            "plan.yaml:4 lengths.output_tokens: expected prompt_tokens and output",
        ),
        ("llama-3.1-8b", "llama-3-8b", "did you mean 'llama-3.1-8b'?"),
        (
            "model:",
            "candidates: {gpus: [h100]}\nmodel:",
            "plan.yaml:1 candidates.gpus.0: expected one of h100-sxm",
        ),
        (
            "model:",
            "candidates: {dtypes: [bf16]}\nmodel:",
            "plan.yaml:1 candidates.dtypes.0: expected one of float32",
        ),
        (
            "model:",
            "arrivals: {law: gamma}\nmodel:",
            "plan.yaml:1 arrivals.burstiness: expected a shape for law gamma",
        ),
        ("model:", "arrivals: {law: trace}\nmodel:", "plan.yaml:1 arrivals.law: expected traffic.trace"),
        ("model:", "rank_by: cost\nmodel:", "price_per_gpu_h: expected a price of h100-sxm, h200-sxm"),
        ("model:", "grid: XX\nmodel:", "plan.yaml:1 grid: expected g CO2e per kWh, or one of NO, CH"),
        (
            "model:",
            "price_per_gpu_h: {l40: 1}\nmodel:",
            "plan.yaml:1 price_per_gpu_h.l40: expected one of h100-sxm",
        ),
        ("model:", "grid: -3\nmodel:", "plan.yaml:1 grid: expected g CO2e per kWh, or one of NO, CH"),
        ("rate_rps: 13", "rate_rps: 1e300", "plan.yaml:3 traffic.rate_rps: expected <= 1e+09, got 1e+300"),
        ("prompt_tokens: 1300", "prompt_tokens: 0", "plan.yaml:5 lengths.prompt_tokens: expected > 0, got 0"),
        (
            "ttft_s: 0.5",
            "ttft_s: 0.5\n  percentile: 0.95",
            "plan.yaml:9 slo.percentile: expected percent, such as 95, got 0.95",
        ),
        ("model:", "headroom: 1\nmodel:", "plan.yaml:1 headroom: expected < 1, got 1"),
        (
            "model:",
            "server: {launcher: {num_shard: 2}}\nmodel:",
            "expected candidates.shards to say how many",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, line: str) -> None:
    lines = said(GOOD.replace(old, new), tmp_path).splitlines()
    assert len(lines) == 1
    assert line in lines[0]


def test_every_mistake_has_its_line_and_a_flag_is_named_as_its_place(tmp_path: Path) -> None:
    lines = said(GOOD, tmp_path, [("headroom", "2", "--headroom"), ("traffic.rate_rps", "x", "--rate")])
    assert sorted(lines.splitlines()) == [
        "--headroom headroom: expected < 1, got 2",
        '--rate traffic.rate_rps: expected a number, got "x"',
    ]


def test_a_model_of_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    line = said(GOOD.replace("llama-3.1-8b", "config.json"), tmp_path)
    assert line.startswith("config.json")


def test_flags_stand_over_the_file_and_a_rate_replaces_its_traffic(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(GOOD.replace("rate_rps: 13", "mean_rps: 5\n  peak_to_mean: 2"))
    found = read_plan(path, [("traffic.rate_rps", "3", "--rate"), (PRICE, "l4=0.7", "--price")])
    assert found.traffic.rate_rps == 3 and found.traffic.mean_rps is None
    assert found.price_per_gpu_h == {"l4": 0.7}
    assert found.criterion == "energy"  # not every candidate has a price
    priced = plan({"candidates.gpus": "[l4]", "price_per_gpu_h": "{l4: 0.7}"})
    assert priced.criterion == "cost"


@pytest.mark.parametrize("name", ["chat_day", "chat_day.yaml", "scenarios/capacity/chat_day.yaml"])
def test_shipped_plans_are_found_by_name_and_read(name: str) -> None:
    assert read_plan(Path(name)).name == "chat_day"


def test_an_unknown_plan_names_the_near_shipped_one() -> None:
    with pytest.raises(ConfigError, match=r"no shipped plan; did you mean 'chat_day'\?"):
        read_plan(Path("chatday.yaml"))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "scenarios" / "capacity").glob("*.yaml")), ids=lambda f: f.stem
)
def test_shipped_plans_have_a_header_and_need_no_more_than_it_says(file: Path, tmp_path: Path) -> None:
    text = file.read_text()
    assert text.startswith("# Question:") and "# Takes:" in text and "# Needs:" in text
    trace = tmp_path / "t.csv"
    trace.write_text(AZURE)
    given = [("traffic.trace", str(trace), "--set")] if "trace:" in text else []
    assert read_plan(file, given).name == file.stem


def test_a_day_has_its_mean_and_its_peak_at_its_hour() -> None:
    rates = day_rates(40.0, 2.2, 14)
    assert rates.mean() == pytest.approx(40.0)
    assert rates.max() == pytest.approx(88.0)
    assert int(rates.argmax()) == 14 and rates.min() > 0
    assert rates[13] == pytest.approx(rates[15])
    assert day_rates(5.0, 1.0, 3) == pytest.approx(np.full(24, 5.0))


def test_lognormal_lengths_have_their_mean_and_variation() -> None:
    drawn = lognormal_tokens(1300, 0.8, 200_000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(1300, rel=0.01)
    assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.02)
    assert lognormal_tokens(1, 3.0, 1000, np.random.default_rng(1)).min() == 1


def test_gamma_arrivals_have_the_rate_and_burstiness_asked_for() -> None:
    asked = plan({"arrivals.law": "gamma", "arrivals.burstiness": 0.25})
    gaps_s = np.diff(workload_of(asked).jobs(5.0, 40_000, 0).demand_s)
    assert gaps_s.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(2.0, rel=0.05)


def test_a_limit_that_clients_ask_for_is_reserved_and_cuts_replies() -> None:
    asked = plan({"lengths.output_cv": 1.0, "lengths.max_new_tokens": 300})
    lengths = workload_of(asked).jobs(5.0, 2000, 0).lengths
    assert (lengths.max_new_tokens == 300).all()
    assert lengths.reply_tokens.max() == 300


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{m:02d}:{s:02d}.0000000,{100 * m + 10},{5 + s // 10}\n"
    for m in range(4)
    for s in range(0, 60, 30 if m < 2 else 10)
)
TRACED = {"traffic.rate_rps": None, "lengths.prompt_tokens": None, "lengths.output_tokens": None}


def test_a_trace_gives_rates_by_bin_and_its_own_gaps_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(AZURE)
    asked = plan({**TRACED, "traffic.trace": tmp_path / "t.csv", "traffic.bin_s": 60, "traffic.scale": 10})
    workload = workload_of(asked)
    demand = workload.demand
    # 2, 2, 6, 6 requests a minute, times ten; the end is that of the last request's own gap.
    assert demand.rates_rps[:3] == pytest.approx([1 / 3, 1 / 3, 1.0])
    assert float(demand.rates_rps @ demand.bins_s) == pytest.approx(160)
    assert workload.arrivals == "trace"
    # At its own rate: the recording, in its order, round and round, evenly within its bins.
    own_rps = demand.mean_rps / 10
    jobs = workload.jobs(own_rps, 160, 1)
    tokens = jobs.lengths.prompt_tokens
    assert np.bincount(tokens)[[10, 110, 210, 310]].tolist() == [20, 20, 60, 60]
    drops = np.flatnonzero(np.diff(tokens) < 0)
    assert np.diff(drops).tolist() == [16] * (len(drops) - 1)
    gaps_s = np.diff(jobs.demand_s)
    assert gaps_s.mean() == pytest.approx(1 / own_rps, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() < 0.35


def test_bins_without_number_are_refused(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:00:{s:02d}.0000000,100,7" for s in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    for bin_s in (1e-320, 1e-9):
        with pytest.raises(ConfigError, match=r"traffic\.bin_s: expected >= 0\.0003"):
            workload_of(plan({**TRACED, "traffic.trace": tmp_path / "t.csv", "traffic.bin_s": bin_s}))


@pytest.mark.parametrize("copies", [0.01, 0.4, 3.0, 3.5])
def test_a_replica_sees_a_share_of_a_trace_or_copies_of_it(tmp_path: Path, copies: float) -> None:
    """One burst of four a minute: a share of it is a smaller burst, copies of it come at other times."""
    rows = [f"2023-11-16 18:{m:02d}:0{s}.0000000,{100 + m},7" for m in range(30) for s in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    workload = workload_of(plan({**TRACED, "traffic.trace": tmp_path / "t.csv", "traffic.bin_s": 1e6}))
    own_rps = workload.demand.mean_rps
    jobs = workload.jobs(copies * own_rps, 4000, 1)
    assert len(jobs) == 4000 and jobs.demand_s[0] == 0
    assert 3999 / jobs.demand_s[-1] == pytest.approx(copies * own_rps, rel=0.08)
    together = float((np.diff(jobs.demand_s) < 1.01).mean())
    # Of a burst of four, three gaps are short; of a share p of it, the next within 1 s was seen with p.
    expected = {0.01: 0.0075, 0.4: 0.75 * 0.4}.get(copies, 0.75)
    assert together == pytest.approx(expected, abs=0.04 if copies < 1 else 0.25)
    again = workload.jobs(copies * own_rps, 4000, 1)
    assert np.array_equal(again.demand_s, jobs.demand_s)
    assert not np.array_equal(workload.jobs(copies * own_rps, 4000, 2).demand_s, jobs.demand_s)


def test_a_trace_at_one_instant_has_no_rate(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,5,5\n")
    with pytest.raises(ConfigError, match="expected requests at two instants or more"):
        workload_of(plan({**TRACED, "traffic.trace": tmp_path / "t.csv"}))


def test_lengths_of_a_dataset_are_its_own_pairs_and_unknown_replies_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "word " * n, "output_tokens": 3 * n} for n in (10, 20, 40)]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    keys = {"lengths.prompt_tokens": None, "lengths.output_tokens": None, "lengths.jsonl": path}
    lengths = workload_of(plan(keys)).jobs(1.0, 300, 0).lengths
    pairs = set(zip(lengths.prompt_tokens.tolist(), lengths.reply_tokens.tolist(), strict=True))
    assert {reply for _, reply in pairs} == {30, 60, 120} and len(pairs) == 3
    path.write_text(json.dumps({"prompt": "word"}))
    with pytest.raises(ConfigError, match=r"expected output_tokens in every record.*1 of 1 have none"):
        workload_of(plan(keys))
