"""The report's roofline of decode and the laws fitted beside the roofline: A5 to A11 and A20 to A23."""

from __future__ import annotations

from dataclasses import replace

from loadgen.physics.errata.digits import number
from loadgen.physics.errata.erratum import ORDER, ROUND, Erratum, Figure
from loadgen.physics.errata.study import LLAMA, both, forms, roofline
from loadgen.physics.study import fitted
from loadgen.physics.study.closed import closed_forms

DECODE = "3.4.1 and A.3: the roofline of decode"
FITTED = "3.4.1: the fitted latency laws"


def entries() -> tuple[Erratum, ...]:
    """A5 to A11 and A20 to A23."""
    return (*_decode(), *_decode_knees(), *_fitted())


def _decode() -> tuple[Erratum, ...]:
    n, h, ffn, v = LLAMA.layers, LLAMA.hidden, LLAMA.ffn, LLAMA.vocabulary
    raw = roofline("raw")
    value_s = raw.word_bytes / raw.bytes_per_s
    one, two = closed_forms(raw, 1), closed_forms(raw, 2)
    appendix = forms("appendix")
    return (
        Erratum(
            "A5",
            "report",
            DECODE,
            "A.3.3, equation 12",
            "A, time of a decode step apart from the context, with FLOP as its unit",
            (
                *both("A as printed", 6.40e-3, "a_printed_s", "s"),
                Figure(
                    "Q, O, two of three MLP matrices and the LM head, raw bandwidth",
                    6.40e-3,
                    (n * (2 * h * h + 2 * h * ffn) + h * v) * value_s,
                    "s",
                    role="cause",
                ),
            ),
            "not reproduced",
            "Perhaps an older version at the raw peak, without the third MLP matrix. The unit is seconds.",
        ),
        Erratum(
            "A6",
            "report",
            DECODE,
            "A.3.3",
            "B, time to attend to one more token of context",
            (
                *both("B as printed", 3.91e-7, "b_printed_s", "s/token"),
                Figure("B as it must be, 0.7 / 0.28", 3.91e-7, float(appendix.b_s), "s/token"),
                Figure(
                    "N (2 h_q + 2 h_kv) values at the raw bandwidth",
                    3.91e-7,
                    n * (2 * raw.q_width + 2 * raw.kv_width) * value_s,
                    "s/token",
                    role="cause",
                ),
            ),
            "not reproduced",
            "Perhaps an older count of bytes, before grouped queries.",
        ),
        Erratum(
            "A7",
            "report",
            DECODE,
            "A.3.3, formula of B",
            "B = N b (n_q + h_kv) b_w / B_eff in A (g-1) + B (g-1)(g+2s)",
            (
                Figure(
                    "the printed formula, 0.7 / 0.28",
                    float(appendix.b_printed_s),
                    float(appendix.b_s),
                    "s/token",
                ),
                Figure(
                    "decode of s = 512, g = 256, printed A and B beside the sum over steps",
                    float(appendix.a_printed_s) * 255 + float(appendix.b_printed_s) * 255 * (256 + 2 * 512),
                    float(roofline("appendix").decode_s(512, 256)),
                    "s",
                    role="beside",
                ),
            ),
            "wrong",
            "The contexts s+1 to s+g-1 add up to (g-1)(g+2s)/2: B lacks the half.",
        ),
        Erratum(
            "A8",
            "report",
            DECODE,
            "A.3.3, formula of A",
            "12 N b h_q and one N b h_ff of activations, no output projection",
            (
                Figure(
                    "activations of a step and sequence by the formula, by Table 8",
                    float(two.a_printed_s - one.a_printed_s) / value_s,
                    float(two.a_s - one.a_s) / value_s,
                    "values",
                ),
                Figure("A with them", float(one.a_printed_s), float(one.a_s), "s", role="beside"),
                Figure(
                    "A with the output projection too",
                    float(one.a_printed_s),
                    float(forms("raw", "dominant+wo").a_s),
                    "s",
                    role="beside",
                ),
            ),
            "typo",
            "Table 8's dominant rows have 11 N h_q (one more h_q in the LM head) and 3 N h_ff. It changes A "
            f"by {number(round(float(one.a_s / one.a_printed_s) - 1, 5))}; the missing projection by "
            f"{float(forms('raw', 'dominant+wo').a_s / one.a_s) - 1:.1%}.",
        ),
        Erratum(
            "A9",
            "report",
            DECODE,
            "A.3.3, theta(g)",
            "theta = (A + g)(g - 1), about 82.1 (g - 1) and a small quadratic term",
            (
                Figure("coefficient of g - 1, A at 0.7 / 0.28", 8.21e1, float(appendix.a_s), "s"),
                Figure(
                    "theta(100) as printed, with A as stated",
                    (6.40e-3 + 100) * (100 - 1),
                    float(appendix.theta_s(100)),
                    "s",
                ),
            ),
            "wrong",
            "B was lost from (A + B g)(g - 1). Nothing found explains 82.1.",
        ),
    )


def _decode_knees() -> tuple[Erratum, ...]:
    appendix = forms("appendix")
    law = fitted.DECODE_S
    knee = float(appendix.knee_output_tokens(0))
    return (
        Erratum(
            "A10",
            "report",
            DECODE,
            "A.3.3, asymptotic regimes",
            "knees g* = A/B + 2s and s* = A/(2B) + g/2",
            (
                Figure("g* from the stated A and B", 7.93e4, 6.40e-3 / 3.91e-7, "tokens"),
                Figure("g* from the formulas", 7.93e4, knee, "tokens"),
                Figure(
                    "g* from the formulas, B not halved",
                    7.93e4,
                    float(appendix.a_s / appendix.b_printed_s),
                    "tokens",
                    role="beside",
                ),
                Figure("s* from the formulas", 3.96e4, float(appendix.knee_prompt_tokens(0)), "tokens"),
            ),
            "inconsistent",
            f"Versions were mixed: the stated g* and B belong to A = {7.93e4 * 3.91e-7:.4f} s. s* is half "
            "of g*, as it should be.",
        ),
        Erratum(
            "A11",
            "report",
            DECODE,
            "3.4.1 and A.3.3",
            "output lengths from which decode is quadratic: 1e5 in the body, 1e8 in the appendix",
            (
                Figure("body, g* of the roofline", 1e5, knee, "tokens", ORDER),
                Figure("body, eta / phi of the fit", 1e5, law.linear / law.quadratic, "tokens", ORDER),
                Figure("appendix, g* of the roofline", 1e8, knee, "tokens", ORDER),
            ),
            "inconsistent",
            "The body has the order of magnitude; the appendix is wrong.",
        ),
    )


def _fitted() -> tuple[Erratum, ...]:
    prefill, decode = fitted.PREFILL_S, fitted.DECODE_S
    main, wide = forms("main"), forms("main", "dominant+wo")
    slow = forms("appendix", "dominant+wo")
    raw = forms("raw", "dominant+wo")
    half = replace(decode, quadratic=decode.mixed / 2)
    return (
        Erratum(
            "A20",
            "report",
            FITTED,
            "prefill law",
            "gamma of the fit, the constant of the prefill law",
            (
                Figure(
                    "what is left at s = 0 with all products compute bound",
                    prefill.constant,
                    float(main.lm_head_s),
                    "s",
                ),
                Figure(
                    "reading the weights, below 66 tokens only", prefill.constant, float(main.const_s), "s"
                ),
                Figure(
                    "the same with the output projection",
                    prefill.constant,
                    float(wide.const_s),
                    "s",
                    role="beside",
                ),
            ),
            "not reproduced",
            f"Perhaps {1e3 * (prefill.constant - float(main.lm_head_s)):.0f} ms of host time in each call, "
            "which no roofline has.",
        ),
        Erratum(
            "A21",
            "report",
            FITTED,
            "decode law",
            "eta of the fit, seconds of a decode step",
            (
                Figure(
                    "A with the output projection, 0.675 / 0.443", decode.linear, float(wide.a_s), "s/token"
                ),
                Figure("A with the output projection, 0.7 / 0.28", decode.linear, float(slow.a_s), "s/token"),
                Figure(
                    "the weights at the raw bandwidth",
                    decode.linear,
                    float(raw.a_s),
                    "s/token",
                    role="beside",
                ),
            ),
            "not reproduced",
            f"Neither pair: it would take a bandwidth efficiency of {float(raw.a_s) / decode.linear:.3f}. "
            "Steps wait for the host to dispatch kernels.",
        ),
        Erratum(
            "A22",
            "report",
            FITTED,
            "decode law",
            "theta and phi of the fit, coefficients of s g and g^2",
            (
                Figure(
                    "phi, half of theta by the sum over contexts",
                    decode.quadratic,
                    half.quadratic,
                    "s/token^2",
                ),
                Figure("theta, 2B at 0.675 / 0.443", decode.mixed, 2 * float(main.b_s), "s/token^2"),
            ),
            "not reproduced",
            f"phi is {decode.quadratic / decode.mixed:.3f} of theta. Replies of 10 to 300 tokens do not "
            "determine a quadratic term.",
        ),
        Erratum(
            "A23",
            "report",
            FITTED,
            "decode laws of time and energy",
            "negative constants rho and E",
            (
                Figure("rho, minus eta for g - 1 steps", decode.constant, -decode.linear, "s"),
                Figure("rho, minus 2 eta", decode.constant, -2 * decode.linear, "s", ROUND, role="cause"),
                Figure(
                    "E, minus 2 C",
                    fitted.DECODE_WH.constant,
                    -2 * fitted.DECODE_WH.linear,
                    "Wh",
                    3 * ROUND,
                    role="cause",
                ),
            ),
            "explained",
            "The measured g is 2 too large: the first token belongs to prefill, and tokenising the reply "
            "again adds a start token.",
        ),
    )
