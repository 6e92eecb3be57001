"""Published figures held against physics: the study's own, and what each rule needs to be told.

Expected figures are worked out by hand from theory.md: 6.979e9 weights in the
layers of an 8B model, 525,336,576 in its LM head, 4 x 32 x 32 x 128 FLOP a pair.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import floor
from analysis.claims.claim import Range, parse_claim
from analysis.claims.judgement import Finding, Judgement
from analysis.claims.rules import RULES, judge
from loadgen.arrivals import Uniform, UniformScript
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS

STUDY = {
    "gpu": "h100-sxm",
    "model": "llama-3.1-8b",
    "dtype": "bfloat16",
    "prompt_tokens": "1200",
    "output_tokens": "52",
}
UNIFORM = {"low_s": "0", "high_s": "1"}
SCRIPT = {"spacing": "uniform_script", "low_s": "0.05", "high_s": "0.3"}
LAYER_WEIGHTS, HEAD_WEIGHTS, PAIR_FLOP = 6_979_321_856, 525_336_576, 4 * 32 * 32 * 128


def judged(**stated: object) -> Judgement:
    words = {**STUDY, **{key: str(value) for key, value in stated.items()}}
    return judge(parse_claim([f"{key}={value}" for key, value in words.items() if value != "-"]))


def found(judgement: Judgement, rule: str) -> Finding:
    return next(finding for finding in judgement.findings if finding.rule == rule)


def wh(joules: float | None) -> float:
    assert joules is not None
    return joules / 3600


# --- the study's figures (theory.md A31-A33) ---


def test_1_1e_3_wh_at_50_ms_is_below_the_loaded_idle_floor_whatever_was_cached() -> None:
    judgement = judged(energy_wh=1.1e-3, interval_s=0.05)
    assert not judgement.possible
    idle = found(judgement, "loaded-idle-floor")
    assert idle.status == "impossible"
    assert "below the loaded-idle floor whatever was cached" in idle.reason
    assert "79.2 W for the board" in idle.reason  # theory.md, table C
    assert "120 W (1.67 mWh) as a rule" in idle.reason  # 120 W x 0.05 s = 1.667e-3 Wh
    # energy.md: loaded idle 98-153 W is 1.4-2.1e-3 Wh, bare idle 71.8 W 1.0e-3 Wh
    assert wh(idle.bound) == pytest.approx(97.8 * 0.05 / 3600)
    assert found(judgement, "bare-idle-floor").status == "holds"
    assert wh(found(judgement, "bare-idle-floor").bound) == pytest.approx(1.0e-3, rel=0.01)


def test_1_1e_3_wh_at_50_ms_is_below_the_flop_floor_unless_prompts_were_cached() -> None:
    judgement = judged(energy_wh=1.1e-3, interval_s=0.05)
    flop = found(judgement, "flop-floor")
    assert flop.status == "conditional"
    assert flop.unless == ("prompts were cached",)
    assert "below the FLOP floor unless prompts were cached" in flop.reason
    assert judgement.verdict == (
        "impossible: below the loaded-idle floor whatever was cached; "
        "below the FLOP floor unless prompts were cached"
    )
    # by hand: prompt and 51 further rows, their pairs, and 52 rows of the LM head, at 989 TFLOP/s
    pairs = 1200 * 1201 / 2 + sum(1200 + j for j in range(1, 52))
    busy_s = (2 * LAYER_WEIGHTS * 1251 + PAIR_FLOP * pairs + 2 * HEAD_WEIGHTS * 52) / 989e12
    assert wh(flop.bound) == pytest.approx((71.8 * 0.05 + (200 - 71.8) * busy_s) / 3600, rel=1e-3)
    full = found(judgement, "flop-floor-tdp")
    assert full.status == "doubtful"
    # theory.md: 2 x 6.979e9 x 1200 FLOP at peak and 700 W is 3.29e-3 Wh for the prefill's products alone
    assert 1.0 < wh(full.bound) / 3.29e-3 < 1.1


@pytest.mark.parametrize("knowledge", [{"prefix_cache": "off"}, {"cached_tokens": 0}])
def test_without_a_cache_the_flop_floor_alone_rules_it_out(knowledge: dict[str, object]) -> None:
    flop = found(judged(energy_wh=1.1e-3, interval_s=0.05, **knowledge), "flop-floor")
    assert (flop.status, flop.unless) == ("impossible", ())
    assert flop.reason.startswith("below the FLOP floor: ")


def test_with_the_whole_prompt_cached_only_idle_rules_it_out() -> None:
    judgement = judged(energy_wh=1.1e-3, interval_s=0.05, cached_tokens=1199)
    assert found(judgement, "flop-floor").status == "holds"
    assert judgement.verdict == "impossible: below the loaded-idle floor whatever was cached"


def test_9_6e_3_wh_is_impossible_at_the_stated_spacing() -> None:
    judgement = judged(energy_wh=9.6e-3, **UNIFORM)
    idle = found(judgement, "loaded-idle-floor")
    assert not judgement.possible
    assert idle.status == "impossible"
    assert "69.1 W for the board" in idle.reason  # theory.md A32: 69 W mean < 120 W idle
    assert found(judgement, "flop-floor-tdp").status == "holds"


def test_9_6e_3_wh_is_plausible_at_the_scripts_spacing() -> None:
    judgement = judged(energy_wh=9.6e-3, **SCRIPT)
    assert judgement.possible
    assert judgement.verdict == "possible: within all 6 bounds judged"
    assert "197 W" in found(judgement, "mean-power").reason  # theory.md A32
    assert {f.status for f in judgement.findings} == {"holds"}


def test_2_4e_2_wh_on_4_boards_is_below_bare_idle_as_stated_and_not_with_the_scripts_spacing() -> None:
    big = {"model": "llama-3.1-70b", "gpus": 4, "energy_wh": 2.4e-2}
    stated = judged(**big, **UNIFORM)
    assert not stated.possible
    bare = found(stated, "bare-idle-floor")
    assert bare.status == "impossible"
    assert "43.2 W for each of 4 boards" in bare.reason  # theory.md A33
    scripted = judged(**big, **SCRIPT)
    assert scripted.possible
    assert "123 W" in found(scripted, "mean-power").reason  # theory.md A33


@pytest.mark.parametrize("law", ["uniform", "uniform_script"])
def test_mean_spacing_of_a_uniform_law_is_that_of_its_arrivals(law: str) -> None:
    laws = {"uniform": Uniform(0.05, 0.3), "uniform_script": UniformScript(0.05, 0.3)}
    claim = parse_claim(["gpu=l4", "energy_wh=1", f"spacing={law}", "low_s=0.05", "high_s=0.3"])
    times = laws[law].times(20_000, np.random.default_rng(5))
    assert claim.interval_s == pytest.approx(float(times[-1]) / len(times), rel=0.02)
    assert claim.spacing == f"{law}(0.05, 0.3)"


# --- each rule ---


def test_transformers_baseline_at_50_ms_exceeds_the_power_limit() -> None:
    judgement = judged(energy_wh=0.12, interval_s=0.05)
    power = found(judgement, "mean-power")
    assert (power.status, power.unit) == ("impossible", "W")
    assert (power.bound, power.sure) == (700.0, 735.0)
    assert judgement.verdict == "impossible: above the power limit"


@pytest.mark.parametrize(("watts", "status"), [(734.0, "holds"), (736.0, "impossible")])
def test_power_limit_allows_for_the_sensors_gain(watts: float, status: str) -> None:
    power = found(judged(energy_wh=watts * 0.5 / 3600, interval_s=0.5), "mean-power")
    assert power.status == status


@pytest.mark.parametrize(
    ("watts", "status"), [(97.9, "holds"), (97.0, "doubtful"), (90.0, "doubtful"), (89.0, "impossible")]
)
def test_just_below_idle_is_doubted_before_it_is_impossible(watts: float, status: str) -> None:
    # 0.95 x (71.8 / 1.05 + 26) = 89.66 W: sensor gain and the idle figure's own 5 %
    idle = found(judged(energy_wh=watts * 0.5 / 3600, interval_s=0.5), "loaded-idle-floor")
    assert idle.status == status


def test_byte_floor_reads_weights_once_a_step_and_every_context() -> None:
    one = found(judged(energy_wh=1.0, interval_s=10, prefix_cache="off", max_in_flight=1), "byte-floor")
    contexts = sum(1200 + j for j in range(1, 52))
    moved = 51 * 2 * LAYER_WEIGHTS + 131_072 * contexts  # 128 KiB of keys and values a token
    assert one.bound == pytest.approx(71.8 * 10 + (200 - 71.8) * moved / 3.35e12, rel=1e-12)
    more = found(judged(energy_wh=1.0, interval_s=10, prefix_cache="off", max_in_flight=8), "byte-floor")
    unknown = found(judged(energy_wh=1.0, interval_s=10, prefix_cache="off"), "byte-floor")
    assert one.bound is not None
    assert more.bound is not None
    assert unknown.bound is not None
    assert one.bound > more.bound > unknown.bound


def by_moving(moved_bytes: float, interval_s: float = 10.0) -> float:
    return 71.8 * interval_s + (200 - 71.8) * moved_bytes / 3.35e12


def test_byte_floor_lets_no_more_requests_share_a_step_than_memory_holds() -> None:
    bound = found(judged(energy_wh=1.0, interval_s=10, prefix_cache="off"), "byte-floor").bound
    kv_bytes = 131_072 * sum(1200 + j for j in range(1, 52))
    room = 81_559 * 2**20 - 2 * 8_030_261_248  # an H100 less the weights of 8.03e9 parameters
    assert bound == pytest.approx(by_moving(2 * LAYER_WEIGHTS * kv_bytes / room + kv_bytes), rel=1e-12)


def test_byte_floor_takes_no_more_steps_than_tokens() -> None:
    long = {"prompt_tokens": 1_000_000, "prefix_cache": "off"}  # 131 GB of keys and values
    bound = found(judged(energy_wh=1.0, interval_s=10, **long), "byte-floor").bound
    kv_bytes = 131_072 * sum(1_000_000 + j for j in range(1, 52))
    assert bound == pytest.approx(by_moving(51 * 2 * LAYER_WEIGHTS + kv_bytes), rel=1e-12)


def test_byte_floor_counts_of_a_cached_prompt_only_what_is_the_requests_own() -> None:
    bound = found(
        judged(energy_wh=1.0, interval_s=10, cached_tokens=1199, max_in_flight=1), "byte-floor"
    ).bound
    kv_bytes = 131_072 * sum(1 + j for j in range(1, 52))
    assert bound == pytest.approx(by_moving(51 * 2 * LAYER_WEIGHTS + kv_bytes), rel=1e-12)


def test_impossible_leaves_room_for_gain_and_for_both_powers_uncertainty() -> None:
    flop = found(judged(energy_wh=1.1e-3, interval_s=0.05), "flop-floor")
    assert flop.bound is not None
    busy_s = (flop.bound - 71.8 * 0.05) / (200 - 71.8)
    bare_w, active_w = 71.8 / 1.05, 200 / 1.10
    assert flop.sure == pytest.approx(0.95 * (bare_w * 0.05 + (active_w - bare_w) * busy_s), rel=1e-12)


def test_byte_floor_is_certain_for_the_weights_of_unspeculated_steps_alone() -> None:
    tight = {"interval_s": 0.3, "prompt_tokens": 2, "output_tokens": 52, "max_in_flight": 1}
    # 51 passes over 13.96 GB take 212 ms at 3.35 TB/s: (71.8 x 0.3 + 128.2 x 0.2125) J = 13.5e-3 Wh
    low = 10.0e-3
    assert found(judged(energy_wh=low, **tight, speculation="off"), "byte-floor").status == "impossible"
    open_ = found(judged(energy_wh=low, **tight), "byte-floor")
    assert open_.status == "conditional"
    assert "tokens were speculated" in open_.unless


def test_float32_may_have_run_in_tf32() -> None:
    flop = found(judged(energy_wh=0.012, interval_s=0.3, dtype="float32", prefix_cache="off"), "flop-floor")
    assert (flop.status, flop.unless) == ("conditional", ("the products ran in TF32",))


@pytest.mark.parametrize(
    ("dtype", "unless"),
    [
        ("int4", "the products ran in INT8"),
        ("float16", "the products were summed in FP16"),
        ("bfloat16", None),
    ],
)
def test_a_geforce_board_may_have_computed_twice_as_fast(dtype: str, unless: str | None) -> None:
    """Found: 165.2 TFLOP/s was held against kernels that reach 330.3 (FP16 sums) or 660.6 (INT8)."""
    stated = {"gpu": "rtx-4090", "dtype": dtype, "prompt_tokens": 500, "output_tokens": 200}
    flop = found(judged(energy_wh=5.5e-3, interval_s=1.0, prefix_cache="off", **stated), "flop-floor")
    assert (flop.status, flop.unless) == (("conditional", (unless,)) if unless else ("impossible", ()))


@pytest.mark.parametrize(("share", "status"), [(0.99, "impossible"), (1.01, "conditional")])
def test_tf32_runs_at_half_the_16_bit_rate(share: float, status: str) -> None:
    pairs = 1200 * 1201 / 2 + sum(1200 + j for j in range(1, 52))
    busy_s = (2 * LAYER_WEIGHTS * 1251 + PAIR_FLOP * pairs + 2 * HEAD_WEIGHTS * 52) / (989e12 / 2)
    bare_w, active_w = 71.8 / 1.05, 200 / 1.10
    floor_j = 0.95 * (bare_w * 0.3 + (active_w - bare_w) * busy_s)
    stated = {
        "energy_wh": share * floor_j / 3600,
        "interval_s": 0.3,
        "dtype": "float32",
        "prefix_cache": "off",
    }
    assert found(judged(**stated), "flop-floor").status == status


def test_without_a_spacing_the_work_alone_bounds_a_figure() -> None:
    judgement = judged(energy_wh=0.5e-3)
    assert [f.rule for f in judgement.findings if f.status == "not judged"] == [
        "bare-idle-floor",
        "loaded-idle-floor",
        "mean-power",
    ]
    flop = found(judgement, "flop-floor")
    assert flop.status == "conditional"
    assert wh(flop.bound) == pytest.approx(200 * 18.13e-3 / 3600, rel=0.01)
    assert judgement.possible
    assert judgement.verdict.startswith("possible, but below the FLOP floor unless prompts were cached")


def test_what_is_not_claimed_is_not_judged_and_says_what_is_missing() -> None:
    judgement = judge(parse_claim(["gpu=a100-sxm", "energy_wh=1e-2", "interval_s=0.5"]))
    reasons = {f.rule: f.reason for f in judgement.findings if f.status == "not judged"}
    assert reasons["flop-floor"] == "not judged: model and prompt_tokens not claimed"
    assert (
        reasons["byte-floor"]
        == "not judged: model and prompt_tokens not claimed, dtype and output_tokens not claimed"
    )
    assert "was not measured" in reasons["loaded-idle-floor"]  # an A100's idle with a context is assumed
    assert judgement.verdict == "possible: within all 2 bounds judged"


def test_a_hidden_number_format_gets_the_boards_fastest_rate() -> None:
    known = found(judged(energy_wh=1, interval_s=1, dtype="fp8"), "flop-floor")
    hidden = found(judged(energy_wh=1, interval_s=1, dtype="-"), "flop-floor")
    assert hidden.bound == known.bound


def test_every_finding_carries_equation_reference_and_reason() -> None:
    judgement = judged(energy_wh=1.1e-3, interval_s=0.05)
    assert len(judgement.findings) == len(RULES) == len({f.rule for f in judgement.findings})
    for finding in judgement.findings:
        assert finding.equation.startswith("E ")
        assert finding.reference
        assert finding.bound is not None
        assert finding.reason


# --- properties ---

ENERGIES = st.floats(1e-5, 10.0)
INTERVALS = st.floats(1e-3, 100.0)
_SEVERITY = ["holds", "doubtful", "conditional", "impossible"]


@settings(max_examples=60, deadline=None)
@given(
    energy_wh=ENERGIES,
    factor=st.floats(1.0, 100.0),
    interval_s=INTERVALS,
    cache=st.sampled_from(["on", "off", "unknown"]),
)
def test_more_energy_is_never_further_below_a_floor(
    energy_wh: float, factor: float, interval_s: float, cache: str
) -> None:
    low = judged(energy_wh=energy_wh, interval_s=interval_s, prefix_cache=cache)
    high = judged(energy_wh=energy_wh * factor, interval_s=interval_s, prefix_cache=cache)
    for below, above in zip(low.findings, high.findings, strict=True):
        order = _SEVERITY.index(below.status) - _SEVERITY.index(above.status)
        assert order <= 0 if below.rule == "mean-power" else order >= 0


@settings(max_examples=60, deadline=None)
@given(
    interval_s=INTERVALS,
    prompt=st.floats(1, 1e5),
    output=st.floats(1, 1e4),
    grow=st.sampled_from(["interval_s", "prompt_tokens", "output_tokens", "gpus"]),
    factor=st.integers(2, 8),
)
def test_every_floor_rises_with_time_tokens_and_boards(
    interval_s: float, prompt: float, output: float, grow: str, factor: int
) -> None:
    claim = parse_claim(
        [f"{k}={v}" for k, v in STUDY.items()] + ["energy_wh=1", "interval_s=1", "max_in_flight=4"]
    )
    small = replace(
        claim,
        interval_s=interval_s,
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=Range(0.0, prompt - 1),
    )
    if grow == "gpus":
        large = replace(small, boards=factor)
    else:
        large = replace(small, **{grow: getattr(small, grow) * factor})
    for a, b in zip(judge(small).findings, judge(large).findings, strict=True):
        if a.rule != "mean-power" and not (grow == "gpus" and a.rule == "byte-floor"):
            assert a.bound is not None
            assert b.bound is not None
            assert b.bound >= a.bound * (1 - 1e-12)
            assert (b.sure or 0) >= (a.sure or 0) * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(energy_wh=ENERGIES, interval_s=INTERVALS)
def test_what_is_impossible_with_the_cache_unknown_is_so_with_it_off(
    energy_wh: float, interval_s: float
) -> None:
    unknown = judged(energy_wh=energy_wh, interval_s=interval_s)
    off = judged(energy_wh=energy_wh, interval_s=interval_s, prefix_cache="off")
    assert unknown.possible or not off.possible
    for a, b in zip(unknown.findings, off.findings, strict=True):
        assert _SEVERITY.index(b.status) >= _SEVERITY.index(a.status) or a.rule == "byte-floor"


@given(prompt=st.integers(1, 5000), output=st.integers(1, 500), data=st.data())
def test_cached_tokens_are_worth_exactly_the_prefill_they_save(
    prompt: int, output: int, data: st.DataObject
) -> None:
    cached = data.draw(st.integers(0, prompt - 1))
    model = MODELS["llama-3.1-8b"]
    # token by token: row t of the prompt attends t + 1 keys, and so on through the reply
    last = prompt + output - 1
    rows, pairs = last - cached, (last * (last + 1) - cached * (cached + 1)) / 2
    expected = 2.0 * LAYER_WEIGHTS * rows + PAIR_FLOP * pairs + 2.0 * HEAD_WEIGHTS * output
    assert floor.request_flop(model, prompt, output, cached) == pytest.approx(expected, rel=1e-12)


def test_weights_of_the_layers_leave_out_embedding_and_head() -> None:
    assert floor.layer_weight_bytes(MODELS["llama-3.1-8b"], DTYPES["bfloat16"]) == 2 * LAYER_WEIGHTS
