"""Fleets by hand, what binds, shaping, what would change the answer, and the verb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capacity_plans import H100, plan, replica

from analysis.capacity.answer import Answer, Assessed, answer, assess, kinds_of
from analysis.capacity.binding import binding
from analysis.capacity.fleet import Fleet, fleet, replicas_for
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.replica import AT_ONCE, Fared, Hold, Replica, ReplicaType
from analysis.capacity.search import search
from analysis.capacity.shaping import shaping
from analysis.capacity.view import as_object
from analysis.capacity.workload import workload_of
from analysis.figures.capacity import capacity_pareto
from loadgen.cli import main
from loadgen.types import Estimate

DAY = {"traffic.rate_rps": None, "traffic.day": [10.0] * 6 + [0.0] * 6 + [4.0] * 12}
PRICED = {"price_per_gpu_h": "{h100-sxm: 4.02}", "candidates.gpus": "[h100-sxm]"}


class Ruled(Replica):
    """A replica that draws 100 W + 10 J a request, of which nine in ten are good."""

    def fare(self, rate_rps: float, n: int, stream: int, hold: Hold = AT_ONCE) -> Fared:
        joules = n * (100 / rate_rps + 10)
        return Fared(rate_rps, n, 9 * n // 10, 0, {}, joules, 0.0, 1, 0.1, n / rate_rps)


def ruled(keys: Mapping[str, Any]) -> tuple[CapacityPlan, Fleet]:
    asked = plan({"headroom": 0.2, "pue": 1.5, "grid": 100, **PRICED, **keys})
    real = replica(asked)
    five = Estimate(5.0, "1/s", 4.1, 6.4, 0.95, 10, "given")
    return asked, fleet(asked, H100, Ruled(real.deployment, real.workload, real.slo), five)


def test_a_fleet_by_hand() -> None:
    # 5/s less a fifth is 4/s a replica: 3 for 10/s, none for 0/s, 1 for 4/s.
    _, made = ruled({**DAY, "switch_off": "true"})
    assert made.replicas.tolist() == [3] * 6 + [0] * 6 + [1] * 12
    assert made.boards == 3 and made.board_hours_per_day == 30
    hour = 3600
    wanted = (6 * 10 + 12 * 4) * hour
    joules = 30 * hour * 100 + 10 * wanted
    assert made.per_good_j.value == pytest.approx(joules / (0.9 * wanted))
    assert made.per_good_wh.value == pytest.approx(joules / (0.9 * wanted) / 3600)
    assert made.per_good_cost.value == pytest.approx(4.02 * 30 / (0.9 * wanted))
    assert made.per_good_co2e_g.value == pytest.approx(joules / (0.9 * wanted) / 3.6e6 * 1.5 * 100)
    assert made.good_share.value == pytest.approx(0.9)
    assert made.operating_rps == pytest.approx(10 / 3)
    assert made.peak_w == pytest.approx(3 * 100 + 10 * 10)
    assert made.idle_w == pytest.approx(3 * 120)
    # At the ends of the highest rate's interval: 3.28/s takes 4 and 2, 5.12/s takes 2 and 1.
    assert made.per_good_cost.low == pytest.approx(4.02 * (6 * 2 + 12) / (0.9 * wanted))
    assert made.per_good_cost.high == pytest.approx(4.02 * (6 * 4 + 12 * 2) / (0.9 * wanted))


def test_replicas_that_stay_on_rest_at_their_idle_power() -> None:
    _, made = ruled({**DAY, "switch_off": "false"})
    assert made.replicas.tolist() == [3] * 24
    wanted = (6 * 10 + 12 * 4) * 3600
    joules = 3600 * (6 * 3 * 100 + 6 * 3 * 120 + 12 * 3 * 100) + 10 * wanted
    assert made.per_good_j.value == pytest.approx(joules / (0.9 * wanted))
    assert made.board_hours_per_day == 72


def test_headroom_takes_more_and_a_whole_number_is_not_rounded_up() -> None:
    rates = np.array([0.0, 4.0, 4.0001, 8.0, 12.0])
    assert replicas_for(rates, 5.0, 0.2).tolist() == [0, 1, 2, 2, 3]
    assert replicas_for(rates, 5.0, 0.0).tolist() == [0, 1, 1, 2, 3]
    assert replicas_for(np.array([30.0]), 10.0, 0.0).tolist() == [3]


def test_a_rate_however_low_takes_a_replica_that_rests_at_its_idle_power() -> None:
    assert replicas_for(np.array([0.0, 1e-12]), 5.0, 0.0).tolist() == [0, 1]
    asked = plan({"traffic.rate_rps": 1e-6})
    one = replica(asked)
    idle_w = one.deployment.gpu.context_idle_w
    made = fleet(asked, H100, one, Estimate(5.0, "1/s", 4.1, 6.4, 0.95, 10, "given"))
    assert idle_w < made.peak_w < 1.001 * idle_w
    assert made.per_good_j.value == pytest.approx(made.peak_w / 1e-6)


def test_without_price_or_grid_the_figures_are_missing_with_the_reason() -> None:
    _, made = ruled({"price_per_gpu_h": None, "grid": None})
    assert made.per_good_cost.value is None and "no price of h100-sxm" in made.per_good_cost.method
    assert made.per_good_co2e_g.value is None and "no grid" in made.per_good_co2e_g.method


@pytest.mark.parametrize(
    ("keys", "kind", "limit"),
    [
        ({}, H100, "tpot"),
        ({"slo.tpot_s": None, "slo.ttft_s": 0.12}, H100, "ttft"),
        ({"server.max_concurrent_requests": 8}, H100, "admission"),
        (
            {
                "lengths.prompt_tokens": 6000,
                "lengths.max_new_tokens": 1000,
                "slo.tpot_s": 1.0,
                "slo.ttft_s": 20,
                "candidates.gpus": "[rtx-4090]",
            },
            ReplicaType("rtx-4090", "bfloat16", 1),
            "kv",
        ),
    ],
)
def test_the_limit_that_binds_is_the_one_whose_relaxing_helps(
    keys: dict[str, Any], kind: ReplicaType, limit: str
) -> None:
    asked = plan({**keys, "search.requests": 300})
    one = replica(asked, kind)
    found = search(one)
    assert found is not None
    said = binding(asked, kind, one, found)
    assert said.limit == limit
    assert said.gains[limit] > 0.02
    assert said.sentence.startswith(
        {"kv": "KV memory", "admission": "the admission limit"}.get(limit, "the SLO's")
    )
    assert 0 < said.memory_utilisation < 1 and 0 < said.compute_utilisation < 1 and 0 < said.busy <= 1


def test_holding_requests_is_kept_only_if_the_slo_is() -> None:
    asked = plan({"shaping.gate_s": [2.0], "shaping.caps": [1], "shaping.buckets": [1.0]})
    one = replica(asked)
    found = search(one)
    assert found is not None
    said = shaping(asked, one, found, 4.0)
    by_name = {t.name: t for t in said.tried}
    assert list(by_name) == ["none", "gate 2 s", "cap 1", "bucket 1 at 4.71/s"]
    gate, cap, none = by_name["gate 2 s"], by_name["cap 1"], by_name["none"]
    assert none.keeps and none.ratio is not None and none.ratio.value == 1
    # A gate of 2 s holds 1 s on average: most are past the TTFT of half a second before they are sent.
    assert gate.hold_s == pytest.approx(1.0, rel=0.1) and gate.share < 0.5 and not gate.keeps
    assert not cap.keeps
    assert said.best in ("none", "bucket 1 at 4.71/s")
    assert said.at_max is not None and said.at_max < 1


SMALL = {
    "candidates.gpus": "[h100-sxm, l4]",
    "search.requests": 300,
    "price_per_gpu_h": "{h100-sxm: 4, l4: 1}",
}


@pytest.fixture(scope="module")
def small() -> tuple[CapacityPlan, Answer]:
    asked = plan(
        {**SMALL, "candidates.dtypes": "[bfloat16, fp8]", "candidates.gpus": "[h100-sxm, l4]", "grid": "FR"}
    )
    workload, kinds = workload_of(asked), kinds_of(asked)
    return asked, answer(workload, [assess(workload, kinds, k) for k in range(len(kinds))])


def test_candidates_are_ranked_and_the_others_have_their_reason(small: tuple[CapacityPlan, Answer]) -> None:
    _, found = small
    assert found.label == "simulated" and found.criterion == "cost"
    costs = [a.fleet.per_good_cost.value for a in found.ranked if a.fleet]
    assert costs == sorted(costs) and len(costs) == 2
    assert {a.name for a in found.left_out} == {"l4 bfloat16", "l4 fp8"}
    assert all(a.reason and "TPOT" in a.reason for a in found.left_out)
    sensible = found.sensitivity
    assert sensible is not None and sensible.next is not None and sensible.margin is not None
    assert sensible.margin == pytest.approx(costs[1] / costs[0] - 1)
    assert any("draws of the power constants" in line for line in sensible.sentences)
    low, high = sensible.best.power_j
    best = found.ranked[0].fleet
    assert best is not None and low < (best.per_good_j.value or 0) < high


def test_the_answer_survives_json(small: tuple[CapacityPlan, Answer]) -> None:
    asked, found = small
    sent = as_object(found, workload_of(asked))
    back = json.loads(json.dumps(sent, allow_nan=False))
    assert back == sent
    first = found.ranked[0]
    assert first.found is not None and first.fleet is not None
    assert back["ranked"][0]["max_rps"]["value"] == first.found.rate_rps
    assert back["ranked"][0]["fleet"]["replicas"] == first.fleet.replicas.tolist()
    assert back["plan"]["slo"]["tpot_s"] == 0.03
    assert back["left_out"][0]["reason"]


def test_what_does_not_fit_says_by_how_much_and_what_would(tmp_path: Path) -> None:
    asked = plan({"model": "llama-3.1-70b", "candidates.gpus": "[l40s]"})
    found = assess(workload_of(asked), kinds_of(asked), 0)
    assert found.fleet is None and found.reason is not None
    assert "weights 141.1 GB" in found.reason and "> 48.3 GB; fits with" in found.reason
    int8 = plan({"candidates.gpus": "[a100-sxm]", "candidates.shards": "[3]"})
    split = assess(workload_of(int8), kinds_of(int8), 0)
    assert split.reason is not None and "3" in split.reason and "\n" not in split.reason


def test_the_figure_names_the_candidates_and_their_front(small: tuple[CapacityPlan, Answer]) -> None:
    asked, found = small
    drawn = capacity_pareto(found, asked)
    assert drawn is not None
    (ax,) = drawn.figure.axes
    assert {t.get_text() for t in ax.texts} == {a.name for a in found.ranked}
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "USD per 1,000 good requests",
        "g CO2e per 1,000 good requests",
    )
    assert f"{len(found.ranked)} candidates" in drawn.alt
    assert capacity_pareto(replace(found, ranked=()), asked) is None


FLAGS = [
    "--prompt-tokens",
    "1300",
    "--output-tokens",
    "250",
    "--workers",
    "1",
    "--set",
    "search.requests=200",
]


def test_the_verb_answers_from_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "p.svg"
    words = [
        "capacity",
        "--rate",
        "15",
        "--tpot",
        "0.04",
        "--gpu",
        "h100-sxm",
        "--figure",
        str(picture),
        *FLAGS,
    ]
    assert main([*words, "--set", "search.seeds=2"]) == 0
    out = capsys.readouterr().out
    assert "2 replicas of h100-sxm bfloat16" in out and "simulated" in out
    assert "no other candidate can serve this" in out
    assert picture.read_text().startswith("<svg")


def test_the_verb_says_that_nothing_can_serve_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["capacity", "--rate", "9", "--tpot", "0.001", "--gpu", "h100-sxm", "--json", *FLAGS]
    assert main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ranked"] == [] and "p95 TPOT" in found["left_out"][0]["reason"]
    assert main(["capacity", "--rate", "9", "--tpot", "x", *FLAGS]) == 2
    assert '--tpot slo.tpot_s: expected a number, got "x"' in capsys.readouterr().err


def test_an_answer_without_candidates_has_no_best() -> None:
    asked = plan()
    found = answer(workload_of(asked), [Assessed(H100, "why not")])
    assert found.best is None and found.shaping is None and found.sensitivity is None
