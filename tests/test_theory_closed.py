"""Closed forms of the study's roofline: published coefficients, and the sums that they replace."""

from __future__ import annotations

import numpy as np
import pytest
from test_theory_llm import LLAMA, RIDGE_15, study

from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.physics.study.closed import closed_forms, decode_is_memory_bound, switching, switching_rows
from loadgen.physics.study.llm import EFFICIENCIES, Roofline, Scope

PAIRS = ("raw", "main", "appendix")
STATED = 5e-3
"""Relative tolerance of the study's own figures where they reproduce."""


def shown(digits: str) -> object:
    """The digits to 1e-6, or to half a unit of the last one where fewer are shown."""
    mantissa, _, exponent = digits.partition("e")
    decimals = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - decimals)
    return pytest.approx(float(digits), rel=1e-6, abs=0.5000001 * unit)


# A row of reference values: raw peaks, main pair, appendix pair.
COEFFICIENTS: dict[tuple[str, Scope], tuple[str, str, str]] = {
    ("const_s", "dominant"): ("8.31975e-3", "1.878047e-2", "2.971338e-2"),
    ("const_s", "dominant+wo"): ("8.96079e-3", "2.022751e-2", "3.200281e-2"),
    ("gamma_s", "dominant"): ("1.923120e-4", "2.849066e-4", "2.747314e-4"),
    ("gamma_s", "dominant+wo"): ("2.083380e-4", "3.086488e-4", "2.976256e-4"),
    ("eta_printed_s", "dominant"): ("7.82519e-9", "1.159288e-8", "1.117885e-8"),
    ("eta_s", "dominant"): ("7.90161e-9", "1.170609e-8", "1.128802e-8"),
    ("a_printed_s", "dominant"): ("8.32225e-3", "1.878612e-2", "2.972232e-2"),
    ("a_s", "dominant"): ("8.32319e-3", "1.878825e-2", "2.972569e-2"),
    ("a_s", "dominant+wo"): ("8.96455e-3", "2.023600e-2", "3.201624e-2"),
    ("b_printed_s", "dominant"): ("4.034866e-8", "9.108049e-8", "1.441023e-7"),
    ("b_s", "dominant"): ("2.017433e-8", "4.554024e-8", "7.205117e-8"),
    ("linear_from_tokens", "dominant"): ("43.3", "65.9", "108.2"),
    ("quadratic_from_tokens", "dominant"): ("24338", "24338", "24338"),
}


@pytest.mark.parametrize(("name", "scope"), COEFFICIENTS, ids=str)
def test_published_coefficients(name: str, scope: Scope) -> None:
    for pair, digits in zip(PAIRS, COEFFICIENTS[name, scope], strict=True):
        assert float(getattr(closed_forms(study(pair, scope)), name)) == shown(digits), pair


SWITCHING = {
    "q_o_rows": ("40.7968", "62.8175", "105.1335"),
    "k_v_rows": ("42.0534", "65.8471", "113.9043"),
    "ffn_rows": ("40.5086", "62.1368", "103.2407"),
    "flash_tokens": ("99.5881", "167.8331", "343.2177"),
}


@pytest.mark.parametrize("name", SWITCHING)
def test_published_switching_lengths(name: str) -> None:
    for pair, digits in zip(PAIRS, SWITCHING[name], strict=True):
        assert getattr(switching(study(pair)), name) == shown(digits), pair


def test_what_the_study_itself_states_and_reproduces() -> None:
    raw = switching(study("raw"))
    assert (raw.q_o_rows, raw.ffn_rows, raw.flash_tokens) == (
        pytest.approx(40.80, rel=STATED),
        pytest.approx(40.51, rel=STATED),
        pytest.approx(99.59, rel=STATED),
    )
    assert float(closed_forms(study()).eta_s) == pytest.approx(1.17e-8, rel=STATED)  # its fitted beta


def test_ridges_and_knees() -> None:
    for pair, digits in zip(PAIRS, ("20.000", "30.4740", "50.0000"), strict=True):
        assert study(pair).ridge_flop_per_byte == shown(digits)
        # A/B is 412,563.636: 412,564 to the digits shown.
        assert float(closed_forms(study(pair, "dominant")).knee_output_tokens(0)) == shown("412564")


@pytest.mark.parametrize("pair", PAIRS)
def test_operations_turn_where_the_switching_lengths_say(pair: str) -> None:
    roofline, points = study(pair), switching(study(pair))
    names = {
        "q": points.q_o_rows,
        "v": points.k_v_rows,
        "down": points.ffn_rows,
        "flash": points.flash_tokens,
    }
    for name, length in names.items():
        for s, bound in ((np.floor(length), "memory"), (np.floor(length) + 1, "compute")):
            (row,) = (o for o in roofline.prefill_operations(s) if o.name == name)
            assert row.bound == bound, (name, s)
    sequences = np.floor(points.lm_head_sequences)
    for batch, bound in ((sequences, "memory"), (sequences + 1, "compute")):
        assert roofline.step_operations(5, batch)[-1].bound == bound


@pytest.mark.parametrize("pair", PAIRS)
def test_at_a_switching_length_both_times_are_equal(pair: str) -> None:
    roofline, points = study(pair), switching(study(pair))
    for name, length in {"o": points[0], "k": points[1], "gate": points[2], "flash": points[3]}.items():
        (row,) = (o for o in roofline.prefill_operations(length) if o.name == name)
        assert float(row.flop / row.traffic_bytes) == pytest.approx(roofline.ridge_flop_per_byte, rel=1e-12)
    head = roofline.step_operations(1, points.lm_head_sequences)[-1]
    assert float(head.flop / head.traffic_bytes) == pytest.approx(roofline.ridge_flop_per_byte, rel=1e-12)


def test_a_product_with_too_few_outputs_never_turns() -> None:
    # 2 n m <= r (n + m): 8 x 8 at r = 8 has 128 against 128.
    assert switching_rows(8.0, 8, 8) == np.inf
    assert switching_rows(9.0, 8, 8) == np.inf
    assert switching_rows(4.0, 8, 8) == 4.0
    half = Roofline.of(LLAMA, GPUS["h100-sxm"], DTYPES["bfloat16"], EFFICIENCIES["raw"])
    assert switching(half).flash_tokens == np.inf
    assert half.prefill_operations(1e6)[3].bound == "memory"


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "qwen2.5-0.5b"])
@pytest.mark.parametrize("scope", ["dominant", "dominant+wo"])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_closed_form_is_the_sum_while_memory_bound(pair: str, scope: Scope, model: str) -> None:
    roofline, batch = study(pair, scope, MODELS[model]), np.array([1, 2, 17, 40])
    forms = closed_forms(roofline, batch)
    for s in (1, 37, 1200, 128_000):
        for g in (2, 3, 52, 700):
            held = decode_is_memory_bound(roofline, s, g, batch)
            assert held[:3].all()
            summed = roofline.step_s(np.arange(s + 1, s + g)[:, None], batch).sum(axis=0)
            assert forms.decode_s(s, g)[held] == pytest.approx(summed[held], rel=1e-12)
            assert (summed[~held] > forms.decode_s(s, g)[~held]).all()
    assert (forms.decode_s(5, 1) == 0.0).all()
    assert (forms.decode_s(5, 0) == 0.0).all()


def test_where_the_closed_decode_form_ends() -> None:
    # The LM head turns first, one sequence before the MLP (62.1 and 103.2).
    for pair, largest in (("main", 60), ("appendix", 100)):
        batch = np.arange(1, 130)
        held = decode_is_memory_bound(study(pair), 1200, 52, batch)
        assert batch[held].tolist() == list(range(1, largest + 1))
    # At a ridge of 15 attention turns at l = 349.
    assert decode_is_memory_bound(RIDGE_15, 300, [0, 1, 50, 51]).tolist() == [True, True, True, False]
    assert decode_is_memory_bound(RIDGE_15, 300, 5, [7, 8]).tolist() == [True, False]


@pytest.mark.parametrize("pair", PAIRS)
def test_prefill_beyond_every_switching_length_is_a_parabola(pair: str) -> None:
    roofline = study(pair)
    s = np.array([400, 5000, 128_000])
    assert closed_forms(roofline).prefill_s(s) == pytest.approx(roofline.prefill_s(s), rel=1e-12)
    many = closed_forms(roofline, 8)
    assert many.prefill_s(s) == pytest.approx(roofline.prefill_s(s, 8), rel=1e-12)


def test_expansions_are_the_same_polynomial() -> None:
    forms = closed_forms(study())
    s, g = np.meshgrid([1, 50, 4000, 10**6], [2, 52, 10_000, 10**6])
    decode_s = forms.decode_s(s, g)
    assert forms.delta_s(s) * g + forms.epsilon_s * g**2 + forms.constant_s(s) == pytest.approx(
        decode_s, rel=1e-9
    )
    assert forms.theta_s(g) + forms.lambda_s(g) * s == pytest.approx(decode_s, rel=1e-12)


def test_at_the_knees_both_parts_are_equal() -> None:
    forms = closed_forms(study())
    steps_s = forms.decode_s(700, 2) - 2 * forms.b_s  # A + 2sB: what a token costs whatever g
    knee = forms.knee_output_tokens(700)
    assert float(forms.b_s * knee) == pytest.approx(float(steps_s), rel=1e-9)
    s_knee = forms.knee_prompt_tokens(700)
    assert float(forms.lambda_s(700) * s_knee) == pytest.approx(float(forms.theta_s(700)), rel=1e-12)
    assert float(forms.b_s * knee * (knee - 1)) == pytest.approx(
        float(forms.decode_s(700, knee)) / 2, rel=1e-9
    )


def test_regimes() -> None:
    forms = closed_forms(study("main", "dominant"))
    assert forms.prefill_regime([1, 65, 66, 24_338, 24_339]).tolist() == [
        *("constant", "constant", "linear", "linear", "quadratic")
    ]
    assert forms.decode_regime(0, [1, 412_563, 412_564]).tolist() == ["linear", "linear", "quadratic"]
    assert forms.decode_regime([206_200, 206_400], 100).tolist() == ["linear", "prompt"]


def test_coefficients_scale_with_the_batch() -> None:
    one, four = closed_forms(study(), 1), closed_forms(study(), [4])
    assert four.const_s == one.const_s
    for name in ("gamma_s", "eta_s", "b_s"):
        assert getattr(four, name) == pytest.approx(4 * getattr(one, name), rel=1e-12)
    assert one.a_s < four.a_s < 1.01 * one.a_s
