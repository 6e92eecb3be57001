"""Runs set against a reference: known ratios, pairing, loads, labels, groups, and what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared_runs import ACTIVE_W, IDLE_W, arrivals, queue
from made_runs import run_of

import analysis
from analysis import latency
from analysis.compare import CompareError, Comparison, Headline, compare
from analysis.compare.headlines import FIGURES
from analysis.compare.shared import Pairing, shared
from analysis.energy import blocks_of, measure
from analysis.lint import judge
from analysis.run import Run, build_run, load_run
from analysis.summary import Facts
from loadgen.physics.boards import GPUS
from loadgen.physics.hardware import Efficiency
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import as_object
from loadgen.types import Domain

N, RATE = 240, 4.0
PROMPTS = np.random.default_rng(1).integers(200, 1800, N).tolist()
ENERGY = "energy_per_request_j"


def made(**options: Any) -> Run:
    return queue(arrivals(N, RATE, options.pop("gaps", 1)), PROMPTS, **options)


def row(found: Comparison, name: str = ENERGY) -> Headline:
    headline = found.headline(name)
    assert headline is not None
    return headline


@pytest.fixture(scope="module")
def quicker() -> Comparison:
    """The same requests at the same instants, B's server 20 % quicker on the same board."""
    return compare([made(name="a"), made(name="b", service_s=0.08)])


def test_a_quicker_server_saves_what_the_board_did_not_work(quicker: Comparison) -> None:
    energy, idle, active = (row(quicker, n) for n in (ENERGY, "idle_share_j", "active_share_j"))
    spared_j = ACTIVE_W * 0.02 * float(np.mean(PROMPTS)) / 1000
    assert active.differences[0].value == pytest.approx(-spared_j, rel=0.01)
    assert active.ratios[0].value == pytest.approx(0.8, rel=0.005)
    for i in (0, 1):  # the shares are of the energy, whatever the rate
        parts = (idle.values[i].value or 0.0) + (active.values[i].value or 0.0)
        assert parts == pytest.approx(energy.values[i].value or 0.0)
    # The last reply ends a little sooner, so the window of B is a little shorter.
    assert idle.values[0].value == pytest.approx(IDLE_W / RATE, rel=0.05)
    assert energy.told(0) and energy.label == "measured"
    assert energy.methods == ("paired by groups of requests",)


def test_at_equal_load_the_conclusion_is_of_the_runs_and_says_so(quicker: Comparison) -> None:
    one = quicker.against[0]
    assert one.paired and "the same 240 requests" in one.shared
    assert one.load.word == "cannot be told"  # 240 Poisson arrivals do not tell a rate to 5 %
    assert one.load.verdict.as_happened is True
    assert "b is 0.8" in one.conclusion and "cannot be told" in one.conclusion
    steady = compare([made(gaps=None, name="a"), made(gaps=None, name="b", service_s=0.08)]).against[0]
    assert steady.load.word == "equal"
    assert (
        "b used 11 %" in steady.conclusion
        and "less GPU energy per success (measured) than a" in steady.conclusion
    )
    assert "one pair of runs" in " ".join(steady.notes)


def test_unequal_loads_compare_load_and_shape_together() -> None:
    slow = queue(arrivals(N, RATE / 2, None), PROMPTS, name="slow")
    one = compare([made(gaps=None, name="fast"), slow])
    said = one.against[0]
    assert said.load.word == "not equal" and said.load.verdict.as_happened is False
    assert "NOT equal" in said.conclusion and " more GPU" not in said.conclusion
    # Half the rate spreads idle power over half the requests: 25 J more each, and the same work.
    assert row(one, "idle_share_j").differences[0].value == pytest.approx(IDLE_W / RATE, rel=0.03)
    assert row(one, "active_share_j").differences[0].value == pytest.approx(0.0, abs=0.2)


def test_a_longer_run_of_the_same_requests_a_second_bears_the_same_load() -> None:
    twice = queue(arrivals(2 * N, RATE, None), PROMPTS * 2, name="long")
    one = compare([made(gaps=None, name="short"), twice]).against[0]
    assert one.load.verdict.as_happened is True
    assert "240 requests" in one.load.shape and "480 requests" in one.load.shape
    assert "only 240 of 240 and 480 requests" in one.shared


def test_the_interval_of_the_energy_ratio_holds_the_truth() -> None:
    def facts(prompts: list[int], seed: int, service_s: float) -> Facts:
        run = queue(arrivals(len(prompts), RATE, seed), prompts, service_s=service_s)
        blocks = blocks_of(run)
        parts = measure(run, blocks.edges_s)
        return Facts(run, blocks, parts, judge(run, parts), {})

    energy = next(figure for figure in FIGURES if figure.name == ENERGY)
    truth = (IDLE_W / RATE + 0.05 * ACTIVE_W) / (IDLE_W / RATE + 0.1 * ACTIVE_W)
    rng, held = np.random.default_rng(6), []
    for k in range(12):
        prompts = rng.integers(200, 1800, 2 * N).tolist()
        found = Pairing(facts(prompts, 2 * k, 0.1), facts(prompts, 2 * k + 1, 0.05)).compared(energy)
        assert not isinstance(found, str) and found.ratio.low is not None and found.ratio.high is not None
        held.append(found.ratio.low <= truth <= found.ratio.high)
    assert sum(held) >= 10  # at 95 % fewer than 10 of 12 once in 50 choices of seeds


def test_a_run_against_itself_agrees_exactly_and_is_noticed() -> None:
    run = made(name="a")
    found = compare([run, run])
    assert {h.ratios[0].value for h in found.headlines} == {1.0}
    assert {h.differences[0].value for h in found.headlines} == {0.0}
    assert not any(h.told(0) for h in found.headlines)
    assert "was given 2 times" in found.notes[0]
    assert [side.name for side in found.sides] == ["a #1", "a #2"]
    assert found.listed == ()


def test_swapping_the_runs_turns_the_signs_and_inverts_the_ratios(quicker: Comparison) -> None:
    back = compare([side.runs[0] for side in reversed(quicker.sides)])
    for there in quicker.headlines:
        again = row(back, there.name)
        ratio, inverse = there.ratios[0], again.ratios[0]
        assert again.differences[0].value == pytest.approx(-(there.differences[0].value or 0.0))
        assert (inverse.value or 0.0) * (ratio.value or 0.0) == pytest.approx(1.0)
        if ratio.low is not None and ratio.low > 0:
            assert ratio.low * (inverse.high or 0.0) == pytest.approx(1.0, rel=1e-3)
        assert there.p_adjusted[0] == pytest.approx(again.p_adjusted[0])


def test_other_prompts_or_drawn_ones_of_another_seed_are_not_paired() -> None:
    a = made(name="a")
    longer = queue(arrivals(N, RATE, 1), [p + 1 for p in PROMPTS], name="b")
    assert "not paired: the runs share no request" in shared(a, longer).sentence
    assert "drawn by seed, 0 and 7" in shared(a, made(name="b", seed=7)).sentence
    assert row(compare([a, longer])).methods == ("unpaired",)
    unplanned = run_of([])
    assert "no plan" in shared(a, unplanned).sentence


def test_equal_texts_are_the_same_requests_whatever_their_source_calls_them(
    fixed_run: Path, poisson_run: Path
) -> None:
    a, b = (load_run(path) for path in (fixed_run, poisson_run))
    assert shared(a, b).sentence.endswith("the texts' hashes, token counts and limits are equal")
    renamed = [{**row, "source_id": None} for row in b.plan]
    assert shared(a, build_run(b.path, b.manifest, [], (), renamed)).same
    other = [{**row, "prompt_hash": "0" * 16} if row["id"] == 7 else row for row in b.plan]
    assert "not paired" in shared(a, build_run(b.path, b.manifest, [], (), other)).sentence


def test_failures_unpair_what_only_one_run_has() -> None:
    found = compare([made(name="a"), made(name="b", fails=frozenset({3, 50}))])
    assert found.against[0].paired
    assert "2 requests have this latency in one of the runs only" in row(found, "mean_ttft").methods[0]
    assert "not every request succeeded" in row(found).methods[0]
    assert "success ratio: 0.9917 times" in " ".join(found.against[0].load.verdict.sentences)


def test_paired_latencies_are_those_of_the_summary(quicker: Comparison) -> None:
    side = quicker.sides[1]
    ttft_s = latency.samples(side.runs[0])["ttft"].value_s
    assert row(quicker, "mean_ttft").values[1].value == pytest.approx(float(ttft_s.mean()))
    a_s = latency.samples(quicker.sides[0].runs[0])["ttft"].value_s
    assert row(quicker, "p50_ttft").differences[0].value == pytest.approx(
        float(np.median(ttft_s) - np.median(a_s))
    )
    assert row(quicker, "p50_ttft").methods == ("paired by request",)
    assert row(quicker, "p99_e2e").methods[0].startswith("unpaired: a tail")


def test_runs_that_repeat_a_scenario_are_one_side_and_pair_by_seed() -> None:
    runs = []
    for seed in (1, 2, 3):
        prompts = np.random.default_rng(seed).integers(200, 1800, N).tolist()
        for name, service_s in (("a", 0.1), ("b", 0.08)):
            at_s = arrivals(N, RATE, None)
            when = {"wall_utc": f"2026-01-01T0{len(runs)}:00:00+00:00"}
            runs.append(queue(at_s, prompts, name=name, seed=seed, service_s=service_s, anchors=when))
    found = compare(runs)
    assert [len(side.runs) for side in found.sides] == [3, 3]
    energy, one = row(found), found.against[0]
    assert energy.methods == ("runs paired by seed",)
    assert one.paired and "each pair had the same requests" in one.shared
    assert one.load.word == "equal"
    single = [row(compare([runs[i], runs[i + 1]])).differences[0].value or 0.0 for i in (0, 2, 4)]
    assert energy.differences[0].value == pytest.approx(float(np.mean(single)))
    assert energy.values[0].n == 3 and energy.ratios[0].low is not None
    assert any("3 pairs of runs: 5 or more are preferred" in note for note in one.notes)
    assert not any("not taken in turn" in note for note in one.notes)
    by_hand = compare(groups={"slow": runs[0::2], "quick": runs[1::2]})
    assert row(by_hand).ratios[0].value == pytest.approx(energy.ratios[0].value or 0.0)
    assert by_hand.sides[0].why == "as grouped by hand"
    unequal = compare(groups={"slow": runs[0::2], "quick": runs[1:4:2]})
    assert row(unequal).methods == ("independent runs",)


def test_runs_one_after_the_other_are_said_not_to_be_in_turn() -> None:
    at_s = arrivals(N, RATE, None)
    runs = [
        queue(at_s, PROMPTS, name=n, seed=s, anchors={"wall_utc": f"2026-01-01T0{h}:00:00+00:00"})
        for h, (n, s) in enumerate([("a", 1), ("a", 2), ("b", 3), ("b", 4)])
    ]
    one = compare(runs).against[0]
    assert any("not taken in turn" in note for note in one.notes)
    assert "in order of their start" in row(compare(runs)).methods[0]


def test_gain_cancels_on_the_same_board_only() -> None:
    a = made(name="a", server={"kind": "tgi", "gpu": "h100-sxm", "model": None})
    same = compare([a, made(name="b", server={"kind": "tgi", "gpu": "h100-sxm", "model": None})]).against[0]
    assert not isinstance(same.systematic, str) and same.systematic.standard < 0.01
    board = [{"domain": "gpu0", "index": 0, "name": "made", "power_limit_w": 700.0, "uuid": "GPU-b"}]
    other = compare([a, made(name="b", gpus=board, server={"kind": "tgi", "gpu": "h100-sxm", "model": None})])
    found = other.against[0].systematic
    # Two boards, 5 % each, rectangular: sqrt(2) x 0.05 / sqrt(3).
    assert not isinstance(found, str) and found.standard == pytest.approx(0.0408, abs=0.001)
    shown = made(name="b", gpus=board, gain=1.03, server={"kind": "tgi", "gpu": "h100-sxm", "model": None})
    hidden = compare([a, shown])
    assert (
        row(hidden).told(0)
        and "systematic uncertainty of the ratio is +-8.2 %" in hidden.against[0].conclusion
    )
    assert any("gain does not cancel" in note for note in other.against[0].notes)
    assert ("hardware", "gpu0.uuid") in [(one.section, one.key) for one in other.listed]
    assert "differ in more than their load: hardware gpu0.uuid" in other.against[0].conclusion
    nameless = compare([a, made(name="b", gpus=[])]).against[0]
    assert any("UUIDs are not known" in note for note in nameless.notes)


def test_labels_that_differ_are_said_and_estimates_are_not_tested() -> None:
    watched = made(name="a")
    guessed = made(
        name="b", domains=(Domain("gpu0", "estimated"), Domain("gpu0.instant", "estimated", 0.025))
    )
    found = compare([watched, guessed])
    assert row(found).label == "measured / estimated"
    assert row(found).p == (None,)
    assert any("labels are mixed: a is measured, b estimated" in note for note in found.against[0].notes)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: made(name="b", powered=False), "no power source on this machine"),
        (lambda: made(name="b", fails=frozenset(range(N))), "denominator is 0"),
        (lambda: run_of([], name="b"), "no request ended"),
        (lambda: queue(np.zeros(1), [900], name="b"), "one side has none"),
        (lambda: run_of([], name="b", status="running", power=None, server=None), "no request ended"),
    ],
)
def test_what_is_missing_is_a_sentence(other: Callable[[], Run], words: str) -> None:
    found = compare([made(name="a"), other()])
    energy = row(found)
    assert words in energy.ratios[0].method
    assert energy.p == (None,) and not energy.told(0)
    assert found.against[0].conclusion
    values = [
        x for h in found.headlines for e in (*h.values, *h.ratios, *h.differences) for x in (e.value, e.low)
    ]
    assert not any(x is not None and np.isnan(x) for x in values)
    assert compare([other(), made(name="a")]).against[0].conclusion


def test_invalid_runs_are_compared_and_marked() -> None:
    found = compare([made(name="a"), made(name="b", status="interrupted")])
    assert not found.valid and found.sides[0].valid and not found.sides[1].valid
    assert found.against[0].conclusion.startswith("b is invalid (")
    assert row(found).ratios[0].value == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    run = made(name="a")
    for call, words in (
        (lambda: compare([run]), "at least two"),
        (lambda: compare([run, run], tolerance=0.0), "between 0 and 1"),
        (lambda: compare([run], groups={"a": [run], "b": [run]}), "got both"),
        (lambda: compare(groups={"a": [run], "b": []}), "group b"),
    ):
        with pytest.raises(CompareError, match=words):
            call()


def test_goodput_is_compared_under_one_slo_only() -> None:
    strict, loose = ({"ttft_s": 0.12, "tpot_s": None, "e2e_s": limit} for limit in (None, 0.5))
    same = compare([made(name="a", slo=strict), made(name="b", slo=strict, service_s=0.05)])
    assert (row(same, "goodput_ratio").differences[0].value or 0.0) > 0
    assert compare([made(name="a", slo=strict), made(name="b", slo=loose)]).headline("goodput_ratio") is None


def test_fixed_against_poisson_on_the_embedded_server(fixed_run: Path, poisson_run: Path) -> None:
    found = compare([analysis.load(fixed_run), analysis.load(poisson_run)])
    assert found.valid and found.against[0].paired
    energy = row(found)
    assert energy.label == "simulated" and energy.methods == ("paired by groups of requests",)
    # Poisson gaps share steps that even ones do not: less work a request, at 1 % more rate.
    assert energy.told(0) and (energy.ratios[0].value or 1.0) < 0.95
    assert (row(found, "active_share_j").ratios[0].high or 1.0) < 0.9
    assert (row(found, "mean_ttft").differences[0].low or 0.0) > 0
    assert {one.section for one in found.listed} == {"load"}
    assert "200 requests, mean gap 0.5 s, gap CV 0" in found.against[0].load.shape
    assert row(found, "cpu_energy_per_request_j").label == "estimated"
    systematic = found.against[0].systematic
    assert not isinstance(systematic, str) and any("simulated board" in m for m in systematic.missing)


def test_a_calibrated_board_differs_by_its_constants_not_by_what_is_told_of_them() -> None:
    """Found: against a board of the table every line of a profile was listed, its runs as nested lists."""
    table = {"kind": "embedded", "gpu": "h100-sxm", "model": "llama-3.1-8b"}
    profile = as_object(Profile(replace(GPUS["h100-sxm"], active_w=190.0), Efficiency(), "h100-sxm"))
    mine = {**table, "gpu": "my.json", "profile": profile}
    found = compare([made(server=table), made(name="b", server=mine)])
    assert [(one.key, one.values) for one in found.listed] == [
        ("gpu", ("h100-sxm", "my.json")),
        ("board.active_w", ("200", "190")),
    ]
    assert compare([made(server=mine), made(name="b", server=mine)]).listed == ()
