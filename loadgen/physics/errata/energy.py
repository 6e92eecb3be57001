"""The report's energies: fitted laws and the mean of a reply; A24 to A30."""

from __future__ import annotations

from dataclasses import replace

from loadgen.physics.errata.erratum import ROUND, Erratum, Figure
from loadgen.physics.errata.published import (
    BASELINE_WH,
    CPU_WH,
    FIXED_WH,
    GPU_WH,
    RAM_WH,
    RANDOM_WH,
)
from loadgen.physics.errata.study import H100
from loadgen.physics.study import fitted

LAWS = "3.5: energy and power"
REPLY = "3.2 and 4.5: energy of a reply"

MEAN_PROMPT, MEAN_OUTPUT = 1200, 52
"""Tokens: the report's mean prompt, and the mean output at which its laws give its mean energy."""


def watts(wh: float, seconds: float) -> float:
    """Mean power."""
    return wh * 3600.0 / seconds


def watt_hours(power_w: float, seconds: float) -> float:
    """Energy at a power."""
    return power_w * seconds / 3600.0


def entries() -> tuple[Erratum, ...]:
    """A24 to A30."""
    return (*_laws(), *_reply())


def _laws() -> tuple[Erratum, ...]:
    times, energies = (fitted.PREFILL_S, fitted.DECODE_S), (fitted.PREFILL_WH, fitted.DECODE_WH)
    (prefill_s, decode_s), (prefill_wh, decode_wh) = times, energies
    proportional = decode_s.mixed * fitted.DECODE_W / 3600
    smaller = replace(decode_wh, mixed=decode_wh.mixed / 10)
    request = (MEAN_PROMPT, MEAN_OUTPUT)
    # A line through s^2 on [a, b] has the intercept -(a^2 + 4ab + b^2) / 6.
    least, most = 200, 4000
    bent_s = prefill_s.constant - prefill_s.quadratic * (least**2 + 4 * least * most + most**2) / 6
    mean_prefill_w = watts(float(prefill_wh(MEAN_PROMPT)), float(prefill_s(MEAN_PROMPT)))
    mean_decode_w = watts(float(decode_wh(*request)), float(decode_s(*request)))
    return (
        Erratum(
            "A24",
            "report",
            LAWS,
            "decode energy",
            "C, energy of an output token",
            (Figure("eta x 293 W", decode_wh.linear, decode_s.linear * fitted.DECODE_W / 3600, "Wh/token"),),
        ),
        Erratum(
            "A25",
            "report",
            LAWS,
            "prefill energy",
            "slope A and intercept B of the prefill energy",
            (
                Figure(
                    "A, alpha x 684 W",
                    prefill_wh.linear,
                    prefill_s.linear * fitted.PREFILL_W / 3600,
                    "Wh/token",
                ),
                Figure(
                    "B, gamma x 684 W",
                    prefill_wh.constant,
                    watt_hours(fitted.PREFILL_W, prefill_s.constant),
                    "Wh",
                ),
                Figure(
                    "B, intercept of a line through the time law on 200 to 4000 tokens, x 684 W",
                    prefill_wh.constant,
                    watt_hours(fitted.PREFILL_W, bent_s),
                    "Wh",
                    role="beside",
                ),
            ),
            "not reproduced",
            "The slope is the time's at 684 W, the intercept is not. The quadratic term that the energy law "
            "leaves out is no cause: it would make the intercept smaller, not larger.",
        ),
        Erratum(
            "A26",
            "report",
            LAWS,
            "decode energy",
            "D, energy to attend to one more token of prompt; time and energy said to be proportional",
            (
                Figure("theta x 293 W", decode_wh.mixed, proportional, "Wh/token^2"),
                Figure(
                    "D / theta, at most the board's limit",
                    watts(decode_wh.mixed, decode_s.mixed),
                    H100.tdp_w,
                    "W",
                    relation="<=",
                ),
                Figure(
                    "mean energy of a reply with D",
                    GPU_WH,
                    float(fitted.total_wh(*request)),
                    "Wh",
                    role="cause",
                ),
                Figure(
                    "mean energy of a reply with D / 10",
                    GPU_WH,
                    float(prefill_wh(MEAN_PROMPT) + smaller(*request)),
                    "Wh",
                    role="beside",
                ),
                Figure(
                    "regression of the ten rows that the authors show",
                    decode_wh.mixed,
                    2.72e-7,
                    "Wh/token^2",
                    role="beside",
                    source="rows shown in an older notebook of the authors' repository",
                ),
            ),
            "inconsistent",
            "Looks like a slip of the exponent and is none: the mean needs D as it is, and so do the rows. "
            "What fails is the proportionality: decode draws more on long prompts, whose work fills the "
            "gaps between kernels.",
        ),
        Erratum(
            "A27",
            "report",
            LAWS,
            "power of the phases",
            "684 W in prefill and 293 W in decode, said to be recorded",
            (
                Figure(
                    "prefill, energy over time of the laws at 1200 tokens",
                    fitted.PREFILL_W,
                    mean_prefill_w,
                    "W",
                    ROUND,
                ),
                Figure(
                    "decode, energy over time of the laws at 1200 and 52 tokens",
                    fitted.DECODE_W,
                    mean_decode_w,
                    "W",
                    ROUND,
                ),
                Figure(
                    "prefill, A / alpha",
                    fitted.PREFILL_W,
                    watts(prefill_wh.linear, prefill_s.linear),
                    "W",
                    role="cause",
                ),
                Figure(
                    "decode, C / eta",
                    fitted.DECODE_W,
                    watts(decode_wh.linear, decode_s.linear),
                    "W",
                    role="cause",
                ),
            ),
            "inconsistent",
            "They are ratios of fitted slopes, so that agreement of the laws with them proves nothing. 293 "
            "W is the limit of an empty prompt; the mean decode power is higher.",
        ),
    )


def _reply() -> tuple[Erratum, ...]:
    total = GPU_WH + CPU_WH + RAM_WH
    decode_wh = float(fitted.DECODE_WH(MEAN_PROMPT, MEAN_OUTPUT))
    return (
        Erratum(
            "A28",
            "report",
            REPLY,
            "3.2",
            "a reply takes 0.202 Wh of GPU, 0.024 of CPU, 0.019 of RAM: 0.245 Wh, a 5 W LED for nearly 3 "
            "minutes",
            (
                Figure("sum of the parts", 0.245, total, "Wh"),
                Figure("time of 5 W", 3, total / 5 * 60, "min", ROUND),
                Figure("energy laws at s = 1200, g = 52", GPU_WH, float(fitted.total_wh(1200, 52)), "Wh"),
            ),
            cause='The "variance" after the plus-minus sign is in Wh, so it is a standard deviation.',
        ),
        Erratum(
            "A29",
            "report",
            REPLY,
            "4.4.2, 4.5",
            "a baseline of 0.12 Wh, float32 in one place and bfloat16 in another",
            (
                Figure("the float32 mean of 3.2", BASELINE_WH, GPU_WH, "Wh"),
                Figure(
                    "decode alone, energy law at s = 1200, g = 52",
                    BASELINE_WH,
                    decode_wh,
                    "Wh",
                    ROUND,
                    role="cause",
                ),
                Figure(
                    "decode alone, mean of 1000 float32 replies",
                    BASELINE_WH,
                    0.11995,
                    "Wh",
                    role="cause",
                    source="a run in the authors' public repository",
                ),
            ),
            "inconsistent",
            "Probably the float32 mean of the decode phase alone.",
        ),
        Erratum(
            "A30",
            "report",
            REPLY,
            "4.4.2, 4.5",
            "gains of 12.5 by TGI, 100 and more by fixed spacing",
            (
                Figure("0.12 / 0.0096", 12.5, BASELINE_WH / RANDOM_WH),
                Figure("0.12 / 0.0011, at least", 100, BASELINE_WH / FIXED_WH, relation="<=", tolerance=0.0),
                Figure("0.202 / 0.0096", 12.5, GPU_WH / RANDOM_WH, role="beside"),
                Figure("0.202 / 0.0011", 100, GPU_WH / FIXED_WH, role="beside"),
            ),
            cause="The divisions are right; what is divided is not comparable (A29, A31).",
        ),
    )
