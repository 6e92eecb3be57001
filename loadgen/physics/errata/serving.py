"""The report's energies of serving, and its slips of the pen: A31 to A36."""

from __future__ import annotations

from dataclasses import replace

from loadgen.physics.errata.energy import MEAN_PROMPT, watt_hours, watts
from loadgen.physics.errata.erratum import Erratum, Figure
from loadgen.physics.errata.published import FIXED_WH, IDLE_W, LARGE_WH, RANDOM_WH, SCRIPT_GAP_S
from loadgen.physics.errata.study import H100, LLAMA, roofline
from loadgen.physics.models import MODELS
from loadgen.physics.study.closed import closed_forms

SERVING = "4.4: serving and arrivals"
NAMES = "elsewhere in the report"


def prefill_floor_wh() -> float:
    """Wh of a mean prompt's products on one H100 at its dense 16-bit peak and full power."""
    weights = LLAMA.layers * sum(k * n for k, n in LLAMA.gemm_shapes)
    return watt_hours(H100.tdp_w, 2 * weights * MEAN_PROMPT / H100.peak_flop_per_s["bfloat16"])


def entries() -> tuple[Erratum, ...]:
    """A31 to A36."""
    return (*_serving(), *_names())


def _serving() -> tuple[Erratum, ...]:
    spacing_s, mean_gap_s, boards = 0.05, 0.5, 4
    physical = Figure(
        f"idle boards at {IDLE_W:g} W for one gap of 50 ms, at least",
        FIXED_WH,
        watt_hours(IDLE_W, spacing_s),
        "Wh",
        relation=">=",
    )
    return (
        Erratum(
            "A31",
            "report",
            SERVING,
            "4.4.2, Figure 10c",
            "1.1e-3 Wh a request with one every 50 ms",
            (
                physical,
                Figure(
                    "arithmetic of a 1200-token prefill at peak rate and full power, at least",
                    FIXED_WH,
                    prefill_floor_wh(),
                    "Wh",
                    relation=">=",
                ),
                Figure("mean power that it means", IDLE_W, watts(FIXED_WH, spacing_s), "W", role="beside"),
            ),
            "not physical",
            "Perhaps failed requests were counted (the script has a 30 s timeout and 100 connections, and "
            "keeps errors in the denominator), or another, idle board was metered.",
        ),
        Erratum(
            "A32",
            "report",
            SERVING,
            "4.4.2, Figure 10a",
            "9.6e-3 Wh a request with gaps uniform on 0 to 1 s",
            (
                Figure(
                    f"idle board at {IDLE_W:g} W for a mean gap of 0.5 s, at least",
                    RANDOM_WH,
                    watt_hours(IDLE_W, mean_gap_s),
                    "Wh",
                    relation=">=",
                ),
                Figure("mean power that it means", IDLE_W, watts(RANDOM_WH, mean_gap_s), "W", role="beside"),
                Figure(
                    "the same at the script's gaps",
                    IDLE_W,
                    watts(RANDOM_WH, SCRIPT_GAP_S),
                    "W",
                    role="beside",
                ),
            ),
            "inconsistent",
            "Plausible with the gaps that the authors' script has by default, uniform on 0.05 to 0.3 s.",
        ),
        Erratum(
            "A33",
            "report",
            SERVING,
            "4.4.3, Figure 10b",
            "2.4e-2 Wh a request of a 70B model on four boards",
            (
                Figure(
                    f"four idle boards at {IDLE_W:g} W for a mean gap of 0.5 s, at least",
                    LARGE_WH,
                    watt_hours(boards * IDLE_W, mean_gap_s),
                    "Wh",
                    relation=">=",
                ),
                Figure(
                    "mean power of a board", IDLE_W, watts(LARGE_WH, mean_gap_s) / boards, "W", role="beside"
                ),
                Figure(
                    "the same at the script's gaps",
                    IDLE_W,
                    watts(LARGE_WH, SCRIPT_GAP_S) / boards,
                    "W",
                    role="beside",
                ),
            ),
            "inconsistent",
            f"Idle boards alone take that much in {LARGE_WH * 3600 / (boards * IDLE_W):.2f} s. The spacing "
            "is not stated; it cannot be the one of the section.",
        ),
        Erratum(
            "A34",
            "report",
            SERVING,
            "4.4.1",
            "request i is sent at i times a delay uniform on 0 to 1 s",
            (),
            "ambiguous",
            "Taken literally with a draw for each request, arrival i is uniform on 0 to i and the load is "
            "heaviest at the start; the script adds up i draws for each request, which is locally a Poisson "
            "stream. loadgen has both, and a renewal process, as separate arrival kinds.",
        ),
    )


def _names() -> tuple[Erratum, ...]:
    words = [replace(roofline("main", "dominant+wo"), word_bytes=size) for size in (4.0, 2.0)]
    float32, float16 = (float(closed_forms(word).a_s) for word in words)
    eight, seventy = LLAMA.parameters, MODELS["llama-3.1-70b"].parameters
    return (
        Erratum(
            "A35",
            "report",
            NAMES,
            "4.2.2",
            "latency and energy of a token scale inversely with the word size",
            (Figure("time of a decode step at 4 bytes over that at 2", 0.5, float32 / float16),),
            "wording",
            "Proportionally. The gains named after it are the right way around.",
        ),
        Erratum(
            "A36",
            "report",
            NAMES,
            "4.4.3, Table 6, 3.6, A.2.1",
            '70B is ten times 8B; "LLaMA-2 8B", "LLaMA 3-8B"; "equations (7)-(6)"',
            (Figure("weights of 70B over those of 8B", 10, seventy / eight),),
            "typo",
            "The model is LLaMA-3.1-8B throughout, the equations (2) to (6).",
        ),
    )
