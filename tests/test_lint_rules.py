"""Each rule of a run, put to runs made by hand: where it trips, where it holds, where it cannot judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_runs import constant, failed, lattice, power, record, run_of

from analysis import energy
from analysis.lint import Rule, Verdict, judge
from analysis.run import Run, build_run
from loadgen.types import Record, ServerSample

H100 = {"kind": "tgi", "model": "meta-llama/Llama-3.1-8B-Instruct", "gpu": "h100-sxm", "dtype": "bfloat16"}
LAYER_WEIGHTS, HEAD_WEIGHTS, PAIR_FLOP = 6_979_321_856, 525_336_576, 4 * 32 * 32 * 128
UNCACHED = {"launcher": {"prefix_caching": False}}


def verdict(run: Run) -> Verdict:
    return judge(run, energy.measure(run, np.array([0.0, run.end_s])) if run.end_s else {})


def said(run: Run, rule: str) -> Rule:
    """The one word of a rule on a run."""
    (found,) = [r for r in verdict(run).rules if r.id == rule]
    return found


def with_samples(run: Run, samples: list[ServerSample], records: list[Record]) -> Run:
    return build_run(run.path, run.manifest, records, (), (), (), samples)


def planned(records: list[Record], ids: list[str | None], warm: tuple[str, ...] = (), **manifest: Any) -> Run:
    """A run whose plan sends the prompts ``ids``."""
    plan = [{"id": k - len(warm), "phase": "warmup", "source_id": one} for k, one in enumerate(warm)]
    plan += [{"id": k, "phase": "measure", "source_id": one} for k, one in enumerate(ids)]
    whole = run_of(records, **manifest)
    return build_run(whole.path, whole.manifest, records, (), plan)


def load(**keys: Any) -> dict[str, Any]:
    return {"load": keys}


# --- failures in the denominator, timeouts ---


def test_failures_in_the_denominator_are_shown_both_ways() -> None:
    # 300 W for 100 s over 80 successes are 375 J or 104 mWh, over all 200 records 150 J or 41.7 mWh
    rows = [record(k, 0.5 * k) if k < 80 else failed(k, 0.5 * k) for k in range(200)]
    rule = said(run_of(rows, constant(300.0, 100.0), end_s=100.0), "failures-in-denominator")
    assert (rule.verdict, rule.figure, rule.bound) == ("warning", 0.4, 0.95)
    assert "104 mWh per success would read 41.7 mWh if failed requests were counted" in rule.sentence
    whole = said(run_of(lattice(200, 0.5)), "failures-in-denominator")
    assert (whole.verdict, whole.figure) == ("holds", 1.0)
    assert said(run_of([failed(0, 0.0)]), "failures-in-denominator").verdict == "not judged"


@pytest.mark.parametrize(
    ("ages_s", "word"),
    [
        ([30.0, 30.05, 30.1], "warning"),  # of 100 requests
        ([30.0, 30.05], "holds"),  # two may be chance
        ([5.0, 11.0, 30.0], "holds"),  # no common age
        ([0.01, 0.01, 0.01], "holds"),  # refused at once: no limit of time
        ([0.6, 0.6, 0.6], "holds"),  # many successes took longer
        ([], "holds"),
    ],
)
def test_failures_of_one_age_are_a_time_limit(ages_s: list[float], word: str) -> None:
    slow = [record(k, 0.5 * k, done_s=0.5 * k + (0.3 if k % 3 else 4.0)) for k in range(97)]
    gone = [failed(97 + k, 50.0, done_s=50.0 + age_s) for k, age_s in enumerate(ages_s)]
    rows = [*slow, *gone]
    rule = said(run_of(rows, scenario=load(timeout_s=30.0)), "common-timeout")
    assert rule.verdict == word
    if word == "warning":
        assert rule.figure == 0.03 and "after 30 s (the limit of load.timeout_s)" in rule.sentence
        elsewhere = said(run_of(rows, scenario=load(timeout_s=120.0)), "common-timeout")
        assert "after 30 s (the limit of a server or a proxy)" in elsewhere.sentence


# --- the client ---


def test_a_client_that_sends_at_nine_tenths_of_the_rate_is_saturated() -> None:
    rows = [record(k, 0.09 * k, sent_s=0.1 * k) for k in range(200)]
    rule = said(run_of(rows), "generator-saturated")
    assert rule.verdict == "warning" and rule.figure == pytest.approx(0.9)
    # medians of the first and last 40: 0.01 s x 19.5 and x 179.5
    assert "lateness grew by 1.6e+03 ms" in rule.sentence
    assert said(run_of(lattice(200, 0.1)), "generator-saturated").figure == 1.0


@pytest.mark.parametrize(
    ("late_s", "word"),
    [
        (5e-2 * np.linspace(0, 1, 200), "warning"),  # 19.9 s of sending take 19.95: only its growth tells
        (np.where(np.arange(200) == 199, 2.0, 0.0), "warning"),  # one straggler: only the rate tells
        (np.full(200, 2.0), "holds"),  # late all along, which is lateness' to say
        (4e-3 * np.linspace(0, 1, 200), "holds"),
    ],
)
def test_growing_lateness_and_a_missed_rate_each_tell_alone(late_s: np.ndarray, word: str) -> None:
    rows = [record(k, 0.1 * k, sent_s=0.1 * k + float(late)) for k, late in enumerate(late_s)]
    assert said(run_of(rows), "generator-saturated").verdict == word


@pytest.mark.parametrize(
    "manifest",
    [{"clock": "virtual"}, {"closed_loop": True}, {"scenario": load(max_in_flight=4, overflow="queue")}],
)
def test_what_is_not_the_clients_doing_is_not_judged(manifest: dict[str, Any]) -> None:
    rows = [record(k, 0.09 * k, sent_s=0.1 * k) for k in range(200)]
    found = verdict(run_of(rows, **manifest))
    words = {rule.id: rule.verdict for rule in found.rules}
    assert words["generator-saturated"] == words["lateness"] == "not judged"


def test_a_cap_that_held_requests_back_is_said_with_the_wait() -> None:
    # 50 requests at once through 5 places, each free again after 0.25 s: the k-th waits 0.25 floor(k / 5)
    rows = [record(k, 0.0, sent_s=0.25 * (k // 5)) for k in range(50)]
    capped = said(run_of(rows, scenario=load(max_in_flight=5)), "in-flight-cap")
    assert (capped.verdict, capped.figure) == ("warning", 0.9)
    assert "45 of 50 requests waited for a place, 1.25 s on average" in capped.sentence
    assert said(run_of(lattice(50, 1.0), scenario=load(max_in_flight=5)), "in-flight-cap").verdict == "holds"
    dropped = [*lattice(49, 1.0), record(49, 49.0, sent_s=None, done_s=None, first_s=None, status="dropped")]
    rule = said(run_of(dropped, scenario=load(max_in_flight=5, overflow="drop")), "in-flight-cap")
    assert rule.verdict == "warning" and "1 were dropped" in rule.sentence
    assert said(run_of(lattice(50, 1.0), closed_loop=True), "in-flight-cap").verdict == "not judged"


@pytest.mark.parametrize(("held", "word"), [(100, "warning"), (240, "holds")])
def test_a_pool_between_shows_where_the_server_knows_of_fewer(held: int, word: str) -> None:
    """300 requests in flight; a client with 100 connections sends 100 of them."""
    rows = [record(k, 0.0, done_s=20.0) for k in range(300)]
    looks = [ServerSample(t, running=held - 20.0, waiting=20.0) for t in np.arange(1.0, 19.0)]
    rule = said(with_samples(run_of(rows), looks, rows), "connection-pool")
    assert (rule.verdict, rule.figure) == (word, pytest.approx(held / 300))
    assert f"300 requests in flight on average, the server knew of {held}" in rule.sentence
    silent = [replace(look, running=None, waiting=None) for look in looks]
    assert said(with_samples(run_of(rows), silent, rows), "connection-pool").verdict == "not judged"
    few = rows[:9]
    assert "10 or more" in said(with_samples(run_of(few), looks, few), "connection-pool").sentence


@pytest.mark.parametrize(
    ("pattern", "keys", "word"),
    [
        ("uniform", {"low_s": 0.05, "high_s": 0.3}, "holds"),
        ("uniform_script", {"low_s": 0.05, "high_s": 0.3}, "holds"),
        ("constant", {"interval_s": 0.175}, "warning"),
        ("poisson", {"rate_rps": 5.7}, "warning"),
        ("gamma", {"rate_rps": 5.7, "burstiness": 5.9}, "holds"),  # CV 5.9**-0.5 = 0.412
        ("gamma", {"rate_rps": 5.7, "burstiness": 0.1}, "not judged"),
        ("trace", {}, "not judged"),
    ],
)
def test_the_spread_of_the_gaps_is_held_against_the_law_named(
    pattern: str, keys: dict[str, Any], word: str
) -> None:
    at_s = np.cumsum(np.random.default_rng(3).uniform(0.05, 0.3, 2000))
    rows = [record(k, float(t)) for k, t in enumerate(at_s)]
    rule = said(run_of(rows, scenario=load(pattern=pattern, **keys)), "arrival-gaps")
    assert rule.verdict == word
    if word != "not judged":
        # CV of U(a, b): (b - a) / 12**0.5 / ((a + b) / 2)
        assert rule.figure == pytest.approx(0.25 / 12**0.5 / 0.175, rel=0.03)


def test_the_studys_script_sums_draws_of_its_own_and_that_is_named() -> None:
    """theory.md A34: t_i is a sum of i draws for this request alone, so neighbours overtake each other."""
    rng = np.random.default_rng(4)
    at_s = np.sort([rng.uniform(0.05, 0.3, k + 1).sum() for k in range(1000)])
    rows = [record(k, float(t)) for k, t in enumerate(at_s)]
    scenario = load(pattern="uniform_script", low_s=0.05, high_s=0.3)
    rule = said(run_of(rows, scenario=scenario), "arrival-gaps")
    assert rule.verdict == "warning" and rule.bound == pytest.approx(0.4124, abs=1e-3)
    assert rule.figure == pytest.approx(float(np.diff(at_s).std() / np.diff(at_s).mean()), rel=1e-3)
    assert "each request sums draws of its own" in rule.sentence


# --- prompts and caches ---


@pytest.mark.parametrize(("cached", "word"), [(0.06, "warning"), (0.04, "holds")])
def test_the_servers_counter_tells_what_its_cache_saved(cached: float, word: str) -> None:
    rows = lattice(100, 0.5)
    looks = [ServerSample(-1.0, prompt_tokens=5000.0, output_tokens=0.0, cached_tokens=77.0)]
    end = ServerSample(
        60.0, prompt_tokens=125_000.0, output_tokens=1100.0, cached_tokens=77 + cached * 120_000
    )
    run = with_samples(run_of(rows), [*looks, end], rows)
    rule = said(run, "prefix-cache")
    assert (rule.verdict, rule.figure, rule.bound) == (word, pytest.approx(cached), 0.05)
    fell = replace(end, cached_tokens=0.0)
    assert said(with_samples(run, [*looks, fell], rows), "prefix-cache").verdict == "not judged"


def test_without_a_counter_only_a_server_without_a_cache_is_known() -> None:
    off = run_of(lattice(10, 1.0), server={"kind": "embedded"}, scenario={"server": UNCACHED})
    assert said(off, "prefix-cache").verdict == "holds"
    on = {"server": {"launcher": {"prefix_caching": True}}}
    kept = said(run_of(lattice(10, 1.0), server={"kind": "embedded"}, scenario=on), "prefix-cache")
    assert kept.verdict == "not judged" and "keeps prompts" in kept.sentence
    assert "is not known" in said(run_of(lattice(10, 1.0)), "prefix-cache").sentence


@pytest.mark.parametrize(("share", "word"), [(0.99, "warning"), (1.01, "holds")])
def test_a_first_token_before_the_prompts_flop_at_peak_shows_a_cache(share: float, word: str) -> None:
    flop = 2 * LAYER_WEIGHTS * 1200 + PAIR_FLOP * 1200 * 1201 / 2 + 2 * HEAD_WEIGHTS
    least_s = flop / 989e12  # 17.4 ms
    rows = [record(k, 0.5 * k, first_s=0.5 * k + share * least_s) for k in range(100)]
    rule = said(run_of(rows, server=H100), "prefill-floor")
    assert (rule.verdict, rule.figure) == (word, 1.0 if share < 1 else 0.0)
    assert said(run_of(rows), "prefill-floor").verdict == "not judged"
    halved = said(run_of(rows, server={**H100, "shards": 2}), "prefill-floor")
    assert halved.verdict == "holds"  # two boards need half the time
    hidden = said(run_of(rows, server={**H100, "dtype": None}), "prefill-floor")
    assert hidden.verdict == "holds"  # in FP8 too


def test_prompts_that_were_sent_before_are_counted_warm_ups_too() -> None:
    rows = lattice(100, 0.5)
    ids: list[str | None] = [f"p{k}" for k in range(100)]
    assert said(planned(rows, ids), "prompts-repeated").verdict == "holds"
    again = said(planned(rows, [f"p{k % 90}" for k in range(100)], ("p3", "p4")), "prompts-repeated")
    assert (again.verdict, again.figure) == ("warning", 0.12)  # 10 of the measured, and 2 of the warm-up
    uncached = {"server": {"kind": "embedded"}, "scenario": {"server": UNCACHED}}
    assert said(planned(rows, ["same"] * 100, **uncached), "prompts-repeated").verdict == "holds"
    assert said(planned(rows, [None] * 100), "prompts-repeated").verdict == "not judged"
    # Ids of its own on every line of a source do not hide that the texts are the same.
    whole = planned(rows, ids)
    hashed = [{**row, "prompt_hash": "5f0c"} for row in whole.plan]
    twice = build_run(whole.path, whole.manifest, rows, (), hashed)
    assert said(twice, "prompts-repeated").figure == 0.99
    assert said(run_of(rows), "prompts-repeated").verdict == "not judged"


# --- steady state ---


def test_a_window_with_its_warm_up_in_it_is_said_and_how_far_it_moves_the_mean() -> None:
    def joules(t_s: np.ndarray) -> np.ndarray:
        return 400.0 * t_s - 200.0 * np.minimum(t_s, 20.0)

    # 200 W for the first 20 of 100 s, 400 W after: a mean of 360 W, 10 % below the settled part
    readings = power(lambda t: np.where(t < 20, 200.0, 400.0), joules, 101.0)
    rule = said(run_of(lattice(1001, 0.1), readings, end_s=100.2), "warm-up")
    assert (rule.verdict, rule.figure) == ("warning", pytest.approx(-0.1, abs=0.002))
    assert "20 s of warm-up in 100 s of load" in rule.sentence
    steady = said(run_of(lattice(1001, 0.1), constant(400.0, 101.0)), "warm-up")
    assert (steady.verdict, steady.figure) == ("holds", pytest.approx(0.0, abs=1e-6))


def test_a_power_that_rises_all_the_time_is_no_steady_state() -> None:
    readings = power(lambda t: 200 + 2 * t, lambda t: 200 * t + t**2, 101.0)
    rule = said(run_of(lattice(1001, 0.1), readings, end_s=100.2), "warm-up")
    # 250 W in the first half of the load, 350 W in the second, 300 W over all
    assert (rule.verdict, rule.figure) == ("warning", pytest.approx(1 / 3, rel=0.01))
    assert "no steady state" in rule.sentence


@pytest.mark.parametrize("pattern", ["steps", "trace", "all_at_once"])
def test_a_load_that_is_not_meant_to_be_steady_is_not_judged(pattern: str) -> None:
    run = run_of(lattice(200, 0.1), scenario=load(pattern=pattern))
    assert {said(run, rule).verdict for rule in ("warm-up", "server-keeps-up")} == {"not judged"}
    assert said(run_of(lattice(20, 0.1)), "warm-up").verdict == "not judged"


def test_a_server_that_serves_half_of_what_is_offered_falls_behind() -> None:
    # one every 50 ms, one served every 100 ms: in flight grows by 10 a second, to 500 after 50 s
    rows = [record(k, 0.05 * k, done_s=0.1 * (k + 1), chunk_s=(), chunk_tokens=()) for k in range(1000)]
    rule = said(run_of(rows), "server-keeps-up")
    assert (rule.verdict, rule.figure) == ("warning", pytest.approx(0.5, abs=0.01))
    assert said(run_of(lattice(1000, 0.05)), "server-keeps-up").figure == pytest.approx(1.0, abs=1e-3)
    assert said(run_of(rows, closed_loop=True), "server-keeps-up").verdict == "not judged"


def test_a_figure_beyond_its_bound_does_not_stand_beside_holds() -> None:
    """Found: a share served of 0.87 held against a bound of 0.98, without why."""
    rows = [record(k, 0.1 * k, done_s=0.1 * k + 0.5 + 0.006 * k) for k in range(100)]  # 5 to 11 in flight
    rule = said(run_of(rows), "server-keeps-up")
    assert (rule.verdict, rule.figure, rule.bound) == ("holds", None, None)
    assert "10 would tell" in rule.sentence


def test_a_server_that_refuses_a_tenth_serves_less_than_is_offered() -> None:
    rows = [failed(k, 0.1 * k, "rejected") if k % 10 == 0 else record(k, 0.1 * k) for k in range(200)]
    rule = said(run_of(rows), "server-keeps-up")
    assert (rule.verdict, rule.figure) == ("warning", 0.9) and "refused 20 of 200" in rule.sentence


# --- floors ---


def test_floors_of_a_run_by_hand() -> None:
    # 1,000 requests of 1,200 and 52 tokens at 20 a second on one H100 at 79.2 W (arXiv 2601.22362)
    rows = [record(k, 0.05 * k, output_tokens=52) for k in range(1000)]
    run = run_of(rows, constant(79.2, 50.0), server=H100, end_s=50.0)
    each = {rule.id: rule for rule in verdict(run).rules}
    assert each["bare-idle-floor"].verdict == "holds"
    assert each["bare-idle-floor"].bound == pytest.approx(0.95 * 71.8)
    assert each["loaded-idle-floor"].verdict == "invalid"
    assert each["loaded-idle-floor"].bound == pytest.approx(0.95 * (71.8 + 26))
    assert each["flop-floor"].figure == pytest.approx(79.2 * 0.05)
    # what a cache may have saved is not counted: 51 passes over 1,201 to 1,251 tokens, 52 rows of the LM head
    flop = 51 * 2 * LAYER_WEIGHTS + PAIR_FLOP * sum(range(1201, 1252)) + 52 * 2 * HEAD_WEIGHTS
    floor_j = 97.8 * 0.05 + (200 - 97.8) * flop / 989e12
    assert each["flop-floor"].bound == pytest.approx(0.95 * floor_j, rel=1e-9)
    assert each["byte-floor"].verdict == "not judged"
    assert each["flop-floor-tdp"].verdict == "warning"
    assert each["power-limit"].bound == pytest.approx(735.0)
    below = verdict(run_of(rows, constant(60.0, 50.0), server=H100, end_s=50.0))
    assert {"bare-idle-floor", "loaded-idle-floor"} <= {rule.id for rule in below.with_word("invalid")}


def test_byte_floor_reads_the_weights_once_a_step_of_all_in_flight() -> None:
    rows = [record(k, float(k), output_tokens=52) for k in range(100)]  # one at a time
    embedded = {**H100, "kind": "embedded"}
    run = run_of(rows, constant(130.0, 100.0), server=embedded, scenario={"server": UNCACHED}, end_s=100.0)
    moved = 51 * 2 * LAYER_WEIGHTS + 131_072 * sum(range(1201, 1252))
    rule = said(run, "byte-floor")
    assert rule.bound == pytest.approx(0.95 * (97.8 + (200 - 97.8) * moved / 3.35e12), rel=1e-9)
    assert rule.verdict == "holds"  # 130 J against 0.95 x 119 J
    low = run_of(rows, constant(105.0, 100.0), server=embedded, scenario={"server": UNCACHED}, end_s=100.0)
    assert said(low, "byte-floor").verdict == "invalid"
    assert "below the byte floor" in said(low, "byte-floor").sentence


def test_without_a_known_board_only_its_own_idle_and_limit_are_judged() -> None:
    run = run_of(lattice(200, 0.5), constant(300.0, 100.0))
    words = {rule.id: rule.verdict for rule in verdict(run).rules}
    assert words["own-idle"] == "holds" and words["power-limit"] == "not judged"
    floors = ("bare-idle-floor", "loaded-idle-floor", "flop-floor", "byte-floor", "flop-floor-tdp")
    assert {words[rule] for rule in floors} == {"not judged"}


# --- energy that was read and is not known ---


def test_gpu_energy_that_was_read_in_vain_warns_and_holds_nothing() -> None:
    """Found on a run of one request, too short for its sensor: both rules held."""
    brief = run_of(lattice(200, 0.5), constant(300.0, 10.0), end_s=100.0)
    rule = said(brief, "energy-available")
    assert rule.verdict == "warning" and rule.sentence.startswith("energy of gpu is unavailable: ")
    assert said(brief, "energy-intervals").verdict == "not judged"
    whole = run_of(lattice(200, 0.5), constant(300.0, 100.5), end_s=100.0)
    assert said(whole, "energy-available").verdict == "holds"
    assert said(whole, "energy-intervals").sentence == "energy of gpu is known in blocks"
