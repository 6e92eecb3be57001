"""The study's LLM roofline: its published times, its operations, its fitted laws, the verb's answer.

Times are from an independent evaluation of the study's tables; s, g: prompt and output tokens.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import orjson
import pytest

from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS, Transformer
from loadgen.physics.study import fitted
from loadgen.physics.study.answer import answer, efficiency_of
from loadgen.physics.study.llm import EFFICIENCIES, SCOPES, Roofline, Scope
from loadgen.verbs import theory
from loadgen.verbs.parser import Parser

LLAMA, H100 = MODELS["llama-3.1-8b"], GPUS["h100-sxm"]
RIDGE_15 = Roofline(LLAMA, flop_per_s=15.0, bytes_per_s=1.0, word_bytes=1.0)
"""So low a ridge that decode attention turns compute bound on the way, at l = 16384 x 15 / 704 = 349.1."""


def study(efficiency: str = "main", scope: Scope = "dominant+wo", model: Transformer = LLAMA) -> Roofline:
    return Roofline.of(model, H100, DTYPES["float32"], EFFICIENCIES[efficiency], scope)


# Columns: main and appendix pair, each in the three scopes.
TIMES_S: dict[tuple[int, int], tuple[float, ...]] = {
    (1, 0): (1.878834e-2, 2.023609e-2, 2.024620e-2, 2.972584e-2, 3.201638e-2, 3.203239e-2),
    (100, 0): (3.008437e-2, 3.245859e-2, 3.333325e-2, 3.100071e-2, 3.340193e-2, 3.478575e-2),
    (1200, 0): (3.601607e-1, 3.886513e-1, 3.991320e-1, 3.481727e-1, 3.756458e-1, 3.922276e-1),
    (4096, 0): (1.364789, 1.462037, 1.497808, 1.316922, 1.410696, 1.467290),
    (32768, 0): (21.90656, 22.68454, 22.97070, 21.12505, 21.87525, 22.32799),
    (1200, 52): (9.638956e-1, 1.037731, 1.038248, 1.525021, 1.641838, 1.642656),
    (512, 256): (4.805868, 5.175044, 5.177629, 7.603569, 8.187659, 8.191749),
}
"""Prefill of s where g is 0, else decode of (s, g)."""


@pytest.mark.parametrize("tokens", TIMES_S, ids=str)
def test_published_times(tokens: tuple[int, int]) -> None:
    s, g = tokens
    sides = [(pair, scope) for pair in ("main", "appendix") for scope in SCOPES]
    for (pair, scope), expected_s in zip(sides, TIMES_S[tokens], strict=True):
        roofline = study(pair, scope)
        found_s = roofline.decode_s(s, g) if g else roofline.prefill_s(s)
        assert float(found_s) == pytest.approx(expected_s, rel=1e-6), (pair, scope)


def test_scopes_differ_by_what_the_study_left_out() -> None:
    # Without the output projection 7.2 % less (weights read) and 7.7 % (arithmetic); the light rows
    # add 0.05 % to a decode and 2.7 % to a prefill.
    dominant, with_o, full = (study("main", scope) for scope in SCOPES)
    assert float(1 - dominant.decode_s(1, 2) / with_o.decode_s(1, 2)) == pytest.approx(0.072, abs=5e-4)
    slopes = [float(r.prefill_s(401) - r.prefill_s(400)) for r in (dominant, with_o)]
    assert 1 - slopes[0] / slopes[1] == pytest.approx(0.077, abs=3e-3)  # attention's slope is in both
    assert float(full.decode_s(1200, 52) / with_o.decode_s(1200, 52)) == pytest.approx(1.0005, abs=5e-5)
    assert float(full.prefill_s(1200) / with_o.prefill_s(1200)) == pytest.approx(1.027, abs=5e-4)


def test_the_operations_are_the_tables_rows() -> None:
    names = [o.name for o in study("main", "full").prefill_operations(10)]
    assert len(names) == len(set(names)) == 21
    assert [o.name for o in study("main", "full").decode_operations(10, 3)] == names
    assert {o.name for o in study("main", "dominant").prefill_operations(10)} == {
        *("q", "k", "v", "flash", "up", "gate", "down", "lm_head")
    }
    with_o = [o.name for o in study().prefill_operations(10)]
    assert set(with_o) - {"o"} == {o.name for o in study("main", "dominant").prefill_operations(10)}


def test_operations_of_a_tiny_case_by_hand() -> None:
    # h = q = 8 (2 heads of 4), kv = 4, MLP 3, 5 words, one layer; s = 2, b = 1, one byte a value.
    tiny = Transformer("tiny", "", 1, 8, 2, 1, 4, 3, 5, 99, False, 0, "")
    roofline = Roofline(tiny, 1e30, 1.0, 1.0, "full")
    work = {o.name: (float(o.flop), float(o.traffic_bytes)) for o in roofline.prefill_operations(2)}
    assert work == {
        "lookup": (0, 16),
        "ln1": (80, 32),
        "ln2": (80, 32),
        "q": (256, 96),
        "o": (256, 96),
        "k": (128, 56),
        "v": (128, 56),
        "rope_q": (80, 48),
        "rope_k": (40, 32),
        "flash": (168, 80),
        "residual": (32, 64),
        "up": (96, 46),
        "gate": (96, 46),
        "down": (96, 46),
        "silu": (24, 12),
        "mult": (6, 12),
        "final_ln": (80, 32),
        "lm_head": (80, 49),
        "softmax": (25, 10),
        "sampling": (0.5, 5),
        "post": (0, 5),
    }
    # One decode step at l = 3: F = 3 x 42, D = 32 + 4 x 3 + 2 x 3; Table 8's final norm moves 4 h.
    step = {o.name: (float(o.flop), float(o.traffic_bytes)) for o in roofline.step_operations(3)}
    assert step["flash"] == (126, 50)
    assert step["final_ln"] == (40, 32)
    assert step["q"] == (128, 80)
    assert step["rope_q"] == (40, 24)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.id)
def test_a_decode_step_reads_every_weight_but_the_embedding_once(model: Transformer) -> None:
    # Bytes are weights + batch x activations, so 2 D(1) - D(2) is the weights.
    def traffic(batch: int) -> float:
        return sum(
            float(o.traffic_bytes) for o in study("main", "dominant+wo", model).step_operations(7, batch)
        )

    bias = (model.heads + 2 * model.kv_heads) * model.head_dim if model.qkv_bias else 0
    unread = 0 if model.tied_embeddings else model.vocabulary * model.hidden
    vectors = model.layers * (model.layer_vectors + bias) + model.hidden
    weights = model.parameters - unread - vectors
    assert 2 * traffic(1) - traffic(2) == pytest.approx(4 * weights, rel=1e-12)
    if model is LLAMA:
        assert weights == pytest.approx(7.505e9, rel=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("roofline", [study(), study("raw"), RIDGE_15], ids=["main", "raw", "ridge-15"])
def test_decode_is_the_sum_of_its_steps(roofline: Roofline, scope: Scope) -> None:
    roofline = Roofline(LLAMA, roofline.flop_per_s, roofline.bytes_per_s, roofline.word_bytes, scope)
    for s, g, b in ((1, 2, 1), (200, 300, 1), (349, 3, 1), (348, 3, 5), (900, 40, 70)):
        steps = roofline.step_s(np.arange(s + 1, s + g), b)
        assert steps.shape == (g - 1,)
        assert float(roofline.decode_s(s, g, b)) == pytest.approx(float(steps.sum()), rel=1e-12)


@pytest.mark.parametrize("roofline", [study("main", "full"), study("raw", "full"), RIDGE_15])
def test_an_operation_takes_the_larger_of_its_two_times(roofline: Roofline) -> None:
    contexts, batch = np.array([1, 348, 349, 350, 351, 9000]), np.array([[1], [100]])
    for operations in (
        roofline.step_operations(contexts, batch),
        roofline.prefill_operations(contexts, batch),
    ):
        for o in operations:
            slower_s = np.maximum(o.flop / roofline.flop_per_s, o.traffic_bytes / roofline.bytes_per_s)
            assert o.time_s == pytest.approx(slower_s, rel=1e-12), o.name


def test_attention_may_turn_within_a_decode() -> None:
    flash = [RIDGE_15.step_operations(context)[3] for context in (349, 350)]
    assert [(o.name, o.bound) for o in flash] == [("flash", "memory"), ("flash", "compute")]


def test_nothing_is_decoded_after_the_only_token() -> None:
    assert study().decode_s(1200, [0, 1]).tolist() == [0.0, 0.0]
    assert float(study().decode_s(1200, 2)) == pytest.approx(float(study().step_s(1201)), rel=1e-12)


def test_a_decode_may_be_cut_anywhere() -> None:
    whole = float(study().decode_s(300, 90))
    first = np.arange(1, 90)
    assert study().decode_s(300, first) + study().decode_s(300 + first - 1, 91 - first) == pytest.approx(
        whole
    )


def test_arrays_broadcast() -> None:
    s, g, b = np.array([[1], [64], [2000]]), np.array([1, 2, 50, 400]), 3
    decode_s = study("main", "full").decode_s(s, g, b)
    assert decode_s.shape == (3, 4)
    assert study("main", "full").prefill_s(s, [1, 2]).shape == (3, 2)
    assert decode_s[2, 3] == study("main", "full").decode_s(2000, 400, 3)
    assert all(
        o.time_s.shape == o.count.shape == (3, 4) for o in study("main", "full").decode_operations(s, g, b)
    )


def test_times_fall_with_the_ceilings_and_rise_with_the_work() -> None:
    base, twice = study(), Roofline(LLAMA, 2 * study().flop_per_s, 2 * study().bytes_per_s, 4)
    s = np.unique(np.geomspace(1, 1e5, 60).astype(int))
    assert base.prefill_s(s) == pytest.approx(2 * twice.prefill_s(s), rel=1e-12)
    assert (np.diff(base.prefill_s(s)) > 0).all()
    assert (np.diff(base.decode_s(s, 20)) > 0).all()
    assert (np.diff(base.decode_s(20, s)) > 0).all()
    batch = np.arange(1, 300)
    assert (np.diff(base.decode_s(20, 20, batch)) > 0).all()
    assert (np.diff(base.decode_s(20, 20, batch) / batch) < 1e-15).all()  # a larger batch costs no more each


def test_memory_bound_time_is_proportional_to_the_word() -> None:
    half = Roofline(LLAMA, study().flop_per_s, study().bytes_per_s, 2)
    assert float(study().decode_s(1200, 52)) == pytest.approx(2 * float(half.decode_s(1200, 52)), rel=1e-12)


def test_peaks_are_the_boards_for_the_format() -> None:
    raw = study("raw")
    assert (raw.flop_per_s, raw.bytes_per_s, raw.word_bytes) == (67e12, 3.35e12, 4)
    half = Roofline.of(LLAMA, H100, DTYPES["bfloat16"], EFFICIENCIES["appendix"])
    assert (half.flop_per_s, half.word_bytes) == (pytest.approx(0.7 * 989e12), 2)
    fp8 = Roofline.of(
        LLAMA, GPUS["a100-sxm"], DTYPES["fp8"], EFFICIENCIES["raw"]
    )  # no unit: 16-bit arithmetic
    assert (fp8.flop_per_s, fp8.word_bytes) == (312e12, 1)


def test_the_fitted_laws() -> None:
    assert float(fitted.PREFILL_S(1200)) == pytest.approx(0.415248, rel=1e-6)
    assert float(fitted.DECODE_S(1200, 52)) == pytest.approx(1.324813, rel=1e-6)
    assert float(fitted.PREFILL_WH(1200)) == pytest.approx(0.077600, rel=1e-6)
    assert float(fitted.DECODE_WH(1200, 52)) == pytest.approx(0.123959, abs=5e-7)
    assert float(fitted.total_wh(1200, 52)) == pytest.approx(0.201559, rel=1e-6)
    assert float(fitted.total_wh(1200, 52)) == pytest.approx(0.202, rel=5e-3)
    # The power it states is the ratio of its slopes.
    assert fitted.DECODE_S.linear * fitted.DECODE_W / 3600 == pytest.approx(2.13e-3, rel=5e-3)
    assert fitted.PREFILL_S.linear * fitted.PREFILL_W / 3600 == pytest.approx(6.05e-5, rel=5e-3)


def test_fitted_decode_is_never_negative() -> None:
    s, g = np.array([[1], [1200], [10**5]]), np.arange(0, 4)
    for law in (fitted.DECODE_S, fitted.DECODE_WH):
        assert (law(s, g)[:, :3] == 0.0).all()
        assert (law(s, g)[:, 3] > 0.0).all()
    with pytest.raises(ConfigError, match=r"prompt_tokens: expected >= 1, got 0"):
        fitted.PREFILL_S([5, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: study().prefill_s([3, -1]), "prompt_tokens: expected >= 1, got -1"),
        (lambda: study().prefill_s(float("nan")), "prompt_tokens: expected >= 1, got nan"),
        (lambda: study().decode_s(3, -1), "output_tokens: expected >= 0, got -1"),
        (lambda: study().prefill_s(3, 0), "batch: expected >= 1, got 0"),
        (lambda: study().step_s(0), "context_tokens: expected >= 1, got 0"),
        (lambda: Roofline(LLAMA, 0.0, 1.0, 1.0), "flop_per_s: expected a finite number > 0, got 0"),
        (lambda: study("main", "dominat"), "got dominat; did you mean 'dominant'?"),  # type: ignore[arg-type]
        (lambda: efficiency_of("0.5"), "two shares above 0 and up to 1 such as 0.6,0.8, got 0.5"),
        (lambda: efficiency_of("0.5,1.5"), "two shares above 0"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        call()
    assert message in str(refused.value)


def test_a_model_of_experts_is_refused() -> None:
    experts = Transformer("moe", "", 2, 8, 2, 1, 4, 3, 5, 99, False, 0, "", experts=8, experts_per_token=2)
    with pytest.raises(ConfigError, match="formulas are of dense MLPs, but moe has 8 experts a layer"):
        study(model=experts)


def run(words: str) -> int:
    parser = Parser(prog="loadgen")
    theory.add_verb(parser.add_subparsers(), argparse.RawDescriptionHelpFormatter)
    args = parser.parse_args(["theory", "llm", *words.split()])
    return int(args.go(args))


def test_the_verb_answers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--model llama-3.1-8b --gpu h100-sxm --dtype float32 --efficiency main --scope full --batch 1"
    assert run(f"{line} --prompt-tokens 1200 --output-tokens 52 --operations --json") == 0
    found = orjson.loads(capsys.readouterr().out)
    assert found["prefill_s"] == pytest.approx(3.991320e-1, rel=1e-6)
    assert found["decode_s"] == pytest.approx(1.038248, rel=1e-6)
    assert found["total_s"] == found["prefill_s"] + found["decode_s"] and found["label"] == "estimated"
    for phase, passes in (("prefill", 1), ("decode", 51)):
        rows = found["operations"][phase]
        assert sum(row["time_s"] for row in rows) == pytest.approx(found[f"{phase}_s"], rel=1e-12)
        counts = {(row["where"], row["name"] == "residual"): row["count"] for row in rows}
        expected = {("once", False): 1, ("block", False): 32, ("block", True): 64, ("after", False): 1}
        assert counts == {key: passes * count for key, count in expected.items()}
        assert {row["bound"] for row in rows} == ({"compute", "memory"} if phase == "prefill" else {"memory"})
    (q,) = (row for row in found["operations"]["prefill"] if row["name"] == "q")
    assert q["flop"] == 32 * 2 * 1200 * 4096**2
    assert q["bytes"] == 32 * (2 * 1200 * 4096 + 4096**2) * 4
    closed, s, g = found["closed_form"], 1200, 52
    decode_s = pytest.approx(float(study().decode_s(s, g)), rel=1e-9)
    assert closed["decode_s"] == decode_s
    assert closed["delta_s"] * g + closed["epsilon_s"] * g**2 + closed["constant_s"] == decode_s
    assert closed["theta_s"] + closed["lambda_s"] * s == decode_s
    assert (found["fit"]["label"], found["fit"]["energy_wh"]) == ("fit", pytest.approx(0.201559, rel=1e-6))


def test_the_verb_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--operations") == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("0.388651 s 1.03773 s", "0.201559 Wh", "q o 62.82 rows", "lm_head after 51"):
        assert words in out
    assert run("--dtype bfloat16 --batch 700 --efficiency raw --output-tokens 9") == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("no fit: fitted to llama-3.1-8b in float32", "flash never", "decode: no closed form"):
        assert words in out


def test_what_has_no_answer_has_a_reason() -> None:
    def at(dtype: str, batch: int) -> dict[str, Any]:
        return answer("qwen2.5-7b", "a100-sxm", dtype, batch=batch, prompt_tokens=9, output_tokens=1)

    for found in (at("float32", 1), at("bfloat16", 4000)):
        closed = found["closed_form"]
        assert found["decode_s"] == closed["decode_s"] == 0.0
        assert (closed["quadratic_from_tokens"] is None) == bool(closed["prefill_reason"])
        assert (found["switching"]["flash_tokens"] is None) == bool(closed["prefill_reason"])
        assert found["fit"]["energy_wh"] is None
        assert "llama-3.1-8b in float32 on h100-sxm" in found["fit"]["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model llama-3.1-8", "got llama-3.1-8; did you mean 'llama-3.1-8b'?"),
        ("--gpu h100", "got h100; did you mean 'h100-sxm'?"),
        ("--dtype bfloat", "got bfloat; did you mean 'bfloat16'?"),
        ("--efficiency apendix", "got apendix; did you mean 'appendix'?"),
        ("--model nowhere/config.json", "nowhere/config.json: cannot be read: No such file or directory"),
    ],
)
def test_unknown_names_are_refused_in_one_line(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch 0", "argument --batch: expected a whole number from 1 to 1000000, got '0'"),
        ("--prompt-tokens 0", "argument --prompt-tokens: expected a whole number from 1 "),
        ("--output-tokens=-1", "argument --output-tokens: expected a whole number from 0 "),
        ("--output-tokens 1e3", "got '1e3'"),
        ("--scope all", "argument --scope: invalid choice: 'all'"),
    ],
)
def test_bad_flags_exit_with_2(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(words)
    err = capsys.readouterr().err
    assert (left.value.code, err.count("\n")) == (2, 1)
    assert message in err
